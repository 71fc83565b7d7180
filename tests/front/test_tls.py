"""TLS in the process: real servers, real sockets, generated certificates."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import ssl
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from relay.config.model import Config
from relay.errors import ConfigError
from relay.event import Event
from relay.front.tls import BUFFER_BYTES, DESCRIPTORS_A_STREAM, Tls
from relay.process.certificate import read_context
from tests.certificate import Certificate, make_certificate
from tests.front.site import on_uvloop
from tests.front.test_pair import AbortsAtOnce, check_closed_once, keep_pairs
from tests.running import TIMEOUT_S, TOKEN, Relay, Stream, eventually, relay, run

STREAMS = 300


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """A certificate."""
    return make_certificate(tmp_path_factory.mktemp("tls"), "one")


def test_three_hundred_streams_over_tls_receive_every_event_and_leave_nothing(certificate: Certificate) -> None:
    with (
        relay(*certificate.flags, context=certificate.context()) as server,
        contextlib.ExitStack() as stack,
    ):
        before = server.open_descriptors()
        streams = [
            stack.enter_context(Stream(server.port, "topic=a", context=server.context)) for _ in range(STREAMS)
        ]
        cost = STREAMS * DESCRIPTORS_A_STREAM
        eventually(lambda: cost <= server.open_descriptors() - before < cost + 3, "their descriptors are open")
        ids = [server.publish(f"{number} ü", "a")[0] for number in range(20)]
        for stream in streams:
            events = stream.take(20)
            assert [event.id for event in events] == ids
            assert [event.data for event in events] == [f"{number} ü" for number in range(20)]
        for stream in streams:
            stream.close()
        eventually(lambda: server.stats()["streams"] == 0, "all streams are closed")
        eventually(lambda: server.open_descriptors() <= before + DESCRIPTORS_A_STREAM, "their descriptors are closed")
        assert server.stats()["closes"] == {"client": STREAMS}


def test_a_client_that_does_not_read_counts_as_slow_and_harms_no_other(certificate: Certificate) -> None:
    flags = (*certificate.flags, "--client-buffer", "16KiB", "--lag-bytes", "1MiB")
    with relay(*flags, context=certificate.context()) as server:
        slow = Stream(server.port, "topic=a", context=server.context, receive_buffer=4096)
        slow.read_until(b"\nid: ")
        with slow, Stream(server.port, "topic=a", context=server.context) as healthy:
            count = 0
            memory = server.memory_bytes()
            for count in range(400):
                server.publish("x" * 20_000 + str(count), "a")
                assert healthy.next().data == "x" * 20_000 + str(count)
            assert server.metric("relay_streams_lagging") == 1
            # The log has some 8 MB. The buffers between the engine and the client are bounded.
            assert server.memory_bytes() - memory < 2 * 8_000_000 + 8 * BUFFER_BYTES
            server.publish("end", "a")
            events: list[Event] = []
            while not events or events[-1].data != "end":
                events.append(slow.next())
            missed = sum(json.loads(event.data)["missed"] for event in events if event.event == "relay.gap")
            seen = sum(event.event is None for event in events)
            assert missed > 0
            assert seen + missed == count + 2


def test_a_drain_sends_all_pending_data_before_it_closes_a_stream(certificate: Certificate) -> None:
    with relay(*certificate.flags, context=certificate.context()) as server:
        streams = [Stream(server.port, "topic=a", context=server.context, receive_buffer=4096) for _ in range(10)]
        for number in range(30):
            server.publish("x" * 10_000 + str(number), "a")
        server.process.send_signal(signal.SIGTERM)
        for stream in streams:
            with stream:
                # A close without a TLS alert would raise an error here.
                assert [event.data.lstrip("x") for event in stream.rest()] == [str(n) for n in range(30)]
                assert stream.raw.rstrip().rpartition(b"\n")[2].startswith(b"retry: ")
        assert server.wait() == 0


def test_after_sighup_a_new_certificate_is_used_unless_it_is_invalid(tmp_path: Path) -> None:
    used = make_certificate(tmp_path / "used", "used")
    old = used.context()
    with relay(*used.flags, context=old) as server, Stream(server.port, "topic=a", context=old) as stream:
        other = make_certificate(tmp_path / "other", "other")
        used.cert.write_bytes(other.cert.read_bytes())  # without its key
        server.process.send_signal(signal.SIGHUP)
        message = "kept the current certificate: tls-key: the key in"
        eventually(lambda: any(message in record["message"] for record in server.log), "the rejection")
        assert server.request("GET", "/healthz")[0] == 200
        used.key.write_bytes(other.key.read_bytes())
        server.process.send_signal(signal.SIGHUP)
        message = "reloaded the certificate"
        eventually(lambda: any(record["message"] == message for record in server.log), "the certificate is reloaded")
        with pytest.raises(ssl.SSLCertVerificationError):
            server.request("GET", "/healthz")
        server.context = other.context()
        server.publish("over the new one, to the old one", "a")
        assert stream.next().data == "over the new one, to the old one"


def test_an_upgrade_is_rejected_because_tls_keys_cannot_be_passed_on(certificate: Certificate) -> None:
    flags, context = certificate.flags, certificate.context()
    with relay(*flags, context=context) as server, Stream(server.port, "topic=a", context=context) as stream:
        server.process.send_signal(signal.SIGUSR2)
        message = "the upgrade failed: streams of TLS cannot be handed over"
        eventually(lambda: any(message in record["message"] for record in server.log), "the rejection")
        server.publish("still here", "a")
        assert stream.next().data == "still here"


def test_data_that_is_not_tls_harms_no_other(certificate: Certificate) -> None:
    flags = (*certificate.flags, "--head-timeout", "300ms")
    with relay(*flags, context=certificate.context()) as server:
        with Stream(server.port, "topic=a", context=server.context) as healthy:
            before = server.open_descriptors()
            request = b"GET /events HTTP/1.1\r\nHost: a\r\n\r\n"
            for bytes_sent in (request, b"\x16\x03\x01\xff\xff" + b"\0" * 500, b"\0"):
                with socket.create_connection(("127.0.0.1", server.port), TIMEOUT_S) as client:
                    client.sendall(bytes_sent)
                    with contextlib.suppress(ConnectionResetError):
                        while client.recv(4096):
                            pass  # at most a TLS alert
            with socket.create_connection(("127.0.0.1", server.port), TIMEOUT_S) as silent:
                assert silent.recv(1) == b"", "it is closed at its time limit"
            with socket.create_connection(("127.0.0.1", server.port), TIMEOUT_S):
                pass  # closed before the handshake
            old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
            with pytest.warns(DeprecationWarning, match="TLSv1_1"):
                old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
            with socket.create_connection(("127.0.0.1", server.port), TIMEOUT_S) as client, pytest.raises(ssl.SSLError):
                old.wrap_socket(client)
            server.publish("still here", "a")
            assert healthy.next().data == "still here"
            eventually(lambda: server.open_descriptors() <= before, "the descriptors are closed")
        text = server.request("GET", "/metrics")[2].decode()
        assert 'relay_input_errors_total{kind="tls",source="accept"}' in text
        assert not [record for record in server.log if record.get("levelname") == "ERROR"]


@on_uvloop
async def test_a_connection_that_the_front_aborts_at_once_is_closed_once(
    certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, ends = asyncio.get_running_loop(), keep_pairs(monkeypatch)
    tls = Tls(Config(tls_cert=str(certificate.cert), tls_key=str(certificate.key)))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        client = loop.create_task(asyncio.open_connection(*listener.getsockname(), ssl=certificate.context()))
        await tls.open((await loop.sock_accept(listener))[0], AbortsAtOnce, asyncio.Protocol, loop)
        reader, writer = await client
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()
    assert not tls.pumps
    check_closed_once(ends)


def test_requests_and_responses_of_any_size_pass(certificate: Certificate) -> None:
    with relay(*certificate.flags, "--event-bytes-max", "8MiB", context=certificate.context()) as server:
        with Stream(server.port, "topic=a", context=server.context) as stream:
            data = os.urandom(1_500_000).hex()
            server.publish(data, "a")
            assert stream.next().data == data
        status, headers, body = server.request("GET", "/")
        assert (status, len(body)) == (200, int(headers["content-length"]))
        assert server.request("HEAD", "/events?topic=a")[0] == 200


def test_each_worker_serves_tls_and_reloads_the_certificate(tmp_path: Path) -> None:
    used = make_certificate(tmp_path / "used", "used")
    with relay("--workers", "2", *used.flags, context=used.context()) as server:
        streams = [Stream(server.port, "topic=a", context=server.context) for _ in range(20)]
        server.publish("one", "a")
        for stream in streams:
            with stream:
                assert stream.next().data == "one"
        make_certificate(tmp_path / "used", "other")
        server.process.send_signal(signal.SIGHUP)
        new = used.context()

        def all_new() -> bool:
            try:
                for _ in range(8):
                    with (
                        socket.create_connection(("127.0.0.1", server.port), TIMEOUT_S) as client,
                        new.wrap_socket(client, server_hostname="127.0.0.1"),
                    ):
                        pass
            except ssl.SSLCertVerificationError:
                return False
            return True

        eventually(all_new, "each worker uses the new certificate")
        server.context = new


def proxied(server: Relay, context: ssl.SSLContext, header: bytes, pieces: int = 1) -> bytes:
    """Open a stream behind a PROXY header, sent in pieces; return the head of the response."""
    with socket.create_connection(("127.0.0.1", server.port), TIMEOUT_S) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        size = -(-len(header) // pieces)
        for start in range(0, len(header), size):
            client.sendall(header[start : start + size])
        with context.wrap_socket(client, server_hostname="127.0.0.1") as secure:
            secure.sendall(b"GET /events?topic=a HTTP/1.1\r\nHost: a\r\n\r\n")
            return secure.recv(65536)


def test_a_proxy_header_precedes_the_tls_handshake(certificate: Certificate) -> None:
    flags = (*certificate.flags, "--proxy-protocol", "--trusted-proxy", "127.0.0.1", "--streams-per-address-max", "1")
    version_1 = b"PROXY TCP4 198.51.100.7 192.0.2.1 4000 443\r\n"
    version_2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c" + bytes([198, 51, 100, 8, 192, 0, 2, 1, 0, 80, 1, 187])
    context = certificate.context()
    process = Relay(*flags, "--refuse-streams", "status", context=context)
    try:
        with socket.create_connection(("127.0.0.1", process.port), TIMEOUT_S) as client:
            client.sendall(version_1)
            with context.wrap_socket(client, server_hostname="127.0.0.1") as secure:
                secure.sendall(b"GET /events?topic=a HTTP/1.1\r\nHost: a\r\n\r\n")
                assert b" 200 " in secure.recv(65536)
                for pieces in (1, 3, len(version_1)):
                    assert b" 429 " in proxied(process, context, version_1, pieces)
                assert b" 200 " in proxied(process, context, version_2, 5)
        with (
            pytest.raises((ssl.SSLError, ConnectionError)),
            socket.create_connection(("127.0.0.1", process.port), TIMEOUT_S) as client,
        ):
            context.wrap_socket(client, server_hostname="127.0.0.1")  # no header
        eventually(lambda: any("header is missing" in record["message"] for record in process.log), "the rejection")
    finally:
        process.stop()


def test_the_commands_trust_the_certificate_that_ca_names(certificate: Certificate) -> None:
    with relay(*certificate.flags, context=certificate.context()) as server:
        ca = ("--ca", str(certificate.cert))
        published = run("publish", "--to", server.url, *ca, "--topic", "a", "hello", RELAY_PUBLISH_TOKEN=TOKEN)
        assert published.returncode == 0, published.stderr
        read = run("subscribe", server.url, *ca, "--topic", "a", "--since", "earliest", "--count", "1")
        assert json.loads(read.stdout)["data"] == "hello", read.stderr
        assert "streams" in run("top", server.url, *ca, "--once").stdout
        checked = run("doctor", server.url, *ca)
        assert (checked.returncode, "fault    server" in checked.stdout) == (0, False), checked.stdout
        missing = run("top", server.url, "--once", "--ca", "/nowhere/ca.pem")
        assert missing.returncode == 2
        assert "/nowhere/ca.pem" in missing.stderr


@pytest.mark.parametrize(
    "words",
    [("subscribe", "{}", "--topic", "a"), ("publish", "--to", "{}", "--topic", "a", "x"), ("top", "{}", "--once"),
     ("doctor", "{}")],
    ids=lambda words: words[0],
)  # fmt: skip
def test_a_command_ends_at_an_untrusted_certificate_and_names_ca(
    certificate: Certificate, words: tuple[str, ...]
) -> None:
    with relay(*certificate.flags, context=certificate.context()) as server:
        ended = run(*(word.format(server.url) for word in words), RELAY_PUBLISH_TOKEN=TOKEN)
    assert ended.returncode == 1
    printed = ended.stdout + ended.stderr
    assert "CERTIFICATE_VERIFY_FAILED: self-signed certificate" in printed
    assert "trust its issuer with --ca FILE" in printed


def test_for_another_fault_of_the_certificate_the_remedy_is_not_ca(certificate: Certificate) -> None:
    with relay(*certificate.flags, context=certificate.context()) as server:
        url = server.url.replace("127.0.0.1", "localhost")
        ended = run("subscribe", url, "--topic", "a", "--ca", str(certificate.cert))
    assert ended.returncode == 1
    assert "Hostname mismatch" in ended.stderr
    assert "--ca" not in ended.stderr
    assert "correct the address, or the certificate" in ended.stderr


def test_the_start_reports_errors_in_the_certificate_files(certificate: Certificate, tmp_path: Path) -> None:
    other = make_certificate(tmp_path / "other", "other")
    nothing, locked = tmp_path / "nothing.pem", tmp_path / "locked.pem"
    nothing.write_text("nothing")
    key = serialization.load_pem_private_key(other.key.read_bytes(), None)
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    locked.write_bytes(key.private_bytes(pem, pkcs8, serialization.BestAvailableEncryption(b"secret")))
    cert = str(other.cert)
    for files, wrong in (
        ((str(tmp_path / "no.pem"), ""), r"tls-cert: .*no\.pem: No such file"),
        ((cert, str(tmp_path)), "tls-key: .*: Is a directory"),
        ((cert, str(certificate.key)), "tls-key: the key in .* is not that of the certificate"),
        ((cert, ""), "tls-cert: .* is not a PEM certificate and an unencrypted PEM key"),
        ((cert, str(locked)), "tls-cert: .* is not a PEM certificate and an unencrypted PEM key"),
        ((str(nothing), str(other.key)), "tls-cert: .* is not a PEM certificate and an unencrypted PEM key"),
    ):
        with pytest.raises(ConfigError, match=wrong):
            read_context(*files)
    result = run("--tls-cert", cert, "--listen", "127.0.0.1:0")
    assert (result.returncode, "relay: tls-cert: " in result.stderr) == (2, True)
    result = run("--tls-key", cert)
    assert (result.returncode, "needs a certificate; add tls-cert" in result.stderr) == (2, True)
    both = tmp_path / "both.pem"
    both.write_bytes(other.cert.read_bytes() + other.key.read_bytes())
    assert read_context(str(both), Config().tls_key).minimum_version == ssl.TLSVersion.TLSv1_2
