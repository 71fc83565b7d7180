"""Fixtures of all tests, and how hypothesis runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import settings

from relay._native.codec import Decoder
from tests.twins import NAMES, NATIVE_ONLY, load

# A shared machine stalls now and then; that is not what is tested.
settings.register_profile("relay", deadline=None, print_blob=True)
settings.load_profile("relay")


@dataclass(frozen=True, slots=True)
class Codec:
    """One twin of the codec."""

    name: str
    encode_event: Callable[..., bytes]
    decoder: type[Decoder]


def load_codec(name: str) -> Codec:
    """Return a twin."""
    module = load(name, "codec")
    return Codec(name, module.encode_event, module.Decoder)


@pytest.fixture(scope="session", params=NAMES)
def codec(request: pytest.FixtureRequest) -> Codec:
    """Each twin of the codec in turn."""
    return load_codec(request.param)


@pytest.fixture(scope="session")
def twins() -> tuple[Codec, Codec]:
    """Both twins of the codec, to be held against each other."""
    if NATIVE_ONLY:
        pytest.skip("only the native engine is tested: RELAY_ENGINE=native or RELAY_BUILD=pure")
    return load_codec("native"), load_codec("speedups")
