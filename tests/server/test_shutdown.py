"""A server process drains on a signal or at the end of its input, then exits.

Covers relay.server.server and relay.server.pulse.
"""

from __future__ import annotations

import itertools
import json
import selectors
import signal
import subprocess
import time

from tests.running import TIMEOUT_S, Stream, relay


def test_sigterm_drains_with_a_random_retry_per_stream_and_exits_0() -> None:
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


def test_a_drain_fails_readiness_and_continues_to_serve_during_its_delay() -> None:
    with relay("--drain-delay", "2s") as server:
        before = Stream(server.port)
        server.process.send_signal(signal.SIGTERM)
        deadline_s = time.monotonic() + TIMEOUT_S
        while server.request("GET", "/readyz")[0] == 200:
            assert time.monotonic() < deadline_s
        with before, Stream(server.port) as during:
            server.publish("during the delay")
            for stream in (before, during):
                assert stream.next().data == "during the delay"
                assert stream.rest() == []
                assert stream.raw.splitlines()[-1].startswith(b"retry: ")
        assert server.wait() == 0


def test_a_drain_ends_streams_at_its_rate_with_retries_over_its_spread() -> None:
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


def test_a_client_that_keeps_sending_and_reads_slowly_receives_all_of_a_drained_stream() -> None:
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


def test_a_stalled_stream_does_not_delay_the_drain_beyond_its_limit() -> None:
    with relay("--drain-timeout", "300ms", "--client-buffer", "16KiB") as server:
        stalled = Stream(server.port, receive_buffer=8192)
        for _ in range(3):
            server.publish("\n".join([json.dumps({"data": "x" * 1000})] * 1000), content_type="application/x-ndjson")
        assert server.stop() == 0
        assert "streams closed: 1 shutdown" in [record["message"] for record in server.log]
        stalled.close()


def test_an_interrupt_drains_and_a_second_one_ends_relay_immediately() -> None:
    with relay("--drain-timeout", "10m", "--client-buffer", "16KiB") as server:
        with Stream(server.port) as stream:
            server.publish("x")
            assert stream.next().data == "x"
        healthy, stalled = Stream(server.port, "topic=other"), Stream(server.port, receive_buffer=8192)
        for _ in range(3):
            server.publish("\n".join([json.dumps({"data": "x" * 1000})] * 1000), content_type="application/x-ndjson")
        server.process.send_signal(signal.SIGINT)
        assert healthy.rest() == []  # the drain has begun, and the other stream delays its end
        assert server.process.poll() is None
        server.process.send_signal(signal.SIGINT)
        assert server.wait() == 130
        assert "second signal" in server.log[-1]["message"]
        healthy.close()
        stalled.close()


def test_lines_on_stdin_are_served_and_eof_ends_relay_with_exit_on_eof() -> None:
    with relay("--stdin", "lines", "--exit-on-eof", stdin=subprocess.PIPE) as server, Stream(server.port) as stream:
        assert server.process.stdin is not None
        server.process.stdin.write(b"one\ntwo\n")
        server.process.stdin.close()
        assert [event.data for event in stream.rest()] == ["one", "two"]
        assert server.wait() == 0
