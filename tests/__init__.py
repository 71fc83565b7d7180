"""Tests, one folder per package, and those of the whole: properties, sim, faults, clients, leaks and fuzz."""

from pathlib import Path

ROOT = Path(__file__).parent.parent
"""The checkout."""
