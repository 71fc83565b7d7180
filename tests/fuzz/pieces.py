"""How every target takes its bytes: the first ones say how the rest is cut."""

from __future__ import annotations

from itertools import pairwise


def cut(data: bytes) -> list[bytes]:
    """Cut what follows the first three bytes at the places that they name, from the front and from the back."""
    places, rest = data[:3], data[3:]
    size = len(rest)
    edges = sorted({0, size, *(min(place, size) if place < 128 else max(size - place + 128, 0) for place in places)})
    return [rest[start:end] for start, end in pairwise(edges)]
