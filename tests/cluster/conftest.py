"""Fixtures of the tests of clusters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.cluster.nodes import QUICK
from tests.redis_server import RedisServer, need_redis
from tests.running import Relay, relay


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    """Run an empty Redis server."""
    need_redis()
    folder = tmp_path / "redis"
    folder.mkdir()
    server = RedisServer(folder)
    yield server
    server.close()


@pytest.fixture
def pair(cluster_url: str, tmp_path: Path) -> Iterator[tuple[Relay, Relay]]:
    """Run two nodes at the broker of `cluster_url`, a fixture of the module; each has a Unix socket."""
    with ExitStack() as stack:
        a, b = (
            stack.enter_context(relay("--cluster", cluster_url, "--unix", str(tmp_path / f"{name}.sock"), *QUICK))
            for name in "ab"
        )
        yield a, b
