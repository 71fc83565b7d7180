"""Declares one setting: its default, help, type and bounds.

Never contains a setting (`relay.config.settings`).
"""

from __future__ import annotations

from dataclasses import field
from typing import Any

KIB = 1024
MIB = 1024 * KIB
NUMBER_MAX = 2**62


def setting(
    default: Any,
    help: str,
    kind: str,
    metavar: str | None = None,
    *,
    least: float = 0,
    most: float = NUMBER_MAX,
    secret: bool = False,
    separator: str | None = ",",
) -> Any:
    """Declare one setting.

    Args:
        default: the default value. A tuple makes the setting repeatable.
        help: one or two sentences: the effect of the setting, and the reason for its default.
        kind: the type of the value: `text`, `number`, `size` (bytes), `duration` (seconds), `switch`, `count` (a number
            or `auto`), or `a|b|c` for a choice.
        metavar: placeholder of the value in `--help`.
        least: smallest number, size or duration.
        most: largest number, size or duration.
        secret: whether relay never shows the value.
        separator: separates repeated values in the environment variable; None for white space.
    """
    metadata = {
        "help": help,
        "kind": kind,
        "metavar": metavar,
        "least": least,
        "most": most,
        "secret": secret,
        "separator": separator,
    }
    return field(default=default, metadata=metadata)
