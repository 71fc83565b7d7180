"""Which audiences have a compressor (`relay.core.compression`)."""

from __future__ import annotations

import pytest

from relay.core.audience import Audience
from relay.core.compression import Compression
from relay.core.forms.registry import all_forms
from relay.core.log import Log

FORMS = all_forms()


def audience(streams: int, form: str = "sse/gzip") -> Audience:
    """Return an audience with this many streams."""
    made = Audience("a", FORMS[form], Log("e", bytes_max=1).new_index())
    made.streams = streams
    return made


def test_an_audience_keeps_its_compressor() -> None:
    compression, one = Compression(6, 2), audience(2)
    compressor = compression.compressor(one)
    assert compressor is not None
    assert compression.compressor(one) is compressor
    assert len(compression) == 1


def test_a_single_stream_and_a_form_without_compression_have_none() -> None:
    compression = Compression(6, 2)
    assert compression.compressor(audience(1)) is None
    assert compression.compressor(audience(100, "sse")) is None
    assert Compression(6, 0).compressor(audience(100)) is None


def test_a_much_larger_audience_takes_the_compressor_of_the_smallest() -> None:
    compression = Compression(6, 2)
    small, large = audience(10), audience(50)
    assert compression.compressor(small)
    assert compression.compressor(large)
    assert compression.compressor(audience(19)) is None
    assert compression.compressor(audience(20))
    assert small.compressor is None
    assert large.compressor is not None
    assert len(compression) == 2


def test_an_audience_that_shrinks_loses_its_compressor_at_the_next_tick() -> None:
    compression, one = Compression(6, 2), audience(5)
    compression.compressor(one)
    one.streams = 1
    compression.tick()
    assert one.compressor is None
    assert len(compression) == 0


def test_a_log_that_begins_again_drops_all_compressors() -> None:
    compression, one = Compression(6, 2), audience(5)
    compression.compressor(one)
    compression.begin()
    assert one.compressor is None
    assert len(compression) == 0


def test_many_small_audiences_do_not_search_for_a_smaller_one_each(monkeypatch: pytest.MonkeyPatch) -> None:
    compression = Compression(6, 2)
    for streams in (10, 50):
        compression.compressor(audience(streams))
    assert compression.compressor(audience(5)) is None
    monkeypatch.setattr("builtins.min", lambda *_, **__: pytest.fail("searched again"))
    assert compression.compressor(audience(19)) is None
    monkeypatch.undo()
    compression.tick()
    assert compression.compressor(audience(20)) is not None
