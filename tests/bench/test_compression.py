"""The compression benchmark measures all arrangements and detects wrong contents; the swarm counts coded bodies."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import pytest

from bench import compression, contents, report
from bench.chain import VERIFIERS, Arrangement, Verifier, measure, serving, verifying
from bench.compression import ARRANGEMENTS, LOADS, LoadRuns, judge
from bench.proxies import program
from loadtest.rig.harness import MeasureError
from loadtest.rig.swarm import Swarm
from tests.bench.test_bench import HEAD
from tests.bench.test_bench import serving as answering

pytestmark = [pytest.mark.slow, pytest.mark.alone]

EVENTS = list(contents.quotes(225))
"""20 measured events after those of the warm-up."""


@pytest.mark.parametrize("name", ["relay", "relay-gzip", "nginx"])
def test_an_arrangement_is_measured(name: str) -> None:
    arrangement = ARRANGEMENTS[name]
    if arrangement.program and not program(arrangement.program):
        pytest.skip(f"{arrangement.program} is not installed")
    figures = measure(arrangement, 20, EVENTS, 50)
    assert figures["deliveries"] == 20 * 20
    assert (figures["bytes_per_delivery"] < 100) == arrangement.coded
    assert 0 < figures["relay_us_per_delivery"] <= figures["cpu_us_per_delivery"]
    assert 0 < figures["p50_ms"] <= figures["max_ms"]
    assert figures["chunks_per_delivery"] == pytest.approx(1, abs=0.5)


def test_contents_are_repeatable_and_have_the_sizes_of_the_loads() -> None:
    for make, least, greatest in (
        (contents.quotes, 135, 160),
        (contents.tokens, 12, 25),
        (contents.fragments, 7000, 8000),
    ):
        events = list(make(50))
        assert events == list(make(50))
        assert all(least <= len(event) <= greatest for event in events)


def test_a_stream_that_is_not_compressed_is_an_error() -> None:
    with serving(ARRANGEMENTS["relay"]) as chain:
        verifier = Verifier(chain.front.port, coded=True)
        verifier.start()
        verifier.join(30)
        assert "coding ''" in verifier.error
        verifier.close()


def test_other_contents_than_were_published_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    arrangement = Arrangement(name="one", title="", relay=("--compress", "gzip"))
    real = Verifier.run

    def run(verifier: Verifier) -> None:
        verifier.received.append(("never published", 0.0))
        real(verifier)

    monkeypatch.setattr(Verifier, "run", run)
    with pytest.raises(MeasureError, match="other contents"):
        measure(arrangement, 2, EVENTS, 50)


def test_the_verifiers_receive_each_event() -> None:
    with serving(ARRANGEMENTS["relay-gzip"]) as chain, verifying(chain, coded=True) as verifiers:
        sent_s = chain.publish(EVENTS[:10], 100)
        while any(len(verifier.received) < 10 for verifier in verifiers):
            assert not any(verifier.error for verifier in verifiers)
    assert len(sent_s) == 10
    assert len(verifiers) == VERIFIERS
    for verifier in verifiers:
        assert [text for text, _ in verifier.received] == EVENTS[:10]


def test_the_swarm_counts_the_bytes_and_chunks_of_a_coded_body() -> None:
    head = HEAD.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n")
    body = gzip.compress(b"data: x\n\n")
    chunk = b"%X\r\n%b\r\n" % (len(body), body)
    with answering([head, chunk, chunk]) as port, Swarm(port, 1, accept_encoding="gzip", count_only=True) as swarm:
        swarm.ready()
        while (counted := swarm.mark()).bytes < 2 * len(chunk):
            assert not counted.closed
    assert (counted.coded, counted.chunks, counted.deliveries, counted.faults) == (1, 2, 0, 0)


def figures(bytes_per_delivery: float, cpu_us: float, memory: float) -> dict[str, float]:
    return dict.fromkeys(compression.COLUMNS, 1.0) | {
        "bytes_per_delivery": bytes_per_delivery,
        "cpu_us_per_delivery": cpu_us,
        "idle_bytes_per_stream": memory,
        "memory_bytes_per_stream": memory,
    }


OUTCOME = LoadRuns(
    load="json-10000x10",
    what="JSON",
    load_average=(0.5, 0.6),
    runs={
        "relay": [figures(180, 10, 200), figures(180, 8, 210)],
        "relay-gzip": [figures(45, 11, 220), figures(45, 8, 250)],
        "nginx": [figures(50, 50, 220_000), figures(50, 48, 250_000)],
        "caddy": [],
    },
    errors={"caddy": "is late"},
)


def test_runs_of_one_turn_are_compared_with_the_requirements() -> None:
    verdicts = judge(LOADS["json-10000x10"], OUTCOME)
    assert [(each.value.median, each.met) for each in verdicts] == [
        (0.25, True),
        (pytest.approx(1.05), True),
        (30.0, True),
        (pytest.approx((50 / 11 + 6) / 2), True),
        (1000.0, True),
    ]
    assert (verdicts[1].value.least, verdicts[1].value.greatest) == (1.0, 1.1)
    assert [each.what for each in judge(LOADS["html-1000x10"], OUTCOME)] == []


def test_results_are_written_as_json_and_as_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compression, "RESULTS", tmp_path / "compression.json")
    monkeypatch.setattr(report, "README", tmp_path / "README.md")
    shutil.copy(Path(compression.__file__).with_name("README.md"), tmp_path)
    compression.write([OUTCOME], judge(LOADS["json-10000x10"], OUTCOME), "python -m bench.compression", 5.0)
    text = (tmp_path / "README.md").read_text()
    assert "| Caddy `encode gzip`, relay | failed |" in text
    assert "Failed: caddy: is late" in text
    assert "| json-10000x10 | bytes with gzip, relative to without | 0.25 | ≤ 0.333 | yes |" in text
    assert b'"load_average"' in (tmp_path / "compression.json").read_bytes()


def test_the_short_mode_runs_and_writes_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compression, "RESULTS", tmp_path / "compression.json")
    arguments = ["--short", "--only", "json-1000x10", "--arrangements", "relay,relay-gzip"]
    monkeypatch.setattr("sys.argv", ["bench.compression", *arguments])
    assert compression.main() == 0
    assert "| json-1000x10 | bytes with gzip, relative to without |" in capsys.readouterr().out
    assert not compression.RESULTS.exists()
