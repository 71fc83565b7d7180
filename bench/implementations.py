"""Load both implementations of the codec and the engine by name, independent of the choice of `relay.speedups`.

Owns their loading, for micro-benchmarks and tests that compare the two. Never chooses one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from relay._native.codec import Decoder
from relay._native.engine import Chunk, Engine, Members


@dataclass(frozen=True, slots=True)
class Codec:
    """The codec of one implementation; the types are those of the native one."""

    name: str
    encode_event: Callable[..., bytes]
    decoder: type[Decoder]


@dataclass(frozen=True, slots=True)
class EngineTypes:
    """The engine of one implementation; the types are those of the native one."""

    name: str
    engine: type[Engine]
    chunk: type[Chunk]
    members: type[Members]


def load(name: str, part: str) -> Any:
    """Return the module of one part.

    Args:
        name: `native` or `speedups`.
        part: `arrivals`, `codec`, `engine` or `jsontext`; the compiled implementation is one module.

    Raises:
        ModuleNotFoundError: `relay._speedups` is not built.
    """
    try:
        return import_module(f"relay._native.{part}" if name == "native" else "relay._speedups")
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "relay._speedups is not built: run `python setup.py build_ext --inplace`, or set RELAY_ENGINE=native"
        ) from None


def load_codec(name: str) -> Codec:
    """Return the codec of one implementation; arguments and errors as for `load`."""
    module = load(name, "codec")
    return Codec(name, module.encode_event, module.Decoder)


def load_engine(name: str) -> EngineTypes:
    """Return the engine of one implementation; arguments and errors as for `load`."""
    module = load(name, "engine")
    return EngineTypes(name, module.Engine, module.Chunk, module.Members)
