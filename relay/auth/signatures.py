"""Signatures of webhooks: an HMAC with SHA-256 over the body, in the form of the sender.

Owns the forms. Pure: never reads a file or a clock. Never logs a secret or a signature, and never repeats one in a
response. `webhook` of the settings names the form, and `relay.auth.credentials` reads the secrets.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Collection, Mapping

from relay.errors import RequestError

TOLERANCE_S = 300
"""How far the time in a Stripe signature may differ from this machine's clock: the value that Stripe recommends."""
SIGNATURES_MAX = 16
"""Most signatures in one header. Stripe sends one for each active secret."""
HEADERS = {"github": "X-Hub-Signature-256", "stripe": "Stripe-Signature"}
"""The header with the signature, by scheme."""

_TIME = re.compile(r"[0-9]{1,12}")


def check_present(scheme: str, headers: Mapping[str, str]) -> None:
    """Check that a request has the header of its scheme, before its body is read.

    Raises:
        RequestError: 401, the header is missing.
    """
    name = HEADERS[scheme]
    if not headers.get(name.lower()):
        raise _refusal(f"the request is not signed: the header {name} is missing")


def check_signature(
    scheme: str, headers: Mapping[str, str], body: bytes, secrets: Collection[str], wall_s: float
) -> None:
    """Check the signature of a request.

    Args:
        scheme: `github` or `stripe`.
        headers: the headers; the names in lower case.
        body: the body as received, before its Content-Encoding is decoded.
        secrets: the secrets that are valid now; several during a rotation.
        wall_s: the Unix time in seconds.

    Raises:
        RequestError: 401, the signature is missing, malformed, too old, or of none of the secrets.
    """
    check_present(scheme, headers)
    value = headers[HEADERS[scheme].lower()]
    if scheme == "github":
        signed, given = body, [value.removeprefix("sha256=")] if value.startswith("sha256=") else []
    else:
        fields = [part.strip().partition("=") for part in value.split(",")]
        time_text = next((text for name, _, text in fields if name == "t"), "")
        if not _TIME.fullmatch(time_text):
            raise _refusal("the signature is malformed: it has no time")
        if abs(wall_s - int(time_text)) > TOLERANCE_S:
            raise _refusal(
                f"the time of the signature differs by more than {TOLERANCE_S} s from the time here; "
                "check the clocks, or let the sender send the request again"
            )
        signed = f"{time_text}.".encode() + body
        given = [text for name, _, text in fields if name == "v1"]
    expected = [hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest() for secret in secrets]
    # Compare every pair, so that the response time depends on neither the secrets nor the signatures.
    matches = sum(
        hmac.compare_digest(each.encode("latin-1", "replace"), known.encode())
        for each in given[:SIGNATURES_MAX]
        for known in expected
    )
    if not matches:
        raise _refusal("the signature does not match the body and the secret")


def _refusal(reason: str) -> RequestError:
    # RFC 9110 section 15.5.2 requires a challenge. No registered scheme describes these signatures.
    return RequestError(401, reason, (("WWW-Authenticate", "HMAC-SHA256"),))
