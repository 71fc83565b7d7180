"""Each input error is counted, and a few per second are logged."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import pytest

from relay.telemetry.input_errors import LOGGED_PER_S, InputErrors
from tests.sources.fakes import FakeMetrics


async def test_each_error_is_counted_and_the_first_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    metrics = FakeMetrics()
    errors = InputErrors("unix", metrics, asyncio.get_running_loop(), logging.getLogger("test"))
    for number in range(LOGGED_PER_S + 3):
        errors.report("json", "line %d: %s", number, "bad")
    assert metrics.errors == [("unix", "json")] * (LOGGED_PER_S + 3)
    assert caplog.messages == [f"line {number}: bad" for number in range(LOGGED_PER_S)]
    errors.close()
    assert caplog.messages[LOGGED_PER_S:] == ["unix: and 3 more not published"]
    errors.report("json", "line %d", 9)
    assert caplog.messages[-1] == "line 9"
    errors.close()
    assert caplog.messages[-1] == "line 9"


async def test_the_count_of_a_second_is_logged_without_another_error(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    over = asyncio.Event()

    def call_soon(delay: float, call: Callable[[], None]) -> asyncio.Handle:
        return loop.call_soon(lambda: (call(), over.set()))  # type: ignore[func-returns-value]

    monkeypatch.setattr(loop, "call_later", call_soon)
    errors = InputErrors("stdin", FakeMetrics(), loop, logging.getLogger("test"))
    for _ in range(LOGGED_PER_S + 1):
        errors.report("json", "bad")
    await over.wait()
    assert caplog.messages[-1] == "stdin: and 1 more not published"
