"""`relay.front.publish`: bodies as data, webhooks and their signatures, and the keys of repeated requests."""

from __future__ import annotations

import gzip
import hashlib
import hmac

import msgspec
import pytest

from relay.event import Event
from tests.front.site import get, on_uvloop, post, serve

SECRET = "a-secret-of-a-webhook"
GITHUB = "hooks.*=github event=X-GitHub-Event dedup=X-GitHub-Delivery"
STRIPE = "payments=stripe event=.type dedup=.id"
BODY = b'{"action": "opened"}'


def hook(body: bytes, target: str, *lines: str) -> bytes:
    """Return the request of a sender without a token."""
    fields = ("Content-Type: application/json", f"Content-Length: {len(body)}")
    return get(target, *fields, *lines, method="POST") + body


def signed(body: bytes, target: str, *lines: str, secret: str = SECRET) -> bytes:
    """Return a request with GitHub's signature."""
    digest = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    return hook(body, target, f"X-Hub-Signature-256: sha256={digest}", *lines)


@pytest.mark.parametrize(
    ("content_type", "body", "data"),
    [
        ("application/json", b'{"a": 1}', msgspec.Raw(b'{"a":1}')),
        ("text/plain", b"a", "a"),
        ("application/x-www-form-urlencoded", b"a=1&b=2", {"a": "1", "b": "2"}),
    ],
)
@on_uvloop
async def test_the_body_is_data_if_the_path_names_the_topic(content_type: str, body: bytes, data: object) -> None:
    async with serve() as site:
        reply = await site.ask(post(body, "/publish/a.b?event=e&id=i&key=k&dedup=d", content_type))
        assert (reply.status, reply.json) == (200, {"ids": ["e-0"]})
        assert site.hub.events == [Event(data=data, event="e", id="i", key="k", topic="a.b", dedup="d")]


@pytest.mark.parametrize("field", ["event", "id", "key"])
@on_uvloop
async def test_the_body_is_data_if_the_query_describes_the_event(field: str) -> None:
    async with serve() as site:
        assert (await site.ask(post(BODY, "/publish?topic=a", "application/json"))).status == 400
        reply = await site.ask(post(BODY, f"/publish?topic=a&{field}=x", "application/json"))
        assert reply.status == 200
        data = msgspec.Raw(b'{"action":"opened"}')
        assert site.hub.events == [msgspec.structs.replace(Event(data=data, topic="a"), **{field: "x"})]


@pytest.mark.parametrize(
    ("target", "status"),
    [("/publish/", 404), ("/publish/a/b", 404), ("/publish/a?topic=b", 400), ("/publish/a*", 400), ("/publisher", 404)],
)
@on_uvloop
async def test_the_path_names_one_topic(target: str, status: int) -> None:
    async with serve() as site:
        assert (await site.ask(post(b"1", target))).status == status
        assert site.hub.events == []


@on_uvloop
async def test_a_response_with_415_names_what_is_accepted() -> None:
    async with serve() as site:
        for target in ("/publish", "/publish/a"):
            reply = await site.ask(post(b"", target, "image/png"))
            assert reply.status == 415
            assert "application/json" in reply.headers["Accept-Post"]
            assert reply.headers["Accept-Post"] in reply.json["error"]


@on_uvloop
async def test_a_signature_replaces_the_token_and_headers_become_fields() -> None:
    async with serve(webhook=(GITHUB,)) as site:
        site.front.auth.webhook_secrets = {"hooks.*": frozenset({SECRET, "old"})}
        lines = ("X-GitHub-Event: issues", "X-GitHub-Delivery: 72d3162e")
        for secret in (SECRET, "old"):
            reply = await site.ask(signed(BODY, "/publish/hooks.x?event=no&key=k", *lines, secret=secret))
            assert reply.status == 200
        event = Event(msgspec.Raw(b'{"action":"opened"}'), event="issues", dedup="72d3162e", key="k", topic="hooks.x")
        assert site.hub.events == [event, event]


@on_uvloop
async def test_a_missing_signature_is_rejected_before_the_body_arrives() -> None:
    async with serve(webhook=(GITHUB,)) as site:
        site.front.auth.webhook_secrets = {"hooks.*": frozenset({SECRET})}
        reply = await site.ask(hook(BODY, "/publish/hooks.x").removesuffix(BODY))
        assert reply.status == 401
        assert reply.headers["WWW-Authenticate"]


@on_uvloop
async def test_a_wrong_signature_is_rejected_even_with_a_token() -> None:
    async with serve(webhook=(GITHUB,)) as site:
        site.front.auth.webhook_secrets = {"hooks.*": frozenset({SECRET})}
        for request in (
            signed(BODY, "/publish/hooks.x", secret="other"),
            signed(BODY, "/publish/hooks.x").removesuffix(b"}") + b" ",
            post(BODY, "/publish/hooks.x"),
        ):
            assert (await site.ask(request)).status == 401
        assert site.hub.events == []
        assert ("http", "token") in site.metrics.errors


@pytest.mark.parametrize("coding", ["utf-8", "latin-1"])
@on_uvloop
async def test_a_header_that_becomes_a_field_may_have_either_coding(coding: str) -> None:
    async with serve(webhook=("a=none event=X-Event",)) as site:
        request = post(b"{}", "/publish/a", "application/json")
        line = "X-Event: größer\r\n".encode(coding)
        head, end, body = request.partition(b"\r\n\r\n")
        assert (await site.ask(head + b"\r\n" + line + end[2:] + body)).status == 200
        assert site.hub.events[0].event == "größer"


@on_uvloop
async def test_a_webhook_without_a_secret_needs_a_token() -> None:
    async with serve(webhook=(GITHUB,)) as site:
        assert (await site.ask(signed(BODY, "/publish/hooks.x"))).status == 401
        assert (await site.ask(post(BODY, "/publish/hooks.x"))).status == 200


@on_uvloop
async def test_other_topics_and_the_path_without_a_topic_need_a_token() -> None:
    async with serve(webhook=(GITHUB,)) as site:
        site.front.auth.webhook_secrets = {"hooks.*": frozenset({SECRET})}
        for target in ("/publish/other", "/publish?topic=hooks.x", "/publish"):
            assert (await site.ask(signed(b'{"data": 1, "topic": "hooks.x"}', target))).status == 401


@on_uvloop
async def test_stripe_signs_the_time_and_members_of_the_body_become_fields() -> None:
    async with serve(webhook=(STRIPE,)) as site:
        site.front.auth.webhook_secrets = {"payments": frozenset({SECRET})}
        body = b'{"id": "evt_1", "type": "charge.succeeded"}'
        digest = hmac.new(SECRET.encode(), b"1000000000." + body, hashlib.sha256).hexdigest()
        request = hook(body, "/publish/payments", f"Stripe-Signature: t=1000000000,v1={digest}")
        assert (await site.ask(request)).status == 200
        [event] = site.hub.events
        assert (event.event, event.dedup) == ("charge.succeeded", "evt_1")


@on_uvloop
async def test_an_idempotency_key_is_the_dedup_key_of_the_events() -> None:
    async with serve() as site:
        line = 'Idempotency-Key: "key-1"'
        token = "sesame"
        await site.ask(post(b"[1]", "/publish/a", "application/json", token, line))
        await site.ask(post(b'[{"data": 1}, {"data": 2}]', "/publish", "application/json", token, line))
        await site.ask(post(b"a", "/publish?dedup=query", "text/plain", token, line))
        assert [event.dedup for event in site.hub.events] == ["key-1", "key-1:1", "key-1:2", "query"]
        assert (await site.ask(post(b"a", "/publish", "text/plain", token, "Idempotency-Key: a, b"))).status == 400


@on_uvloop
async def test_a_compressed_body_is_decoded_within_the_limit() -> None:
    async with serve(body_bytes_max=100) as site:
        line, token = "Content-Encoding: gzip", "sesame"
        for target in ("/publish/a", "/publish?topic=a"):
            assert (await site.ask(post(gzip.compress(b"text"), target, "text/plain", token, line))).status == 200
        assert [event.data for event in site.hub.events] == ["text", "text"]
        large = await site.ask(post(gzip.compress(b"x" * 101), "/publish/a", "text/plain", token, line))
        assert (large.status, large.json["error"]) == (413, "the decoded body is larger than 100 bytes")
        assert site.metrics.limits == ["body-bytes-max"]
        assert (await site.ask(post(b"text", "/publish/a", "text/plain", token, line))).status == 400


@on_uvloop
async def test_another_coding_is_rejected_with_the_accepted_ones() -> None:
    async with serve() as site:
        reply = await site.ask(post(b"x", "/publish", "text/plain", "sesame", "Content-Encoding: deflate"))
        assert reply.status == 415
        assert "gzip" in reply.headers["Accept-Encoding"]


@on_uvloop
async def test_the_signature_is_of_the_compressed_body() -> None:
    async with serve(webhook=(GITHUB,)) as site:
        site.front.auth.webhook_secrets = {"hooks.*": frozenset({SECRET})}
        body = gzip.compress(BODY)
        assert (await site.ask(signed(body, "/publish/hooks.x", "Content-Encoding: gzip"))).status == 200
