"""`relay.auth.signatures`: signatures of GitHub and Stripe are checked over the exact body, with each valid secret."""

from __future__ import annotations

import hashlib
import hmac
import os
import signal
from pathlib import Path

import pytest

from relay.auth.signatures import TOLERANCE_S, check_signature
from relay.errors import RequestError
from tests.running import TOKEN, eventually, relay

NOW_S = 1_700_000_000.0
BODY = b'{"a": 1}'


def sign(secret: str, text: bytes) -> str:
    return hmac.new(secret.encode(), text, hashlib.sha256).hexdigest()


def stripe(secret: str, body: bytes = BODY, time_s: float = NOW_S) -> str:
    return f"t={time_s:.0f},v1={sign(secret, b'%d.' % int(time_s) + body)}"


def refusal(scheme: str, header: str | None, body: bytes = BODY, secrets: tuple[str, ...] = ("one", "two")) -> str:
    """Return the reason for which a request is rejected; empty if it is accepted."""
    name = {"github": "x-hub-signature-256", "stripe": "stripe-signature"}[scheme]
    try:
        check_signature(scheme, {} if header is None else {name: header}, body, secrets, NOW_S)
    except RequestError as error:
        refused = error
    else:
        return ""
    assert refused.status == 401
    assert dict(refused.headers)["WWW-Authenticate"]
    assert not any(secret in refused.reason for secret in secrets)
    return refused.reason


def test_the_example_in_the_documents_of_github_is_accepted() -> None:
    header = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
    assert refusal("github", header, b"Hello, World!", ("It's a Secret to Everybody",)) == ""


def test_each_secret_of_a_rotation_is_valid() -> None:
    for secret in ("one", "two"):
        assert refusal("github", f"sha256={sign(secret, BODY)}") == ""
        assert refusal("stripe", stripe(secret)) == ""
    assert "does not match" in refusal("github", f"sha256={sign('three', BODY)}")
    assert "does not match" in refusal("stripe", stripe("three"))
    assert "does not match" in refusal("github", f"sha256={sign('one', BODY)}", secrets=())


def test_stripe_may_sign_with_several_secrets_and_other_schemes() -> None:
    header = stripe("gone")
    assert refusal("stripe", f"{header},v0=ab, v1={sign('two', b'%d.' % int(NOW_S) + BODY)}") == ""


@pytest.mark.parametrize("header", [None, "", "sha256=", "sha1=00", sign("one", BODY), "sha256=\xe9", "sha256=00"])
def test_a_missing_or_malformed_signature_of_github_is_rejected(header: str | None) -> None:
    assert refusal("github", header)


@pytest.mark.parametrize("header", [None, "", "v1=00", "t=,v1=00", "t=x,v1=00", f"t={NOW_S:.0f}", f"t={NOW_S:.0f},v1="])
def test_a_missing_or_malformed_signature_of_stripe_is_rejected(header: str | None) -> None:
    assert refusal("stripe", header)


def test_a_changed_body_or_time_is_rejected() -> None:
    assert refusal("github", f"sha256={sign('one', BODY)}", BODY + b" ")
    assert refusal("stripe", stripe("one"), BODY + b" ")
    assert refusal("stripe", stripe("one").replace("t=17", "t=1700000001,x=17", 1))


@pytest.mark.parametrize("ahead_s", [TOLERANCE_S, -TOLERANCE_S])
def test_the_time_of_stripe_has_a_tolerance_in_both_directions(ahead_s: int) -> None:
    assert refusal("stripe", stripe("one", time_s=NOW_S + ahead_s)) == ""
    assert "clocks" in refusal("stripe", stripe("one", time_s=NOW_S + ahead_s * 1.01))


def test_sighup_replaces_the_secrets_of_a_file_and_no_secret_is_logged(tmp_path: Path) -> None:
    path = tmp_path / "secrets"
    path.write_text("# of GitHub\nan-old-webhook-secret\n")
    arguments = ("--webhook", "hooks=github event=X-GitHub-Event", "--webhook-secret-file", f"hooks={path}")
    with relay(*arguments, "--webhook-secret", "hooks=a-fixed-webhook-secret", "--log-level", "debug") as server:

        def post(secret: str) -> int:
            headers = {
                "Content-Type": "application/json",
                "X-Hub-Signature-256": f"sha256={sign(secret, BODY)}",
                "X-GitHub-Event": "push",
            }
            return server.request("POST", "/publish/hooks", BODY, headers)[0]

        old, fixed, new = "an-old-webhook-secret", "a-fixed-webhook-secret", "a-new-webhook-secret"
        assert [post(secret) for secret in (old, fixed, new)] == [200, 200, 401]
        assert server.request("POST", "/publish/hooks", BODY, {"Authorization": f"Bearer {TOKEN}"})[0] == 401
        path.write_text(f"{new}\n")
        os.kill(server.process.pid, signal.SIGHUP)
        eventually(lambda: post(new) == 200, "the file is read again")
        assert [post(secret) for secret in (old, fixed)] == [401, 200]
        assert any("2 secrets of webhooks" in line for line in server.messages("reloaded the credentials: "))
        path.write_text("too-short\n")
        os.kill(server.process.pid, signal.SIGHUP)
        kept = "kept the current secrets of webhooks: webhook-secret-file: "
        eventually(lambda: bool(server.messages(kept)), "the short secret is reported")
        path.write_text("")
        os.kill(server.process.pid, signal.SIGHUP)
        eventually(lambda: len(server.messages(kept)) == 2, "the empty file is reported")
        assert post(new) == 200
        server.stop()
        assert not any("-secret\"" in str(record) or new in str(record) for record in server.log)
