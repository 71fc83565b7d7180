"""The benchmark of conversations with language models (`bench.models`): a small run loses nothing."""

from __future__ import annotations

import msgspec
import pytest

from bench.models import ModelFigures, ModelRun, measure, render
from loadtest.rig.harness import Cores

FIGURES = ModelFigures(
    deliveries_per_s=150_000.0,
    cores=0.9,
    cpu_us_per_delivery=6.0,
    p50_ms=1.0,
    p99_ms=5.0,
    max_ms=20.0,
    behind_max_ms=3.0,
    reload_s=1.5,
    caught_up_s=2.5,
    replayed=1_000_000,
    viewer_bytes=100.0,
    memory_bytes=500_000_000,
    log_bytes=300_000_000,
    faults=0,
    lost_viewers=0,
)


def test_the_table_has_every_figure() -> None:
    text = render(ModelRun(), FIGURES)
    assert text.startswith("1,000 conversations × 50 tokens per second × 3 viewers")
    for value in ("150,000", "6 µs", "p99 5 ms", "1,000,000 deliveries", "300 MB"):
        assert value in text


@pytest.mark.slow
def test_viewers_that_reload_miss_no_token() -> None:
    run = ModelRun(conversations=20, tokens=20, viewers=3, seconds=2.0)
    figures = measure(run, Cores())
    assert (figures.faults, figures.lost_viewers) == (0, 0)
    assert figures.replayed >= 20 * 3 * 10
    assert all(value is not None for value in msgspec.structs.asdict(figures).values())
    assert figures.deliveries_per_s > 20 * 20 * 3 / 2
