"""The proxies that the compression benchmark measures in front of relay: nginx and Caddy, with gzip.

Owns their configuration: that of `examples/proxies`, with compression and with enough connections. Never starts one.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from bench import HERE
from loadtest.rig.harness import MeasureError
from loadtest.rig.targets import Place, Target

EXAMPLES = HERE.parent / "examples" / "proxies"
DESCRIPTORS = 20_000
"""Largest number of descriptors of a process of nginx; each stream takes two."""


def program(name: str) -> str:
    """Return the path of a proxy's program; empty if it is not installed."""
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin") or ""


def versions() -> dict[str, str]:
    """Return the versions of the installed proxies, by name."""
    # Caddy from Debian knows its version; Caddy from Go's modules knows only that of its module.
    commands = (("nginx", "-v"), ("caddy", "version"), ("caddy", "build-info"))
    found: dict[str, str] = {}
    for name, option in commands:
        if name not in found and (path := program(name)):
            said = subprocess.run([path, option], capture_output=True, text=True, check=False)
            if version := re.search(r"(?:^|nginx/|caddy/v2\s+)v?(\d+\.\d+\.\d+)", said.stdout + said.stderr):
                found[name] = version[1]
    return found


def nginx(port: int) -> Target:
    """Return nginx in front of the relay at that port.

    Two workers, because 10,000 streams need more descriptors than one process may have. The kernel spreads the
    connections evenly over them (reuseport).
    """

    def command(place: Place, extra: tuple[str, ...]) -> list[str]:
        file = _configured(
            place,
            "nginx.conf",
            port,
            {
                "events {}": f"worker_processes 2; worker_rlimit_nofile {DESCRIPTORS};\n"
                f"events {{ worker_connections {DESCRIPTORS}; }}",
                f"listen 127.0.0.1:{place.port};": f"listen 127.0.0.1:{place.port} reuseport backlog=4096;",
                "gzip off;": "gzip on; gzip_types text/event-stream; proxy_buffering off;",
            },
        )
        options = ("-e", "stderr", "-g", "daemon off; pid nginx.pid;")
        return [program("nginx"), "-p", str(place.folder), *options, "-c", str(file), *extra]

    return Target("nginx", command, ready="/readyz", forwards=True)


def caddy(port: int) -> Target:
    """Return Caddy in front of the relay at that port."""

    def command(place: Place, extra: tuple[str, ...]) -> list[str]:
        # The first event of a stream is shorter than Caddy's default minimum of 512 bytes.
        encode = "{\n\tencode {\n\t\tgzip\n\t\tminimum_length 1\n\t}\n"
        address = f"http://127.0.0.1:{place.port} "
        # Caddy does not compress a response with no-transform, which relay sends (RFC 9111 section 5.2.2.6).
        flush = "flush_interval -1\n"
        changes = {address + "{\n": address + encode, flush: flush + "\t\theader_down Cache-Control no-cache\n"}
        file = _configured(place, "Caddyfile", port, changes)
        folders = (f"XDG_CONFIG_HOME={place.folder}", f"XDG_DATA_HOME={place.folder}")
        return ["env", *folders, program("caddy"), "run", "--adapter", "caddyfile", "--config", str(file), *extra]

    return Target("caddy", command, ready="/readyz", forwards=True)


def _configured(place: Place, name: str, port: int, changes: dict[str, str]) -> Path:
    """Write an example's configuration with other ports and these changes; return its path."""
    text = (EXAMPLES / name).read_text()
    ports = {"127.0.0.1:8000": f"127.0.0.1:{place.port}", "127.0.0.1:8080": f"127.0.0.1:{port}"}
    for old, new in (ports | changes).items():
        if old not in text:
            raise MeasureError(f"{EXAMPLES / name} does not contain {old!r}; change bench/proxies.py")
        text = text.replace(old, new)
    file = place.folder / name
    file.write_text(text)
    return file
