"""Splits the input of every target: the first bytes determine the splits of the rest."""

from __future__ import annotations

from itertools import pairwise


def cut(data: bytes) -> list[bytes]:
    """Split the data after the first three bytes at the places that these give, from the front and from the back."""
    places, rest = data[:3], data[3:]
    size = len(rest)
    edges = sorted({0, size, *(min(place, size) if place < 128 else max(size - place + 128, 0) for place in places)})
    return [rest[start:end] for start, end in pairwise(edges)]
