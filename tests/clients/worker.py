"""Runs a Python snippet for each job on standard input, and prints each line or event at once, with its time.

Usage: python -m tests.clients.worker SNIPPET
"""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
import time
from collections.abc import AsyncIterator
from typing import Any


def report(record: dict[str, Any]) -> None:
    print(json.dumps({"at": time.time(), **record}), flush=True)


def report_item(item: Any) -> None:
    if isinstance(item, str):
        report({"line": item})
    else:
        report({"id": item.id, "event": item.event, "data": item.data})


async def report_all(items: AsyncIterator[Any]) -> None:
    async for item in items:
        report_item(item)


def main(snippet: str) -> None:
    module = importlib.import_module(f"tests.clients.snippets.{snippet}")
    read = module.lines if snippet.endswith("_lines") else module.events
    report({"ready": True})
    for text in sys.stdin:
        job = json.loads(text)
        try:
            items = read(job["url"], job["headers"])
            if isinstance(items, AsyncIterator):
                asyncio.run(report_all(items))
            else:
                for item in items:
                    report_item(item)
        except Exception as error:  # noqa: BLE001 - the test compares the kind of the end
            report({"end": f"error: {error!r}"})
        else:
            report({"end": "clean"})


if __name__ == "__main__":
    main(sys.argv[1])
