"""Fixtures of all tests, and the profile of hypothesis."""

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
from tests.sim.seeds import SEEDS
from tests.twins import NAMES, NATIVE_ONLY

# A shared machine stalls sometimes. No test measures stalls.
settings.register_profile("relay", deadline=None, print_blob=True, max_examples=min(100, 2 * SEEDS))
settings.load_profile("relay")

gc.disable()  # until the tests are collected: nothing of what the collection creates is garbage


def pytest_collection_finish() -> None:
    """Exclude the collected tests from garbage collection. Each full collection would traverse a million objects."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def _opened_once() -> None:
    """Make libuv open its signal pipe, which it opens once per process and never closes."""
    uvloop.run(asyncio.sleep(0))


def held() -> tuple[dict[str, int], int]:
    """Count the objects in the engines of this process, and the descriptors of the process."""
    return counters(), len(os.listdir("/proc/self/fd"))


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    """Check that each test leaves no stream, no half-sent frame, no chunk and no descriptor in this process."""
    before = held()
    yield
    if held() != before:
        gc.collect()
    engines, descriptors = held()
    assert engines == before[0]
    assert descriptors <= before[1]


@pytest.fixture(scope="session", params=NAMES)
def codec(request: pytest.FixtureRequest) -> Codec:
    """Return each implementation of the codec in turn."""
    return load_codec(request.param)


@pytest.fixture(scope="session")
def twins() -> tuple[Codec, Codec]:
    """Return both implementations of the codec, for comparison."""
    if NATIVE_ONLY:
        pytest.skip("only the native engine is tested: RELAY_ENGINE=native or RELAY_BUILD=pure")
    return load_codec("native"), load_codec("speedups")


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Start a browser. Without Chromium, tests that need it are skipped; in CI they fail."""
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
    """Return the browser's page and check that its scripts ran without errors."""
    chromium.errors.clear()
    yield chromium
    chromium.open("about:blank")
    assert chromium.errors == []
