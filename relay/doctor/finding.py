"""A finding of `relay doctor`: the result of one check, and the remedy.

Owns the levels. Never checks anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Level(Enum):
    """The result of a check. Only a fault makes the exit code of `relay doctor` 1."""

    OK = "ok"
    SKIPPED = "skipped"
    WARNING = "warning"
    FAULT = "fault"


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check.

    Args:
        level: the result.
        subject: what was checked, in one or two words.
        text: the measured value and its meaning.
        remedy: what to change; empty if nothing.
    """

    level: Level
    subject: str
    text: str
    remedy: str = ""


def ok(subject: str, text: str) -> Finding:
    """Return a finding that needs no change."""
    return Finding(Level.OK, subject, text)


def skipped(subject: str, text: str, remedy: str) -> Finding:
    """Return the finding of a check that did not run."""
    return Finding(Level.SKIPPED, subject, text, remedy)


def warning(subject: str, text: str, remedy: str) -> Finding:
    """Return a finding that limits relay under load."""
    return Finding(Level.WARNING, subject, text, remedy)


def fault(subject: str, text: str, remedy: str) -> Finding:
    """Return a finding that makes relay fail, or delays its events."""
    return Finding(Level.FAULT, subject, text, remedy)
