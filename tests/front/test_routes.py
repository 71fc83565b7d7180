"""Routes: the meaning of each request.

Covers `relay.front.query`.
"""

from __future__ import annotations

import math
import re

import pytest

from relay.config.model import Config
from relay.core.stream import Subscribe
from relay.errors import RequestError
from relay.front.routes import Options, Poll, PublishBody, Resource, Route, Router, SignalTopic, StreamHead
from relay.http.request import Request, RequestParser, parse_head
from relay.http.response import stream_head
from relay.ids import ID_CHARACTERS_MAX, LAST_ID_NAMES
from relay.telemetry.topics import TopicsQuery

CHUNKED = (("Transfer-Encoding", "chunked"),)
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


def rejection(target: str, *lines: str, method: str = "GET", config: Config = CONFIG) -> RequestError:
    """Route a request that is rejected, and return the error."""
    with pytest.raises(RequestError) as caught:
        route(target, *lines, method=method, config=config)
    return caught.value


def test_a_stream_without_a_topic_receives_the_default_topic() -> None:
    head = stream_head("text/event-stream", CHUNKED, ("Accept",), (VARY,))
    assert stream("/events") == Subscribe(("news",), (), None, None, False, head)


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
def test_topics_are_read_from_path_and_query_each_once_in_order(target: str, terms: tuple[str, ...]) -> None:
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
def test_an_invalid_topic_or_path_is_rejected(target: str, status: int) -> None:
    assert rejection(target).status == status


@pytest.mark.parametrize("foreign", ["utm=100%", "x=%E9", "%ff=1", "%zz", "x=%00", "=", "&", "x[]=1&x[]=2", "a;b=c"])
def test_unknown_query_arguments_can_have_any_value(foreign: str) -> None:
    for target in (f"/events?{foreign}&topic=a", f"/events?topic=a&{foreign}"):
        assert stream(target).terms == ("a",)
    assert route(f"/?{foreign}") is Resource.PAGE


@pytest.mark.parametrize(("argument", "reason"), [("topic=%E9", "topic: .*UTF-8"), ("policy=%", "policy: malformed")])
def test_the_error_for_an_undecodable_argument_names_it(argument: str, reason: str) -> None:
    error = rejection(f"/events?x=%&{argument}")
    assert error.status == 400
    assert re.match(reason, error.reason)


def test_the_header_overrides_the_query_and_the_query_overrides_since() -> None:
    assert stream("/events?lastEventId=q&since=earliest", "Last-Event-ID: h").last_ids == ("h",)
    subscribe = stream("/events?lastEventId=q&since=earliest")
    assert (subscribe.last_ids, subscribe.since_s, subscribe.must_know) == (("q",), None, False)
    assert not stream("/events?lastEventId=q&since=last").newest


@pytest.mark.parametrize("name", LAST_ID_NAMES)
def test_the_last_id_can_have_each_of_the_common_names(name: str) -> None:
    assert stream(f"/events?{name}=a%2F7").last_ids == ("a/7",)


def test_an_empty_last_id_is_ignored() -> None:
    assert stream("/events?lastEventId=", "Last-Event-ID:").last_ids == ()
    assert stream("/events?lastEventId=&lastEventID=x").last_ids == ("x",)


@pytest.mark.parametrize(
    ("value", "ids"),
    [
        (b"a-1", {"a-1"}),
        ("\u00f6".encode(), {"\u00f6", "\u00c3\u00b6"}),
        ("\u00f6".encode("latin-1"), {"\u00f6"}),
        (b"  a b\t", {"a b"}),
        (b"\x00", {"\x00"}),
        (b"a\x0c\x01\x7f\x1f", {"a\x0c\x01\x7f\x1f"}),
        (b"x" * 5000, {"x" * (ID_CHARACTERS_MAX + 1)}),
    ],
)
def test_a_last_id_of_any_bytes_is_read_into_all_possible_ids(value: bytes, ids: set[str]) -> None:
    head = b"GET /events HTTP/1.1\r\nHost: a\r\nlast-EVENT-id: %b\r\n\r\n" % value
    good = Router(CONFIG).route(parse_head(head))
    assert isinstance(good, Subscribe)
    assert set(good.last_ids) == ids
    if b" " not in value:
        escaped = "".join(f"%{byte:02x}" for byte in value)
        assert set(stream(f"/events?lastEventId={escaped}").last_ids) == ids


@pytest.mark.parametrize(
    ("value", "ids"),
    [
        ("a+b", {"a b", "a+b"}),
        ("a%2Bb", {"a+b"}),
        ("a%20b", {"a b"}),
        ("100%", {"100%"}),
        ("%zz", {"%zz"}),
        ("%E9", {"\u00e9"}),
        ("a=b", {"a=b"}),
    ],
)
def test_a_last_id_in_the_query_can_be_escaped_in_any_way(value: str, ids: set[str]) -> None:
    assert set(stream(f"/events?lastEventId={value}").last_ids) == ids


def test_several_different_last_ids_match_no_event() -> None:
    for subscribe in (
        stream("/events", "Last-Event-ID: 1", "Last-Event-ID: 2"),
        stream("/events?lastEventId=1&lastEventId=2"),
    ):
        assert subscribe.last_ids
        assert all("\n" in id for id in subscribe.last_ids)
    assert stream("/events?lastEventId=1&lastEventId=1").last_ids == ("1",)


@pytest.mark.parametrize(
    ("since", "since_s", "last_ids"),
    [
        ("earliest", math.inf, ()),
        ("latest", None, ()),
        ("last", math.inf, ()),
        ("", None, ()),
        ("10s", 10.0, ()),
        ("250ms", 0.25, ()),
        ("5m", 300.0, ()),
        ("2h", 7200.0, ()),
        ("1h30m", 5400.0, ()),
        ("1d", 86400.0, ()),
        ("0s", 0.0, ()),
        ("1.5h", 5400.0, ()),
        ("1800000000", 1000.0, ("1800000000",)),
        ("1800000000.5", 999.5, ("1800000000.5",)),
        ("1800000000000", 1000.0, ("1800000000000",)),
        ("1800002000", 0.0, ("1800002000",)),
        ("2027-01-15T08:00:00Z", 1000.0, ()),
        ("2027-01-15t08:00:00.250z", 999.75, ()),
        ("2027-01-15T08:00:00.123456789Z", 1000.0 - 0.123456, ()),
        ("2027-01-15T10:00:00%2B02:00", 1000.0, ()),
        ("2027-01-15T10:00:00+02:00", 1000.0, ()),
        ("2027-01-15+03:00:00-05:00", 1000.0, ()),
        ("2027-01-15T07:59:60Z", 1001.0, ()),
        ("10", None, ("10",)),
        ("1.5", None, ("1.5",)),
        ("%205", None, (" 5",)),
        ("+5", None, ("+5", " 5")),
        ("abc-7", None, ("abc-7",)),
        ("10S", None, ("10S",)),
        ("%D9%A1s", None, ("\u00d9\u00a1s", "\u0661s")),
        ("2027-13-15T08:00:00Z", None, ("2027-13-15T08:00:00Z",)),
        ("2027-01-15", None, ("2027-01-15",)),
        ("99999999999d", None, ("99999999999d",)),
    ],
)
def test_since_is_a_word_a_duration_a_time_or_an_id(
    since: str, since_s: float | None, last_ids: tuple[str, ...]
) -> None:
    subscribe = Router(CONFIG, lambda: 1_800_001_000.0).route(request(f"/events?since={since}"))
    assert isinstance(subscribe, Subscribe)
    assert subscribe.since_s == (None if since_s is None else pytest.approx(since_s, abs=1e-5))
    assert subscribe.last_ids == last_ids
    assert subscribe.must_know == bool(last_ids)
    assert subscribe.newest == (since == "last")


def test_a_repeated_since_is_rejected() -> None:
    assert rejection("/events?since=1s&since=2s").status == 400


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("topics", "topic"),
        ("Topic", "topic"),
        ("TOPIC", "topic"),
        ("topic[]", "topic"),
        ("topic%5B%5D", "topic"),
        ("topc", "topic"),
        ("tpoic", "topic"),
        ("topicc", "topic"),
        ("last-event-id", "lastEventId"),
        ("lasteventid", "lastEventId"),
        ("last-event-ids", "lastEventId"),
        ("LAST_EVENT_ID", "lastEventId"),
        ("lastEvntId", "lastEventId"),
        ("Since", "since"),
        ("sicne", "since"),
        ("sinse", None),
        ("ticker", None),
        ("police", None),
        ("policies", None),
        ("Policy", "policy"),
        ("_", None),
        ("t", None),
        ("x" * 1000, None),
        ("token", None),
        ("channel", None),
    ],
)
def test_a_misspelt_name_is_rejected_with_a_hint_and_an_unknown_one_is_ignored(name: str, meant: str | None) -> None:
    if meant is None:
        assert stream(f"/events?{name}=a").terms == ("news",)
    else:
        error = rejection(f"/events?{name}=a")
        assert error.status == 400
        assert error.reason.endswith(f"did you mean {meant}?")


@pytest.mark.parametrize(("name", "meant"), [("Topic", "topic"), ("ID", "id"), ("events", "event"), ("keys", "key")])
def test_a_misspelt_name_of_a_publish_request_is_rejected(name: str, meant: str) -> None:
    assert f"did you mean {meant}?" in rejection(f"/publish?{name}=a", method="POST").reason
    assert route("/publish?x=a&_=1", method="POST") == PublishBody("news", None, None, None)


def test_a_request_can_choose_only_the_permitted_policies() -> None:
    assert stream("/events?policy=conflate").policy == "conflate"
    assert rejection("/events?policy=block").status == 403
    error = rejection("/events?policy=odd")
    assert error.status == 400
    assert "drop-oldest, drop-newest, conflate, disconnect" in error.reason
    assert "none" in rejection("/events?policy=conflate", config=Config(policy_request=())).reason


@pytest.mark.parametrize("name", ["padding", "evs_preamble"])
def test_padding_can_be_requested_with_each_of_the_common_names(name: str) -> None:
    assert stream(f"/events?{name}").padding
    assert stream(f"/events?{name}=true").padding


@pytest.mark.parametrize("accept", ["text/event-stream", "*/*", "text/html", "nonsense"])
def test_any_accept_header_is_valid(accept: str) -> None:
    assert stream("/events", f"Accept: {accept}").terms == ("news",)


def test_streams_of_one_origin_share_their_head() -> None:
    router = Router(CONFIG)
    asked = request("/events", "Origin: https://a.example")
    first, second = router.route(asked), router.route(asked)
    assert isinstance(first, Subscribe)
    assert isinstance(second, Subscribe)
    assert first.head is second.head
    allowed = ("Access-Control-Allow-Origin", "https://a.example"), ("Access-Control-Allow-Credentials", "true")
    assert first.head == stream_head("text/event-stream", CHUNKED, ("Accept",), (*allowed, VARY))
    other = stream_head("text/event-stream", CHUNKED, ("Accept",), (VARY,))
    assert stream("/events", "Origin: https://c.example").head == other


def test_a_host_is_rejected_unless_it_is_allowed() -> None:
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


def test_without_allowed_hosts_any_host_is_accepted() -> None:
    assert isinstance(Router(Config()).route(request("/events")), Subscribe)


def test_a_head_request_for_a_stream_is_checked_like_the_stream() -> None:
    head = stream_head("text/event-stream", CHUNKED, ("Accept",), (VARY,))
    assert route("/events", method="HEAD") == StreamHead((CONFIG.topic,), head)
    assert rejection("/events?topic=", method="HEAD").status == 400


@pytest.mark.parametrize("resource", list(Resource))
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_each_document_has_its_path(resource: Resource, method: str) -> None:
    assert route(resource.value + "?x=y", method=method) is resource


def test_publish_reads_its_arguments_from_the_query() -> None:
    assert route("/publish", method="POST") == PublishBody("news", None, None, None)
    asked = route("/publish?topic=a&event=e&id=i&key=k&ttl=5m", method="POST")
    assert asked == PublishBody("a", "e", "i", "k", ttl=300.0, is_data=True)
    assert "ttl: 'x' is not a time" in rejection("/publish?ttl=x", method="POST").reason


def test_publish_rejects_a_bad_topic_and_an_unknown_coding() -> None:
    assert rejection("/publish?topic=a.*", method="POST").status == 400
    assert rejection("/publish?topic=a&topic=b", method="POST").status == 400
    assert rejection("/publish", "Content-Encoding: deflate", method="POST").status == 415


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
def test_the_response_to_a_wrong_method_names_the_allowed_ones(target: str, method: str, allow: str) -> None:
    error = rejection(target, method=method)
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
    assert {"Authorization", "Last-Event-ID", "traceparent"} <= set(headers["Access-Control-Allow-Headers"].split(", "))
    assert int(headers["Access-Control-Max-Age"]) > 0
    for lines in ((ask,), (ask, "Origin: https://c.example"), ("Origin: https://b.example",)):
        plain = route("/publish", *lines, method="OPTIONS")
        assert plain == Options((("Allow", "POST, OPTIONS"),))


def test_a_poll_has_the_terms_and_the_position_of_a_stream() -> None:
    poll = route("/poll?topic=a&topic=b.*&lastEventId=e-7&wait=5s&limit=3")
    assert isinstance(poll, Poll)
    assert (poll.subscribe.terms, poll.subscribe.last_ids) == (("a", "b.*"), ("e-7",))
    assert (poll.subscribe.form, poll.wait_s, poll.events_max, poll.newest) == ("json", 5.0, 3, False)
    longest = route("/poll?wait=10m")
    assert isinstance(longest, Poll)
    assert longest.wait_s == CONFIG.poll_wait_max_s
    head = route("/poll?wait=5s", method="HEAD")
    assert isinstance(head, Poll)
    assert head.wait_s == 0


@pytest.mark.parametrize(
    ("target", "accept", "newest", "events_max", "since_s"),
    [
        ("/events/a?limit=5", "*/*", True, 5, math.inf),
        ("/events/a", "application/json", True, 100, math.inf),
        ("/events/a?limit=5&since=10s", "*/*", False, 5, 10.0),
        ("/events/a?limit=5&since=latest", "*/*", False, 5, None),
        ("/events/a?limit=5&lastEventId=e-1", "*/*", False, 5, None),
    ],
)
def test_a_history_is_newest_first_only_without_a_position(
    target: str, accept: str, newest: bool, events_max: int, since_s: float | None
) -> None:
    poll = route(target, f"Accept: {accept}")
    assert isinstance(poll, Poll)
    assert (poll.newest, poll.events_max, poll.wait_s, poll.subscribe.since_s) == (newest, events_max, 0, since_s)


def test_the_topic_of_a_signal_is_in_the_path() -> None:
    assert route("/topics/chat.7/signal", method="POST") == SignalTopic("chat.7")
    assert route("/topics/a%2Fb/signal", method="POST") == SignalTopic("a/b")
    assert route("/topics/signal") == TopicsQuery(topic="signal")
    assert route("/topics/a%2Fsignal") == TopicsQuery(topic="a/signal")
    assert rejection("/topics/a/b/signal", method="POST").status == 404
    assert rejection("/topics/*/signal", method="POST").status == 400
    assert rejection("/topics/a/signal").status == 405
