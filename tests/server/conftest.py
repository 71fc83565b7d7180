"""A server that the tests of a module share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.running import Relay, relay


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relay]:
    """A server that several tests share."""
    path = tmp_path_factory.mktemp("relay") / "relay.sock"
    with relay("--unix", str(path)) as running:
        yield running
