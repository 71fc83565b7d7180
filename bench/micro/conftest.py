"""Fixtures of the micro-benchmarks: both implementations, independent of RELAY_ENGINE, and the names of the results.

All benchmarks run in several turns. Slow periods of a shared machine last seconds; a longer measurement does not avoid
them, but a later one does. Each benchmark checks the result of its last call, so that missing work cannot look fast.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, TypeVar

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.implementations import Codec, EngineTypes, load_codec, load_engine
from bench.local_hub import LocalHub
from bench.micro.table import CYTHON, PYTHON

TURNS = 10

ROUNDS = 200
"""Rounds per turn of a benchmark with a setup function; other benchmarks make as many as fit."""

LABELS = {"speedups": CYTHON, "native": PYTHON}

Result = TypeVar("Result")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Repeat the whole set of benchmarks in turns; the session scope puts complete turns one after the other."""
    if "turn" in metafunc.fixturenames:
        turns = 1 if metafunc.config.getoption("benchmark_disable") else TURNS
        metafunc.parametrize("turn", range(turns), scope="session")


def pytest_benchmark_update_json(output_json: dict[str, Any]) -> None:
    """Omit the times of the single rounds, about forty megabytes."""
    for one in output_json["benchmarks"]:
        del one["stats"]["data"]


@dataclass(frozen=True, slots=True)
class Twins:
    """The compiled implementation or its Python counterpart, for all parts that have both.

    Args:
        label: its name in the table.
        codec: encoder and decoder.
        engine: the engine of streams and its types.
    """

    label: str
    codec: Codec
    engine: EngineTypes


def load_twins(name: str) -> Twins:
    """Return one implementation; skip the benchmark if it is not built."""
    if name == "speedups" and find_spec("relay._speedups") is None:
        pytest.skip("relay._speedups is not built: the Cython twin is not measured")
    return Twins(LABELS[name], load_codec(name), load_engine(name))


@pytest.fixture(params=list(LABELS))
def twins(request: pytest.FixtureRequest) -> Twins:
    """Return each implementation in turn."""
    return load_twins(request.param)


@pytest.fixture
def make_rig(twins: Twins, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., LocalHub]]:
    """Return a function that makes a hub of one implementation only; settings are passed by name."""
    # The implementation is chosen at import, so it is replaced in every module that imported it.
    monkeypatch.setattr("relay.sse.encode_event", twins.codec.encode_event)
    monkeypatch.setattr("relay.core.audience.Members", twins.engine.members)
    for module in ("flush", "forms.form"):
        monkeypatch.setattr(f"relay.core.{module}.Chunk", twins.engine.chunk)
    rigs: list[LocalHub] = []

    def make(**settings: object) -> LocalHub:
        rigs.append(LocalHub(twins.engine.engine, **settings))  # type: ignore[arg-type]
        return rigs[-1]

    yield make
    for rig in rigs:
        rig.close()


class Measure:
    """Measures one function and names the result for the table.

    Args:
        benchmark: pytest-benchmark's own fixture.
    """

    def __init__(self, benchmark: BenchmarkFixture) -> None:
        self._benchmark = benchmark

    def __call__(
        self,
        group: str,
        case: str,
        by: str,
        work: Callable[[], Result],
        *,
        units: int = 1,
        setup: Callable[[], object] | None = None,
    ) -> Result:
        """Measure a function.

        Args:
            group: table of the result.
            case: row of the result.
            by: column of the result, the implementation or library.
            work: the function to measure.
            units: number of units in one call; the figure is the time of one unit.
            setup: called before each call, and not measured.

        Returns:
            The result of the last call.
        """
        self._benchmark.group = f"{group}: {case}"
        self._benchmark.extra_info.update(group=group, case=case, by=by, units=units)
        result: Result
        if setup is None:
            result = self._benchmark(work)
        else:

            def before() -> None:  # returns None, because `pedantic` would pass a result as arguments
                setup()

            result = self._benchmark.pedantic(  # type: ignore[no-untyped-call]
                work, setup=before, rounds=ROUNDS, warmup_rounds=10
            )
        return result


@pytest.fixture
def measure(turn: int, benchmark: BenchmarkFixture) -> Measure:
    """Return the object that measures one benchmark."""
    return Measure(benchmark)
