"""The implementations under test: the native one alone, or also the compiled one."""

from __future__ import annotations

import os

NATIVE_ONLY = os.environ.get("RELAY_BUILD") == "pure" or os.environ.get("RELAY_ENGINE") == "native"
NAMES = ["native"] if NATIVE_ONLY else ["native", "speedups"]
