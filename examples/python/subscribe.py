"""Print the events of some topics: `python subscribe.py news 'orders.*'`. Needs `pip install 'relay-sse[client]'`."""

import asyncio
import json
import os
import sys

from relay import subscribe

URL = os.environ.get("RELAY_URL", "http://127.0.0.1:8080")


async def main(topics: list[str]) -> None:
    """Follow the topics until the last of them has ended, or until Ctrl-C."""
    async for event in subscribe(f"{URL}/events", topics=topics, since="earliest"):
        if event.event == "relay.gap":
            print("missed", json.loads(event.data), flush=True)
        else:
            print(event.id, event.data, flush=True)


asyncio.run(main(sys.argv[1:] or ["news"]))
