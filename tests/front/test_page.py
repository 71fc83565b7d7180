"""The console loads nothing from other sites, and never treats an event's text as markup (`relay.front.page`)."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import pytest

from relay.front.page import SCRIPTS, read_page
from tests import ROOT

PAGE = read_page().decode()
SCRIPT = "".join(re.findall(r"<script>(.*?)</script>", PAGE, re.DOTALL))


def test_the_page_loads_nothing_from_other_hosts() -> None:
    assert not re.search(r"https?:|//[a-z]+\.|@import|url\(", PAGE)
    assert set(re.findall(r"\b(?:src|href)=\"([^\"]*)\"", PAGE)) == {"data:,"}


def test_its_addresses_are_relative_so_that_it_works_under_a_path() -> None:
    assert 'fetch("events?"' in SCRIPT
    assert 'fetch("stats"' in SCRIPT
    assert 'fetch("metrics"' in SCRIPT
    assert 'fetch("publish?"' in SCRIPT
    assert "/stats" not in SCRIPT.replace("from /stats", "")


def test_every_script_is_part_of_the_page() -> None:
    assert {path.name for path in (ROOT / "relay" / "pages").glob("*.js")} == set(SCRIPTS)
    assert "<!--" not in PAGE


@pytest.mark.parametrize(
    "word", ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"]
)
def test_text_never_becomes_markup_or_code(word: str) -> None:
    assert word not in PAGE


def test_a_strict_content_security_policy_lets_it_work() -> None:
    assert len(re.findall(r"<script", PAGE)) == len(re.findall(r"<style", PAGE)) == 1
    assert not re.search(r"<[^>]+\s(on\w+|style)=", PAGE)


def test_the_page_supports_dark_mode_and_labels_every_field() -> None:
    assert "prefers-color-scheme: dark" in PAGE
    names = re.findall(r"<(?:input|textarea) id=\"([\w-]+)\"", PAGE)
    assert len(names) >= 9
    for name in names:
        assert f'for="{name}"' in PAGE


def test_every_element_that_the_script_uses_exists() -> None:
    for name in set(re.findall(r"find\(\"([\w-]+)\"\)", SCRIPT)):
        assert f'id="{name}"' in PAGE


def test_every_field_of_stats_that_the_script_reads_is_in_the_schema() -> None:
    schema = json.loads((ROOT / "docs" / "reference" / "stats.schema.json").read_text())["$defs"]
    names = {"ServerStats": r"\bstats\.(\w+)", "LogStats": r"\bstats\.log\.(\w+)", "SlowStream": r"\bslow\.(\w+)"}
    for struct, pattern in names.items():
        fields = set(re.findall(pattern, SCRIPT))
        assert fields, struct
        assert fields <= set(schema[struct]["properties"]), struct
    of_topics = set(re.findall(r"\btopic\.(\w+)", SCRIPT)) - {"includes", "rate"}  # methods and the rate of the page
    assert of_topics <= set(schema["TopicStats"]["properties"])
    assert {"topic", "subscribers", "events"} <= of_topics


def test_the_histogram_that_the_script_reads_exists() -> None:
    [name] = re.findall(r"\^(relay_\w+)_bucket", SCRIPT)
    assert f"`{name}`" in (ROOT / "docs" / "reference" / "metrics.md").read_text()


def test_it_listens_for_gaps_and_heartbeats() -> None:
    assert '"relay.gap"' in SCRIPT
    assert '"relay.heartbeat"' in SCRIPT


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_its_script_is_well_formed() -> None:
    subprocess.run(["node", "--check", "-"], input=SCRIPT, text=True, check=True, timeout=20, capture_output=True)
