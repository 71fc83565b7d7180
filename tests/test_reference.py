"""The reference pages match the code: settings, close reasons, /stats."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from relay.config.model import SETTINGS
from relay.core.close_reason import CloseReason
from tests import reference
from tests.running import Stream, relay

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "reference"
OPTIONAL_STATS = {"cluster", "sources", "upstream", "worker_restarts", "workers"}


def names(page: str, section: str = "") -> set[str]:
    """Return the names in the first column of a page's tables."""
    text = (PAGES / page).read_text().partition(section)[2] if section else (PAGES / page).read_text()
    rows = re.findall(r"^\| (`[^|]*`) \|", text, re.MULTILINE)
    return {name for row in rows for name in re.findall(r"`(\w+)`", row)}


def test_the_page_of_settings_equals_the_generated_one() -> None:
    assert reference.SETTINGS_PAGE.read_text() == reference.settings_page(), "run `make reference`"
    assert set(re.findall(r"^### (\S+)$", reference.settings_page(), re.MULTILINE)) == set(SETTINGS)


def test_the_schema_of_stats_equals_the_generated_one() -> None:
    assert reference.STATS_SCHEMA.read_text() == reference.stats_schema(), "run `make reference`"


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--workers", "2"),
        ("--upstream", "http://127.0.0.1:9/events"),
        ("--data", "relay.db"),
    ],
    ids=["alone", "workers", "upstream", "data"],
)
def test_the_stats_of_a_server_match_the_schema(arguments: tuple[str, ...], tmp_path: Path) -> None:
    arguments = tuple(str(tmp_path / each) if each.endswith(".db") else each for each in arguments)
    schema = json.loads(reference.STATS_SCHEMA.read_text())
    with relay(*arguments) as server, Stream(server.port, "topic=a") as stream:
        server.publish("x", "a")
        stream.next()
        stats = server.stats()
    jsonschema.validate(stats, schema)
    known = set(schema["$defs"]["ServerStats"]["properties"])
    assert set(stats) <= known
    assert known - set(stats) <= OPTIONAL_STATS


def test_settings_that_the_documents_name_exist() -> None:
    documents = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    known = {f"RELAY_{name.upper().replace('-', '_')}" for name in SETTINGS}
    known |= {"RELAY_BUILD", "RELAY_CONFIG", "RELAY_ENGINE", "RELAY_", "RELAY_PORT", "RELAY_SERVICE_HOST"}
    for document in documents:
        assert set(re.findall(r"\bRELAY_[A-Z0-9_]*", document.read_text())) <= known, document


def test_the_page_of_close_reasons_lists_every_one() -> None:
    assert names("close-reasons.md") == set(CloseReason)


def test_the_engines_report_only_close_reasons() -> None:
    """Both engines are below the core, so they write their reasons as plain strings."""
    sources = [ROOT / "relay" / "_native" / "engine.py", *ROOT.glob("_speedups/*.pxi")]
    text = "".join(path.read_text() for path in sources)
    found = set(re.findall(r'(?:return|reason =|else) "(\w+)"', text))
    assert {"client", "timeout", "error", "input"} <= found <= set(CloseReason)


def test_the_page_of_stats_lists_every_field() -> None:
    schema = json.loads(reference.STATS_SCHEMA.read_text())["$defs"]["ServerStats"]
    assert set(schema["properties"]) == names("stats.md")
    assert set(schema["properties"]) - set(schema["required"]) == names("stats.md", "only in some modes:")
    assert names("stats.md", "only in some modes:") == OPTIONAL_STATS


def pages(nav: list[Any]) -> list[str]:
    """Return the pages of a navigation, with the pages of its sections."""
    found: list[str] = []
    for each in nav:
        found += [each] if isinstance(each, str) else [page for part in each.values() for page in pages(part)]
    return found


def test_each_page_is_in_the_navigation_and_each_file_that_it_links_exists() -> None:
    # `make docs` checks the links between pages, but not these links.
    docs = ROOT / "docs"
    nav = pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    assert sorted(nav) == sorted(str(path.relative_to(docs)) for path in docs.rglob("*.md"))
    for path in docs.rglob("*.md"):
        for target in re.findall(r"\]\(([^)#]+)", path.read_text()):
            assert target.startswith("https://") or (path.parent / target).exists(), (path, target)
