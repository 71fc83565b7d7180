"""The program `relay`, and `python -m relay`."""

from __future__ import annotations

from typing import NoReturn

from relay.process import startup


def main() -> NoReturn:
    """Prepare the process, then run the command line."""
    startup.prepare()
    from relay import cli  # Only here: a signal that arrives during these imports must not end the process.

    cli.main()


if __name__ == "__main__":
    main()
