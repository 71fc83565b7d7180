"""What /metrics shows is what the README says, and says nothing of who follows what."""

from __future__ import annotations

import re
from pathlib import Path

from tests.process import Stream, relay

README = Path(__file__).parents[1] / "README.md"
LABELS = {"kind", "le", "limit", "policy", "reason", "result", "source"}


def test_the_metrics_are_those_of_the_readme_and_have_no_topic_or_address() -> None:
    with relay() as server, Stream(server.port, "topic=secret-topic") as stream:
        server.publish("x", "secret-topic")
        resumed = stream.next().id
        Stream(server.port, "topic=secret-topic", {"Last-Event-ID": str(resumed)}).close()
        assert server.request("POST", "/publish", b"x")[0] == 401
        text = server.request("GET", "/metrics")[2].decode()
        assert "secret-topic" in str(server.stats()["topics"])
    exported = dict(re.findall(r"^# HELP (relay_\S+) (.*)$", text, re.MULTILINE))
    created = {name for name in exported if name.endswith("_created")}
    documented = dict(re.findall(r"^\| `(relay_\w+)` \| (.*) \|$", README.read_text(), re.MULTILINE))
    assert {name: help for name, help in exported.items() if name not in created} == documented
    assert set(re.findall(r'(\w+)="', text)) <= LABELS
    assert 'relay_resumes_total{result="hit"} 1.0' in text
    assert 'relay_input_errors_total{kind="token",source="http"} 1.0' in text
    assert "secret-topic" not in text
    assert "127.0.0.1" not in text
