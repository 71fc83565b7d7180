"""Fixtures of all tests, and how hypothesis runs."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Iterator

import pytest
import uvloop
from hypothesis import settings

from bench.implementations import Codec, load_codec
from relay.speedups import counters
from tests.browser import Browser, program
from tests.twins import NAMES, NATIVE_ONLY

# A shared machine stalls now and then; that is not what is tested.
settings.register_profile("relay", deadline=None, print_blob=True)
settings.load_profile("relay")


@pytest.fixture(scope="session", autouse=True)
def _opened_once() -> None:
    """Open what libuv opens once a process and never closes: the pipe of its signals."""
    uvloop.run(asyncio.sleep(0))


def held() -> tuple[dict[str, int], int]:
    """Count what engines of this process hold, and its descriptors."""
    return counters(), len(os.listdir("/proc/self/fd"))


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    """Each test leaves no stream, no half-sent frame, no chunk and no descriptor in this process."""
    before = held()
    yield
    if held() != before:
        gc.collect()
    engines, descriptors = held()
    assert engines == before[0]
    assert descriptors <= before[1]


@pytest.fixture(scope="session", params=NAMES)
def codec(request: pytest.FixtureRequest) -> Codec:
    """Each twin of the codec in turn."""
    return load_codec(request.param)


@pytest.fixture(scope="session")
def twins() -> tuple[Codec, Codec]:
    """Both twins of the codec, to be held against each other."""
    if NATIVE_ONLY:
        pytest.skip("only the native engine is tested: RELAY_ENGINE=native or RELAY_BUILD=pure")
    return load_codec("native"), load_codec("speedups")


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A browser; without one, tests that need it are skipped, but fail in CI."""
    path = program()
    if path is None:
        reason = "Chromium is not installed: `make browser` installs it"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    started = Browser(path, tmp_path_factory.mktemp("profile"))
    yield started
    started.close()


@pytest.fixture
def browser(chromium: Browser) -> Iterator[Browser]:
    """A browser's page, whose scripts run without errors."""
    chromium.errors.clear()
    yield chromium
    chromium.open("about:blank")
    assert chromium.errors == []
