"""`relay doctor`: checks the machine, the servers that relay uses and the path from clients, and prints what to change.

Owns the output and the exit code. Never changes anything, except for a temporary file and test events that expire.
`relay.doctor` contains the checks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import click

from relay.config.formats import parse_duration
from relay.config.model import Config
from relay.doctor.finding import Finding, Level

_COLOURS = {Level.OK: "green", Level.SKIPPED: "cyan", Level.WARNING: "yellow", Level.FAULT: "red"}


def doctor_command(load_config: Callable[[str | None], Config]) -> click.Command:
    """Return the command.

    Args:
        load_config: builds the settings from the environment and the file at a path.
    """

    @click.command(
        short_help="Check the machine, the disk, the broker, sources and a proxy, and say what to change.",
        epilog="Example: relay doctor https://events.example.com --config /etc/relay.toml",
    )
    @click.argument("url", required=False)
    @click.option("--config", metavar="FILE", help="TOML file of the server's settings.  [variable: RELAY_CONFIG]")
    @click.option(
        "--token",
        envvar="RELAY_PUBLISH_TOKEN",
        help="Bearer token that may read and publish, to measure with events.  [default: RELAY_PUBLISH_TOKEN]",
    )
    @click.option("--topic", default="relay-doctor", show_default=True, help="Topic of the test events.")
    @click.option(
        "--publish-to",
        metavar="TARGET",
        help="Address of relay for the test events, if a proxy blocks /publish: unix:/path or a URL.  [default: URL]",
    )
    @click.option("--ca", metavar="FILE", help="PEM file of the authorities to trust for https.")
    @click.option(
        "--idle",
        metavar="DURATION",
        default="0s",
        help="Time to keep the stream open without events, to find a proxy that cuts idle streams. At least 20s at the "
        "default heartbeat.  [default: off]",
    )
    def doctor(
        url: str | None,
        config: str | None,
        token: str | None,
        topic: str,
        publish_to: str | None,
        ca: str | None,
        idle: str,
    ) -> int:
        """Check this machine for a server with the settings of FILE and of the environment.

        The command checks descriptors, the kernel's limits, memory, the clock, the disk of `data`, the broker of
        `cluster` and each `source`. With URL, it also checks that proxies forward events at once: it opens a stream at
        URL, and publishes five events that expire after a second. With `--idle`, it also checks that the stream stays
        open. The exit code is 1 if there is a fault.
        """
        try:
            idle_s = parse_duration(idle)
        except ValueError as error:
            raise click.UsageError(f"--idle: {error}") from None
        for name, value in (("--idle", idle_s), ("--publish-to", publish_to)):
            if value and not url:
                raise click.UsageError(f"{name} needs the URL that clients use")
        findings = asyncio.run(examine(load_config(config), url, token, topic, publish_to, ca, idle_s))
        for each in findings:
            click.echo(line(each))
            if each.remedy:
                click.echo(f"{'':9}→ {each.remedy}")
        counts = {level: sum(each.level is level for each in findings) for level in Level}
        click.echo(f"faults: {counts[Level.FAULT]}, warnings: {counts[Level.WARNING]}")
        return 1 if counts[Level.FAULT] else 0

    return doctor


async def examine(
    config: Config,
    url: str | None,
    token: str | None,
    topic: str,
    publish_to: str | None,
    ca: str | None,
    idle_s: float,
) -> list[Finding]:
    """Run all checks.

    Args:
        config: the settings of the server.
        url: address to check the path through; None for no such check.
        token: bearer token for reading and publishing.
        topic: topic of the test events.
        publish_to: target for the test events; None for the address.
        ca: PEM file of the authorities to trust for https.
        idle_s: time to keep the stream open without events; 0 for no such check.

    Raises:
        RelayError: the address is malformed, or an optional library is missing.
    """
    # Imported here, because the checks import the server.
    from relay.doctor.broker import check_broker
    from relay.doctor.disk import check_disk
    from relay.doctor.machine import check_machine
    from relay.doctor.path import check_path
    from relay.doctor.sources import check_sources

    findings = [*check_machine(config), *check_disk(config), *await check_broker(config), *await check_sources(config)]
    return findings + (await check_path(url, token, topic, publish_to, ca, idle_s) if url else [])


def line(finding: Finding) -> str:
    """Return the line of a finding."""
    level = click.style(f"{finding.level.value:8}", fg=_COLOURS[finding.level])
    return f"{level} {finding.subject}: {finding.text}"
