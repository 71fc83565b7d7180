"""The command line. `relay` means `relay serve`. Each setting is a flag, an environment variable and a TOML key.

Owns the flags, the reading of the environment, and the conversion of an error into one line and an exit code.
Never defines the name, default or help text of a setting: those are in
`relay.config.settings`.
"""

from __future__ import annotations

import importlib
import os
import signal
import socket
import sys
import tomllib
from codecs import BOM_UTF8
from collections.abc import Callable, Sequence
from dataclasses import Field
from typing import Any, NoReturn

import click
from click.shell_completion import CompletionItem

from relay import __version__
from relay.config import load, values
from relay.config.model import SETTINGS, Config, group_settings
from relay.errors import ConfigError, RelayError
from relay.process import startup
from relay.process.systemd import Service
from relay.telemetry import logs

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

_OWN_FLAGS = frozenset({"--help", "-h", "--version"})
_CLIENTS = ("demo", "doctor", "publish", "subscribe", "top", "upgrade")
"""Commands that are modules of `relay.commands`."""


class RelayGroup(click.Group):
    """The group of commands. The default command is `serve`. Other commands are imported only if they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        return sorted({*self.commands, *_CLIENTS})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command, which is imported at its first use, or None if no command has this name."""
        if cmd_name in _CLIENTS and cmd_name not in self.commands:
            module = importlib.import_module(f"relay.commands.{cmd_name}")
            if cmd_name == "doctor":
                self.add_command(module.doctor_command(lambda path: load_config(path, {})))
            else:
                self.add_command(getattr(module, cmd_name))
        return super().get_command(ctx, cmd_name)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Insert `serve` if the arguments name no command. The shell completes a first word that may be a command."""
        names_none = args[0].startswith("-") and args[0] not in _OWN_FLAGS if args else not ctx.resilient_parsing
        return super().parse_args(ctx, ["serve", *args] if names_none else args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Return the completions of the first word: commands, and the flags of the group and of `serve`."""
        found = super().shell_complete(ctx, incomplete)
        if incomplete.startswith("-"):
            serve = self.commands["serve"]
            found += serve.shell_complete(click.Context(serve, parent=ctx), incomplete)
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command. For an unknown name, suggest a similar one."""
        known = self.list_commands(ctx)
        if args[0] not in known:
            raise click.UsageError(f"no such command: {args[0]}{values.hint(args[0], known)}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command. If the reader of its output has closed the pipe, exit by SIGPIPE, like other filters."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
            signal.raise_signal(signal.SIGPIPE)
        return result


class ServeCommand(click.Command):
    """The command that has a flag for each setting. Its help shows them in groups."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments. For a flag of earlier versions, raise the error that names its replacement."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            load.check_removed(error.option_name, error.option_name.removeprefix("--"))
            raise

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the flags that are not settings, then the settings by group."""
        records = {each.name: each.get_help_record(ctx) for each in self.get_params(ctx)}
        groups = {
            group: [record for name in names if (record := records.pop(SETTINGS[name].name, None)) is not None]
            for group, names in group_settings().items()
        }
        own = [record for record in records.values() if record is not None]
        for group, lines in {"This command": own, **groups}.items():
            with formatter.section(group):
                formatter.write_dl(lines)


def setting_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add a flag for each setting to a command."""
    for name, each in reversed(SETTINGS.items()):
        command = _option(name, each)(command)
    return command


def _option(name: str, each: Field[Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Build the flag of one setting. Its value is None, or an empty tuple, if the flag is absent."""
    kind = each.metadata["kind"]
    repeatable = isinstance(each.default, tuple)
    default = values.show(kind, each.default)
    help = each.metadata["help"] + (" Repeatable." if repeatable else "")
    help += f"  [default: {default}]" if default else ""
    if kind == "switch":
        return click.option(f"--{name}/--no-{name}", each.name, default=None, help=help)
    choice = click.Choice(kind.split("|")) if "|" in kind else None
    metavar = None if choice else each.metadata["metavar"] or kind.upper()
    return click.option(f"--{name}", each.name, type=choice, metavar=metavar, multiple=repeatable, help=help)


def show_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    """Print the version and the engine, and exit."""
    if wanted:
        from relay.speedups import ENGINE  # Imported here, because other commands run without an engine.

        click.echo(f"relay {__version__} (engine {ENGINE})")
        ctx.exit()


@click.group(
    cls=RelayGroup,
    short_help="Relay events to clients as Server-Sent Events.",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="The default command is serve. All settings: relay serve --help",
)
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=show_version,
    help="Print the version and the engine, and exit.",
)
@click.pass_context
def relay(ctx: click.Context) -> None:
    """Relay events from a pipe, a Unix socket or HTTP to clients as Server-Sent Events."""
    if ctx.invoked_subcommand != "serve":
        startup.release_signals()  # The server releases them once it handles them.


@relay.command(
    cls=ServeCommand,
    epilog="Each setting is also an environment variable (--history-age: RELAY_HISTORY_AGE; commas separate "
    "repeated values) and a key of the TOML file (history-age). Flags override variables, and variables "
    "override the file. "
    "Sizes: 1048576, 64KiB, 64M. Times: 15s, 500ms, 2m, 1h; a bare number is seconds."
)
@click.option("--config", metavar="FILE", help="TOML file of settings.  [variable: RELAY_CONFIG]")
@click.option("--print-config", is_flag=True, help="Print the effective settings as TOML and exit.")
@setting_options
def serve(config: str | None, print_config: bool, **flags: Any) -> int:
    """Serve streams. This is the default command."""
    loaded = load_config(config, flags)
    if print_config:
        click.echo(load.to_toml(loaded), nl=False)
        return EXIT_OK
    logs.set_up(loaded.log_level, loaded.log_format)
    from relay.server import server  # Imported here, because it imports uvloop and the engine.
    from relay.upgrade.messages import VARIABLE, Channel

    end = os.environ.pop(VARIABLE, None)
    channel = None if end is None else Channel(socket.socket(fileno=int(end)))
    server.run(loaded, Service(os.environ, os.getpid()), channel=channel)
    return EXIT_OK


def load_config(path: str | None, flags: dict[str, Any]) -> Config:
    """Build the settings from the flags, the environment of the process and the TOML file.

    Args:
        path: path of the TOML file. If None, RELAY_CONFIG names the file, if it is set.
        flags: values by field of `Config`. None or an empty tuple means that the flag is absent.

    Raises:
        ConfigError: the file cannot be read, or a setting is invalid.
    """
    path = path or os.environ.get("RELAY_CONFIG") or None
    by_setting = {name: flags[each.name] for name, each in SETTINGS.items() if each.name in flags}
    given = {name: value for name, value in by_setting.items() if value is not None and value != ()}
    return load.load(given, os.environ, read_toml(path) if path else None, path or "TOML")


def read_toml(path: str) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        ConfigError: the file cannot be read, or is not TOML.
    """
    try:
        with open(path, "rb") as file:
            return tomllib.loads(file.read().removeprefix(BOM_UTF8).decode())  # Some editors write the mark.
    except OSError as error:
        raise ConfigError(f"config: cannot read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"config: {path} is not TOML: {error}") from None


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Print an error as one line on standard error.

    Args:
        arguments: command line without the program's name; None means the command line of the process.

    Returns:
        The exit code: 0, 1 if the command failed, 2 if it could not start, 130 if it was interrupted.
    """
    try:
        code = relay.main(args=arguments, prog_name="relay", standalone_mode=False)
        return int(code or EXIT_OK)
    except click.ClickException as error:
        return _fail(error.format_message(), EXIT_USAGE)
    except (click.Abort, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    except ConfigError as error:
        return _fail(str(error), EXIT_USAGE)
    except RelayError as error:
        return _fail(str(error), EXIT_FAILED)
    except OSError as error:
        reason = error.strerror or str(error)
        return _fail(f"{error.filename}: {reason}" if error.filename else reason, EXIT_USAGE)


def _fail(message: str, code: int) -> int:
    """Print an error as one line and return the exit code."""
    logs.say("relay: " + " ".join(message.split()))
    return code


def main() -> NoReturn:
    """Run the command of this process, and exit with its exit code."""
    sys.exit(run())
