"""The OpenAPI document is correct: a real server gives every documented status, and serves no other path."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jsonschema
import jwt
import pytest
import referencing
import yaml
from openapi_spec_validator import validate
from referencing import Registry

from relay.front.routes import Resource
from tests.redis_server import RedisServer, need_redis
from tests.running import TIMEOUT_S, TOKEN, Relay, Stream, eventually, relay

PATH = Path(__file__).parents[1] / "docs" / "reference" / "openapi.yaml"
DOCUMENT: dict[str, Any] = yaml.safe_load(PATH.read_text())
FILES = Registry[Any]().with_resources(
    (path.name, referencing.Resource[Any].from_contents(json.loads(path.read_text())))
    for path in PATH.parent.glob("*.schema.json")
)
"""The files that the document refers to."""
SECRET = "s" * 64
Headers = dict[str, str]
Answer = tuple[int, Headers, bytes]
Operation = tuple[str, str, int]

OPERATIONS: list[Operation] = [
    (method.upper(), path, int(status))
    for path, operations in DOCUMENT["paths"].items()
    for method, operation in operations.items()
    if method != "parameters"
    for status in operation["responses"]
]
BEARER = {"Authorization": f"Bearer {TOKEN}"}
JSON = BEARER | {"Content-Type": "application/json"}
SIGNAL = "/topics/{topic}/signal"
ENDS: dict[str, str] = {}
"""The id of the last event of each ended topic."""


def token() -> Headers:
    grants = {"subscribe": ["orders.*"], "publish": ["orders.eu"]}
    claims = {"exp": time.time() + 3600, "sub": "ann", "relay": grants}
    return {"Authorization": f"Bearer {jwt.encode(claims, SECRET, 'HS256')}"}


@dataclass(frozen=True)
class Servers:
    """The servers that the cases use."""

    open: Relay
    small: Relay
    jwt: Relay
    without_keys: Relay
    draining: Relay


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    with contextlib.ExitStack() as stack:
        limits = ("--streams-per-address-max", "1", "--publish-rate", "1", "--batch-events-max", "20")
        started = Servers(
            open=stack.enter_context(relay(*limits)),
            small=stack.enter_context(relay("--body-bytes-max", "2")),
            jwt=stack.enter_context(relay("--subscribe", "jwt", "--jwt-secret", SECRET)),
            without_keys=stack.enter_context(
                relay("--subscribe", "jwt", "--jwt-jwks-url", "http://127.0.0.1:9/keys")
            ),
            draining=stack.enter_context(relay("--drain-delay", "1h")),
        )
        started.draining.process.send_signal(signal.SIGTERM)
        eventually(lambda: started.draining.request("GET", "/readyz")[0] == 503, "it is not ready")
        yield started


Case = Callable[[Servers], Answer]


def ask(server: Relay, method: str, path: str, headers: Headers | None = None, body: bytes | None = None) -> Answer:
    """Make one request. Read its body, except for a stream that stays open."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=TIMEOUT_S)
    with contextlib.closing(connection):
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        fields = {name.lower(): value for name, value in response.getheaders()}
        is_stream = method == "GET" and fields.get("content-type") == "text/event-stream"
        return response.status, fields, b"" if is_stream else response.read()


def publish(server: Relay, body: bytes, headers: Headers = JSON, query: str = "?topic=news") -> Answer:
    return ask(server, "POST", f"/publish{query}", headers, body)


def events(count: int) -> bytes:
    return json.dumps([{"data": number} for number in range(count)]).encode()


def ended(servers: Servers, path: str) -> Answer:
    """Resume an ended topic after its last event."""
    topic = "match" if path.endswith("{topic}") else "game"
    own = f"/events/{topic}" if path.endswith("{topic}") else f"{path}?topic={topic}"
    body = json.dumps({"topic": topic, "event": "relay.end", "data": ""}).encode()
    status, _, answer = publish(servers.jwt, body)
    assert status in (200, 410)
    if status == 200:
        [ENDS[topic]] = json.loads(answer)["ids"]
    claims = {"exp": time.time() + 60, "relay": {"subscribe": ["**"]}}
    headers = {"Authorization": f"Bearer {jwt.encode(claims, SECRET, 'HS256')}", "Last-Event-ID": ENDS[topic]}
    return ask(servers.jwt, "GET", own, headers)


def send_signal(server: Relay, body: bytes, headers: Headers = JSON) -> Answer:
    return ask(server, "POST", SIGNAL.replace("{topic}", "orders.eu"), headers, body)


def too_many_signals(servers: Servers) -> Answer:
    answers = [send_signal(servers.draining, b"1") for _ in range(200)]
    return answers[-1]


def without_broker(rest: str) -> Answer:
    """Publish at a node of a cluster that has lost its broker."""
    need_redis()
    with tempfile.TemporaryDirectory() as folder:
        redis = RedisServer(Path(folder))
        with contextlib.closing(redis), relay("--cluster", redis.url) as node:
            redis.kill()
            eventually(lambda: not node.stats()["cluster"]["connected"], "the loss is noticed")
            return publish(node, events(1), query=rest)


def of_open(method: str, path: str, servers: Servers) -> Answer:
    return ask(servers.open, method, path)


def of_jwt(method: str, path: str, servers: Servers) -> Answer:
    return ask(servers.jwt, method, path)


def of_one_topic(method: str, servers: Servers) -> Answer:
    assert publish(servers.jwt, b'{"data": 1}')[0] == 200
    return ask(servers.jwt, method, "/topics/news")


def over_the_limit(servers: Servers, path: str) -> Answer:
    with Stream(servers.open.port):
        answer = ask(servers.open, "GET", path)
    eventually(lambda: servers.open.stats()["streams"] == 0, "the first stream is closed")
    return answer


def stream_cases(path: str) -> dict[Operation, Case]:
    """Return the cases that produce each answer of a stream's path."""
    own = path.replace("{topic}", "orders.eu")

    def opened(servers: Servers) -> Answer:
        answer = ask(servers.open, "GET", own)
        eventually(lambda: servers.open.stats()["streams"] == 0, "the stream is closed")
        return answer

    cases: dict[Operation, Case] = {
        ("GET", path, 200): opened,
        ("GET", path, 204): lambda servers: ended(servers, path),
        ("GET", path, 429): lambda servers: over_the_limit(servers, own),
        ("GET", path, 503): lambda servers: ask(servers.without_keys, "GET", own, token()),
        ("HEAD", path, 200): lambda servers: ask(servers.open, "HEAD", own),
    }
    for method in ("GET", "HEAD"):
        cases[method, path, 400] = partial(of_open, method, f"{own}?topics=x")
        cases[method, path, 401] = partial(of_jwt, method, own)
        cases[method, path, 403] = partial(of_open, method, f"{own}?policy=block")
    return cases


def publish_cases(path: str, rest: str) -> dict[Operation, Case]:
    """Return the cases that produce each answer of a publish path; `rest` is the end of the target."""

    def post(server: str, body: bytes = b'{"data": 1}', headers: Headers = JSON) -> Case:
        return lambda servers: publish(getattr(servers, server), body, headers, rest)

    def after_the_end(servers: Servers) -> Answer:
        ended(servers, "/events")
        return publish(servers.jwt, b'{"data": 1}', query=rest)

    def too_fast(servers: Servers) -> Answer:
        """Publish faster than the rate allows. The first requests may use the burst of ten events."""
        answers = (publish(servers.open, b"{}", query=rest) for _ in range(15))
        return next(answer for answer in answers if answer[0] != 200)

    return {
        ("POST", path, 200): post("small", b"{}"),
        ("POST", path, 400): post("open", b'{"data": '),
        ("POST", path, 401): post("open", headers={"Content-Type": "text/plain"}),
        ("POST", path, 403): post("jwt", headers=token() | {"Content-Type": "text/plain"}),
        ("POST", path, 410): after_the_end,
        ("POST", path, 415): post("open", headers=BEARER | {"Content-Type": "image/png"}),
        ("POST", path, 429): too_fast,
        ("POST", path, 503): lambda _: without_broker(rest),
    }


CASES: dict[Operation, Case] = {
    **stream_cases("/events"),
    **stream_cases("/events/{topic}"),
    **publish_cases("/publish", "?topic=game"),
    **publish_cases("/publish/{topic}", "/game"),
    ("POST", "/publish", 413): lambda servers: publish(servers.open, events(21)),
    ("POST", "/publish/{topic}", 413): lambda servers: publish(servers.small, b"[1]", query="/game"),
    ("GET", "/poll", 200): lambda servers: ask(servers.open, "GET", "/poll?wait=0"),
    ("GET", "/poll", 204): lambda servers: ended(servers, "/poll"),
    ("GET", "/poll", 400): partial(of_open, "GET", "/poll?waits=x"),
    ("GET", "/poll", 401): partial(of_jwt, "GET", "/poll"),
    ("GET", "/poll", 403): lambda servers: ask(servers.jwt, "GET", "/poll?topic=other", token()),
    ("GET", "/poll", 429): lambda servers: over_the_limit(servers, "/poll"),
    ("GET", "/poll", 503): lambda servers: ask(servers.without_keys, "GET", "/poll", token()),
    ("HEAD", "/poll", 200): partial(of_open, "HEAD", "/poll"),
    ("HEAD", "/poll", 400): partial(of_open, "HEAD", "/poll?waits=x"),
    ("HEAD", "/poll", 401): partial(of_jwt, "HEAD", "/poll"),
    ("POST", SIGNAL, 202): lambda servers: send_signal(servers.open, b'{"stop": true}'),
    ("POST", SIGNAL, 400): lambda servers: send_signal(servers.open, b"{"),
    ("POST", SIGNAL, 401): lambda servers: send_signal(servers.open, b"1", {}),
    ("POST", SIGNAL, 403): lambda servers: send_signal(servers.jwt, b"1", token() | {"Content-Type": "text/plain"}),
    ("POST", SIGNAL, 413): lambda servers: send_signal(servers.open, b"1" * 5000),
    ("POST", SIGNAL, 415): lambda servers: send_signal(servers.open, b"1", BEARER | {"Content-Type": "image/png"}),
    ("POST", SIGNAL, 429): too_many_signals,
    ("POST", "/ticket", 200): lambda servers: ask(servers.jwt, "POST", "/ticket", token()),
    ("POST", "/ticket", 400): lambda servers: ask(servers.jwt, "POST", "/ticket?ticket=x", token()),
    ("POST", "/ticket", 401): lambda servers: ask(servers.jwt, "POST", "/ticket"),
    ("POST", "/ticket", 503): lambda servers: ask(servers.without_keys, "POST", "/ticket", token()),
    ("GET", "/topics", 200): partial(of_jwt, "GET", "/topics"),
    ("GET", "/topics", 400): partial(of_jwt, "GET", "/topics?limit=0"),
    ("HEAD", "/topics", 200): partial(of_jwt, "HEAD", "/topics"),
    ("GET", "/topics/{topic}", 200): partial(of_one_topic, "GET"),
    ("GET", "/topics/{topic}", 404): partial(of_jwt, "GET", "/topics/unknown"),
    ("HEAD", "/topics/{topic}", 200): partial(of_one_topic, "HEAD"),
    ("GET", "/readyz", 503): lambda servers: ask(servers.draining, "GET", "/readyz"),
    ("HEAD", "/readyz", 503): lambda servers: ask(servers.draining, "HEAD", "/readyz"),
}
for _resource in Resource:
    for _method in ("GET", "HEAD"):
        CASES[_method, _resource.value, 200] = partial(of_jwt, _method, _resource.value)
for _path in DOCUMENT["paths"]:
    CASES["OPTIONS", _path, 204] = partial(of_jwt, "OPTIONS", _path.replace("{topic}", "orders.eu"))


def resolve(value: dict[str, Any]) -> dict[str, Any]:
    """Follow a reference to another part of the document."""
    if "$ref" not in value:
        return value
    found: Any = DOCUMENT
    for name in value["$ref"].removeprefix("#/").split("/"):
        found = found[name]
    result: dict[str, Any] = found
    return result


def test_the_document_is_valid() -> None:
    validate(DOCUMENT, base_uri=PATH.as_uri())


def test_each_documented_response_has_a_case() -> None:
    assert sorted(CASES) == sorted(OPERATIONS)


@pytest.mark.parametrize(("method", "path", "status"), OPERATIONS)
def test_the_server_answers_as_documented(method: str, path: str, status: int, servers: Servers) -> None:
    found, headers, body = CASES[method, path, status](servers)
    assert found == status, body
    response = resolve(DOCUMENT["paths"][path][method.lower()]["responses"][str(status)])
    for name, header in response.get("headers", {}).items():
        assert name.lower() in headers or not header.get("required"), name
    if method in ("HEAD", "OPTIONS") or status == 204:
        assert body == b""
        return
    media = headers["content-type"].partition(";")[0]
    schema = response["content"][media]["schema"]
    if media == "application/json":
        schema = schema | {"components": DOCUMENT["components"]}
        jsonschema.Draft202012Validator(schema, registry=FILES).validate(json.loads(body))


def test_the_document_names_every_path_and_method_of_the_server(servers: Servers) -> None:
    assert {resource.value for resource in Resource} <= set(DOCUMENT["paths"])
    for path, operations in DOCUMENT["paths"].items():
        _, headers, _ = ask(servers.jwt, "OPTIONS", path.replace("{topic}", "orders.eu"))
        methods = {method.upper() for method in operations if method != "parameters"}
        assert set(headers["allow"].split(", ")) == methods, path
    assert ask(servers.jwt, "GET", "/elsewhere")[0] == 404
