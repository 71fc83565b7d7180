"""The simulations run on the native engine, whichever is in use: only its kernel can be put in place of."""

from __future__ import annotations

import pytest

from relay._native.engine import Chunk, Members
from relay.core import audience, catchup, flush


@pytest.fixture(autouse=True)
def native_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the core make the native engine's chunks and members."""
    monkeypatch.setattr(audience, "Members", Members)
    monkeypatch.setattr(catchup, "Chunk", Chunk)
    monkeypatch.setattr(flush, "Chunk", Chunk)
