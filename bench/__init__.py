"""Measure relay and compare it with the bare C loop (`floor.c`): `python -m bench`."""

from pathlib import Path

HERE = Path(__file__).parent
