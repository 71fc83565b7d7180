"""Key material: any text gives keys or a ConfigError under each setting. A secret is never also another kind of key."""

from __future__ import annotations

import json

from relay.auth.keys import KEYS_MAX, Keys, read_jwks, read_public, read_secret
from relay.errors import ConfigError

GOOD = {"kty": "OKP", "crv": "Ed25519", "kid": "good", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}
WORDS = (
    b'{"keys":[',
    b"]}",
    b'"kty":"RSA"',
    b'"kty":"EC","crv":"P-256"',
    b'"kty":"oct","k":"AAAA"',
    b'"n":"AQAB"',
    b'"x":"AQAB","y":"AQAB"',
    b'"alg":"HS256"',
    b'"use":"sig"',
    b'"key_ops":["verify"]',
    b'"kid":null',
    b'"d":"AQAB"',
    b"-----BEGIN PUBLIC KEY-----\n",
    b"-----END PUBLIC KEY-----\n",
    b"-----BEGIN PRIVATE KEY-----",
    b"-----BEGIN CERTIFICATE-----",
    b"ssh-rsa AAAA",
    b"MCowBQYDK2VwAyEA",
    b"<html>",
    b"\xef\xbb\xbf",
    b"[" * 40,
    b"a" * 32,
)


def keys_of(read: object, text: str) -> Keys | None:
    """Read a text. The message of an error starts with the setting and continues after it."""
    assert callable(read)
    try:
        keys = read(text, "setting")
    except ConfigError as error:
        assert str(error).startswith("setting: ")
        assert len(str(error)) < 1000
        return None
    assert isinstance(keys, Keys)
    assert 0 < len(keys) <= KEYS_MAX
    return keys


def check(data: bytes) -> None:
    """Check one input, as each kind of text and as one key of a set beside a valid one."""
    text = data.decode(errors="replace")
    secret, public, fetched = (keys_of(read, text) for read in (read_secret, read_public, read_jwks))
    assert secret is None or (public is None and fetched is None)
    for keys in (public, fetched):
        assert keys is None or all(key.algorithm_name != "HS256" for key in keys.candidates(None))
    try:
        entry = json.loads(text)
    except (ValueError, RecursionError):
        return
    beside = keys_of(read_jwks, json.dumps({"keys": [entry, GOOD]}).replace("NaN", "0").replace("Infinity", "1"))
    assert beside is not None
    assert "good" in beside.by_id
