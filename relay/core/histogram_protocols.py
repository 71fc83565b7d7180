"""The histograms that the core fills, as protocols: the core does not import telemetry.

Owns the interfaces of one histogram and of the set of them. Never counts.
"""

from __future__ import annotations

from typing import Protocol


class Observer(Protocol):
    """A histogram."""

    def observe(self, amount: float, /) -> None:
        """Count one value."""


class Measures(Protocol):
    """The histograms that the hub fills, in seconds."""

    @property
    def flush_s(self) -> Observer:
        """Duration of a flush."""

    @property
    def written_s(self) -> Observer:
        """Age of the oldest event of a flush at its end."""

    @property
    def lag_s(self) -> Observer:
        """Lag of the streams that are behind."""
