"""Write the manual pages and the completions of the command line to share/, for `make reference`.

Owns the list of these files. A wheel installs them below `share` of its environment. `tests/test_manual.py` checks that
the committed files equal this program's output.
"""

from __future__ import annotations

from pathlib import Path

import click
from click.shell_completion import get_completion_class
from click_man.core import generate_man_page  # type: ignore[import-untyped]

from relay import __version__
from relay.cli import relay

SHARE = Path(__file__).parents[1] / "share"
COMPLETIONS = {
    "bash": "bash-completion/completions/relay",
    "zsh": "zsh/site-functions/_relay",
    "fish": "fish/vendor_completions.d/relay.fish",
}
NO_DATE = " "
"""click-man writes the present day if the date is empty."""


def page(context: click.Context) -> str:
    """Return the manual page of a command."""
    text: str = generate_man_page(context, version=f"relay {__version__}", date=NO_DATE)
    return text


def completion(shell: str) -> str:
    """Return the script that lets a shell complete the command line. It runs relay at each completion."""
    kind = get_completion_class(shell)
    assert kind is not None
    script = kind(relay, {}, "relay", "_RELAY_COMPLETE")
    # `source` of bash runs the installed bash to check its version.
    return script.source_template % script.source_vars()


def files() -> dict[str, str]:
    """Return the text of each file by its path in share/."""
    top = relay.make_context("relay", [], resilient_parsing=True)
    for name in relay.list_commands(top):
        relay.get_command(top, name)  # Imports the command: click-man lists only these.
    found = {"man/man1/relay.1": page(top)}
    for name, command in relay.commands.items():
        found[f"man/man1/relay-{name}.1"] = page(click.Context(command, info_name=name, parent=top))
    return found | {path: completion(shell) for shell, path in COMPLETIONS.items()}


def main() -> None:
    """Write the files."""
    for name, text in files().items():
        path = SHARE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


if __name__ == "__main__":
    main()
