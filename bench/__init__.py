"""Measurements of relay beside the bare C loop (`floor.c`): `python -m bench`."""
