"""Processes are killed and stopped, and descriptors run out: the remaining processes continue and report it."""

from __future__ import annotations

import ast
import contextlib
import json
import random
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from relay.event import Event
from tests import forms
from tests.faults.raw import RawClient
from tests.faults.torture_cases import publish, request
from tests.faults.witness import Witness
from tests.forms import FAULT_FORMS, FormStream
from tests.oracle import Oracle, Published
from tests.running import Feeder, Stream, eventually, relay

pytestmark = pytest.mark.slow

FEEDER = """
import json, socket, sys
path, name, count = sys.argv[1:]
feeder = socket.socket(socket.AF_UNIX)
feeder.connect(path)
for number in range(int(count)):
    feeder.sendall(json.dumps({"id": f"{name}-{number}", "data": "x" * 500, "topic": name}).encode() + b"\\n")
feeder.sendall(b'{"id": "torn", "data": "the beginning of')
print("written", flush=True)
sys.stdin.read()
"""

CLIENT = """
import socket, sys
client = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
client.sendall(bytes.fromhex(sys.argv[2]))
seen = b""
while b"witness" not in seen:
    seen += client.recv(65536)
print("reading", flush=True)
sys.stdin.read()
"""


def child(source: str, *arguments: str) -> subprocess.Popen[bytes]:
    """Start a program in Python."""
    command = [sys.executable, "-c", source, *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a program without a chance to clean up."""
    with process:
        process.kill()


def test_a_feeder_killed_within_a_line_has_published_only_its_complete_lines(tmp_path: Path) -> None:
    path = tmp_path / "relay.sock"
    with relay("--unix", str(path)) as server:
        witness = Witness(server)
        feeder = child(FEEDER, str(path), "fed", "200")
        assert feeder.stdout is not None
        assert feeder.stdout.readline() == b"written\n"
        kill(feeder)
        for number in range(200):
            witness.note("x" * 500, "fed", f"fed-{number}")
        eventually(lambda: server.stats()["events"] == 200, "all complete lines are events")
        witness.check()
        assert server.stats()["input_errors"] == 1
        witness.close()


def test_each_feeder_killed_at_random_leaves_a_prefix_of_its_events(tmp_path: Path) -> None:
    path, draw = tmp_path / "relay.sock", random.Random(5)
    # No policy acts, so that a busy machine causes no gap.
    kept = ("--lag-bytes", "0", "--history-bytes", "1GiB")
    with relay("--unix", str(path), *kept) as server, Stream(server.port, "topic=**") as stream:
        feeders = [child(FEEDER, str(path), f"feeder{number}", "1000000") for number in range(6)]
        seen = {f"feeder{number}": 0 for number in range(6)}
        draw.shuffle(feeders)
        total = 0
        while feeders:
            event = stream.next()
            assert event.id is not None
            name, _, number = event.id.partition("-")
            assert int(number) == seen[name], f"{event.id} after {seen[name] - 1}"
            seen[name] += 1
            total += 1
            if total % 500 == 0:
                kill(feeders.pop())
        server.publish("the last")
        while (event := stream.next()).data != "the last":
            assert event.id is not None
            name, _, number = event.id.partition("-")
            assert int(number) == seen[name]
            seen[name] += 1
        assert server.stats()["input_errors"] <= 6


def test_a_client_killed_within_a_stream_leaves_nothing(tmp_path: Path) -> None:
    with relay("--compress", "gzip") as server:
        witness = Witness(server)
        requests = [forms.request(form, "topic=**") for form in FAULT_FORMS]
        clients = [child(CLIENT, str(server.port), wanted.hex()) for wanted in requests]
        eventually(lambda: server.stats()["streams"] == 1 + len(clients), "all subscribe")
        witness.publish("witness")
        for client in clients:
            assert client.stdout is not None
            assert client.stdout.readline() == b"reading\n"
            kill(client)
            witness.publish("one less")
        witness.check()
        assert server.stats()["closes"] == {"client": len(clients)}
        witness.close()


def test_a_killed_server_has_sent_complete_events_and_the_next_one_reports_the_gap(tmp_path: Path) -> None:
    path = tmp_path / "relay.sock"
    with relay("--unix", str(path), "--compress", "gzip") as server:
        streams = [FormStream(server.port, form, "topic=**") for form in FAULT_FORMS]
        with Feeder(path) as feeder:
            feeder.send(*({"id": f"own-{number}", "data": "x" * 900} for number in range(2000)))
        begun = [stream.next() for stream in streams]
        server.process.kill()
        for stream, first in zip(streams, begun, strict=True):
            events = [first, *stream.end()]
            assert [event.id for event in events] == [f"own-{number}" for number in range(len(events))]
            assert {event.data for event in events} == {"x" * 900}
            assert not stream.has_last_chunk
            stream.close()
        server.wait()
    with relay("--compress", "gzip") as server:
        server.publish("of the new run")
        for stream in streams:
            with FormStream(server.port, stream.form, "topic=**", {"Last-Event-ID": stream.last_event_id}) as back:
                gap, event = back.take(2)
                assert json.loads(gap.data)["reason"] == "unknown"
                assert event.data == "of the new run"


def test_a_stopped_server_continues_at_the_same_event(tmp_path: Path) -> None:
    path, stopped_s, count = tmp_path / "relay.sock", 2.0, 500
    arguments = ("--unix", str(path), "--heartbeat", "500ms", "--compress", "gzip")
    with relay(*arguments) as server, Feeder(path) as feeder:
        published = Published()
        streams = [FormStream(server.port, form, "topic=**") for form in FAULT_FORMS]
        server.process.send_signal(signal.SIGSTOP)
        try:
            feeder.socket.settimeout(stopped_s)
            lines = b"".join(b'{"id": "own-%d", "data": "x"}\n' % number for number in range(count))
            feeder.socket.sendall(lines)
            late = RawClient(server.port)  # waits in the backlog
            late.send(request())
            time.sleep(stopped_s)
        finally:
            server.process.send_signal(signal.SIGCONT)
        for number in range(count):
            published.add(Event("x", topic="default"), f"own-{number}")
        assert late.answer().status == 200
        late.close()
        for stream in streams:
            oracle = Oracle(published, ("**",))
            oracle.connect(1)
            for event in stream.take(count):
                oracle.receive(event)
            oracle.finish()
            assert oracle.gaps == 0
            stream.close()
        assert server.stats()["closes"].keys() <= {"client"}


def test_the_data_path_never_reads_the_time_of_day() -> None:
    """A step of the clock changes nothing, because all times are monotonic."""
    root = Path(__file__).parents[2]
    for path in [path for name in ("core", "_native", "sources") for path in (root / "relay" / name).glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                named = f"{node.value.id}.{node.attr}"
                assert named not in ("time.time", "time.time_ns", "datetime.now"), path
    for path in root.glob("_speedups/*.p??"):
        assert "CLOCK_REALTIME" not in path.read_text()
        assert "gettimeofday" not in path.read_text()


def test_more_clients_than_descriptors_do_not_stop_or_spin_the_server() -> None:
    limit, measured_s = 64, 2.0
    with relay() as server:
        witness = Witness(server)
        publisher = RawClient(server.port)
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (limit, limit))
        clients: list[socket.socket] = []
        streams: list[socket.socket] = []
        for _ in range(limit):
            client = socket.create_connection(("127.0.0.1", server.port), timeout=2)
            clients.append(client)
            with contextlib.suppress(ConnectionError):
                client.sendall(request(b"/events?topic=torture"))
                if client.recv(4096).startswith(b"HTTP/1.1 200"):
                    streams.append(client)
        # Connections are accepted one at a time, and cut after half a second of silence.
        clients += [socket.create_connection(("127.0.0.1", server.port), timeout=2) for _ in range(8)]
        assert limit / 4 < len(streams) < limit
        began_s, used_s = time.monotonic(), server.cpu_s()
        time.sleep(measured_s)  # measure the idle process
        share = (server.cpu_s() - used_s) / (time.monotonic() - began_s)
        print(f"{len(streams)} streams of {len(clients)} clients; {share:.1%} of a core while out of descriptors")
        assert share < 0.25
        # An idle connection may have been cut to admit another. A new connection is answered.
        publisher.close()
        publisher = RawClient(server.port)
        publisher.send(publish(b"Content-Length: 9", body=b"meanwhile"))
        [id] = publisher.answer().json["ids"]
        witness.note("meanwhile", "torture", id)
        for client in streams:
            seen = b""
            while b"data: meanwhile\n\n" not in seen:
                data = client.recv(4096)
                assert data, "a stream was closed"
                seen += data
        for client in clients:
            client.close()
        publisher.close()
        witness.check()
        with Stream(server.port) as stream:
            witness.publish("for all", "default")
            assert stream.next().data == "for all"
        witness.close()
