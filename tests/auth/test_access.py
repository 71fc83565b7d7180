"""Access at a real server: tokens, tickets, rates, and the time limit of a stream.

Covers `relay.auth.credentials` and `relay.core.leases`.
"""

from __future__ import annotations

import http.server
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from tests.running import TIMEOUT_S, TOKEN, Feeder, Relay, Stream, eventually, relay

SECRET = "s" * 64
JWT = ("--subscribe", "jwt", "--jwt-secret", SECRET)


def token(key: Any = SECRET, algorithm: str = "HS256", headers: dict[str, Any] | None = None, **claims: Any) -> str:
    whole = {"exp": time.time() + 60, "sub": "ann", "relay": {"subscribe": ["orders.*"], "publish": ["orders.eu"]}}
    return jwt.encode(whole | claims, key, algorithm, headers)


def bearer(text: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {text}"}


def asked(server: Relay, path: str, headers: dict[str, str] | None = None) -> int:
    return server.request("GET", path, headers=headers)[0]


def logged(server: Relay, text: str) -> None:
    """Wait until the server's log contains this text."""
    eventually(lambda: any(text in record["message"] for record in server.log), f"the log contains {text!r}")


def test_a_token_grants_only_its_topics_and_never_appears_in_the_log() -> None:
    with relay(*JWT) as server:
        own = token()
        with Stream(server.port, "topic=orders.eu", bearer(own)) as stream:
            server.publish("one", "orders.eu")
            assert stream.next().data == "one"
        assert asked(server, "/events?topic=orders.eu") == 401
        assert asked(server, "/events?topic=news", bearer(own)) == 403
        assert asked(server, "/events?topic=**&since=earliest", bearer(own)) == 403
        assert asked(server, "/events?topic=orders.eu", bearer(own + "x")) == 401
        assert server.stop() == 0
    assert own not in json.dumps(server.log)


def test_a_ticket_opens_one_stream() -> None:
    with relay(*JWT) as server:
        status, _, body = server.request("POST", "/ticket", headers=bearer(token()))
        assert status == 200
        ticket = json.loads(body)["ticket"]
        with Stream(server.port, f"topic=orders.eu&ticket={ticket}") as stream:
            server.publish("one", "orders.eu")
            assert stream.next().data == "one"
        assert asked(server, f"/events?topic=orders.eu&ticket={ticket}") == 401
        assert server.request("POST", "/ticket")[0] == 401
        assert server.stop() == 0
    assert ticket not in json.dumps(server.log)


def test_tickets_are_not_issued_if_reading_needs_no_token() -> None:
    with relay() as server:
        assert server.request("POST", "/ticket", headers=bearer(TOKEN))[0] == 404


def test_a_publishers_token_grants_only_its_topics() -> None:
    with relay(*JWT) as server:
        headers = bearer(token()) | {"Content-Type": "application/x-ndjson"}

        def publish(*topics: str) -> int:
            lines = b"".join(json.dumps({"topic": topic, "data": 1}).encode() + b"\n" for topic in topics)
            return server.request("POST", "/publish", lines, headers)[0]

        assert publish("orders.eu") == 200
        assert publish("orders.eu", "orders.us") == 403
        assert server.stats()["events"] == 1


def test_a_stream_ends_between_frames_with_a_retry_when_its_token_expires() -> None:
    with relay(*JWT) as server:
        short = token(exp=time.time() + 2)
        with Stream(server.port, "topic=orders.eu", bearer(short)) as stream:
            server.publish("one", "orders.eu")
            assert [event.data for event in stream.rest()] == ["one"]
            assert stream.raw.splitlines()[-1].startswith(b"retry: ")
        assert asked(server, "/events?topic=orders.eu", bearer(short)) == 401
        eventually(lambda: server.stats()["closes"] == {"expired": 1}, "the stream is closed with its token")


def test_a_stream_ends_at_its_maximum_age_and_resumes_without_loss() -> None:
    with relay("--max-age", "1s") as server, Stream(server.port) as stream:
        began_s = time.monotonic()
        server.publish("one")
        assert [event.data for event in stream.rest()] == ["one"]
        assert 0.75 < time.monotonic() - began_s < TIMEOUT_S
        stream.close()
        eventually(lambda: server.stats()["closes"] == {"age": 1}, "the stream is closed at its maximum age")
        server.publish("two")
        with Stream(server.port, headers={"Last-Event-ID": stream.last_event_id}) as again:
            assert again.next().data == "two"


def test_a_reload_of_the_revocations_closes_revoked_streams_immediately(tmp_path: Path) -> None:
    revoked, tokens = tmp_path / "revoked", tmp_path / "tokens"
    revoked.write_text("")
    tokens.write_text("first\n")
    files = ("--jwt-revoked-file", str(revoked), "--publish-token-file", str(tokens))
    with relay(*JWT, *files) as server:
        ann = Stream(server.port, "topic=orders.eu", bearer(token()))
        bob = Stream(server.port, "topic=orders.eu", bearer(token(sub="bob")))
        revoked.write_text("bob\n")
        tokens.write_text("second\n")
        server.process.send_signal(signal.SIGHUP)
        assert bob.rest() == []
        assert asked(server, "/events?topic=orders.eu", bearer(token(sub="bob"))) == 401
        text = {"Content-Type": "text/plain"}
        assert server.request("POST", "/publish?topic=orders.eu", b"no", bearer("first") | text)[0] == 401
        assert server.request("POST", "/publish?topic=orders.eu", b"yes", bearer("second") | text)[0] == 200
        assert ann.next().data == "yes"
        tokens.unlink()
        server.process.send_signal(signal.SIGHUP)
        logged(server, "kept the current tokens: publish-token-file")
        assert server.request("POST", "/publish?topic=orders.eu", b"still", bearer("second") | text)[0] == 200
        revoked.write_text("bob\nann # no file of tokens, but this one holds\n")
        server.process.send_signal(signal.SIGHUP)
        assert [event.data for event in ann.rest()] == ["still"]
        ann.close()
        bob.close()


def test_streams_of_one_subject_are_limited() -> None:
    with (
        relay(*JWT, "--streams-per-subject-max", "1") as server,
        Stream(server.port, "topic=orders.eu", bearer(token())),
    ):
        assert asked(server, "/events?topic=orders.us", bearer(token())) == 429
        Stream(server.port, "topic=orders.us", bearer(token(sub="bob"))).close()


def test_a_token_that_publishes_too_much_receives_retry_after() -> None:
    with relay("--publish-rate", "1") as server:
        headers = bearer(TOKEN) | {"Content-Type": "text/plain"}
        answers = [server.request("POST", "/publish", b"x", headers) for _ in range(11)]
        assert [status for status, _, _ in answers] == [200] * 10 + [429]
        assert answers[-1][1]["retry-after"] == "1"
        assert server.stats()["events"] == 10


def test_the_unix_socket_can_be_restricted_to_some_users(tmp_path: Path) -> None:
    path, own, other = tmp_path / "feed.sock", str(os.getuid()), str(os.getuid() + 1)
    with relay("--unix", str(path), "--unix-user", own) as server, Feeder(path) as feeder:
        feeder.publish(data="taken")
        assert server.stats()["events"] == 1
    with relay("--unix", str(path), "--unix-user", other) as server, Feeder(path) as feeder:
        assert feeder.answer() == {"error": "this user may not publish"}
        assert server.stats()["events"] == 0
        assert server.metric("relay_input_errors_total") == 1


@contextmanager
def key_server(documents: list[bytes]) -> Iterator[str]:
    """Serve JWKS documents: each request receives the next one, and the last one repeats. An empty one is a 500."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            document = documents.pop(0) if len(documents) > 1 else documents[0]
            self.send_response(200 if document else 500)
            self.end_headers()
            self.wfile.write(document)

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/keys"
        finally:
            server.shutdown()
            thread.join()


def document(pairs: dict[str, Any], *others: dict[str, Any]) -> bytes:
    """Return a JWKS: other keys, then the public keys of these pairs with their ids."""
    keys = [
        jwt.algorithms.ECAlgorithm.to_jwk(key.public_key(), as_dict=True) | {"kid": name} for name, key in pairs.items()
    ]
    return json.dumps({"keys": [*others, *keys]}).encode()


def asked_once(server: Relay, headers: dict[str, str]) -> int:
    return server.request("HEAD", "/events?topic=orders.eu", headers=headers)[0]


def test_keys_are_fetched_periodically() -> None:
    pairs = {name: ec.generate_private_key(ec.SECP256R1()) for name in ("old", "new")}
    documents = [document({name: pairs[name]}) for name in ("old", "new")]
    with (
        key_server(documents) as url,
        relay("--subscribe", "jwt", "--jwt-jwks-url", url, "--jwt-jwks-refresh", "1s") as server,
    ):

        def status(name: str) -> int:
            own = token(pairs[name], "ES256", {"kid": name})
            return server.request("HEAD", "/events?topic=orders.eu", headers=bearer(own))[0]

        deadline = time.monotonic() + TIMEOUT_S
        while status("new") != 200:
            assert status("new") in (401, 503, 200)
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert status("old") == 401


def test_a_token_with_an_unknown_key_triggers_a_fetch_immediately() -> None:
    pairs = {name: ec.generate_private_key(ec.SECP256R1()) for name in ("old", "new")}
    documents = [document({name: pairs[name]}) for name in ("old", "new")]
    with key_server(documents) as url, relay("--subscribe", "jwt", "--jwt-jwks-url", url) as server:

        def status(name: str) -> int:
            return asked_once(server, bearer(token(pairs[name], "ES256", {"kid": name})))

        eventually(lambda: status("old") == 200, "the keys are fetched")
        assert status("new") == 503
        eventually(lambda: status("new") == 200, "the new key is fetched five minutes early")
        assert status("old") == 401


def test_a_token_in_any_of_several_cookie_fields_opens_a_stream() -> None:
    with relay(*JWT, "--jwt-cookie", "session") as server:
        own = f"session={token()}"
        for fields in (("a=\xe9; flag", own), (own, "list[0]=1"), ('x={"a":1}', "b=c")):
            with socket.create_connection(("127.0.0.1", server.port), TIMEOUT_S) as connection:
                lines = "".join(f"Cookie: {field}\r\n" for field in fields)
                head = f"HEAD /events?topic=orders.eu HTTP/1.1\r\nHost: a\r\n{lines}\r\n"
                connection.sendall(head.encode("latin-1"))
                status = connection.recv(4096).split()[1]
            assert status == (b"200" if own in fields else b"401")


def test_key_files_are_reloaded_and_an_invalid_file_changes_nothing(tmp_path: Path) -> None:
    pairs = {name: ec.generate_private_key(ec.SECP256R1()) for name in ("old", "new")}
    path = tmp_path / "keys"
    path.write_bytes(document({"old": pairs["old"]}, {"kty": "oct", "k": "A" * 64}))
    with relay("--subscribe", "jwt", "--jwt-key-file", str(path)) as server:

        def status(name: str) -> int:
            return asked_once(server, bearer(token(pairs[name], "ES256", {"kid": name})))

        assert (status("old"), status("new")) == (200, 401)
        logged(server, "jwt-key-file: skipped 1 unusable keys: key 1: it is a symmetric key")
        logged(server, "jwt-key-file is deprecated and will be removed; use jwt-public-key-file")
        path.write_text("<html><title>Back soon</title></html>")
        server.process.send_signal(signal.SIGHUP)
        logged(server, "kept the current keys: jwt-key-file: this is a page of HTML")
        assert status("old") == 200
        path.write_bytes(document({"new": pairs["new"]}))
        server.process.send_signal(signal.SIGHUP)
        eventually(lambda: status("new") == 200, "the new keys apply")
        assert status("old") == 401


def test_until_keys_are_fetched_tokens_receive_a_503() -> None:
    with key_server([b""]) as url, relay("--subscribe", "jwt", "--jwt-jwks-url", url) as server:
        assert asked(server, "/events?topic=orders.eu", bearer(token())) == 503
        logged(server, "cannot fetch the JWKS")
        assert asked(server, "/events?topic=orders.eu", bearer("no token")) == 401


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--subscribe", "jwt", "--jwt-secret", "short"), "at least 32 bytes"),
        (("--subscribe", "jwt", "--jwt-key", "short"), "at least 32 bytes"),
        (("--jwt-secret", "-----BEGIN PUBLIC KEY-----\nMII"), "Public keys belong in jwt-public-key-file"),
        (("--jwt-secret-file", "/nonexistent/key"), "No such file"),
        (("--jwt-public-key-file", "/nonexistent/key"), "No such file"),
        (("--jwt-key-file", "/nonexistent/key"), "No such file"),
        (("--publish-token-file", "/nonexistent/tokens"), "No such file"),
        (("--unix", "/nonexistent/relay.sock", "--unix-user", "no such user"), "there is no such user"),
    ],
)
def test_unusable_credentials_fail_the_start(arguments: tuple[str, ...], text: str) -> None:
    with pytest.raises(AssertionError, match=text):
        Relay(*arguments)
