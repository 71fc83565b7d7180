"""Routes: what each request asks for."""

from __future__ import annotations

import math

import pytest

from relay.config import Config
from relay.errors import RequestError
from relay.http import Request, RequestParser, parse_head
from relay.hub import Subscribe
from relay.response import stream_head
from relay.routes import Options, Publish, Resource, Route, Router, StreamHead

VARY = ("Vary", "Origin")
CONFIG = Config(topic="news", topics_per_stream_max=3, cors_origin=("https://a.example", "https://b.example"))


def request(target: str, *lines: str, method: str = "GET") -> Request:
    """Parse a request with these header lines."""
    head = "\r\n".join((f"{method} {target} HTTP/1.1", "Host: a", *lines, "", ""))
    return parse_head(head.encode())


def route(target: str, *lines: str, method: str = "GET", config: Config = CONFIG) -> Route:
    """Route a request with these header lines."""
    return Router(config).route(request(target, *lines, method=method))


def stream(target: str, *lines: str) -> Subscribe:
    """Route a request for a stream."""
    subscribe = route(target, *lines)
    assert isinstance(subscribe, Subscribe)
    return subscribe


def refused(target: str, *lines: str, method: str = "GET", config: Config = CONFIG) -> RequestError:
    """Route a request that is refused."""
    with pytest.raises(RequestError) as caught:
        route(target, *lines, method=method, config=config)
    return caught.value


def test_a_stream_without_a_topic_gets_the_default_topic() -> None:
    head = stream_head((VARY,))
    assert stream("/events") == Subscribe(("news",), None, None, None, False, head)


@pytest.mark.parametrize(
    ("target", "terms"),
    [
        ("/events?topic=a", ("a",)),
        ("/events?topic=b&topic=a&topic=b", ("b", "a")),
        ("/events?topic=orders.*&topic=**", ("orders.*", "**")),
        ("/events/a", ("a",)),
        ("/events/a?topic=b&topic=a", ("a", "b")),
        ("/events/a%2Fb", ("a/b",)),
        ("/events/%C3%B6", ("ö",)),
        ("/events/orders.%2A", ("orders.*",)),
        ("/%65vents/a", ("a",)),
        ("http://x/events/a", ("a",)),
        ("/events?topic=a+b", ("a b",)),
        ("/events?unknown=1&topic=a", ("a",)),
    ],
)
def test_topics_come_from_path_and_query_each_once_in_order(target: str, terms: tuple[str, ...]) -> None:
    assert stream(target).terms == terms


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("/events?topic=", 400),
        ("/events?topic=a..b", 400),
        ("/events?topic=a%00", 400),
        ("/events?topic=a*", 400),
        ("/events/a%0Ab", 400),
        ("/events?topic=" + "x" * 257, 400),
        ("/events?topic=a&topic=b&topic=c&topic=d", 400),
        ("/events/..%2Fx", 400),
        ("/events/", 404),
        ("/events/a/b", 404),
        ("/events/../x", 404),
        ("/events%2Fa", 404),
        ("/eventsx", 404),
        ("//events", 404),
        ("/Events", 404),
        ("/favicon.ico", 404),
    ],
)
def test_what_is_no_topic_or_no_path_is_refused(target: str, status: int) -> None:
    assert refused(target).status == status


def test_the_header_wins_over_the_query_and_the_query_over_since() -> None:
    assert stream("/events?lastEventId=q&since=earliest", "Last-Event-ID: h").last_id == "h"
    subscribe = stream("/events?lastEventId=q&since=earliest")
    assert (subscribe.last_id, subscribe.since_s) == ("q", None)


@pytest.mark.parametrize("name", ["lastEventId", "last_event_id", "lastEventID", "evs_last_event_id"])
def test_the_last_id_may_come_under_each_of_the_names_in_use(name: str) -> None:
    assert stream(f"/events?{name}=a%2F7").last_id == "a/7"


def test_an_empty_last_id_is_none() -> None:
    assert stream("/events?lastEventId=", "Last-Event-ID:").last_id is None
    assert stream("/events?lastEventId=&last_event_id=x").last_id == "x"


def test_the_last_id_header_is_utf_8() -> None:
    head = "GET /events HTTP/1.1\r\nHost: a\r\nLast-Event-ID: ö\r\n\r\n"
    good = Router(CONFIG).route(parse_head(head.encode()))
    assert isinstance(good, Subscribe)
    assert good.last_id == "ö"
    with pytest.raises(RequestError, match="UTF-8"):
        Router(CONFIG).route(parse_head(head.encode("latin-1")))


@pytest.mark.parametrize(
    ("since", "since_s", "last_id"),
    [
        ("earliest", math.inf, None),
        ("latest", None, None),
        ("", None, None),
        ("10s", 10.0, None),
        ("250ms", 0.25, None),
        ("5m", 300.0, None),
        ("2h", 7200.0, None),
        ("1d", 86400.0, None),
        ("0s", 0.0, None),
        ("10", None, "10"),
        ("abc-7", None, "abc-7"),
        ("1.5h", 5400.0, None),
        ("10S", None, "10S"),
        ("%D9%A1s", None, "١s"),
    ],
)
def test_since_is_a_word_a_duration_or_an_id(since: str, since_s: float | None, last_id: str | None) -> None:
    subscribe = stream(f"/events?since={since}")
    assert (subscribe.since_s, subscribe.last_id) == (since_s, last_id)


@pytest.mark.parametrize("target", ["/events?since=a%00", "/events?lastEventId=a%0D", "/events?since=1s&since=2s"])
def test_an_impossible_or_doubled_argument_is_refused(target: str) -> None:
    assert refused(target).status == 400


def test_a_policy_must_be_one_that_requests_may_choose() -> None:
    assert stream("/events?policy=conflate").policy == "conflate"
    assert refused("/events?policy=block").status == 403
    error = refused("/events?policy=odd")
    assert error.status == 400
    assert "drop-oldest, drop-newest, conflate, disconnect" in error.reason
    assert "none" in refused("/events?policy=conflate", config=Config(policy_request=())).reason


@pytest.mark.parametrize("name", ["padding", "evs_preamble"])
def test_padding_is_asked_for_by_the_names_in_use(name: str) -> None:
    assert stream(f"/events?{name}").padding
    assert stream(f"/events?{name}=true").padding


@pytest.mark.parametrize("accept", ["text/event-stream", "*/*", "text/html", "nonsense"])
def test_any_accept_will_do(accept: str) -> None:
    assert stream("/events", f"Accept: {accept}").terms == ("news",)


def test_streams_of_one_origin_share_their_head() -> None:
    router = Router(CONFIG)
    asked = request("/events", "Origin: https://a.example")
    first, second = router.route(asked), router.route(asked)
    assert isinstance(first, Subscribe)
    assert isinstance(second, Subscribe)
    assert first.head is second.head
    allowed = ("Access-Control-Allow-Origin", "https://a.example"), ("Access-Control-Allow-Credentials", "true")
    assert first.head == stream_head((*allowed, VARY))
    assert stream("/events", "Origin: https://c.example").head == stream_head((VARY,))


def test_a_host_is_refused_unless_it_is_allowed() -> None:
    config = Config(allowed_host=("localhost", "127.0.0.1", "[::1]", "*.example.com"))

    def ask(host: str, target: str = "/events", method: str = "GET") -> object:
        parser = RequestParser(1000)
        parser.feed(f"{method} {target} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        asked = parser.head()
        assert asked is not None
        return Router(config).route(asked)

    for host in ("localhost", "LOCALHOST:80", "localhost.", "127.0.0.1:9", "[::1]:8080", "A.b.example.com"):
        ask(host)
    ask("evil.example", "http://localhost:1/events")
    requests = [("/events", "GET"), ("/", "GET"), ("/publish", "POST"), ("*", "OPTIONS"), ("/none", "PUT")]
    for host in ("", "evil.example", "localhost.evil", "evillocalhost", "example.com", "evilexample.com", "[::2]"):
        for target, method in requests:
            with pytest.raises(RequestError) as caught:
                ask(host, target, method)
            assert caught.value.status == 421
    with pytest.raises(RequestError):
        ask("localhost", "http://evil.example/events")


def test_without_allowed_hosts_any_host_will_do() -> None:
    assert isinstance(Router(Config()).route(request("/events")), Subscribe)


def test_a_head_of_a_stream_is_checked_like_the_stream() -> None:
    assert route("/events", method="HEAD") == StreamHead((CONFIG.topic,))
    assert refused("/events?topic=", method="HEAD").status == 400


@pytest.mark.parametrize("resource", list(Resource))
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_the_documents_are_where_they_should_be(resource: Resource, method: str) -> None:
    assert route(resource.value + "?x=y", method=method) is resource


def test_publish_takes_its_arguments_from_the_query() -> None:
    assert route("/publish", method="POST") == Publish("news", None, None, None)
    asked = route("/publish?topic=a&event=e&id=i&key=k", method="POST")
    assert asked == Publish("a", "e", "i", "k")


def test_publish_refuses_a_bad_topic_and_a_compressed_body() -> None:
    assert refused("/publish?topic=a.*", method="POST").status == 400
    assert refused("/publish?topic=a&topic=b", method="POST").status == 400
    assert refused("/publish", "Content-Encoding: gzip", method="POST").status == 415


@pytest.mark.parametrize(
    ("target", "method", "allow"),
    [
        ("/events", "POST", "GET, HEAD, OPTIONS"),
        ("/events/a", "DELETE", "GET, HEAD, OPTIONS"),
        ("/publish", "GET", "POST, OPTIONS"),
        ("/", "PUT", "GET, HEAD, OPTIONS"),
        ("/healthz", "TRACE", "GET, HEAD, OPTIONS"),
    ],
)
def test_a_wrong_method_is_answered_with_the_right_ones(target: str, method: str, allow: str) -> None:
    error = refused(target, method=method)
    assert (error.status, error.headers) == (405, (("Allow", allow),))


def test_options_names_the_methods() -> None:
    assert route("/publish", method="OPTIONS") == Options((("Allow", "POST, OPTIONS"),))
    assert route("*", method="OPTIONS") == Options((("Allow", "GET, HEAD, POST, OPTIONS"),))


def test_a_preflight_of_an_allowed_origin_is_granted() -> None:
    ask = "Access-Control-Request-Method: POST"
    granted = route("/publish", ask, "Origin: https://b.example", method="OPTIONS")
    assert isinstance(granted, Options)
    headers = dict(granted.headers)
    assert headers["Access-Control-Allow-Methods"] == "POST, OPTIONS"
    assert {"Authorization", "Last-Event-ID"} <= set(headers["Access-Control-Allow-Headers"].split(", "))
    assert int(headers["Access-Control-Max-Age"]) > 0
    for lines in ((ask,), (ask, "Origin: https://c.example"), ("Origin: https://b.example",)):
        plain = route("/publish", *lines, method="OPTIONS")
        assert plain == Options((("Allow", "POST, OPTIONS"),))
