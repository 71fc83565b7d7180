"""/metrics equals the documentation, and reveals no topic or address.

Covers `relay.core.measures`.
"""

from __future__ import annotations

import re

from tests import ROOT
from tests.running import Stream, relay

PAGE = ROOT / "docs" / "reference" / "metrics.md"
UPSTREAM, WORKERS = "## With an upstream", "## With workers"
LABELS = {"form", "path", "kind", "le", "limit", "policy", "reason", "result", "source"}


def documented(section: str = "") -> dict[str, tuple[str, str]]:
    """Return the type and the help of each metric in a section, by default in the first section."""
    text = PAGE.read_text().partition(section)[2] if section else PAGE.read_text()
    rows = re.findall(r"^\| `(relay_\w+)` \| (\w+) \| (.*) \|$", text.partition("\n## ")[0], re.MULTILINE)
    return {name: (kind, help) for name, kind, help in rows}


def exported(text: str) -> dict[str, tuple[str, str]]:
    """Return the type and the help of each metric that a server exports."""
    kinds = dict(re.findall(r"^# TYPE (relay_\S+) (\w+)$", text, re.MULTILINE))
    helps = re.findall(r"^# HELP (relay_\S+) (.*)$", text, re.MULTILINE)
    return {name: (kinds[name], help) for name, help in helps if not name.endswith("_created")}


def test_the_metrics_match_the_documentation_and_contain_no_topic_or_address() -> None:
    with relay() as server, Stream(server.port, "topic=secret-topic") as stream:
        server.publish("x", "secret-topic")
        resumed = stream.next().id
        Stream(server.port, "topic=secret-topic", {"Last-Event-ID": str(resumed)}).close()
        assert server.request("POST", "/publish", b"x")[0] == 401
        text = server.request("GET", "/metrics")[2].decode()
        assert "secret-topic" in str(server.stats()["topics"])
    assert exported(text) == documented()
    assert set(re.findall(r'(\w+)="', text)) <= LABELS
    assert 'relay_resumes_total{result="hit"} 1.0' in text
    assert 'relay_input_errors_total{kind="token",source="http"} 1.0' in text
    assert "secret-topic" not in text
    assert "127.0.0.1" not in text


def test_an_upstream_and_workers_add_the_metrics_of_their_sections() -> None:
    with relay("--upstream", "http://127.0.0.1:9/events") as server:
        text = server.request("GET", "/metrics")[2].decode()
        assert exported(text) == documented() | documented(UPSTREAM)
    with relay("--workers", "2") as server:
        text = server.request("GET", "/metrics")[2].decode()
        assert exported(text) == documented() | documented(WORKERS)
