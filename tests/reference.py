"""Write the files that are generated from the code: `make reference`.

Owns the layout of the pages and schemas in docs/reference, and of the alert rules for Kubernetes.
`tests/test_reference.py` checks that the committed files equal this program's output. `tests.manual` writes the manual
pages and the completions.
"""

from __future__ import annotations

import json
import re
import textwrap
from dataclasses import Field
from pathlib import Path
from typing import Any

from relay.config.declaration import NUMBER_MAX
from relay.config.load import variable
from relay.config.model import SETTINGS, group_settings
from relay.config.values import show
from relay.telemetry import stats_schema as stats
from tests import manual

ROOT = Path(__file__).parents[1]
SETTINGS_PAGE = ROOT / "docs" / "reference" / "settings.md"
STATS_SCHEMA = ROOT / "docs" / "reference" / "stats.schema.json"
SETTINGS_SCHEMA = ROOT / "docs" / "reference" / "settings.schema.json"
ALERTS = ROOT / "deploy" / "monitoring" / "alerts.yml"
PROMETHEUS_RULE = ROOT / "deploy" / "kubernetes" / "components" / "prometheus-rule" / "rule.yaml"
PROOF_CAST = ROOT / "docs" / "proof.cast"
PROOF_PAGE = ROOT / "docs" / "proof.md"

_PROOF = re.compile(r"(<!-- proof: [^\n]*-->\n```text\n).*?(```\n<!-- end of proof -->\n)", re.DOTALL)

_KINDS = {
    "text": "text",
    "number": "number",
    "size": "size",
    "duration": "duration",
    "switch": "switch",
    "count": "number or `auto`",
}

_HEAD = """\
<!-- Written by `make reference` from relay/config/settings; do not edit. -->

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
- [`settings.schema.json`](settings.schema.json) is a JSON Schema of the file, for editors. Save it beside the file and
  begin the file with `#:schema ./settings.schema.json`: Taplo and "Even Better TOML" then complete and check it.
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


_SIZE = {"pattern": r"^[0-9]+(\.[0-9]+)? ?([kKmMgGtT]i?)?[bB]?$"}
_DURATION = {"pattern": r"^([0-9]+(\.[0-9]+)? ?(ms|s|m|h|d))+$|^[0-9]+(\.[0-9]+)?$"}


def settings_schema() -> str:
    """Return the JSON Schema of the TOML file. It describes the documented form of each value, for editors."""
    source = {
        "type": "object",
        "required": ["url"],
        "additionalProperties": {"type": "string"},
        "properties": {"url": {"type": "string", "pattern": "^[^?]+$"}},
    }
    properties = {}
    for name, each in SETTINGS.items():
        value = _value_schema(each)
        if name == "source":
            value = {"anyOf": [value, source]}
        if isinstance(each.default, tuple):
            value = {"anyOf": [{"type": "array", "items": value}, value]}
        default = show(each.metadata["kind"], each.default)
        help = each.metadata["help"] + (f" Default: {default}." if default else "")
        properties[name] = {"description": help, **value}
    document = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "The TOML file of relay (--config)",
        "type": "object",
        "additionalProperties": False,
        "properties": properties,
    }
    return json.dumps(document, indent=2) + "\n"


def _value_schema(each: Field[Any]) -> dict[str, Any]:
    """Return the schema of one value of a setting. Draft 7, because most editors of TOML know no later one."""
    kind, least, most = each.metadata["kind"], each.metadata["least"], each.metadata["most"]
    number: dict[str, Any] = {"minimum": least} | ({"maximum": most} if most != NUMBER_MAX else {})
    if "|" in kind:
        return {"enum": kind.split("|")}
    if kind == "switch":
        return {"type": "boolean"}
    if kind == "number":
        return {"type": "integer", **number}
    if kind == "size":
        return {"anyOf": [{"type": "integer", **number}, {"type": "string", **_SIZE}]}
    if kind == "duration":
        return {"anyOf": [{"type": "number", **number}, {"type": "string", **_DURATION}]}
    if kind == "count":
        return {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "pattern": "^(auto|[0-9]+)$"}]}
    return {"type": "string"}


def prometheus_rule() -> str:
    """Return the alert rules as a resource of the Prometheus operator."""
    head = (
        "# Written by `make reference` from deploy/monitoring/alerts.yml; do not edit.\n"
        "apiVersion: monitoring.coreos.com/v1\nkind: PrometheusRule\nmetadata:\n  name: relay\nspec:\n"
    )
    return head + textwrap.indent(ALERTS.read_text(), "  ")


def proof_transcript() -> str:
    """Return the output of the recording (asciicast version 2)."""
    _, *events = map(json.loads, PROOF_CAST.read_text().splitlines())
    return "".join(text for _, kind, text in events if kind == "o").replace("\r\n", "\n")


def proof_page() -> str:
    """Return the page of the proof, with the text of its recording."""
    return _PROOF.sub(lambda found: found[1] + proof_transcript() + found[2], PROOF_PAGE.read_text())


def main() -> None:
    """Write the files."""
    SETTINGS_PAGE.write_text(settings_page())
    SETTINGS_SCHEMA.write_text(settings_schema())
    STATS_SCHEMA.write_text(stats_schema())
    PROMETHEUS_RULE.write_text(prometheus_rule())
    manual.main()
    PROOF_PAGE.write_text(proof_page())


if __name__ == "__main__":
    main()
