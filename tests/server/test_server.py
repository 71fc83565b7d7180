"""A real server process with real clients.

Covers relay.server.server, relay.server.parts, relay.server.addresses, relay.server.descriptors and relay.server.pulse.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import selectors
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import aclosing
from email.utils import parsedate_to_datetime
from pathlib import Path

import httpx
import httpx_sse
import pytest

from relay.client.subscribe import subscribe
from relay.config.model import Config
from relay.process.listeners import KEEPALIVE_IDLE_S, listen
from tests.running import TIMEOUT_S, TOKEN, Feeder, Relay, Stream, command, environment, relay, run

PADDING = b": " + b" " * 2048 + b"\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relay]:
    """A server that several tests share."""
    path = tmp_path_factory.mktemp("relay") / "relay.sock"
    with relay("--unix", str(path)) as running:
        yield running


def test_the_first_line_of_the_log_says_which_engine_runs(server: Relay) -> None:
    assert server.stats()["engine"] in server.log[0]["message"]


def test_an_event_from_the_unix_socket_reaches_every_stream_and_is_encoded_once(server: Relay) -> None:
    before = server.metric("relay_encodes_total")
    streams = [Stream(server.port, "topic=once") for _ in range(20)]
    with Feeder(server.unix_path) as feeder:
        id = feeder.publish(topic="once", data={"price": 1.5}, event="tick")
    for stream in streams:
        with stream:
            event = stream.next()
            assert (event.id, event.event, event.data) == (id, "tick", '{"price":1.5}')
    assert server.metric("relay_encodes_total") == before + 1


def test_a_stream_begins_with_a_comment_a_drawn_retry_and_an_id_to_resume_from(server: Relay) -> None:
    retries = set()
    for _ in range(5):
        with Stream(server.port, "topic=prime") as stream:
            raw = stream.read_until(b"\n\n")
            comment, retry, id = raw.split(b"\n")[:3]
            assert comment == b":"
            retries.add(int(retry.removeprefix(b"retry: ")))
            assert id.startswith(b"id: ")
            assert stream.head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert len(retries) > 1
    assert all(1000 <= retry <= 5000 for retry in retries)


def test_a_client_cut_before_its_first_event_resumes_without_loss(server: Relay) -> None:
    with Stream(server.port, "topic=cut") as stream:
        stream.read_until(b"\n\n")
        last_id = stream.last_event_id
    server.publish("missed", "cut")
    with Stream(server.port, "topic=cut", {"Last-Event-ID": last_id}) as stream:
        assert stream.next().data == "missed"


@pytest.mark.parametrize("name", ["lastEventId", "last_event_id", "lastEventID", "evs_last_event_id"])
def test_the_last_id_may_come_in_the_query_and_the_header_wins(server: Relay, name: str) -> None:
    first, second = server.publish("1", f"query-{name}") + server.publish("2", f"query-{name}")
    with Stream(server.port, f"topic=query-{name}&{name}={first}") as stream:
        assert stream.next().data == "2"
    server.publish("3", f"query-{name}")
    with Stream(server.port, f"topic=query-{name}&{name}={first}", {"Last-Event-ID": second}) as stream:
        assert stream.next().data == "3"


def test_a_publishers_own_id_is_kept_and_found(server: Relay) -> None:
    with Feeder(server.unix_path) as feeder:
        assert feeder.publish(topic="own", data="a", id="order 1") == "order 1"
        feeder.publish(topic="own", data="b")
    with Stream(server.port, "topic=own", {"Last-Event-ID": "order 1"}) as stream:
        assert stream.next().data == "b"


def test_an_id_of_another_epoch_is_answered_with_a_gap_and_what_is_retained(server: Relay) -> None:
    server.publish("kept", "epoch")
    with Stream(server.port, "topic=epoch", {"Last-Event-ID": "0badc0de-7"}) as stream:
        gap, kept = stream.take(2)
    assert gap.event == "relay.gap"
    assert json.loads(gap.data) == {"reason": "unknown", "missed": None, "from": None, "to": None}
    assert kept.data == "kept"


def test_one_id_resumes_many_topics_in_log_order(server: Relay) -> None:
    first = server.publish("0", "many.a")[0]
    for number in range(1, 7):
        server.publish(str(number), f"many.{'abc'[number % 3]}")
    with Stream(server.port, "topic=many.*&topic=many.a", {"Last-Event-ID": first}) as stream:
        assert [event.data for event in stream.take(6)] == ["1", "2", "3", "4", "5", "6"]


def test_since_replays_from_the_earliest_by_age_or_not_at_all(server: Relay) -> None:
    server.publish("old", "since")
    with Stream(server.port, "topic=since&since=earliest") as stream:
        assert stream.next().data == "old"
    with Stream(server.port, "topic=since&since=1h") as stream:
        assert stream.next().data == "old"
    with Stream(server.port, "topic=since&since=latest") as stream:
        server.publish("new", "since")
        assert stream.next().data == "new"


def test_an_event_reaches_a_stream_of_many_terms_once(server: Relay) -> None:
    query = "&".join(f"topic=t{number}" for number in range(998)) + "&topic=u.*.w&topic=u.**"
    with Stream(server.port, query) as stream:
        server.publish("x", "t7")
        server.publish("y", "u.v.w")
        server.publish("z", "t900")
        assert [event.data for event in stream.take(3)] == ["x", "y", "z"]


def test_curl_sees_the_stream(server: Relay) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("curl is not installed")
    process = subprocess.Popen(
        [curl, "-sN", f"{server.url}/events/curl?since=earliest"],
        stdout=subprocess.PIPE,
        env={name: text for name, text in os.environ.items() if name != "LD_PRELOAD"},  # it hangs under ASan
    )
    with process:
        assert process.stdout is not None
        id = server.publish("two\nlines", "curl")[0]
        lines = iter(process.stdout.readline, b"")
        seen = b"".join(line for _, line in zip(range(8), lines, strict=False))
        process.kill()
    assert f"id: {id}\ndata: two\ndata: lines\n".encode() in seen


def test_httpx_sse_sees_the_stream(server: Relay) -> None:
    server.publish("for httpx", "httpx")
    url = f"{server.url}/events/httpx?since=earliest"
    with httpx.Client(timeout=TIMEOUT_S) as client, httpx_sse.connect_sse(client, "GET", url) as source:
        # Before it, the priming block is an empty event to httpx-sse; a browser takes it as the standard says.
        [event] = [event for _, event in zip(range(2), source.iter_sse(), strict=False) if event.data]
        assert event.data == "for httpx"


async def test_the_projects_own_client_sees_the_stream(server: Relay) -> None:
    server.publish("for our own", "own-client")
    url = f"{server.url}/events"
    async with asyncio.timeout(TIMEOUT_S), aclosing(subscribe(url, ("own-client",), since="earliest")) as events:
        assert (await anext(events)).data == "for our own"


def test_publishing_needs_the_token_and_the_log_never_has_it(server: Relay) -> None:
    status, headers, _ = server.request("POST", "/publish", b"x", {"Content-Type": "text/plain"})
    assert (status, headers["www-authenticate"]) == (401, 'Bearer realm="relay"')
    assert not any(TOKEN in json.dumps(record) for record in server.log)


def test_health_readiness_metrics_and_page_are_there(server: Relay) -> None:
    assert server.request("GET", "/healthz")[0] == 200
    assert server.request("GET", "/readyz")[0] == 200
    assert server.request("GET", "/")[1]["content-type"].startswith("text/html")
    assert server.metric("relay_streams_max") > 100


def test_hundreds_of_connections_leave_nothing_behind() -> None:
    with relay() as server:
        def everything_closed() -> tuple[int, int]:
            deadline_s = time.monotonic() + TIMEOUT_S
            while server.stats()["streams"]:
                assert time.monotonic() < deadline_s
            return server.open_descriptors(), server.stats()["gc_objects"]

        Stream(server.port).close()
        everything_closed()
        descriptors, objects = everything_closed()
        for _ in range(300):
            with Stream(server.port, "topic=a&topic=b.*") as stream:
                stream.read_until(b"\n\n")
        after = everything_closed()
        assert after[0] <= descriptors + 1  # the connection that asks may be there twice
        assert after[1] <= objects + 50
        assert server.stats()["topics_total"] == 0


def test_a_reader_that_stops_is_told_what_it_missed_and_costs_no_other_anything() -> None:
    with relay("--lag-bytes", "256KiB", "--client-buffer", "16KiB") as server:
        healthy = Stream(server.port)
        stalled = Stream(server.port, receive_buffer=8192)
        body = "\n".join(json.dumps({"data": f"{n}:" + "x" * 1000}) for n in range(100))
        for _ in range(30):
            server.publish(body, content_type="application/x-ndjson")
            assert [int(event.data.split(":")[0]) for event in healthy.take(100)] == [*range(100)]
        server.publish("the end")
        seen = missed = 0
        while (event := stalled.next()).data != "the end":
            if event.event == "relay.gap":
                missed += json.loads(event.data)["missed"]
            else:
                seen += 1
        assert missed > 500
        assert seen + missed == 3000
        assert server.stats()["policy_actions"] == {"drop-oldest": server.metric("relay_policy_actions_total")}
        healthy.close()
        stalled.close()


def test_a_block_stream_makes_the_feeder_wait_and_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "relay.sock"
    with relay("--unix", str(path), "--policy", "block", "--lag-bytes", "64KiB", "--client-buffer", "16KiB") as server:
        stream = Stream(server.port, receive_buffer=8192)
        with Feeder(path) as feeder:
            feeder.socket.setblocking(False)
            line = json.dumps({"data": "x" * 1000}).encode() + b"\n"
            written, unsent, deadline_s = 0, b"", time.monotonic() + TIMEOUT_S
            while not server.metric("relay_topics_held"):
                assert time.monotonic() < deadline_s
                try:
                    unsent = unsent or line
                    unsent = unsent[feeder.socket.send(unsent) :]
                    written += not unsent
                except BlockingIOError:
                    pass
            feeder.socket.setblocking(True)
            assert server.stats()["events"] < written + 1
            feeder.send(*([unsent[:-1]] if unsent else []), {"data": "the end"})
            count = 0
            while stream.next().data != "the end":
                count += 1
        assert count == written + bool(unsent)
        stream.close()


def test_a_slow_stream_of_policy_disconnect_is_closed_between_frames() -> None:
    with relay("--policy", "disconnect", "--lag-bytes", "64KiB", "--client-buffer", "16KiB") as server:
        with Stream(server.port, receive_buffer=8192) as stream:
            for _ in range(4):
                server.publish("\n".join([json.dumps({"data": "x" * 1000})] * 500), content_type="application/x-ndjson")
            events = stream.rest()
            assert 0 < len(events) < 2000
            assert stream.raw.endswith(b"\n\n")
        assert server.metric("relay_closes_total") == 1
        # It comes back and misses nothing.
        with Stream(server.port, headers={"Last-Event-ID": stream.last_event_id}) as stream:
            assert len(stream.take(2000 - len(events))) == 2000 - len(events)


def test_sigterm_drains_with_a_retry_of_its_own_and_exits_0() -> None:
    with relay() as server:
        streams = [Stream(server.port) for _ in range(3)]
        server.publish("before the end")
        server.process.send_signal(signal.SIGTERM)
        retries = set()
        for stream in streams:
            with stream:
                assert [event.data for event in stream.rest()] == ["before the end"]
                retries.add(stream.raw.splitlines()[-1])
        assert len(retries) > 1
        assert all(retry.startswith(b"retry: ") for retry in retries)
        assert server.wait() == 0
        assert [r["message"] for r in server.log[-3:]] == ["draining 3 streams", "streams closed: 3 drain", "drained"]


def test_a_drain_fails_readiness_first_and_serves_on_for_its_delay() -> None:
    with relay("--drain-delay", "2s") as server:
        before = Stream(server.port)
        server.process.send_signal(signal.SIGTERM)
        deadline_s = time.monotonic() + TIMEOUT_S
        while server.request("GET", "/readyz")[0] == 200:
            assert time.monotonic() < deadline_s
        with before, Stream(server.port) as during:
            server.publish("while others are told to turn away")
            for stream in (before, during):
                assert stream.next().data == "while others are told to turn away"
                assert stream.rest() == []
                assert stream.raw.splitlines()[-1].startswith(b"retry: ")
        assert server.wait() == 0


def test_a_drain_ends_streams_at_a_pace_with_retries_over_its_spread() -> None:
    with relay("--drain-rate", "40", "--drain-spread", "100s", "--retry-min", "3s") as server:
        streams = [Stream(server.port) for _ in range(40)]
        server.process.send_signal(signal.SIGTERM)
        began_s, ends_s, retries_ms = time.monotonic(), [], []
        with selectors.DefaultSelector() as ready:
            for stream in streams:
                ready.register(stream.socket, selectors.EVENT_READ, stream)
            while ready.get_map():
                for key, _ in ready.select(TIMEOUT_S):
                    stream = key.data
                    ready.unregister(stream.socket)
                    assert stream.rest() == []
                    ends_s.append(time.monotonic() - began_s)
                    retries_ms.append(int(stream.raw.splitlines()[-1].removeprefix(b"retry: ")))
                    stream.close()
        assert ends_s[-1] > 0.8
        assert max(later - sooner for sooner, later in itertools.pairwise(ends_s)) < 0.5
        assert 3_000 <= min(retries_ms) < 20_000
        assert 80_000 < max(retries_ms) <= 103_000
        assert server.wait() == 0


def test_a_client_that_sends_on_and_reads_slowly_gets_all_of_a_drained_stream() -> None:
    with relay("--client-buffer", "256KiB") as server, Stream(server.port, receive_buffer=4096) as stream:
        events = "\n".join(json.dumps({"data": f"{number}:" + "x" * 100}) for number in range(1000))
        server.publish(events, content_type="application/x-ndjson")
        server.process.send_signal(signal.SIGTERM)
        for number in range(1000):
            stream.socket.send(b"more")
            assert stream.next().data.startswith(f"{number}:")
        assert stream.rest() == []
        assert stream.raw.splitlines()[-1].startswith(b"retry: ")
        stream.close()
        assert server.wait() == 0


def test_a_stalled_reader_does_not_hold_up_the_drain_beyond_its_limit() -> None:
    with relay("--drain-timeout", "300ms", "--client-buffer", "16KiB") as server:
        stalled = Stream(server.port, receive_buffer=8192)
        for _ in range(3):
            server.publish("\n".join([json.dumps({"data": "x" * 1000})] * 1000), content_type="application/x-ndjson")
        assert server.stop() == 0
        assert "streams closed: 1 shutdown" in [record["message"] for record in server.log]
        stalled.close()


def test_an_interrupt_drains_and_a_second_one_ends_it_at_once() -> None:
    with relay("--drain-timeout", "10m", "--client-buffer", "16KiB") as server:
        with Stream(server.port) as stream:
            server.publish("x")
            assert stream.next().data == "x"
        healthy, stalled = Stream(server.port, "topic=other"), Stream(server.port, receive_buffer=8192)
        for _ in range(3):
            server.publish("\n".join([json.dumps({"data": "x" * 1000})] * 1000), content_type="application/x-ndjson")
        server.process.send_signal(signal.SIGINT)
        assert healthy.rest() == []  # its end: the drain is under way, and the other stream holds it up
        assert server.process.poll() is None
        server.process.send_signal(signal.SIGINT)
        assert server.wait() == 130
        assert "second signal" in server.log[-1]["message"]
        healthy.close()
        stalled.close()


def test_lines_on_stdin_are_served_and_eof_may_end_it() -> None:
    with relay("--stdin", "lines", "--exit-on-eof", stdin=subprocess.PIPE) as server, Stream(server.port) as stream:
        assert server.process.stdin is not None
        server.process.stdin.write(b"one\ntwo\n")
        server.process.stdin.close()
        assert [event.data for event in stream.rest()] == ["one", "two"]
        assert server.wait() == 0


def test_an_event_stream_on_stdin_is_relayed_as_it_is() -> None:
    with relay("--stdin", "sse", stdin=subprocess.PIPE) as server, Stream(server.port) as stream:
        assert server.process.stdin is not None
        server.process.stdin.write(b"id: up-1\nevent: e\ndata: a\ndata: b\n\n")
        server.process.stdin.flush()
        event = stream.next()
        assert (event.id, event.event, event.data) == ("up-1", "e", "a\nb")
        server.process.stdin.close()


def test_a_port_in_use_is_one_clear_line_and_exit_code_2() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = run("serve", "--listen", address, "--stdin", "off")
    assert done.returncode == 2
    assert f"listen {address}: Address already in use" in done.stderr
    assert "Traceback" not in done.stderr


def test_limits_are_refused_with_a_status_and_a_time_to_come_back() -> None:
    with relay("--streams-max", "1") as server, Stream(server.port), Stream(server.port) as second:
        assert second.head.startswith(b"HTTP/1.1 503 ")
        assert b"Retry-After: " in second.head
    with relay("--streams-per-address-max", "1") as server, Stream(server.port), Stream(server.port) as second:
        assert second.head.startswith(b"HTTP/1.1 429 ")


def test_a_request_of_too_many_events_publishes_none_of_them() -> None:
    with relay("--batch-events-max", "2") as server:
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
        assert server.request("POST", "/publish", b'[{"data":1},{"data":2},{"data":3}]', headers)[0] == 413
        assert server.stats()["events"] == 0
        assert server.request("POST", "/publish", b'[{"data":1},{"data":2}]', headers)[0] == 200


def test_a_client_that_never_stops_sending_is_closed() -> None:
    with relay("--discard-bytes-max", "8KiB") as server, Stream(server.port) as stream:
        stream.read_until(b"\n\n")
        stream.socket.sendall(b"x" * 4096)
        server.publish("still here")
        assert stream.next().data == "still here"
        with pytest.raises(ConnectionError):
            stream.socket.sendall(b"x" * (1 << 24))
        assert server.stats()["closes"] == {"input": 1}


def test_heartbeats_go_to_idle_streams() -> None:
    with relay("--heartbeat", "100ms", "--heartbeat-as", "event") as server, Stream(server.port) as stream:
        assert [event.event for event in stream.take(2)] == ["relay.heartbeat"] * 2
    with relay("--heartbeat", "100ms") as server, Stream(server.port) as stream:
        raw = stream.read_until(b"\n\n:\n:\n")
        assert b":\n\n" not in raw[2:]
    with relay("--heartbeat", "100ms", "--heartbeat-as", "padded") as server, Stream(server.port) as stream:
        stream.read_until(b"\n\n" + 2 * PADDING)


def test_a_stream_that_asks_for_padding_begins_with_two_kibibytes_of_it(server: Relay) -> None:
    with Stream(server.port, "topic=padding&padding") as stream:
        assert stream.read_until(b"\n\n").startswith(PADDING + b"retry: ")


def test_an_event_on_a_topic_that_nobody_follows_is_written_to_nobody() -> None:
    with relay() as server, Stream(server.port, "topic=followed") as stream, Stream(server.port, "topic=a.*") as other:
        server.publish("before", "followed")
        assert stream.next().data == "before"
        assert b"\n\n" in other.read_until(b"\n\n")
        before = server.stats()
        for number in range(10):
            server.publish(str(number), f"unfollowed.{number}")
        server.publish("after", "followed")
        assert stream.next().data == "after"
        after = server.stats()
        assert after["events"] == before["events"] + 11
        assert after["writes"] == before["writes"] + 1
        assert after["deliveries"] == before["deliveries"] + 1


def test_connections_are_accepted_with_the_options_that_bound_a_stream() -> None:
    config = Config(client_buffer=32 * 1024, client_timeout_s=7.5)
    with listen("127.0.0.1:0", config) as listener:
        listener.listen(1)
        listener.settimeout(TIMEOUT_S)
        with socket.create_connection(listener.getsockname()), listener.accept()[0] as accepted:

            def option(level: int, name: int) -> int:
                return accepted.getsockopt(level, name)

            tcp = socket.IPPROTO_TCP
            assert option(socket.SOL_SOCKET, socket.SO_SNDBUF) == 2 * 32 * 1024  # socket(7): the kernel doubles it
            assert option(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert option(tcp, socket.TCP_KEEPIDLE) == KEEPALIVE_IDLE_S
            assert option(tcp, socket.TCP_NODELAY) == 1
            assert option(tcp, socket.TCP_NOTSENT_LOWAT) == 32 * 1024
            assert option(tcp, socket.TCP_USER_TIMEOUT) == 7500


def limited(limit: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `relay` to its end under a limit of the shell's `ulimit`."""
    return subprocess.run(
        ["sh", "-c", f'ulimit {limit}; exec "$@"', "sh", *command(*arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        env=environment(),
        check=False,
    )


@pytest.mark.parametrize(
    ("limit", "arguments", "message"),
    [
        ("-n 200", [], "descriptors: the hard limit is 200, and 256 are needed (ulimit -Hn)"),
        ("-n 300", ["--streams-max", "1000"], "streams-max: 1000 streams need more than 300 descriptors"),
    ],
)
def test_too_few_descriptors_are_one_clear_line_and_exit_code_2(
    limit: str, arguments: list[str], message: str
) -> None:
    done = limited(limit, "--listen", "127.0.0.1:0", "--stdin", "off", "--log-level", "error", *arguments)
    assert (done.returncode, done.stderr) == (2, f"relay: {message}\n")


def test_the_engine_is_named_first_and_a_random_token_stays_out_of_the_log() -> None:
    done = limited("-Sn 512", "--stdin", "lines", "--exit-on-eof", "--listen", "127.0.0.1:0", "--log-format", "json")
    messages = [json.loads(line)["message"] for line in done.stderr.splitlines()]
    assert done.returncode == 0
    assert ", engine " in messages[0]
    assert any("raised the descriptor limit from 512" in message for message in messages)
    assert not any("token for" in message for message in messages)


def test_every_answer_to_a_listed_origin_can_be_read_with_credentials_and_has_a_date() -> None:
    origin = {"Origin": "https://app.example.com"}
    with relay("--cors-origin", "https://*.example.com", "--streams-max", "1", "--refuse-streams", "status") as server:
        with Stream(server.port, headers=origin) as stream:
            answers = [server.request("GET", path, headers=origin) for path in ("/", "/stats", "/none", "/events")]
            answers.append(server.request("POST", "/publish", b"x", origin))
            assert [status for status, _, _ in answers] == [200, 200, 404, 503, 401]
            heads = [headers for _, headers, _ in answers]
            lines = stream.head.decode().split("\r\n")[1:]
            heads.append({name.lower(): value for name, value in (line.split(": ", 1) for line in lines)})
        for head in heads:
            assert head["access-control-allow-origin"] == origin["Origin"]
            assert head["access-control-allow-credentials"] == "true"
            assert head["vary"] == "Origin"
            assert abs(parsedate_to_datetime(head["date"]).timestamp() - time.time()) < TIMEOUT_S
        evil = server.request("GET", "/stats", headers={"Origin": "https://app.example.com.evil"})[1]
        assert "access-control-allow-origin" not in evil


def test_only_allowed_hosts_are_served() -> None:
    with relay("--allowed-host", "127.0.0.1", "--allowed-host", "localhost") as server:
        for host, expected in (("localhost:1", 200), ("evil.example", 421), ("127.0.0.1.evil.example", 421)):
            assert server.request("GET", "/stats", headers={"Host": host})[0] == expected
        for lines in (b"", b"Host: localhost\r\nHost: evil.example\r\n"):
            with socket.create_connection(("127.0.0.1", server.port), TIMEOUT_S) as client:
                client.sendall(b"GET / HTTP/1.1\r\n%b\r\n" % lines)
                assert client.recv(4096).startswith(b"HTTP/1.1 400 ")
