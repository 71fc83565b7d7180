"""The fuzzer's targets with its corpus and random data: any input gives a value or the documented error."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.__main__ import HERE, TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus_passes(name: str) -> None:
    target: Any = importlib.import_module(f"tests.fuzz.{name}")
    paths = sorted((HERE / "corpus" / name).iterdir())
    assert paths
    for path in paths:
        try:
            target.check(path.read_bytes())
        except Exception as error:
            error.add_note(str(path))
            raise


@pytest.mark.parametrize("name", TARGETS)
@given(data=st.data())
def test_any_input_returns_a_value_or_raises_the_documented_error(name: str, data: st.DataObject) -> None:
    target: Any = importlib.import_module(f"tests.fuzz.{name}")
    pieces = st.sampled_from(target.WORDS) | st.binary(max_size=4)
    target.check(data.draw(st.binary(max_size=4)) + b"".join(data.draw(st.lists(pieces, max_size=40))))
