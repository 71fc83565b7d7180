"""relay.process.certificate reads the expiry of certificates, and relay.auth.key_expiry that of keys."""

from __future__ import annotations

from base64 import b64encode
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from relay.auth.key_expiry import last_expiry_s
from relay.process.certificate import expiry_s, read_expiry_s

LATER = (datetime(2031, 2, 3, 4, 5, 6, tzinfo=UTC), datetime(2050, 1, 1, tzinfo=UTC), datetime(1995, 5, 5, tzinfo=UTC))
"""From 2050 on, certificates write the year with four digits (RFC 5280 section 4.1.2.5)."""


def made(ends: datetime) -> x509.Certificate:
    """Return a certificate that expires at a time."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "n" * 60)])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(ends - timedelta(days=1)).not_valid_after(ends)
    return builder.sign(key, hashes.SHA256())


@pytest.mark.parametrize("ends", LATER)
def test_the_expiry_of_a_certificate_is_its_last_second(ends: datetime) -> None:
    assert expiry_s(made(ends).public_bytes(Encoding.DER)) == ends.timestamp()


def test_a_chain_expires_with_its_first_certificate(tmp_path: Path) -> None:
    path = tmp_path / "chain.pem"
    path.write_bytes(b"a comment\n" + b"".join(made(ends).public_bytes(Encoding.PEM) for ends in LATER[:2]))
    assert read_expiry_s(str(path)) == LATER[0].timestamp()
    path.write_text("-----BEGIN TRUSTED CERTIFICATE-----\nAA==\n-----END TRUSTED CERTIFICATE-----\n")
    assert read_expiry_s(str(path)) is None


def test_other_bytes_are_not_a_certificate() -> None:
    whole = made(LATER[0]).public_bytes(Encoding.DER)
    for size in range(120):
        with pytest.raises(ValueError):  # noqa: PT011  several messages
            expiry_s(whole[:size])


def test_a_set_of_keys_expires_with_its_last_key_if_each_key_states_an_expiry() -> None:
    chain = b64encode(made(LATER[0]).public_bytes(Encoding.DER)).decode()
    assert last_expiry_s([{"exp": 5}, {"x5c": [chain]}]) == LATER[0].timestamp()
    assert last_expiry_s([{"exp": 5}, {"exp": 7.5}]) == 7.5
    assert last_expiry_s([{"exp": 5}, {"kid": "a"}]) is None
    assert last_expiry_s([{"exp": 5}, {"x5c": ["AAAA"]}]) is None
    assert last_expiry_s([{"exp": 5}, {"exp": 10**400}]) is None
    assert last_expiry_s([]) is None
