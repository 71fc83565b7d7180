"""The reference pages match the code: settings, close reasons, /stats."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from relay.config.load import to_toml
from relay.config.model import SETTINGS, Config
from relay.config.values import read
from relay.core.close_reason import CloseReason
from relay.errors import ConfigError
from tests import reference
from tests.commands.test_prove import check_kept
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


def test_the_schema_of_settings_equals_the_generated_one() -> None:
    assert reference.SETTINGS_SCHEMA.read_text() == reference.settings_schema(), "run `make reference`"


def is_valid(table: dict[str, Any]) -> bool:
    """Return whether the schema of settings accepts a TOML file."""
    schema = json.loads(reference.settings_schema())
    jsonschema.Draft7Validator.check_schema(schema)
    return bool(jsonschema.Draft7Validator(schema).is_valid(table))


def test_the_schema_accepts_the_printed_settings() -> None:
    assert is_valid(tomllib.loads(to_toml(Config())))


def test_the_schema_accepts_the_examples_of_the_documents() -> None:
    text = "".join(path.read_text() for path in sorted((ROOT / "docs").glob("*.md")))
    blocks = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    assert len(blocks) >= 2
    assert all(is_valid(tomllib.loads(block)) for block in blocks)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("lag-bytes", [1048576, "64MiB", "64 M", "1.5GiB", "7b", "-1", "", "64X", "MiB", True, -1, 1.5]),
        ("heartbeat", [15, 0.5, "15", "1h30m", "500ms", "0.5", "1 h", "", "h", "1x", "1h 30", -1, False]),
        ("h2-streams-max", [1, 256, 0, 2**31, 1.5, True]),
        ("policy", ["drop-oldest", "drop", 1]),
        ("durable", [True, False, "maybe", 2]),
        ("workers", ["auto", 4, "4", 1.5]),
        ("topic", ["news", 1, True]),
        ("listen", [":1", [":1", ":2"], [1], 1]),
    ],
)
def test_the_schema_accepts_the_values_that_relay_accepts(name: str, values: list[Any]) -> None:
    for value in values:
        try:
            read(name, SETTINGS[name], value)
            accepted = True
        except ConfigError:
            accepted = False
        assert is_valid({name: value}) == accepted, value


def test_the_schema_rejects_an_unknown_setting() -> None:
    assert not is_valid({"no-such-setting": 1})


def test_the_page_of_the_proof_shows_its_recording() -> None:
    assert reference.PROOF_PAGE.read_text() == reference.proof_page(), "run `make reference`"
    check_kept(reference.proof_transcript(), 10_000)


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
