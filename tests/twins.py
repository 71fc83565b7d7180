"""Which implementations are tested: the native one alone, or the compiled one too."""

from __future__ import annotations

import os

NATIVE_ONLY = os.environ.get("RELAY_BUILD") == "pure" or os.environ.get("RELAY_ENGINE") == "native"
NAMES = ["native"] if NATIVE_ONLY else ["native", "speedups"]
