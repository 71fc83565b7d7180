"""Tests: one folder per package, and the folders properties, sim, faults, clients, leaks and fuzz for the whole."""

from pathlib import Path

ROOT = Path(__file__).parent.parent
"""The root folder of the checkout."""
