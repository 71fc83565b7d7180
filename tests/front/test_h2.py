"""HTTP/2 in the process: real servers, and a client that is the library `h2` on a socket.

Covers relay.front.h2, relay.front.h2_stream and relay.front.h2_limits.
"""

from __future__ import annotations

import contextlib
import json
import signal
import socket

import pytest
from h2.errors import ErrorCodes

from relay.http.h2_exchange import Exchange
from relay.http.h2_frames import PREFACE, FrameKind
from tests.certificate import Certificate, make_certificate
from tests.h2_client import AUTHORIZED, Http2Client
from tests.running import TIMEOUT_S, Relay, Stream, eventually, relay

TEXT = ("content-type", "text/plain")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """A certificate."""
    return make_certificate(tmp_path_factory.mktemp("h2"), "one")


def limited(server: Relay, limit: str) -> int:
    """Return how often a limit was applied."""
    for line in server.request("GET", "/metrics")[2].decode().splitlines():
        if line.startswith("relay_limited_total{") and f'limit="{limit}"' in line:
            return int(float(line.rpartition(" ")[2]))
    return 0


def test_streams_and_requests_share_one_connection_without_tls() -> None:
    with relay() as server, Http2Client(server.port) as client:
        streams = [client.subscribe(f"/events?topic={topic}") for topic in "abcab"]
        for number in range(10):
            answer = client.ask(
                "POST", f"/publish?topic={'abc'[number % 3]}", [AUTHORIZED, TEXT], f"{number} ü".encode()
            )
            assert answer.status == 200
            assert answer.ended
        for stream, topic in zip(streams, "abcab", strict=True):
            expected = [f"{number} ü" for number in range(10) if "abc"[number % 3] == topic]
            assert [event.data for event in client.take(stream, len(expected))] == expected
            assert not client.answers[stream].over
        head = client.answers[streams[0]].headers
        assert head["content-type"] == "text/event-stream"
        assert not head.keys() & {"connection", "keep-alive", "transfer-encoding"}
        assert server.stats()["streams"] == 5
        for stream in streams:
            client.reset(stream)
        eventually(lambda: server.stats()["streams"] == 0, "the streams are gone")
        assert client.ask("GET", "/healthz").status == 200, "the connection continues"
        assert server.stats()["closes"] == {"client": 5}


def test_two_hundred_streams_cost_two_descriptors_each_and_leave_nothing(certificate: Certificate) -> None:
    with relay(*certificate.flags, context=certificate.context()) as server:
        before = server.open_descriptors()
        with Http2Client(server.port, certificate.context()) as client:
            streams = [client.request("GET", "/events?topic=a") for _ in range(200)]
            client.until(lambda: all(client.answers[each].status == 200 for each in streams), "all heads")
            eventually(lambda: 400 < server.open_descriptors() - before < 410, "the descriptors that they cost")
            data = [f"{number} ü" for number in range(20)]
            for each in data:
                server.publish(each, "a")
            for stream in streams:
                assert [event.data for event in client.take(stream, 20)] == data
        eventually(lambda: server.stats()["streams"] == 0, "all streams are gone")
        eventually(lambda: server.open_descriptors() <= before + 3, "their descriptors too")


def test_alpn_chooses_and_http2_can_be_switched_off(certificate: Certificate) -> None:
    for flags, chosen in (((), "h2"), (("--http2", "off"), "http/1.1")):
        with relay(*flags, *certificate.flags, context=certificate.context()) as server:
            context = certificate.context()
            context.set_alpn_protocols(["http/1.1", "h2"])
            with (
                socket.create_connection(("127.0.0.1", server.port), TIMEOUT_S) as client,
                context.wrap_socket(client, server_hostname="127.0.0.1") as secure,
            ):
                assert secure.selected_alpn_protocol() == chosen
            assert server.request("GET", "/healthz")[0] == 200, "a client without ALPN speaks HTTP/1.1"
    with relay("--http2", "off") as server, socket.create_connection(("127.0.0.1", server.port), TIMEOUT_S) as client:
        client.sendall(PREFACE)
        assert client.recv(4096).startswith(b"HTTP/1.1 505 ")


def test_a_client_without_tls_may_send_the_preface_in_pieces() -> None:
    with relay() as server, Http2Client(server.port, speak=False) as client:
        client.h2.initiate_connection()
        for byte in client.h2.data_to_send():
            client.send(bytes((byte,)))
        assert client.ask("GET", "/healthz").status == 200


def test_heads_bodies_and_statuses_are_those_of_http1(certificate: Certificate) -> None:
    with (
        relay("--event-bytes-max", "8MiB", *certificate.flags, context=certificate.context()) as server,
        Http2Client(server.port, certificate.context()) as client,
    ):
        page = client.ask("GET", "/")
        status, headers, body = server.request("GET", "/")
        assert (page.status, bytes(page.body)) == (status, body)
        assert page.headers.keys() == headers.keys() - {"connection"}
        head = client.ask("HEAD", "/")
        assert (head.status, bytes(head.body), head.headers["content-length"]) == (200, b"", str(len(body)))
        assert client.ask("HEAD", "/events?topic=a").status == 200
        assert client.ask("OPTIONS", "/publish").status == 204
        assert client.ask("OPTIONS", "*").status == 204
        assert client.ask("GET", "/nowhere").status == 404
        assert client.ask("DELETE", "/events").status == 405
        assert client.ask("GET", "/a b").reset == ErrorCodes.PROTOCOL_ERROR
        refused = client.ask("POST", "/publish", [TEXT], b"without a token")
        assert refused.status == 401
        stream = client.subscribe("/events?topic=a")
        data = "0123456789abcdef" * 100_000
        lengths: tuple[list[tuple[str, str]], ...] = ([], [("content-length", str(len(data)))])
        for length in lengths:
            answer = client.ask("POST", "/publish?topic=a", [AUTHORIZED, TEXT, *length], data.encode())
            assert answer.status == 200, answer
        assert [event.data for event in client.take(stream, 2)] == [data, data]
        expecting = [AUTHORIZED, TEXT, ("expect", "100-continue"), ("content-length", "2")]
        waiting = client.request("POST", "/publish?topic=a", expecting, ended=False)
        client.until(lambda: client.answers[waiting].informational == [100], "the status 100")
        client.send_body(waiting, b"hi")
        assert client.answer(waiting).status == 200


def test_a_body_over_the_limit_is_refused_and_the_connection_continues() -> None:
    with relay("--body-bytes-max", "100KiB") as server, Http2Client(server.port) as client:
        length = ("content-length", str(10_000_000))
        stream = client.request("POST", "/publish", [AUTHORIZED, TEXT, length], ended=False)
        answer = client.answer(stream)
        assert answer.status == 413
        chunked = client.request("POST", "/publish", [AUTHORIZED, TEXT], ended=False)
        sent = 0
        while not client.answers[chunked].status:
            size = min(client.h2.local_flow_control_window(chunked), 16_000)
            if size:
                client.h2.send_data(chunked, bytes(size))
                sent += size
                client.flush()
            else:
                client.read()
            assert sent < 500_000
        assert client.answers[chunked].status == 413
        client.until(lambda: client.answers[chunked].over, "the end")
        assert client.ask("GET", "/healthz").status == 200


def test_the_address_of_the_client_reaches_the_limits(certificate: Certificate) -> None:
    flags = ("--proxy-protocol", "--trusted-proxy", "127.0.0.1", "--streams-per-address-max", "1")
    server = Relay(*flags, "--refuse-streams", "status")
    try:
        for address in ("198.51.100.7", "198.51.100.8"):
            with Http2Client(server.port, speak=False) as client:
                client.send(f"PROXY TCP4 {address} 192.0.2.1 4000 443\r\n".encode())
                client.h2.initiate_connection()
                client.subscribe("/events?topic=a")
                assert client.ask("GET", "/events?topic=a").status == 429
    finally:
        server.stop(signal.SIGKILL)
    with (
        relay("--trusted-proxy", "127.0.0.1", "--streams-per-address-max", "1", "--refuse-streams", "status") as server,
        Http2Client(server.port) as client,
    ):
        client.subscribe("/events?topic=a", [("x-forwarded-for", "198.51.100.7")])
        assert client.ask("GET", "/events", [("x-forwarded-for", "198.51.100.7")]).status == 429
        client.subscribe("/events?topic=a", [("x-forwarded-for", "198.51.100.8")])


def test_host_and_cookies_arrive_as_one_field_each() -> None:
    with relay("--allowed-host", "a", "--allowed-host", "127.0.0.1") as server, Http2Client(server.port) as client:
        assert client.ask("GET", "/healthz").status == 200, "the authority is a"
        other = client.h2.get_next_available_stream_id()
        client.h2.send_headers(
            other, [(":method", "GET"), (":scheme", "http"), (":path", "/healthz"), ("host", "b")], end_stream=True
        )
        client.flush()
        assert client.answer(other).status == 421
    exchange_fields = [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/"), (b":authority", b"a")]
    assert Exchange([*exchange_fields, (b"cookie", b"a=1; b=2")], ended=True).request == (
        b"GET / HTTP/1.1\r\nhost: a\r\ncookie: a=1; b=2\r\n\r\n"
    )


def test_a_stalled_stream_stalls_only_itself() -> None:
    """The window of one stream stays closed. Its policy acts on it, and the other streams receive everything."""
    with (
        relay("--client-buffer", "16KiB", "--lag-bytes", "256KiB") as server,
        Http2Client(server.port, window=1000, acknowledge=False) as client,
    ):
        client.h2.increment_flow_control_window(2**30)
        stalled = client.subscribe("/events?topic=a")
        healthy = [client.subscribe("/events?topic=a") for _ in range(3)]
        for each in healthy:
            client.h2.increment_flow_control_window(2**30, each)
        client.flush()
        for number in range(200):
            server.publish("x" * 20_000 + str(number), "a")
            for each in healthy:
                assert client.take(each, number + 1)[-1].data == "x" * 20_000 + str(number)
        assert len(client.answers[stalled].body) == 1000
        eventually(lambda: server.metric("relay_streams_lagging") == 1, "exactly that stream lags")
        client.h2.increment_flow_control_window(2**30, stalled)
        client.flush()
        server.publish("end", "a")
        client.until(lambda: b"data: end" in client.answers[stalled].body, "the end")
        events = client.answers[stalled].events
        missed = sum(json.loads(event.data)["missed"] for event in events if event.event == "relay.gap")
        assert missed > 0
        assert sum(event.event is None for event in events) + missed == 201


def test_a_client_that_does_not_read_costs_bounded_memory() -> None:
    with (
        relay("--client-buffer", "16KiB", "--lag-bytes", "1MiB", "--history-bytes", "2MiB") as server,
        Http2Client(server.port, window=2**30, receive_buffer=4096) as client,
        Stream(server.port, "topic=a") as other,
    ):
        client.h2.increment_flow_control_window(2**30)
        streams = [client.subscribe("/events?topic=a") for _ in range(10)]
        before = server.memory_bytes()
        for number in range(400):
            server.publish("x" * 20_000 + str(number), "a")
            other.next()
        assert server.metric("relay_streams_lagging") == 10
        assert server.memory_bytes() - before < 8_000_000
        server.publish("end", "a")
        for each in streams:
            client.until(lambda each=each: b"data: end" in client.answers[each].body, "the end")  # type: ignore[misc]


def test_a_drain_announces_itself_and_ends_the_streams(certificate: Certificate) -> None:
    for flags, context in (((), None), (certificate.flags, certificate.context())):
        with relay(*flags, "--drain-delay", "300ms", context=context) as server:
            own = certificate.context() if context else None
            with (
                Http2Client(server.port, own, receive_buffer=4096) as client,
                Http2Client(server.port, certificate.context() if context else None) as idle,
            ):
                idle.ask("GET", "/healthz")
                streams = [client.subscribe("/events?topic=a") for _ in range(10)]
                for number in range(30):
                    server.publish("x" * 10_000 + str(number), "a")
                server.process.send_signal(signal.SIGTERM)
                for each in streams:
                    answer = client.answer(each)
                    assert answer.ended
                    assert [event.data.lstrip("x") for event in answer.events] == [str(n) for n in range(30)]
                assert client.until_closed() == ErrorCodes.NO_ERROR
                assert client.last_stream_id == streams[-1]
                assert idle.until_closed() == ErrorCodes.NO_ERROR
            assert server.wait() == 0


def test_a_stream_that_is_aborted_is_reset_and_not_ended() -> None:
    with (
        relay("--policy", "disconnect", "--client-buffer", "16KiB", "--lag-bytes", "100KiB") as server,
        Http2Client(server.port, window=1000, acknowledge=False) as client,
    ):
        stream = client.subscribe("/events?topic=a")
        for number in range(60):
            server.publish("x" * 10_000 + str(number), "a")
        eventually(lambda: server.stats()["streams"] == 0, "the stream is closed as slow")
        client.h2.increment_flow_control_window(2**20)
        client.h2.increment_flow_control_window(2**20, stream)
        client.flush()
        answer = client.answer(stream)
        assert (answer.ended, answer.reset) == (False, ErrorCodes.INTERNAL_ERROR)
        assert [event.data.lstrip("x") for event in answer.events] == [str(n) for n in range(len(answer.events))]
        assert client.ask("GET", "/healthz").status == 200


def test_every_form_and_every_clean_end_passes() -> None:
    with relay() as server, Http2Client(server.port) as client:
        plain = client.subscribe("/events?topic=a")
        envelope = client.subscribe("/events?topic=a&envelope=1")
        lines = client.subscribe("/events?topic=a", [("accept", "application/x-ndjson")])
        server.publish('{"data": "one"}\n{"event": "relay.end", "data": "bye"}', "a", "application/x-ndjson")
        for each in (plain, envelope, lines):
            assert client.answer(each).ended
        assert [event.data for event in client.answers[plain].events] == ["one", "bye"]
        found = [json.loads(event.data) for event in client.answers[envelope].events]
        assert found == [{"topic": "a", "data": "one"}, {"topic": "a", "data": "bye"}]
        objects = [json.loads(line) for line in bytes(client.answers[lines].body).splitlines() if line]
        assert [each["data"] for each in objects if "data" in each] == ["one", "bye"]
        assert client.ask("GET", "/events?topic=a").status == 204, "the topic has ended"


def test_a_complete_response_that_is_not_read_is_reset_in_time() -> None:
    with relay("--head-timeout", "300ms") as server, Http2Client(server.port, window=10, acknowledge=False) as client:
        page = client.request("GET", "/")
        answer = client.answer(page)
        assert answer.reset in (ErrorCodes.CANCEL, ErrorCodes.INTERNAL_ERROR)
        assert len(answer.body) == 10
        assert limited(server, "answer-time") == 1
        assert client.ask("HEAD", "/healthz").status == 200


def test_a_stream_that_was_closed_while_its_client_did_not_read_is_reset_in_time() -> None:
    flags = ("--head-timeout", "300ms", "--policy", "disconnect", "--client-buffer", "16KiB", "--lag-bytes", "100KiB")
    with relay(*flags) as server, Http2Client(server.port, window=1000, acknowledge=False) as client:
        stalled = client.subscribe("/events?topic=a")
        quiet = client.subscribe("/events?topic=b")
        server.publish("x" * 2000, "b")
        for _ in range(60):
            server.publish("x" * 10_000, "a")
        assert client.answer(stalled).reset == ErrorCodes.CANCEL
        client.read_for(0.7)
        assert not client.answers[quiet].over, "an open stream may wait"
        assert server.stats()["streams"] == 1
        assert limited(server, "answer-time") == 1


def test_blocked_streams_take_turns_at_the_window_of_the_connection() -> None:
    with relay() as server, Http2Client(server.port, window=2**20, acknowledge=False) as client:
        streams = [client.subscribe("/events?topic=a") for _ in range(4)]
        for number in range(10):
            server.publish("x" * 20_000 + str(number), "a")
        opened = 65535
        while not all(len(client.answers[each].events) == 10 for each in streams):
            client.read_for(0.05)
            received = sum(len(client.answers[each].body) for each in streams)
            assert received <= opened
            sizes = [len(client.answers[each].body) for each in streams]
            assert max(sizes) - min(sizes) < 100_000, sizes
            client.h2.increment_flow_control_window(20_000)
            client.flush()
            opened += 20_000


def test_an_upgrade_cuts_the_connections_and_clients_resume() -> None:
    with relay() as server:
        with Http2Client(server.port) as client, Stream(server.port, "topic=a") as plain:
            stream = client.subscribe("/events?topic=a")
            first = server.publish("one", "a")[0]
            assert client.take(stream, 1)[0].data == "one"
            assert plain.next().data == "one"
            server.upgrade()
            assert client.answer(stream).reset == ErrorCodes.CANCEL
            assert client.until_closed() == ErrorCodes.NO_ERROR
            server.publish("two", "a")
            assert plain.next().data == "two", "a stream of HTTP/1.1 continues"
        with Http2Client(server.port) as client:
            stream = client.subscribe("/events?topic=a", [("last-event-id", first)])
            assert [event.data for event in client.take(stream, 1)] == ["two"]


def test_a_malformed_request_resets_only_its_stream() -> None:
    pseudo = [(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "/healthz")]
    malformed: list[list[tuple[str, str]]] = [
        pseudo[:3],
        [*pseudo, (":path", "/")],
        [pseudo[0], *pseudo[1:3], (":path", "")],
        [*pseudo[:3], (":path", "healthz")],
        [*pseudo, ("connection", "close")],
        [*pseudo, ("transfer-encoding", "chunked")],
        [*pseudo, ("te", "gzip")],
        [*pseudo, ("Upper", "case")],
        [*pseudo, ("a", "b\r\nc: d")],
        [*pseudo, ("a", "b\0")],
        [*pseudo, ("", "b")],
        [*pseudo, ("a:b", "c")],
        [*pseudo, ("host", "other")],
        [("a", "b"), *pseudo],
        [*pseudo, (":status", "200")],
        [*pseudo, ("a", " b")],
        [(":method", "GET X"), *pseudo[1:]],
        [*pseudo[:2], pseudo[3]],
    ]
    with relay() as server, Http2Client(server.port) as client:
        stream = client.subscribe("/events?topic=a")
        client.h2.config.validate_outbound_headers = client.h2.config.normalize_outbound_headers = False
        for fields in malformed:
            stream_id = client.h2.get_next_available_stream_id()
            client.h2.send_headers(stream_id, fields, end_stream=True)
            client.flush()
            answer = client.answer(stream_id)
            assert (answer.reset, answer.status) == (ErrorCodes.PROTOCOL_ERROR, 0), fields
        server.publish("still here", "a")
        assert client.take(stream, 1)[0].data == "still here"


def test_an_idle_connection_closes_and_one_with_a_stream_stays() -> None:
    with relay("--keepalive-timeout", "300ms", "--head-timeout", "300ms") as server:
        with Http2Client(server.port) as silent:
            assert silent.until_closed() == ErrorCodes.NO_ERROR
        with Http2Client(server.port) as client, Http2Client(server.port) as other:
            stream = client.subscribe("/events?topic=a")
            assert other.ask("GET", "/healthz").status == 200
            for _ in range(20):  # a ping is not a request
                other.h2.ping(b"12345678")
                other.flush()
                other.read_for(0.05)
                if other.closed:
                    break
            assert other.closed
            server.publish("still here", "a")
            assert client.take(stream, 1)[0].data == "still here"
            client.reset(stream)
            assert client.until_closed() == ErrorCodes.NO_ERROR


def test_streams_over_the_limit_are_refused_and_can_be_sent_again() -> None:
    with relay("--h2-streams-max", "3") as server, Http2Client(server.port) as client:
        client.until(lambda: client.h2.remote_settings.max_concurrent_streams == 3, "the settings")
        streams = [client.subscribe("/events?topic=a") for _ in range(3)]
        # The library would not send it.
        client.h2.remote_settings = type(client.h2.remote_settings)(client=False)
        over = client.request("GET", "/healthz")
        assert client.answer(over).reset == ErrorCodes.REFUSED_STREAM
        client.reset(streams[0])
        assert client.ask("GET", "/healthz").status == 200
        server.publish("still here", "a")
        assert client.take(streams[2], 1)[0].data == "still here"
        assert limited(server, "h2-streams-max") == 1


def test_when_descriptors_run_out_streams_are_answered_503_and_health_checks_pass() -> None:
    with (
        relay("--h2-streams-max", "1000", before=("prlimit", "--nofile=300:300")) as server,
        Http2Client(server.port) as client,
    ):
        streams = [client.request("GET", "/events?topic=a") for _ in range(120)]
        client.until(lambda: all(client.answers[each].status for each in streams), "all answers")
        statuses = [client.answers[each].status for each in streams]
        assert set(statuses) == {200, 503}
        assert server.request("GET", "/healthz")[0] == 200
        assert limited(server, "descriptors") == statuses.count(503)


def test_each_worker_speaks_http2(certificate: Certificate) -> None:
    with (
        relay("--workers", "2", *certificate.flags, context=certificate.context()) as server,
        contextlib.ExitStack() as stack,
    ):
        clients = [stack.enter_context(Http2Client(server.port, certificate.context())) for _ in range(8)]
        streams = [client.subscribe("/events?topic=a") for client in clients]
        server.publish("one", "a")
        for client, stream in zip(clients, streams, strict=True):
            assert client.take(stream, 1)[0].data == "one"


def test_a_client_that_says_goaway_keeps_its_streams() -> None:
    with relay() as server, Http2Client(server.port) as client:
        stream = client.subscribe("/events?topic=a")
        client.send_frame(FrameKind.GOAWAY, payload=bytes(8))
        server.publish("still here", "a")
        assert client.take(stream, 1)[0].data == "still here"
        client.reset(stream)
        assert client.until_closed() == ErrorCodes.NO_ERROR


def test_a_connection_that_is_cut_loses_no_event() -> None:
    with relay() as server:
        last: str | None = None
        seen: list[str] = []
        for cut in range(5):
            with Http2Client(server.port) as client:
                headers = [("last-event-id", last)] if last else []
                stream = client.subscribe("/events?topic=a", headers)
                for number in range(10):
                    server.publish(f"{cut}-{number}", "a")
                events = client.take(stream, 3 + cut)
                seen += [event.data for event in events]
                last = events[-1].id
        with Http2Client(server.port) as client:
            stream = client.subscribe("/events?topic=a", [("last-event-id", str(last))])
            expected = [f"{cut}-{number}" for cut in range(5) for number in range(10)]
            seen += [event.data for event in client.take(stream, 50 - len(seen))]
            assert seen == expected
