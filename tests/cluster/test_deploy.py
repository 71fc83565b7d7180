"""The files in deploy/ match the schemas of Kubernetes and Compose, and relay, HAProxy, Redis and NATS accept them.

Tests whose program is not installed are skipped.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml
from compose_spec import PyCompose

from relay.config.broker_address import parse_broker
from tests import ROOT
from tests.cluster.nodes import publish
from tests.examples.test_examples import program
from tests.nats_server import need_nats
from tests.redis_server import RedisServer, need_redis
from tests.running import free_port, relay, run

DEPLOY = ROOT / "deploy"
COMPOSE = DEPLOY / "compose"
CONTAINERFILE = DEPLOY / "Containerfile"
OVERLAYS = ("redis", "kafka", "jetstream")
JOB = re.compile(r'job="([^"]+)"')
KUBERNETES = "1.30"
"""The oldest version that runs `preStop: sleep` by default."""


def kustomize(folder: Path) -> list[dict[str, Any]]:
    """Return the objects that a folder with a kustomization renders to."""
    command = [program("kubectl"), "kustomize", str(folder)]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return list(yaml.safe_load_all(text))


@functools.cache
def render(overlay: str) -> list[dict[str, Any]]:
    """Return the objects of an overlay."""
    return kustomize(DEPLOY / "kubernetes" / "overlays" / overlay)


def the(objects: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    """Return the only object of a kind whose name begins with a name."""
    [found] = (each for each in objects if each["kind"] == kind and each["metadata"]["name"].startswith(name))
    return found


def seconds(duration: str) -> float:
    """Return the seconds of a duration such as 5m."""
    return float(duration[:-1]) * {"s": 1, "m": 60}[duration[-1]]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_manifests_match_the_schemas_of_kubernetes(overlay: str) -> None:
    objects = render(overlay)
    for each in objects:
        kubernetes_validate.validate(each, KUBERNETES, strict=True)
    kinds = {each["kind"] for each in objects}
    assert kinds >= {"Deployment", "PodDisruptionBudget", "Service", "StatefulSet", "NetworkPolicy", "ConfigMap"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_nodes_drain_before_kubernetes_kills_them_and_one_at_a_time(overlay: str) -> None:
    objects = render(overlay)
    deployment = the(objects, "Deployment", "relay")["spec"]
    pod = deployment["template"]["spec"]
    settings = the(objects, "ConfigMap", "relay")["data"]
    [container] = pod["containers"]
    assert deployment["replicas"] == 3
    assert deployment["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    stop_s = container["lifecycle"]["preStop"]["sleep"]["seconds"] + seconds(settings["RELAY_DRAIN_TIMEOUT"])
    assert pod["terminationGracePeriodSeconds"] > stop_s
    assert deployment["minReadySeconds"] > seconds(settings["RELAY_DRAIN_SPREAD"])
    assert {container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "liveness")} == {"/healthz"}
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert container["envFrom"][0]["configMapRef"]["name"] == the(objects, "ConfigMap", "relay")["metadata"]["name"]
    budget = the(objects, "PodDisruptionBudget", "relay")["spec"]
    assert budget["selector"] == deployment["selector"]
    assert budget["maxUnavailable"] == 1


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_relay_accepts_the_settings_of_the_manifests(overlay: str) -> None:
    objects = render(overlay)
    settings = {**the(objects, "ConfigMap", "relay")["data"], "RELAY_PUBLISH_TOKEN_FILE": os.devnull}
    [container] = the(objects, "Deployment", "relay")["spec"]["template"]["spec"]["containers"]
    done = run(*container["args"], "--print-config", **settings)
    assert done.returncode == 0, done.stderr
    assert parse_broker(settings["RELAY_CLUSTER"])


@pytest.mark.parametrize("broker", OVERLAYS)
def test_the_compose_files_match_the_schema_and_relay_accepts_their_settings(broker: str) -> None:
    texts = [(COMPOSE / f"{name}.yaml").read_text() for name in ("compose", broker)]
    for text in texts:
        PyCompose.from_yaml(text)
    base, more = map(yaml.safe_load, texts)
    service = base["services"]["relay"]
    settings = {**service["environment"], **more["services"]["relay"]["environment"], "RELAY_PUBLISH_TOKEN": "token"}
    drain_s = seconds(settings["RELAY_DRAIN_DELAY"]) + 10  # the default of drain-timeout
    assert seconds(service["stop_grace_period"]) > drain_s
    done = run("serve", "--print-config", **settings)
    assert done.returncode == 0, done.stderr
    assert parse_broker(settings["RELAY_CLUSTER"])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_everyone_may_connect_to_the_port_of_http_and_monitoring_to_that_for_operators(overlay: str) -> None:
    objects = render(overlay)
    [container] = the(objects, "Deployment", "relay")["spec"]["template"]["spec"]["containers"]
    settings = the(objects, "ConfigMap", "relay")["data"]
    ports = {port["name"]: f":{port['containerPort']}" for port in container["ports"]}
    assert ports == {"http": settings["RELAY_LISTEN"], "admin": settings["RELAY_ADMIN_LISTEN"]}
    policy = the(objects, "NetworkPolicy", "relay")["spec"]
    assert policy["podSelector"] == the(objects, "Deployment", "relay")["spec"]["selector"]
    everyone, monitoring = policy["ingress"]
    assert everyone == {"ports": [{"port": "http"}]}
    assert monitoring["ports"] == [{"port": "admin"}]
    assert len(monitoring["from"]) == 1


def test_the_monitor_of_the_component_finds_the_service() -> None:
    # kustomize refuses absolute paths, and reads no file outside of the folder except through a kustomization.
    folder = DEPLOY / "kubernetes" / "components" / "service-monitor"
    [monitor] = [each for each in kustomize(folder) if each["kind"] == "ServiceMonitor"]
    labels = monitor["spec"]["selector"]["matchLabels"].items()
    services = [each for each in render("redis") if each["kind"] == "Service"]
    [service] = [each for each in services if labels <= each["metadata"].get("labels", {}).items()]
    [endpoint] = monitor["spec"]["endpoints"]
    assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
    with relay() as server:
        assert server.request("GET", endpoint["path"])[0] == 200


def test_the_component_of_the_alert_rules_renders_to_all_of_them() -> None:
    [rule] = kustomize(DEPLOY / "kubernetes" / "components" / "prometheus-rule")
    assert (rule["apiVersion"], rule["kind"]) == ("monitoring.coreos.com/v1", "PrometheusRule")
    assert rule["spec"]["groups"] == yaml.safe_load((DEPLOY / "monitoring" / "alerts.yml").read_text())["groups"]
    [job] = {
        job for group in rule["spec"]["groups"] for each in group["rules"] for job in JOB.findall(each["expr"])
    }
    assert job == the(render("redis"), "Service", "relay-admin")["metadata"]["labels"]["app.kubernetes.io/name"]


def arguments(instruction: str) -> list[str]:
    """Return the last command of an instruction of the Containerfile, as a list."""
    text = CONTAINERFILE.read_text().replace("\\\n", " ")
    [found] = re.findall(rf"^{instruction} .*?(\[.*\])$", text, re.MULTILINE)
    command: list[str] = json.loads(found)
    return command


def test_relay_accepts_the_command_of_the_image() -> None:
    assert [Path(arguments("ENTRYPOINT")[0]).name, arguments("CMD")[0]] == ["relay", "serve"]
    [listen] = re.findall(r"\bRELAY_LISTEN=(\S+)", CONTAINERFILE.read_text())
    done = run(*arguments("CMD"), "--print-config", RELAY_LISTEN=listen)
    assert done.returncode == 0, done.stderr
    assert "USER 65534:65534\n" in CONTAINERFILE.read_text()


def test_the_health_check_of_the_image_succeeds_only_if_relay_serves() -> None:
    _, *options, code = arguments("HEALTHCHECK")
    with relay() as server:
        check = [sys.executable, *options, code.replace(":8080/", f":{server.port}/")]
        assert code != check[-1]
        assert subprocess.run(check, check=False, capture_output=True).returncode == 0
    assert subprocess.run(check, check=False, capture_output=True).returncode != 0


def test_haproxy_accepts_its_configuration() -> None:
    done = subprocess.run(
        [program("haproxy"), "-c", "-f", str(COMPOSE / "haproxy.cfg")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_nats_accepts_its_configuration() -> None:
    text = the(render("jetstream"), "ConfigMap", "nats")["data"]["nats.conf"]
    done = subprocess.run(
        [need_nats(), "-t", "-c", "/dev/stdin"],
        input=text,
        env={**os.environ, "POD_NAME": "nats-0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_node_with_the_settings_of_the_manifests_works_with_the_redis_of_the_manifests(tmp_path: Path) -> None:
    need_redis()
    objects = render("redis")
    [container] = the(objects, "StatefulSet", "redis")["spec"]["template"]["spec"]["containers"]
    compose = yaml.safe_load((COMPOSE / "redis.yaml").read_text())["services"]["redis"]["command"]
    assert container["args"] == compose
    port = free_port()
    place = ("--port", str(port), "--bind", "127.0.0.1", "--dir", str(tmp_path))
    with contextlib.closing(RedisServer(tmp_path, port=port, command=(*container["args"][1:], *place))) as redis:
        token = tmp_path / "token"
        token.write_text("a-token-for-tests")
        settings = {
            **the(objects, "ConfigMap", "relay")["data"],
            "RELAY_CLUSTER": redis.url,
            "RELAY_PUBLISH_TOKEN_FILE": str(token),
            "RELAY_LISTEN": "127.0.0.1:0",
            "RELAY_STREAMS_MAX": "100",  # this machine may have fewer descriptors
        }
        del settings["RELAY_ADMIN_LISTEN"]  # the test reads /stats at the only address
        with relay("--stdin", "off", environ=settings) as node:
            assert publish(node, "1").endswith("-1")
            assert node.request("GET", "/readyz")[0] == node.request("GET", "/healthz")[0] == 200
