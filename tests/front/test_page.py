"""The page loads nothing from other sites, and never treats an event's text as markup."""

from __future__ import annotations

import importlib.resources
import json
import re
import shutil
import subprocess

import pytest

from tests import ROOT

PAGE = (importlib.resources.files("relay") / "pages" / "index.html").read_text()
SCRIPT = "".join(re.findall(r"<script>(.*?)</script>", PAGE, re.DOTALL))


def test_the_page_loads_nothing_from_other_hosts() -> None:
    assert not re.search(r"https?:|//[a-z]+\.|@import|url\(", PAGE)
    assert set(re.findall(r"\b(?:src|href)=\"([^\"]*)\"", PAGE)) == {"data:,"}


def test_its_addresses_are_relative_so_that_it_works_under_a_path() -> None:
    assert 'fetch("events?"' in SCRIPT
    assert 'fetch("stats"' in SCRIPT


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
    for name in re.findall(r"<input id=\"(\w+)\"", PAGE):
        assert f'<label for="{name}"' in PAGE


def test_every_element_that_the_script_uses_exists() -> None:
    for name in set(re.findall(r"find\(\"([\w-]+)\"\)", SCRIPT)):
        assert f'id="{name}"' in PAGE


def test_every_field_of_stats_that_the_script_reads_is_in_the_schema() -> None:
    schema = json.loads((ROOT / "docs" / "reference" / "stats.schema.json").read_text())["$defs"]
    fields = set(re.findall(r"\bstats\.(\w+)", SCRIPT))
    assert {"version", "engine", "streams", "lagging", "topics"} <= fields <= set(schema["ServerStats"]["properties"])
    fields_of_topics = [name for _, name in re.findall(r"\bstats\.topics\.map\(\((\w+)\) => \1\.(\w+)\)", SCRIPT)]
    assert len(fields_of_topics) == SCRIPT.count("stats.topics")
    assert set(fields_of_topics) <= set(schema["TopicStats"]["properties"])
    # The script reads the statistics by these names only.
    assert re.findall(r"\w+\(stats\)|\bstats\b(?![.\"])", SCRIPT) == ["about(stats)"]


def test_it_listens_for_gaps_and_heartbeats() -> None:
    assert '"relay.gap"' in SCRIPT
    assert '"relay.heartbeat"' in SCRIPT


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_its_script_is_well_formed() -> None:
    subprocess.run(["node", "--check", "-"], input=SCRIPT, text=True, check=True, timeout=20, capture_output=True)
