"""The fuzzer's targets with its corpus and random data: any input gives a value or the documented error."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.__main__ import HERE, TARGETS


@pytest.mark.parametrize(
    "path", sorted((HERE / "corpus").glob("*/*")), ids=lambda path: f"{path.parent.name}/{path.name}"
)
def test_the_corpus_passes(path: Path) -> None:
    importlib.import_module(f"tests.fuzz.{path.parent.name}").check(path.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
@given(data=st.data())
def test_any_input_returns_a_value_or_raises_the_documented_error(name: str, data: st.DataObject) -> None:
    target: Any = importlib.import_module(f"tests.fuzz.{name}")
    pieces = st.sampled_from(target.WORDS) | st.binary(max_size=4)
    target.check(data.draw(st.binary(max_size=4)) + b"".join(data.draw(st.lists(pieces, max_size=40))))
