"""The keys that tokens are checked with, and the files that tokens and revocations are read from.

Owns what a key may look like and which algorithm goes with it: a key has exactly one, so that a token cannot choose
(RFC 8725 section 3.1). Never checks a token (`relay.auth`), and never asks the network: it is handed a JWKS as text.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from relay.errors import ConfigError

if TYPE_CHECKING:
    from jwt import PyJWK

SECRET_BYTES_MIN = 32
"""Shortest secret of HS256: as long as the hash (RFC 7518 section 3.2)."""
RSA_BITS_MIN = 2048
"""Shortest RSA key (RFC 7518 section 3.3)."""
FILE_BYTES_MAX = 1024 * 1024
KEYS_MAX = 100
LINES_MAX = 100_000
ALGORITHMS = ("HS256", "RS256", "ES256", "EdDSA")

_EXTRA = "it needs PyJWT with cryptography: pip install 'relay[auth]' of this project"


@dataclass(frozen=True, slots=True)
class Keys:
    """Keys by id.

    Args:
        by_id: each key that has an id, under it.
        nameless: the keys without one.
    """

    by_id: dict[str, PyJWK]
    nameless: tuple[PyJWK, ...]

    def candidates(self, id: str | None) -> tuple[PyJWK, ...]:
        """Return the keys that a token may have been signed with: those without an id fit any token."""
        if id is None:
            return (*self.nameless, *self.by_id.values())
        return (self.by_id[id],) if id in self.by_id else self.nameless


def read_keys(text: str, where: str) -> Keys:
    """Read keys: a PEM public key, a JWK or a JWKS (RFC 7517), or else a secret for HS256.

    Args:
        text: as it stands in the file or setting; white space around it does not count.
        where: what it comes from, for errors.

    Raises:
        ConfigError: it is none of these, is too weak, or is a private key.
    """
    text = text.strip()
    if text.startswith("{"):
        return _read_jwks(text, where)
    return Keys({}, (_read_pem(text, where) if text.startswith("-----BEGIN") else _read_secret(text, where),))


def _read_secret(text: str, where: str) -> PyJWK:
    if len(text.encode()) < SECRET_BYTES_MIN:
        raise ConfigError(f"{where}: a secret for HS256 needs at least {SECRET_BYTES_MIN} bytes")
    encoded = _jwt().utils.base64url_encode(text.encode()).decode()
    key: PyJWK = _jwt().PyJWK({"kty": "oct", "k": encoded}, algorithm="HS256")
    return key


def _read_pem(text: str, where: str) -> PyJWK:
    jwt = _jwt()
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(text.encode())
    except ValueError:
        raise ConfigError(f"{where}: not a PEM public key (a private key is not wanted here)") from None
    algorithms = jwt.algorithms
    if isinstance(key, rsa.RSAPublicKey):
        jwk, algorithm = algorithms.RSAAlgorithm.to_jwk(key, as_dict=True), "RS256"
    elif isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
        jwk, algorithm = algorithms.ECAlgorithm.to_jwk(key, as_dict=True), "ES256"
    elif isinstance(key, ed25519.Ed25519PublicKey):
        jwk, algorithm = algorithms.OKPAlgorithm.to_jwk(key, as_dict=True), "EdDSA"
    else:
        raise ConfigError(f"{where}: the key is none of RSA, EC P-256 and Ed25519")
    return _checked(jwt.PyJWK(jwk, algorithm=algorithm), where)


def _read_jwks(text: str, where: str) -> Keys:
    jwt = _jwt()
    try:
        document = msgspec.json.decode(text, type=dict[str, Any])
        entries = msgspec.convert(document.get("keys", [document]), type=list[dict[str, Any]])
    except msgspec.MsgspecError:
        raise ConfigError(f"{where}: not a JWKS") from None
    by_id: dict[str, PyJWK] = {}
    nameless: list[PyJWK] = []
    for entry in entries[:KEYS_MAX]:
        if entry.get("use", "sig") != "sig":
            continue
        try:
            key = jwt.PyJWK(entry)
        except (jwt.PyJWTError, ValueError, TypeError, KeyError):
            raise ConfigError(f"{where}: a key of the JWKS cannot be read") from None
        if key.algorithm_name not in ALGORITHMS:
            continue
        _checked(key, where)
        if isinstance(key.key_id, str):
            by_id[key.key_id] = key
        else:
            nameless.append(key)
    if not by_id and not nameless:
        raise ConfigError(f"{where}: no key for {', '.join(ALGORITHMS)}")
    return Keys(by_id, tuple(nameless))


def _checked(key: PyJWK, where: str) -> PyJWK:
    if key.algorithm_name == "RS256" and key.key.key_size < RSA_BITS_MIN:
        raise ConfigError(f"{where}: an RSA key needs at least {RSA_BITS_MIN} bits")
    if key.algorithm_name == "HS256" and len(key.key) < SECRET_BYTES_MIN:
        raise ConfigError(f"{where}: a secret for HS256 needs at least {SECRET_BYTES_MIN} bytes")
    return key


def read_file(path: str, setting: str) -> str:
    """Return a small text file's content.

    Raises:
        ConfigError: it cannot be read, is too large or is not UTF-8; its content is never shown.
    """
    try:
        with Path(path).open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
        if len(data) > FILE_BYTES_MAX:
            raise ConfigError(f"{setting}: {path} is larger than {FILE_BYTES_MAX} bytes")
        return data.decode()
    except OSError as error:
        raise ConfigError(f"{setting}: {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{setting}: {path} is not UTF-8") from None


def read_lines(path: str, setting: str) -> frozenset[str]:
    """Return the lines of a small file; empty ones and those that begin with `#` do not count.

    Raises:
        ConfigError: as for `read_file`, or there are too many lines.
    """
    lines = (line.strip() for line in read_file(path, setting).splitlines())
    found = frozenset(line for line in lines if line and not line.startswith("#"))
    if len(found) > LINES_MAX:
        raise ConfigError(f"{setting}: {path} has more than {LINES_MAX} lines")
    return found


def _jwt() -> Any:
    """Return the library; it is wanted only by those who use tokens of this kind."""
    try:
        import jwt
        import jwt.algorithms
        import jwt.utils
    except ImportError:
        raise ConfigError(f"jwt-key: {_EXTRA}") from None
    if not jwt.algorithms.has_crypto:
        raise ConfigError(f"jwt-key: {_EXTRA}")
    return jwt
