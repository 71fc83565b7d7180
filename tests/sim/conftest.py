"""The simulations always use the native engine, because only its kernel calls can be replaced."""

from __future__ import annotations

import pytest

from relay._native.engine import Chunk, Members
from relay.core import audience, flush
from relay.core.forms import form


def use_native_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the core create the native engine's chunks and members."""
    monkeypatch.setattr(audience, "Members", Members)
    monkeypatch.setattr(form, "Chunk", Chunk)
    monkeypatch.setattr(flush, "Chunk", Chunk)


@pytest.fixture(autouse=True)
def native_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use the native engine in each simulation."""
    use_native_engine(monkeypatch)
