"""docs/measurements.md and its charts show the saved results, the requirements that are not met first."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest

from bench import chart, http2, measurements, models, operation_sections, report, restart, scale, upgrade
from bench.chart import Curves, Panel
from bench.section import Demand, Section, source
from loadtest.soak.report import SavedSoak, ServerSample, SoakSample, result_of

FIGURES = models.ModelFigures(**dict.fromkeys(models.ModelFigures.__struct_fields__, 0))
RUNS: dict[ModuleType, Any] = {
    scale: {"case": "scale-100000", "open": 100_000, "faults": 0},
    upgrade: {"case": "upgrade-10000x20", "open": 10_000, "closed": 0, "faults": 0},
    restart: {"case": "restart", "missing": 0, "start_s": report.spread([1.0, 2.0, 4.0])},
    models: FIGURES,
    http2: http2.KindCost("HTTP/2", 4096.0, 20.0),
}
"""The measured result of each benchmark that saves only with `--save`."""

TEXT = re.compile(r"<text[^>]*>([^<]*)</text>")


@pytest.fixture(scope="module", autouse=True)
def _fonts(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Draw once before any test, because matplotlib keeps the fonts open that it has read."""
    chart.draw([Panel(title="a", bars=[("b", 1.0)])], tmp_path_factory.mktemp("chart") / "chart.svg")


def stamped(result: dict[str, Any]) -> report.Result:
    """Return a result with a command, a date and a machine."""
    facts = {"commit": "abc", "processor": "a processor, 2 cores"}
    return {**result, "command": "python -m bench.x --seconds 4 --write", "date": "2026-01-01", "machine": facts}


def test_the_page_equals_the_generated_one() -> None:
    assert measurements.PAGE.read_text() == measurements.render(measurements.sections()), "run `make measurements`"


def test_the_charts_have_the_texts_of_the_generated_ones(tmp_path: Path) -> None:
    measurements.write_charts(measurements.sections(), tmp_path)
    drawn = {path.name: TEXT.findall(path.read_text()) for path in tmp_path.iterdir()}
    assert all(drawn.values())
    # Another version of matplotlib draws other paths, but the same labels and figures.
    assert {path.name: TEXT.findall(path.read_text()) for path in measurements.CHARTS.iterdir()} == drawn


def test_each_section_is_complete() -> None:
    for part in measurements.sections():
        assert part.command.startswith("make "), part.title
        assert bool(part.sources) == bool(part.panels) == bool(part.tables.count("\n") > 2), part.title


def test_requirements_that_are_not_met_come_first() -> None:
    good = Demand(what="speed", measured="2", required="≥ 1", met=True)
    bad = Demand(what="memory", measured="300 bytes", required="≤ 256 bytes", met=False)
    done = Section(
        name="a", title="Limits: a/b, c", about="…", command="make bench", sources=["x"], demands=[good, bad]
    )
    missing = Section(name="b", title="Upgrade", about="…", command="make bench-upgrade", better=["time: x 1; relay 2"])
    assert measurements.shortfalls([done, missing]) == (
        "1 of 2 requirements are met. These are not:\n\n"
        "| requirement | measured | required | benchmark |\n| --- | --- | --- | --- |\n"
        "| memory | 300 bytes | ≤ 256 bytes | [Limits](#limits-ab-c) |\n"
        "\nAnother server is better by more than a tenth in these cases:\n\n- [Upgrade](#upgrade): time: x 1; relay 2\n"
        "\nNo result is saved yet: [Upgrade](#upgrade).\n"
    )
    page = measurements.render([missing])
    assert page.index("## What falls short") < page.index("## Upgrade")
    assert page.endswith("No result is saved yet.\n")


def test_the_links_to_sections_lead_to_their_headings() -> None:
    page = measurements.PAGE.read_text()
    titles = re.findall(r"^## (.*)$", page, re.MULTILINE)
    headings = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
    assert set(re.findall(r"\]\(#([^)]*)\)", page)) <= headings


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("python -m bench", ""),
        ("python -m bench.fanout --seconds 4 --write", "--seconds 4"),
        ("make bench-cluster ARGS='--peers --events 5000 --save'", "--peers --events 5000"),
    ],
)
def test_a_source_states_the_options_of_its_command(command: str, options: str) -> None:
    text = source({**stamped({}), "command": command})
    assert text == "2026-01-01, commit abc, a processor, 2 cores" + (f", with `{options}`" if options else "")


def test_an_upgrade_that_lost_an_event_falls_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upgrade, "RESULTS", tmp_path / "upgrade.json")
    assert not operation_sections.upgraded().sources
    round_ = {"took_s": 1.2, "usual_max_ms": 150.0, "upgrade_max_ms": 900.0}
    result = {"case": "upgrade-2x2", "deliveries": 40, "upgrades": [round_, round_], "closed": 0, "faults": 1}
    report.save(upgrade.RESULTS, stamped(result))
    part = operation_sections.upgraded()
    assert "| 2 | 1.2 s | 150 ms | 900 ms |" in part.tables
    assert [(each.measured, each.met) for each in part.demands] == [("1", False)]


def test_a_slow_storm_falls_short_and_a_run_replaces_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scale, "RESULTS", tmp_path / "scale.json")
    run = {"case": "scale-100000", "streams": 100_000, "workers": 6, "faults": 0, "reopen_s": 8.0}
    for recover_s, is_met in ((12.5, False), (9.0, True)):
        report.save(scale.RESULTS, stamped({**run, "recover_s": recover_s}))
        assert [(each.measured, each.met) for each in operation_sections.storm().demands] == [
            (f"{report.number(recover_s)} s, 0 faults", is_met)
        ]
    assert not operation_sections.scaled().sources


def test_a_bar_beyond_its_limit_and_bars_of_other_servers_have_colours_of_their_own() -> None:
    limited = Panel(title="", bars=[("a", 0.9), ("b", 1.1)], limit=1.0)
    assert [limited.colour(*bar) for bar in limited.bars] == [chart.OURS, chart.BEYOND]
    servers = Panel(title="", bars=[("floor", 1), ("relay-gzip", 1), ("nginx", 1)])
    assert [servers.colour(*bar) for bar in servers.bars] == [chart.FLOOR, chart.OURS, chart.THEIRS]
    assert Panel(title="", bars=[("redis", 1)]).colour("redis", 1) == chart.OURS


def test_saved_results_do_not_make_a_commit_dirty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> None:
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a", *arguments], cwd=tmp_path, check=True)

    folder = tmp_path / "bench"
    folder.mkdir()
    for name in ("bench/results.json", "README.md", "code.py"):
        (tmp_path / name).write_text("old\n")
    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message", "x")
    monkeypatch.setattr(report, "HERE", folder)
    for name in ("bench/results.json", "README.md"):
        (tmp_path / name).write_text("new\n")
    assert not report.machine()["commit"].endswith("-dirty")
    (tmp_path / "code.py").write_text("new\n")
    assert report.machine()["commit"].endswith("-dirty")


def test_a_soak_shows_memory_over_time_and_a_fault_falls_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operation_sections, "SOAK_RESULTS", tmp_path / "soak.json")
    assert not operation_sections.soaked().sources
    nothing: dict[str, Any] = {
        name: 0 for name in SoakSample.__struct_fields__ if SoakSample.__annotations__[name] == "int"
    }
    nothing |= {"servers_cpu_s": 0.0, "readers_cpu_s": 0.0, "gaps": {}, "actions": {}, "errors": []}
    samples = [
        SoakSample(
            **nothing,
            time_s=60.0 * minute,
            servers={"node": ServerSample(40 << 20, minute << 20, descriptors=9, age_s=60.0 * minute)},
            faults={"an event twice, or out of order": 3},
        )
        for minute in range(1, 4)
    ]
    result = result_of(samples)
    run = SavedSoak(commit="abc", started="2026-01-01", hours=2.0, samples=samples, result=result)
    operation_sections.SOAK_RESULTS.write_bytes(msgspec.json.encode(run))
    part = operation_sections.soaked()
    assert [each.met for each in part.demands] == [False, True, False]  # memory grows by 60 MiB per hour
    (curves,) = part.panels
    assert isinstance(curves, Curves)
    assert curves.lines == {"node": [(1.0, 41.0), (2.0, 42.0), (3.0, 43.0)]}
    measurements.write_charts([part], tmp_path)
    assert "memory of each server, MiB" in TEXT.findall((tmp_path / "soak.svg").read_text())


@pytest.mark.parametrize("module", RUNS, ids=lambda module: module.__name__)
def test_a_benchmark_saves_its_result_if_asked(
    module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "measure", lambda *_, **__: RUNS[module])
    monkeypatch.setattr(module, "RESULTS", tmp_path / "results.json")
    monkeypatch.setattr("signal.signal", lambda *_: None)
    for arguments, count in (([], 0), (["--save"], 1), (["--save"], 1)):
        monkeypatch.setattr("sys.argv", [module.__name__, *arguments])
        assert not module.main()
        assert len(report.kept(module.RESULTS)) == count
    (saved,) = report.kept(module.RESULTS)
    assert saved["command"] == f"python -m {module.__name__} --save"
    assert {"case", "date", "machine"} <= saved.keys()
