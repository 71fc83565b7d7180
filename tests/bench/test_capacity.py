"""The capacity model (`bench.capacity`) agrees with the simulation (`bench.storm`), and the page has its figures."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench import capacity
from bench.capacity import MILLION, NodeMachine, load_figures, plan
from bench.storm import Storm, expect, simulate

AMPLE = Storm(
    nodes=4,
    streams=4000,
    lost=8000,
    streams_max=10_000,
    cores=0.8,
    stream_cores=0.8 / 20_000,
    open_s=100e-6,
    backlog=4096,
    retry_s=(1.0, 5.0),
)
"""A node opens about 6,000 streams per second and receives 500."""

SEEDS = range(3)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    "storm",
    [AMPLE, replace(AMPLE, open_s=2e-3, backlog=10_000), replace(AMPLE, open_s=4e-3, backlog=10_000)],
    ids=["enough openings", "too few openings", "far too few openings"],
)
def test_the_model_agrees_with_the_simulation_while_the_backlog_suffices(storm: Storm, seed: int) -> None:
    model, simulated = expect(storm), simulate(storm, seed)
    assert simulated.half_s == pytest.approx(model.half_s, rel=0.1)
    assert simulated.all_s == pytest.approx(model.all_s, rel=0.1)
    assert simulated.streams_most == pytest.approx(model.streams_most, rel=0.1)
    assert (simulated.dropped, simulated.refused) == (0, 0)


@pytest.mark.parametrize("seed", SEEDS)
def test_with_a_full_backlog_the_last_streams_take_at_most_twice_as_long(seed: int) -> None:
    storm = replace(AMPLE, open_s=4e-3, backlog=400)
    model, simulated = expect(storm), simulate(storm, seed)
    assert simulated.dropped > 0
    assert simulated.half_s == pytest.approx(model.half_s, rel=0.2)
    assert model.all_s * 0.9 < simulated.all_s < 2 * model.all_s


@pytest.mark.parametrize("seed", SEEDS)
def test_streams_that_full_nodes_refuse_find_a_place(seed: int) -> None:
    simulated = simulate(replace(AMPLE, streams_max=6010), seed)
    assert simulated.refused > 0
    assert simulated.streams_most <= 6010
    assert simulated.all_s > expect(AMPLE).all_s


def test_a_simulation_depends_only_on_its_seed() -> None:
    assert simulate(AMPLE, 7) == simulate(AMPLE, 7) != simulate(AMPLE, 8)


@pytest.mark.parametrize("rate", capacity.RATES)
@pytest.mark.parametrize("streams", capacity.STREAMS)
def test_two_zones_carry_all_streams_within_the_limits(streams: int, rate: float) -> None:
    figures, machine = load_figures(), NodeMachine()
    needs = plan(streams, rate, figures, machine)
    assert needs.nodes % capacity.ZONES == 0
    after = streams / (needs.nodes * 2 / 3)
    busy = after * (max(rate, 1 / 15) * figures.delivery_s + figures.open_s / machine.stream_life_s)
    assert busy + capacity.PUBLISHED_PER_S * figures.follow_s <= machine.cores * machine.cpu_share * 1.001
    assert needs.memory_bytes <= machine.memory_bytes * machine.memory_share
    assert needs.network_bits_per_s <= machine.network_bits_per_s * machine.network_share
    assert after <= MILLION
    assert needs.cores < machine.cpu_share


def test_more_streams_need_proportionally_more_nodes() -> None:
    figures = load_figures()
    small, large = (plan(streams, 1.0, figures, NodeMachine()).nodes for streams in (10 * MILLION, 100 * MILLION))
    assert large == pytest.approx(10 * small, rel=0.2)


def test_the_page_has_the_figures_of_the_newest_measurements() -> None:
    text = capacity.render(load_figures(), NodeMachine())
    assert text in capacity.PAGE.read_text(), "run `make capacity`, and check the findings on the page"
