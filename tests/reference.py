"""Write the pages of the documentation that are generated from the code: `make reference`.

Owns the layout of these pages. `tests/test_reference.py` checks that the committed pages equal this program's output.
"""

from __future__ import annotations

import json
from dataclasses import Field
from pathlib import Path
from typing import Any

from relay.config.load import variable
from relay.config.model import NUMBER_MAX, SETTINGS, group_settings
from relay.config.values import show
from relay.telemetry import stats_schema as stats

ROOT = Path(__file__).parents[1]
SETTINGS_PAGE = ROOT / "docs" / "reference" / "settings.md"
STATS_SCHEMA = ROOT / "docs" / "reference" / "stats.schema.json"

_KINDS = {
    "text": "text",
    "number": "number",
    "size": "size",
    "duration": "duration",
    "switch": "switch",
    "count": "number or `auto`",
}

_HEAD = """\
<!-- Written by `make reference` from relay/config/model.py; do not edit. -->

# Settings

Each setting of `relay serve` is a flag, an environment variable and a key of a TOML file. A flag overrides
a variable; a variable overrides the file.

| | example |
| --- | --- |
| flag | `relay --history-age 1h` |
| environment variable | `RELAY_HISTORY_AGE=1h` |
| TOML file, named by `--config` or `RELAY_CONFIG` | `history-age = "1h"` |

- A **size** is a number of bytes, with an optional unit: `1048576`, `64KiB`, `64M`. Units are powers of 1024.
- A **duration** is a number of seconds, or has units: `15`, `0.5`, `500ms`, `15s`, `2m`, `1h30m`, `7d`.
- A **switch** is a flag without a value: `--durable`, `--no-durable`. In a variable and in TOML it is `true` or
  `false`.
- A **repeatable** setting is a flag given several times, a comma-separated list in a variable, and an array in TOML.
  In `RELAY_SOURCE`, spaces separate the addresses.
- TOML keys are at the top level of the file. Only `source` may be a table or an array of tables: see
  [Sources](../sources.md#in-a-file).

`relay serve --help` lists the settings. `relay --print-config` prints the effective settings as TOML, without secrets.
relay does not start with an unknown setting or with an unknown variable that begins with `RELAY_`.

These variables are not settings: `RELAY_CONFIG` names the TOML file, `RELAY_ENGINE` (`speedups` or `native`) selects
the engine, and `RELAY_BUILD` selects the build when relay is installed.
"""


def settings_page() -> str:
    """Return the page of all settings, group by group."""
    parts = [_HEAD]
    for group, names in group_settings().items():
        parts.append(f"\n## {group}\n")
        parts += [_entry(name, SETTINGS[name]) for name in names]
    return "".join(parts)


def _entry(name: str, each: Field[Any]) -> str:
    """Return the section of one setting."""
    kind, repeatable = each.metadata["kind"], isinstance(each.default, tuple)
    value = " or ".join(f"`{choice}`" for choice in kind.split("|")) if "|" in kind else _KINDS[kind]
    default = show(kind, each.default)
    facts = [
        f"`{variable(name)}`",
        value + (", repeatable" if repeatable else ""),
        f"default: `{default}`" if default else "no default",
        *_bounds(kind, each),
    ]
    return f"\n### {name}\n\n{_escaped(each.metadata['help'])}\n\n{' · '.join(facts)}\n"


def _escaped(text: str) -> str:
    """Escape the asterisks outside code, so that they are not markup."""
    parts = text.split("`")
    return "`".join(part.replace("*", "\\*") if place % 2 == 0 else part for place, part in enumerate(parts))


def _bounds(kind: str, each: Field[Any]) -> list[str]:
    """Return the bounds of a number that are not obvious."""
    least, most = each.metadata["least"], each.metadata["most"]
    bounds = []
    if least:
        bounds.append(f"at least `{show(kind, least)}`")
    if kind in ("number", "size", "duration") and most != NUMBER_MAX:
        bounds.append(f"at most `{show(kind, most)}`")
    return bounds


def stats_schema() -> str:
    """Return the JSON Schema of /stats."""
    return json.dumps(stats.schema(), indent=2) + "\n"


def main() -> None:
    """Write the pages."""
    SETTINGS_PAGE.write_text(settings_page())
    STATS_SCHEMA.write_text(stats_schema())


if __name__ == "__main__":
    main()
