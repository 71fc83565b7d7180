"""Which twins are tested, the native ones or the compiled ones too, and where they are."""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

import pytest

NATIVE_ONLY = os.environ.get("RELAY_BUILD") == "pure" or os.environ.get("RELAY_ENGINE") == "native"
NAMES = ["native"] if NATIVE_ONLY else ["native", "speedups"]


def load(name: str, native: str) -> Any:
    """Return a twin's module; one that is not built is a failure, not a skipped test.

    Args:
        name: one of `NAMES`.
        native: the module of the native twin, `codec` or `engine`.
    """
    try:
        return import_module(f"relay._native.{native}" if name == "native" else "relay._speedups")
    except ModuleNotFoundError:
        pytest.fail(
            "relay._speedups is not built: run `python setup.py build_ext --inplace`, or set RELAY_ENGINE=native "
            "to test without it",
            pytrace=False,
        )
