"""The settings of `relay serve`: one frozen object, built once and passed down.

Owns the object and the groups of `--help`. Never reads the environment, a file or the command line:
`relay.config.load` builds the object from the values that `relay.cli` reads.

To add a setting, change only the module of its group in `relay.config.settings`. A flag, an environment variable, a key
of the TOML file, `--help` and docs/reference follow from the declaration.
"""

from __future__ import annotations

from dataclasses import Field, dataclass, fields
from typing import Any

from relay.config.settings.access import AccessSettings
from relay.config.settings.input_limits import InputLimitSettings
from relay.config.settings.protocols import ProtocolSettings
from relay.config.settings.retention import RetentionSettings
from relay.config.settings.scaling import ScaleSettings
from relay.config.settings.slow_streams import SlowStreamSettings
from relay.config.settings.sources import SourceSettings
from relay.config.settings.stopping import StopSettings
from relay.config.settings.stream_limits import StreamLimitSettings
from relay.config.settings.streams import StreamSettings
from relay.config.settings.telemetry import TelemetrySettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(
    TelemetrySettings,
    ScaleSettings,
    StopSettings,
    InputLimitSettings,
    StreamLimitSettings,
    ProtocolSettings,
    StreamSettings,
    SlowStreamSettings,
    RetentionSettings,
    SourceSettings,
    AccessSettings,
):
    """All settings of `relay serve`.

    Sizes are in bytes, times in seconds. 0 turns a limit off if its help says so.
    """

    # A dataclass takes the fields of its last base first, so the printed settings begin with the addresses.


def setting_name(each: Field[Any]) -> str:
    """Return the name of a setting on the command line (without `--`) and in TOML. The name of a time has no unit."""
    return each.name.removesuffix("_s").replace("_", "-")


SETTINGS: dict[str, Field[Any]] = {setting_name(each): each for each in fields(Config)}
"""Each setting by its name."""

COMMON = (
    *("listen", "unix", "stdin", "topic", "publish-token", "publish-token-file", "cors-origin", "data", "durable"),
    *("history-age", "policy", "workers", "log-level"),
)
"""The settings that `--help` shows first."""

GROUPS: dict[str, type[Any]] = {
    "Sources": SourceSettings,
    "History": RetentionSettings,
    "Slow streams": SlowStreamSettings,
    "Streams": StreamSettings,
    "Access": AccessSettings,
    "TLS, HTTP/2 and proxies": ProtocolSettings,
    "Limits of streams": StreamLimitSettings,
    "Limits of input": InputLimitSettings,
    "Stopping and upgrading": StopSettings,
    "Several machines": ScaleSettings,
    "Log and telemetry": TelemetrySettings,
}
"""The groups of settings in `--help`, after the common ones."""


def group_settings() -> dict[str, list[str]]:
    """Return the names of all settings by group of `--help`."""
    groups = {"Common": list(COMMON)}
    for group, owner in GROUPS.items():
        groups[group] = [name for each in fields(owner) if (name := setting_name(each)) not in COMMON]
    return groups
