"""Builds a checked `Config` from flags, environment and TOML, and writes it as TOML.

Owns the precedence: flag, environment, TOML file, default. Never opens a file and never reads `os.environ`; `relay.cli`
does both. `relay.config.values` parses each value, and `relay.config.check` checks the settings as a whole.

Three loops implement the precedence instead of click's `auto_envvar_prefix` and `default_map`. Click splits repeated
values of a variable at spaces, ignores unknown variables and keys, and does not name the file in an error.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from typing import Any

from relay.config.broker_address import has_password
from relay.config.check import USE_CLUSTER, check, check_flags
from relay.config.model import SETTINGS, Config
from relay.config.source_address import join_options
from relay.config.values import hint, read, show
from relay.errors import ConfigError

PREFIX = "RELAY_"
RESERVED = frozenset({"RELAY_BUILD", "RELAY_CONFIG", "RELAY_ENGINE", "RELAY_TAKEOVER"})
"""Variables of relay that are not settings of the server."""
REMOVED = {
    "link-listen": f"has been removed; {USE_CLUSTER}",
    "link-token": f"has been removed; {USE_CLUSTER}; the token for an upstream is upstream-token",
}
"""Settings of earlier versions, each with the advice for its replacement."""
# Kubernetes and Docker set such variables in every container for a service named `relay` or `relay-…`.
_SERVICE_LINK = re.compile(
    r"RELAY_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?)"
)


def load(
    flags: Mapping[str, object],
    environment: Mapping[str, str],
    table: Mapping[str, object] | None = None,
    source: str = "TOML",
) -> Config:
    """Build the settings and check them.

    Args:
        flags: values of the flags in the command line, by setting name: text, a bool, or a list of texts.
        environment: variables. A variable that begins with `RELAY_` and is not a setting is an error.
        table: top level of the TOML file, with `-` or `_` in its keys.
        source: name of the TOML file, for errors.

    Raises:
        ConfigError: a setting is unknown or malformed, or contradicts another.
    """
    values: dict[str, Any] = {}
    for key, value in (table or {}).items():
        name = key.replace("_", "-")
        if name == "source":
            items = value if isinstance(value, list) else [value]
            value = [join_options(each) if isinstance(each, dict) else each for each in items]
        if isinstance(value, dict):
            raise ConfigError(f"{source}: {_table_error(key, value)}")
        if name not in SETTINGS:
            check_removed(f"{source}: {name}", name)
            raise ConfigError(f"{source}: unknown setting {key!r}{hint(name, SETTINGS)}")
        if SETTINGS[name].name in values:
            raise ConfigError(f"{source}: {name} is set twice")
        values[SETTINGS[name].name] = read(f"{source}: {name}", SETTINGS[name], value)
    variables = {variable(name): name for name in SETTINGS}
    for key, text in environment.items():
        if not key.startswith(PREFIX) or key in RESERVED or _SERVICE_LINK.fullmatch(key):
            continue
        if key not in variables:
            check_removed(key, key.removeprefix(PREFIX).lower().replace("_", "-"))
            raise ConfigError(f"unknown environment variable {key}{hint(key, [*variables, *RESERVED])}")
        each = SETTINGS[variables[key]]
        repeatable = isinstance(each.default, tuple)
        parts = text.split(each.metadata["separator"]) if repeatable else ()
        split = [part.strip() for part in parts if part.strip()] if repeatable else text
        values[each.name] = read(key, each, split)
    check_flags(flags)
    for name, value in flags.items():
        values[SETTINGS[name].name] = read(f"--{name}", SETTINGS[name], value)
    return check(Config(**values))


def check_removed(source: str, name: str) -> None:
    """Check that a name that is not a setting was not one of earlier versions.

    Args:
        source: where the name is, for the error, such as `--link-token`.
        name: the name, as in TOML.

    Raises:
        ConfigError: it was one.
    """
    if name in REMOVED:
        raise ConfigError(f"{source}: {REMOVED[name]}")


def _table_error(key: str, table: Mapping[str, object]) -> str:
    """Return the error for a table. It shows the correct form of a setting in the table."""
    error = f"{key!r} is a table; all settings are keys at the top of the file, without a [header]"
    for part in table:
        for name in (f"{key}-{part}".replace("_", "-"), part.replace("_", "-")):
            if name in SETTINGS:
                return f"{error}: write {name} = …"
    return f"{error}, such as history-age = \"1h\""


def variable(name: str) -> str:
    """Return the name of a setting's environment variable."""
    return PREFIX + name.upper().replace("-", "_")


def worker_count(config: Config) -> int:
    """Return the number of processes that hold streams. If it is 1, this process holds them."""
    return len(os.sched_getaffinity(0)) if config.workers == "auto" else max(1, int(config.workers))


def to_toml(config: Config) -> str:
    """Format the settings as TOML that `load` can read. A comment replaces a secret, and an address with a password."""
    lines = ["# The effective settings of relay."]
    for name, each in SETTINGS.items():
        value = getattr(config, each.name)
        lines += ["", f"# {each.metadata['help']}"]
        if value and (each.metadata["secret"] or has_password(str(value))):
            lines.append(f'# {name} = "(set, not shown)"')
        else:
            lines.append(f"{name} = {_toml(each.metadata['kind'], value)}")
    return "\n".join(lines) + "\n"


def _toml(kind: str, value: Any) -> str:
    """Format one value. JSON strings are valid TOML, because settings contain no control characters."""
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(kind, item) for item in value) + "]"
    if kind in ("number", "switch"):
        return show(kind, value)
    return json.dumps(show(kind, value), ensure_ascii=False)
