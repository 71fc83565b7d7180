"""Key material is never guessed: a text is a key of the kind that its setting requires, or an error names its kind."""

from __future__ import annotations

import base64
import json
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from relay.auth.keys import FILE_BYTES_MAX, KEYS_MAX, read_jwks, read_public, read_secret
from relay.errors import ConfigError
from tests.certificate import make_certificate

RSA = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())
ED = ed25519.Ed25519PrivateKey.generate()
SECRET = "a secret of at least thirty-two bytes"


def written(key: Any, encoding: Encoding = Encoding.PEM, form: Any = PublicFormat.SubjectPublicKeyInfo) -> str:
    data: bytes = key.public_key().public_bytes(encoding, form)
    return base64.b64encode(data).decode() if encoding is Encoding.DER else data.decode()


def private(key: Any) -> str:
    text: bytes = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return text.decode()


def jwk(key: Any = EC, **members: Any) -> dict[str, Any]:
    algorithms = jwt.algorithms
    kinds: dict[type, Any] = {
        rsa.RSAPrivateKey: algorithms.RSAAlgorithm,
        ec.EllipticCurvePrivateKey: algorithms.ECAlgorithm,
    }
    [algorithm] = [each for kind, each in kinds.items() if isinstance(key, kind)] or [algorithms.OKPAlgorithm]
    entry: dict[str, Any] = algorithm.to_jwk(key.public_key(), as_dict=True)
    return {name: value for name, value in entry.items() if name != "key_ops"} | members


def jwks(*entries: Any) -> str:
    return json.dumps({"keys": list(entries)})


PEM = written(RSA)
DER = written(RSA, Encoding.DER)
SSH = written(RSA, Encoding.OpenSSH, PublicFormat.OpenSSH)
PAGE = "<!doctype html><title>Back soon</title><p>We are down for maintenance, please try again in a few minutes.</p>"
SSH2 = f"---- BEGIN SSH2 PUBLIC KEY ----\nComment: x\n{SSH.split()[1]}\n---- END SSH2 PUBLIC KEY ----\n"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_certificate(tmp_path_factory.mktemp("keys"), "keys").cert.read_text()


FOREIGN = {
    "PEM": (PEM, "PEM block"),
    "PEM after a byte order mark": ("\ufeff" + PEM, "byte order mark"),
    "PEM after a comment": ("# key of the login service\n" + PEM, "PEM block"),
    "PEM in one line": (PEM.replace("\n", "\\n"), "PEM block"),
    "PKCS1": (written(RSA, form=PublicFormat.PKCS1), "PEM block"),
    "private": (private(EC), "private key"),
    "OpenSSH": (SSH, "OpenSSH"),
    "OpenSSH without its name": (SSH.split()[1], "base64"),
    "OpenSSH with options": ('command="ls" ' + SSH, "OpenSSH"),
    "OpenSSH of another kind": (written(EC, Encoding.OpenSSH, PublicFormat.OpenSSH), "OpenSSH"),
    "SSH2": (SSH2, "OpenSSH"),
    "DER in base64": (DER, "base64"),
    "DER in lines of base64": ("\n".join(PEM.splitlines()[1:-1]), "base64"),
    "DER in hexadecimal": (base64.b64decode(DER).hex(), "base64"),
    "PEM in base64": (base64.b64encode(PEM.encode()).decode(), "base64"),
    "JWKS in base64": (base64.urlsafe_b64encode(jwks(jwk()).encode()).decode(), "base64"),
    "short DER": (written(ED, Encoding.DER), "base64"),
    "JWK": (json.dumps(jwk()), "JSON"),
    "JWKS": (jwks(jwk(RSA)), "JSON"),
    "JWKS after a byte order mark": ("\ufeff" + jwks(jwk()), "byte order mark"),
    "symmetric JWK": (json.dumps({"kty": "oct", "k": "A" * 64}), "JSON"),
    "a JWK in JSON": (json.dumps(json.dumps(jwk())), "JSON"),
    "other JSON": ('{"error": "not found", "path": "/.well-known/jwks.json"}', "JSON"),
    "HTML": (PAGE, "HTML"),
    "HTML after a comment": ("\n<!-- x --><html><body>" + PAGE, "HTML"),
    "XML": ('<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "HTML or XML"),
    "an address": ("https://login.example/.well-known/jwks.json", "address"),
    "a JWT": (jwt.encode({"sub": "ann"}, SECRET, "HS256"), "a JWT"),
    "two lines": ("a first line of a secret that is long\nand another", "one line"),
    "a secret after a byte order mark": ("\ufeff" + SECRET, "byte order mark"),
    "a control character": (SECRET + "\0x", "one line"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_key_material_of_another_kind_is_rejected_as_a_shared_secret(name: str) -> None:
    text, reason = FOREIGN[name]
    for given_text in (text, f"\n {text}\r\n"):
        with pytest.raises(ConfigError, match=r"^jwt-secret: ") as raised:
            read_secret(given_text, "jwt-secret")
        assert reason in str(raised.value)
        assert text.strip("\ufeff") not in str(raised.value)
        hints = {"a secret after a byte order mark": "save it as UTF-8", "an address": "jwt-jwks-url"}
        assert hints.get(name, "jwt-public-key-file") in str(raised.value)


def test_a_certificate_is_neither_a_secret_nor_a_public_key(certificate: str) -> None:
    with pytest.raises(ConfigError, match=r"a certificate.*jwt-public-key-file"):
        read_secret(certificate, "jwt-secret")
    with pytest.raises(ConfigError, match=r"a certificate; .*openssl x509"):
        read_public(certificate, "jwt-public-key-file")


@pytest.mark.parametrize(
    "text", [SECRET, "s" * 32, "x" * 31 + "é", "0123456789abcdef" * 4, base64.b64encode(bytes(range(48))).decode()]
)
def test_a_secret_is_one_line_of_at_least_32_bytes(text: str) -> None:
    [key] = read_secret(text + "\n", "jwt-secret-file").nameless
    assert (key.algorithm_name, key.key) == ("HS256", text.encode())


@pytest.mark.parametrize("text", ["", "\n", "s" * 31])
def test_a_short_secret_is_rejected(text: str) -> None:
    with pytest.raises(ConfigError, match="at least 32 bytes"):
        read_secret(text, "jwt-secret")


@given(st.binary(min_size=32, max_size=64))
def test_random_secrets_are_accepted(data: bytes) -> None:
    text = base64.b64encode(data).decode()
    assert read_secret(text, "jwt-secret").nameless[0].key == text.encode()


@pytest.mark.parametrize(("key", "algorithm"), [(RSA, "RS256"), (EC, "ES256"), (ED, "EdDSA")])
def test_public_keys_are_accepted_as_pem_jwk_or_jwks(key: Any, algorithm: str) -> None:
    for text in (written(key), written(key).replace("\n", "\r\n"), json.dumps(jwk(key)), jwks(jwk(key))):
        assert [each.algorithm_name for each in read_public(text, "x").candidates(None)] == [algorithm]


def test_a_file_can_contain_several_pem_keys() -> None:
    keys = read_public(f"{written(RSA)}\n{written(EC)}{written(RSA, form=PublicFormat.PKCS1)}", "x")
    assert [key.algorithm_name for key in keys.nameless] == ["RS256", "ES256", "RS256"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "it is empty"),
        (" \n", "it is empty"),
        ("\ufeff" + PEM, "byte order mark"),
        ("\ufeff" + jwks(jwk()), "byte order mark"),
        ("# key of the login service\n" + PEM, "line 1 is not part"),
        (PEM + "\nend of key", "line 11 is not part"),
        (PEM.replace("END PUBLIC KEY", "END PUBLIC"), "not part"),
        (PEM[:200], "not part"),
        (PEM.replace("MIIB", "MIIC"), "cannot be decoded"),
        (SSH, "ssh-keygen"),
        (SSH2, "ssh-keygen"),
        (private(RSA), "openssl pkey"),
        (PEM + private(RSA), "openssl pkey"),
        (PAGE, "a page of HTML"),
        (DER, "without its PEM lines"),
        ("https://login.example/jwks", "jwt-jwks-url"),
        (SECRET, "jwt-secret-file"),
        (json.dumps({"kty": "oct", "k": "A" * 64}), r"symmetric key .*jwt-secret"),
        (jwks({"kty": "oct", "k": "A" * 64}), r"symmetric key .*jwt-secret"),
        (jwks(), "the set is empty"),
        (jwks({"kty": "what"}), "unsupported"),
        ('{"keys": 7}', "`keys` is not a list"),
        ("{", "not JSON"),
        ("[" * 100_000, "nested"),
        ("[]", "not an object"),
        (written(rsa.generate_private_key(65537, 1024)), "needs 2048 to"),
        (written(ec.generate_private_key(ec.SECP384R1())), "unsupported"),
        (written(ed448.Ed448PrivateKey.generate()), "unsupported"),
    ],
)
def test_text_without_a_public_key_is_rejected_with_a_reason(text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as raised:
        read_public(text, "jwt-public-key-file")
    assert str(raised.value).startswith("jwt-public-key-file: ")
    assert text.strip() == "" or len(text) < 3 or text.strip("\ufeff") not in str(raised.value)


UNUSABLE: list[Any] = [
    {"kty": "oct", "k": "A" * 64, "kid": "1", "alg": "HS256"},
    {"kty": "AKP", "alg": "ML-DSA-44", "kid": "1", "pub": "x"},
    {"kty": ["RSA"], "kid": "1"},
    {"kty": {}, "crv": []},
    {},
    7,
    None,
    "key",
    [],
    jwk(RSA, kid="1", n="!"),
    jwk(RSA, kid="1", n=7),
    jwk(RSA, kid="1", n=""),
    jwk(RSA, kid="1", e="AQ"),
    jwk(rsa.generate_private_key(65537, 1024), kid="1"),
    jwk(RSA, kid="1", use="enc"),
    jwk(RSA, kid="1", use=["sig"]),
    jwk(RSA, kid="1", key_ops=["encrypt"]),
    jwk(RSA, kid="1", key_ops="verify"),
    jwk(RSA, kid="1", alg="RS512"),
    jwk(RSA, kid="1", alg="HS256"),
    jwk(RSA, kid="1", alg=["RS256"]),
    jwk(RSA, kid="1", d="AQAB"),
    jwk(EC, kid="1", x="AQAB"),
    jwk(EC, kid="1", crv="P-384"),
    jwk(EC, kid="1", alg="RS256"),
    jwk(ED, kid="1", x=None),
    jwk(ed448.Ed448PrivateKey.generate(), kid="1", alg="EdDSA"),
    jwk(EC, kid=7),
    jwk(EC, kid=["1"]),
    {"kty": "foreign", "kid": "\ud800"},
    jwk(RSA, kid="1", alg="\ud800"),
]


@pytest.mark.parametrize("entry", UNUSABLE, ids=range(len(UNUSABLE)))
def test_an_unusable_key_does_not_invalidate_its_set(entry: Any) -> None:
    good = jwk(EC, kid="good", use="sig", alg="ES256", key_ops=["verify"], foreign={"x": [1]}, x5c=["?"])
    for entries in ((entry, good), (good, entry)):
        keys = read_jwks(jwks(*entries), "jwt-jwks-url")
        assert list(keys.by_id) == ["good"]
        assert len(keys) == len(keys.skipped) == 1
        assert keys.skipped[0].startswith("key ")
    with pytest.raises(ConfigError, match="no usable key"):
        read_jwks(jwks(entry), "jwt-jwks-url")


def test_a_long_number_does_not_invalidate_its_set() -> None:
    digits = "9" * 6000  # more than Python reads as an integer
    text = f'{{"keys": [{{"kty": {digits}}}, {json.dumps(jwk(EC, kid="good"))}], "version": {digits}}}'
    assert list(read_jwks(text, "jwt-jwks-url").by_id) == ["good"]


def test_null_members_count_as_absent_and_all_keys_of_one_id_are_tried() -> None:
    keys = read_jwks(jwks(jwk(EC, kid=None, use=None, alg=None), jwk(EC, kid="1"), jwk(RSA, kid="1", crv="?")), "x")
    assert len(keys) == 3
    assert [key.algorithm_name for key in keys.candidates("1")] == ["ES256", "RS256"]
    assert keys.candidates("2") == keys.nameless


def test_the_size_of_a_set_is_limited() -> None:
    keys = read_jwks(jwks(*(jwk(EC, kid=str(number)) for number in range(KEYS_MAX + 7))), "x")
    assert len(keys) == KEYS_MAX
    assert keys.skipped == ("7 keys: only the first 100 are used",)


LONG = ("sk-", "ecdsa-sha2-", "ssh-a ", "-----BEGIN ", "<a", '{"keys"', " ", "A", "\ufeff")
"""Texts that would take minutes if the time to recognise one were not linear."""


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (PAGE, "HTML"),
        ("", "not JSON"),
        ("Service Unavailable, and more text that is long enough", "not JSON"),
        (PEM, "not JSON"),
        (json.dumps(jwk()), "no `keys`"),
        (json.dumps([jwk()]), "not an object"),
        ("\ufeff" + jwks(jwk()), "byte order mark"),
        (jwks(jwk())[:-1], "not JSON"),
        ('{"keys": [' + "[" * 100_000, "nested"),
        ('{"keys": ["\ud800"]}', "no usable key"),
        (SECRET, "not JSON"),
        *((word * (FILE_BYTES_MAX // len(word)), "JSON|JWKS") for word in LONG),
    ],
    ids=range(11 + len(LONG)),
)
def test_a_response_that_is_not_a_jwks_is_rejected(text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        read_jwks(text, "jwt-jwks-url")
