"""deploy/monitoring: Prometheus accepts its files, every alert is tested and explained, and all named metrics exist."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from compose_spec import PyCompose
from prometheus_client import CollectorRegistry

from relay.config.model import Config
from relay.telemetry.metrics import Histograms, Metrics
from relay.telemetry.stats_schema import ClusterStats, SourceStats, UpstreamStats
from relay.workers import aggregate
from tests import ROOT, reference
from tests.running import relay
from tests.sim.world import World

FOLDER = ROOT / "deploy" / "monitoring"
COMPOSE = ROOT / "deploy" / "compose"
ALERTS = FOLDER / "alerts.yml"
PROMTOOL = ROOT / "build" / "promtool" / "promtool"
TROUBLESHOOTING = ROOT / "docs" / "troubleshooting.md"
DASHBOARD = FOLDER / "dashboard.json"
NAME = re.compile(r"\b(?:relay|process)_[a-z_]+")
VARIABLES = {"$__rate_interval": "5m", "$job": ".+", "$instance": ".+"}


def promtool(*arguments: str, input: str = "") -> str:
    """Run promtool and return its output. Without it, skip the test; in CI it fails."""
    if not PROMTOOL.exists():
        reason = "promtool is not installed: `make promtool` installs it"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    done = subprocess.run(
        [PROMTOOL, *arguments],
        input=input,
        cwd=FOLDER,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def rules() -> list[dict[str, Any]]:
    """Return the alert rules."""
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def expressions() -> Iterator[str]:
    """Yield the expressions of the dashboard, with a value for each variable of Grafana."""
    dashboard = json.loads(DASHBOARD.read_text())
    found = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    for text in (*found, *(each["expr"] for each in dashboard["annotations"]["list"])):
        for name, value in VARIABLES.items():
            text = text.replace(name, value)
        yield text


def exported() -> set[str]:
    """Return the names of all metrics that relay exports in any mode."""
    registry = CollectorRegistry()
    metrics = Metrics(World(Config()).hub, registry, lambda: 0.0)
    Histograms(registry)
    metrics.report_upstream(UpstreamStats)
    metrics.report_cluster(ClusterStats)
    metrics.report_sources(lambda: [SourceStats("redis://r/0")])
    metrics.report_certificate(lambda: 0.0)
    metrics.report_keys(lambda: 0.0, lambda: 0.0)
    metrics.input_error("stdin", "event")
    part = json.dumps(aggregate.families(registry)).encode()
    text = aggregate.metrics(part, {}, {}).decode() + metrics.render().decode()
    return set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE)) | set(re.findall(r"^(\w+)\{", text, re.MULTILINE))


def test_every_metric_of_the_alerts_and_of_the_dashboard_exists() -> None:
    named = {name for text in (ALERTS.read_text(), *expressions()) for name in NAME.findall(text)}
    assert len(named) > 50
    assert named - exported() == set()


def test_promtool_accepts_the_configuration_and_the_rules() -> None:
    assert f"{len(rules())} rules found" in promtool("check", "config", "prometheus.yml")


def test_the_resource_of_the_prometheus_operator_has_the_same_rules() -> None:
    text = reference.PROMETHEUS_RULE.read_text()
    assert text == reference.prometheus_rule(), "run `make reference`"
    assert yaml.safe_load(text)["spec"] == yaml.safe_load(ALERTS.read_text())


def test_the_unit_tests_of_the_rules_pass_and_cover_each_alert() -> None:
    assert "SUCCESS" in promtool("test", "rules", "alerts_test.yml")
    tests = yaml.safe_load((FOLDER / "alerts_test.yml").read_text())["tests"]
    fired, silent = ([each for test in tests for each in test["alert_rule_test"] if bool(each.get("exp_alerts")) is f]
                     for f in (True, False))
    names = [rule["alert"] for rule in rules()]
    assert [each["alertname"] for each in fired] == [each["alertname"] for each in silent] == names


def test_promtool_accepts_the_metrics() -> None:
    with relay() as server:
        promtool("check", "metrics", input=server.request("GET", "/metrics")[2].decode())


def test_prometheus_parses_every_expression_of_the_dashboard(tmp_path: Path) -> None:
    records = [{"record": f"panel:{number}", "expr": text} for number, text in enumerate(expressions())]
    path = tmp_path / "rules.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": records}]}))
    assert f"{len(records)} rules found" in promtool("check", "rules", str(path))


def test_every_alert_links_to_its_entry_in_troubleshooting() -> None:
    entries = re.findall(r"^### (Relay\w+)$", TROUBLESHOOTING.read_text(), re.MULTILINE)
    page = (ROOT / "docs" / "monitoring.md").read_text()
    for rule in rules():
        anchor = rule["alert"].lower()
        assert rule["annotations"]["runbook_url"] == f"https://relay.example/docs/troubleshooting.html#{anchor}"
        assert f"[{rule['alert']}](troubleshooting.md#{anchor})" in page
    assert entries == [rule["alert"] for rule in rules()]


def test_the_panels_of_the_dashboard_do_not_overlap() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for place in (panel["gridPos"] for panel in panels):
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert max(x for x, _ in cells) < 24
        assert not cells & taken
        taken |= cells


@pytest.mark.parametrize("name", ["single", "monitoring"])
def test_the_compose_files_match_the_schema_and_name_existing_files(name: str) -> None:
    text = (COMPOSE / f"{name}.yaml").read_text()
    PyCompose.from_yaml(text)
    for each in yaml.safe_load(text).get("configs", {}).values():
        assert (COMPOSE / each["file"]).is_file()
