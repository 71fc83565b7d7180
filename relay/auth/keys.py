"""The keys that verify JWTs: text in, keys out.

Owns the formats of keys and the algorithm of each key. A key has exactly one algorithm, so a token cannot choose it
(RFC 8725 section 3.1). The setting defines the kind of key; relay does not guess. A secret is never read from other key
material, and a JWKS never yields a secret. Never checks a token (`relay.auth.tokens`), logs or fetches.
"""

from __future__ import annotations

import json
import re
from base64 import b64decode
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relay.auth.key_expiry import last_expiry_s
from relay.errors import ConfigError
from relay.extras import missing_extra

if TYPE_CHECKING:
    from jwt import PyJWK

SECRET_BYTES_MIN = 32
"""Shortest secret for HS256: the length of the hash (RFC 7518 section 3.2)."""
RSA_BITS_MIN = 2048
"""Shortest RSA key (RFC 7518 section 3.3)."""
RSA_BITS_MAX = 16 * 1024
"""Longest RSA key: OpenSSL rejects signatures of longer keys."""
FILE_BYTES_MAX = 1024 * 1024
KEYS_MAX = 100
"""Maximum number of keys in a set. A token without a key id is tried with every key of its algorithm."""

_EXTRA = f"requires PyJWT with cryptography, which is not installed; {missing_extra('auth')}"
_TAKES_PUBLIC = "jwt-public-key-file takes public keys: PEM, a JWK or a JWKS"
_ALGORITHMS = {("RSA", None): "RS256", ("EC", "P-256"): "ES256", ("OKP", "Ed25519"): "EdDSA"}
"""The algorithm for each key type and curve."""
_PEM = re.compile(r"-----BEGIN ((?:RSA )?PUBLIC KEY)-----[A-Za-z0-9+/=\s]*-----END \1-----")
_HEX = re.compile(r"(?:[0-9A-Fa-f]{2})+")
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{32,}={0,2}")
_SSH = re.compile(rb"\0\0\0.(?:ssh-|ecdsa-sha2-|sk-)", re.DOTALL)
_DER = re.compile(rb"0(?:[\x00-\x7f]|\x81.|\x82..|\x83...)[0\x02]", re.DOTALL)


@dataclass(frozen=True, slots=True)
class _Kind:
    """A kind of text that users confuse with a key.

    Args:
        pattern: matches such a text.
        name: the name of the kind, for errors.
        hint: the remedy if a public key is expected.
    """

    pattern: re.Pattern[str]
    name: str
    hint: str


_MARKED = (
    _Kind(
        re.compile(r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY|PuTTY-User-Key-File"),
        "a private key",
        "relay needs only the public key: openssl pkey -in KEY -pubout",
    ),
    _Kind(
        re.compile(r"-----BEGIN (?:X509 |TRUSTED )?CERTIFICATE-"),
        "a certificate",
        "extract its public key: openssl x509 -in CERTIFICATE -noout -pubkey",
    ),
    _Kind(
        re.compile(r"(?:ssh-|ecdsa-sha2-|sk-)[a-z0-9@.-]{1,40}\s{1,8}AAAA|---- BEGIN SSH2"),
        "a key in OpenSSH's format",
        "convert it: ssh-keygen -e -m PKCS8 -f KEY",
    ),
)
_JWT = _Kind(re.compile(r"\AeyJ[\w-]*\.eyJ[\w-]*\.[\w-]*\Z"), "a JWT, and each client has one", _TAKES_PUBLIC)
_PAGE = _Kind(
    re.compile(r"\A\s*<[!?a-z][^<>]*>|<(?:!doctype|html|head|body|title)\b", re.IGNORECASE),
    "a page of HTML or XML",
    _TAKES_PUBLIC,
)
_ADDRESS = _Kind(re.compile(r"\A[a-z]+://", re.IGNORECASE), "an address", "give the address of a JWKS to jwt-jwks-url")
_BLOCK = _Kind(re.compile(r"-----BEGIN"), "a PEM block", _TAKES_PUBLIC)
_JSON = _Kind(re.compile(r'"(?:kty|keys)"\s*:'), "JSON, as a JWK or a JWKS is", _TAKES_PUBLIC)
_ENCODED = _Kind(
    re.compile(r"(?!)"), "a key in base64 or hexadecimal, without its PEM lines", "write it as PEM, a JWK or a JWKS"
)
_MARK = _Kind(re.compile("\ufeff"), "a text after a byte order mark", "save it as UTF-8 without a byte order mark")


@dataclass(frozen=True, slots=True)
class Keys:
    """Keys by id.

    Args:
        by_id: the keys of each id; several if they differ in type (RFC 7517 section 4.5).
        nameless: the keys without an id.
        skipped: the reason for each skipped key of a set.
        expire_s: Unix time at which the last key expires; None if a key states no expiry.
    """

    by_id: dict[str, tuple[PyJWK, ...]]
    nameless: tuple[PyJWK, ...]
    skipped: tuple[str, ...] = ()
    expire_s: float | None = None

    def __len__(self) -> int:
        return len(self.nameless) + sum(map(len, self.by_id.values()))

    def candidates(self, id: str | None) -> tuple[PyJWK, ...]:
        """Return the keys that may have signed a token with this key id. Keys without an id match every token."""
        if id is None:
            return (*self.nameless, *(key for keys in self.by_id.values() for key in keys))
        return self.by_id.get(id, self.nameless)


class _UnusableError(Exception):
    """One key of a set is unusable. The text states the reason and never shows the key."""


def read_secret(text: str, where: str) -> Keys:
    """Read a shared secret of HS256: one line of printable characters, at least 32 bytes.

    Args:
        text: the content of the file or setting; surrounding white space is removed.
        where: the setting, for errors.

    Raises:
        ConfigError: the secret is too short, or looks like other key material. The error never shows the text.
    """
    text = text.strip()
    found = _recognise(text, (_PAGE, _ADDRESS, _BLOCK, _JSON, _JWT)) or (_JSON if _is_json(text) else None)
    if found is not None:
        hint = found.hint if found in (_ADDRESS, _MARK) else _TAKES_PUBLIC
        raise ConfigError(f"{where}: this is {found.name}, and not a shared secret; {hint}")
    if not text.isprintable():
        raise ConfigError(
            f"{where}: a shared secret is one line of printable characters, and this is not (a second line, a byte "
            f"order mark or a control character); for public keys: {_TAKES_PUBLIC}"
        )
    size = len(text.encode())
    if size < SECRET_BYTES_MIN:
        raise ConfigError(f"{where}: a shared secret needs at least {SECRET_BYTES_MIN} bytes, and this has {size}")
    jwt = _jwt(where)
    try:
        jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256).prepare_key(text)
    except jwt.InvalidKeyError:
        raise ConfigError(f"{where}: this is key material, and not a shared secret; {_TAKES_PUBLIC}") from None
    encoded = jwt.utils.base64url_encode(text.encode()).decode()
    return Keys({}, (jwt.PyJWK({"kty": "oct", "k": encoded}, algorithm="HS256"),))


def read_public(text: str, where: str) -> Keys:
    """Read public keys: one or more PEM blocks, a JWK or a JWKS (RFC 7517).

    Args:
        text: the content of the file; surrounding white space is removed.
        where: the setting, for errors.

    Raises:
        ConfigError: the text has another format, or no usable key. The error never shows the text.
    """
    text = text.strip()
    if not text:
        raise ConfigError(f"{where}: it is empty; {_TAKES_PUBLIC}")
    if text.startswith(("{", "[")):
        return _read_set(_decode(text, where), where)
    found = _recognise(text, (_PAGE, _ADDRESS))
    if found is not None:
        raise ConfigError(f"{where}: this is {found.name}; {found.hint}")
    return _read_pem(text, where)


def read_jwks(text: str, where: str) -> Keys:
    """Read a JWKS and no other format (RFC 7517 section 5); symmetric keys are skipped.

    Args:
        text: the body of a response.
        where: the setting, for errors.

    Raises:
        ConfigError: the text is not a JWKS, or has no usable key.
    """
    text = text.strip()
    if not text.startswith("{") and (found := _recognise(text, (_PAGE,))) is not None:
        raise ConfigError(f"{where}: this is {found.name}, and not a JWKS")
    document = _decode(text, where)
    if "keys" not in document:
        raise ConfigError(f"{where}: this is JSON, but not a JWKS: it has no `keys`")
    return _read_set(document, where)


def _recognise(text: str, kinds: tuple[_Kind, ...]) -> _Kind | None:
    """Return the kind of a text that users confuse with a key, also if it is encoded; None for other texts."""
    if text.startswith("\ufeff"):
        inner = _recognise(text.lstrip("\ufeff"), kinds)
        return _MARK if inner is None else replace(inner, name=f"{inner.name}, after a byte order mark")
    for kind in (*_MARKED, *kinds):
        if kind.pattern.search(text):
            return kind
    return _ENCODED if any(map(_is_key, _decodings(text))) else None


def _is_json(text: str) -> bool:
    """Return whether a text is a JSON object, list or string."""
    if not text.startswith(("{", "[", '"')):
        return False
    try:
        json.loads(text, parse_int=float)
    except ValueError:
        return False
    except RecursionError:
        return True
    return True


def _decodings(text: str) -> list[bytes]:
    """Return the possible decodings of a text as base64 and hexadecimal; empty if it is neither."""
    packed = "".join(text.split())
    if not _BASE64.fullmatch(packed):
        return []
    digits = packed.rstrip("=").replace("-", "+").replace("_", "/")
    found = [] if len(digits) % 4 == 1 else [b64decode(digits + "=" * (-len(digits) % 4))]
    return [*found, bytes.fromhex(packed)] if _HEX.fullmatch(packed) else found


def _is_key(data: bytes) -> bool:
    """Return whether bytes are a key or certificate in DER, an OpenSSH key, PEM or a JWK; random bytes are not."""
    if _DER.match(data):
        size = data[1] if data[1] < 0x80 else int.from_bytes(data[2 : 2 + (data[1] & 0x7F)])
        head = 2 if data[1] < 0x80 else 2 + (data[1] & 0x7F)
        if len(data) == head + size:
            return True
    return _SSH.match(data) is not None or b"-----BEGIN" in data or b'"kty"' in data or b'"keys"' in data


def _read_pem(text: str, where: str) -> Keys:
    if "-----BEGIN" not in text:
        raise ConfigError(
            f"{where}: no public key found; {_TAKES_PUBLIC}; a shared secret belongs in jwt-secret-file"
        )
    outside = _PEM.sub(lambda block: "\n" * block[0].count("\n"), text)
    for number, line in enumerate(outside.split("\n"), 1):
        if line.strip():
            raise ConfigError(
                f"{where}: line {number} is not part of a PEM public key (`-----BEGIN PUBLIC KEY-----` to `-----END "
                "PUBLIC KEY-----`); remove comments and everything else"
            )
    blocks = [block[0] for block in _PEM.finditer(text)]
    if len(blocks) > KEYS_MAX:
        raise ConfigError(f"{where}: there are more than {KEYS_MAX} keys")
    return Keys({}, tuple(_read_block(block, where) for block in blocks))


def _read_block(block: str, where: str) -> PyJWK:
    jwt = _jwt(where)
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(block.encode())
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigError(f"{where}: a PEM public key cannot be decoded; it may be truncated") from None
    algorithms = jwt.algorithms
    if isinstance(key, rsa.RSAPublicKey):
        entry = algorithms.RSAAlgorithm.to_jwk(key, as_dict=True)
    elif isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
        entry = algorithms.ECAlgorithm.to_jwk(key, as_dict=True)
    elif isinstance(key, ed25519.Ed25519PublicKey):
        entry = algorithms.OKPAlgorithm.to_jwk(key, as_dict=True)
    else:
        raise ConfigError(f"{where}: unsupported key type; use RSA, EC P-256 or Ed25519")
    try:
        return _read_entry(entry, where)
    except _UnusableError as error:
        raise ConfigError(f"{where}: {error}") from None


def _decode(text: str, where: str) -> dict[str, Any]:
    """Decode the JSON of a JWK or a JWKS.

    The decoder of the standard library accepts lone surrogates, and integers of any length as floats. Such a value
    makes only its own entry unusable.
    """
    try:
        document = json.loads(text, parse_int=float)
    except ValueError as error:
        raise ConfigError(f"{where}: this is not JSON: {error}") from None
    except RecursionError:
        raise ConfigError(f"{where}: the JSON is nested too deeply") from None
    if not isinstance(document, dict):
        raise ConfigError(f"{where}: this is JSON, but neither a JWK nor a JWKS: it is not an object")
    return document


def _read_set(document: dict[str, Any], where: str) -> Keys:
    """Read a JWK or a JWKS; skip unknown and unusable keys (RFC 7517 section 5)."""
    entries = document.get("keys", [document])
    if not isinstance(entries, list):
        raise ConfigError(f"{where}: this is JSON, but not a JWKS: `keys` is not a list")
    by_id: dict[str, tuple[PyJWK, ...]] = {}
    nameless: list[PyJWK] = []
    skipped: list[str] = []
    used: list[dict[str, Any]] = []
    for number, entry in enumerate(entries[:KEYS_MAX], 1):
        try:
            key = _read_entry(entry, where)
        except _UnusableError as error:
            id = entry.get("kid") if isinstance(entry, dict) else None
            skipped.append(f"key {number}{f' ({id!r:.40})' if isinstance(id, str) else ''}: {error}")
            continue
        used.append(entry)
        if key.key_id is None:
            nameless.append(key)
        else:
            by_id[key.key_id] = (*by_id.get(key.key_id, ()), key)
    if len(entries) > KEYS_MAX:
        skipped.append(f"{len(entries) - KEYS_MAX} keys: only the first {KEYS_MAX} are used")
    if not by_id and not nameless:
        reasons = "; ".join(skipped[:3]) or "the set is empty"
        raise ConfigError(f"{where}: no usable key: {reasons}")
    return Keys(by_id, tuple(nameless), tuple(skipped), last_expiry_s(used))


def _read_entry(entry: object, where: str) -> PyJWK:
    """Read one JWK; raise _UnusableError if it cannot verify signatures."""
    if not isinstance(entry, dict):
        raise _UnusableError("it is not a JSON object")
    entry = {name: value for name, value in entry.items() if value is not None}  # null means absent
    kind, operations = entry.get("kty"), entry.get("key_ops", ["verify"])
    curve = None if kind == "RSA" else entry.get("crv")
    if kind == "oct":
        raise _UnusableError("it is a symmetric key (`oct`), and only jwt-secret and jwt-secret-file take a secret")
    if not isinstance(entry.get("kid", ""), str):
        raise _UnusableError("its `kid` is not a string")
    if entry.get("use", "sig") != "sig":
        raise _UnusableError(f"its `use` is {entry['use']!r:.20}, and not 'sig'")
    if not isinstance(operations, list) or "verify" not in operations:
        raise _UnusableError("its `key_ops` lack 'verify'")
    if "d" in entry:
        raise _UnusableError("it is a private key, which must not be here")
    algorithm = next((name for each, name in _ALGORITHMS.items() if [kind, curve] == list(each)), None)
    if algorithm is None:
        reason = f"unsupported type {kind!r:.20}, curve {curve!r:.20}; use RSA, EC P-256 or OKP Ed25519"
        raise _UnusableError(reason)
    if entry.get("alg", algorithm) != algorithm:
        raise _UnusableError(f"its `alg` is {entry['alg']!r:.20}, but this type of key requires {algorithm}")
    try:
        key: PyJWK = _jwt(where).PyJWK(entry, algorithm=algorithm)
        bits = key.key.key_size if algorithm == "RS256" else RSA_BITS_MIN
    except ConfigError:
        raise
    except Exception as error:  # noqa: BLE001  one malformed key must not affect the others
        raise _UnusableError(f"it cannot be decoded ({type(error).__name__})") from None
    if not RSA_BITS_MIN <= bits <= RSA_BITS_MAX:
        raise _UnusableError(f"an RSA key needs {RSA_BITS_MIN} to {RSA_BITS_MAX} bits, and this has {bits}")
    return key


def read_file(path: str, setting: str) -> str:
    """Return the content of a small text file.

    Raises:
        ConfigError: the file cannot be read, is too large or is not UTF-8. The error never shows the content.
    """
    try:
        return read_bytes(path, setting).decode()
    except UnicodeDecodeError:
        raise ConfigError(f"{setting}: {path} is not UTF-8 text") from None


def read_bytes(path: str, setting: str) -> bytes:
    """Return the content of a small file.

    Raises:
        ConfigError: the file cannot be read, or is too large.
    """
    try:
        with Path(path).open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(f"{setting}: {path}: {error.strerror}") from None
    if len(data) > FILE_BYTES_MAX:
        raise ConfigError(f"{setting}: {path} is larger than {FILE_BYTES_MAX} bytes")
    return data


def _jwt(where: str) -> Any:
    """Import and return PyJWT, which is an optional dependency."""
    try:
        import jwt
        import jwt.algorithms
        import jwt.utils
    except ImportError:
        raise ConfigError(f"{where}: {_EXTRA}") from None
    if not jwt.algorithms.has_crypto:
        raise ConfigError(f"{where}: {_EXTRA}")
    return jwt
