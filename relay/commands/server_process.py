"""Starts `relay serve` as a child process of a command.

Owns the arguments of Python and the environment of the process. Never waits for the process and never stops it.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
from collections.abc import Sequence

from relay.config.load import variable
from relay.config.model import SETTINGS

_SETTINGS = frozenset(map(variable, SETTINGS)) | {"RELAY_CONFIG"}
"""Variables that are removed from the environment of the server."""


async def start_server(
    arguments: Sequence[str], *, stdin: int, stderr: int | None = None
) -> asyncio.subprocess.Process:
    """Start a server. It has no settings of the user, and a token that is never printed.

    Args:
        arguments: the arguments of `relay serve`.
        stdin: the standard input: a descriptor, or a constant of `subprocess`.
        stderr: the standard error, likewise; None for that of this process.
    """
    own = {name: text for name, text in os.environ.items() if name not in _SETTINGS}
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",  # Do not import modules from the current directory.
        "-m",
        "relay",
        "serve",
        *arguments,
        stdin=stdin,
        stderr=stderr,
        process_group=0,  # Ctrl-C interrupts only the command, which then stops the server.
        env=own | {variable("publish-token"): secrets.token_urlsafe(24)},
    )
