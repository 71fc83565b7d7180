"""/metrics equals the documentation, and reveals no topic or address.

Covers `relay.core.histogram_protocols`.
"""

from __future__ import annotations

import json
import platform
import re
import time
from pathlib import Path

import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from prometheus_client import CollectorRegistry

from relay import __version__
from relay.config.model import Config
from relay.core.policy import Policy
from relay.speedups import ENGINE
from relay.telemetry.metrics import Metrics
from tests import ROOT
from tests.certificate import make_certificate
from tests.running import Stream, relay
from tests.sim.world import World

PAGE = ROOT / "docs" / "reference" / "metrics.md"
TLS, KEYS = "## With TLS", "## With JWTs"
BUILD = ("engine", "python", "version")
UPSTREAM, WORKERS = "## With an upstream", "## With workers"
LABELS = {*("form", "path", "kind", "le", "limit", "policy", "reason", "result", "source"), *BUILD}


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
    python = platform.python_version()
    assert f'relay_build_info{{engine="{ENGINE}",python="{python}",version="{__version__}"}} 1.0' in text
    for policy in Policy:
        assert f'relay_policy_actions_total{{policy="{policy}"}} 0.0' in text
    assert 'relay_gaps_total{reason="slow"} 0.0' in text
    assert 'relay_closes_total{reason="slow"} 0.0' in text


def test_the_age_of_the_oldest_retained_event_grows_until_it_is_evicted() -> None:
    now_s = 100.0
    world = World(Config(history_events=1))
    metrics = Metrics(world.hub, CollectorRegistry(), lambda: now_s)

    def age_s() -> float | None:
        return metrics.registry.get_sample_value("relay_log_age_seconds")

    assert age_s() == 0.0
    world.publish("a", 10)
    now_s = world.now_s + 5.0
    assert age_s() == 5.0
    world.pass_time(4.0)
    world.publish("a", 10)
    assert age_s() == 1.0


def test_expiries_are_unix_times(tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path, "metrics")
    keys = tmp_path / "keys.json"
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    keys.write_text(json.dumps(jwt.algorithms.ECAlgorithm.to_jwk(key, as_dict=True) | {"exp": 2_000_000_000}))
    with relay(*certificate.flags, "--jwt-public-key-file", str(keys), context=certificate.context()) as server:
        text = server.request("GET", "/metrics")[2].decode()
        day_s = 24 * 60 * 60
        assert abs(server.metric("relay_certificate_expiry_timestamp_seconds") - time.time() - day_s) < 600
        assert server.metric("relay_keys_expiry_timestamp_seconds") == 2_000_000_000
    more = documented(TLS) | documented(KEYS)
    assert exported(text) == documented() | {name: more[name] for name in more if "fetched" not in name}


def test_an_upstream_and_workers_add_the_metrics_of_their_sections() -> None:
    with relay("--upstream", "http://127.0.0.1:9/events") as server:
        text = server.request("GET", "/metrics")[2].decode()
        assert exported(text) == documented() | documented(UPSTREAM)
    with relay("--workers", "2") as server:
        text = server.request("GET", "/metrics")[2].decode()
        assert exported(text) == documented() | documented(WORKERS)
