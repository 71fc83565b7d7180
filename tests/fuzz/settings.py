"""Settings: any text for any setting gives settings or a ConfigError. Except for secrets, the settings can be written
and read back."""

from __future__ import annotations

import tomllib

from relay.config.load import load, to_toml
from relay.config.model import SETTINGS
from relay.errors import ConfigError

WORDS = (
    b"\n",
    b"1",
    b"1h30m",
    b"64KiB",
    b"1.5M",
    b"true",
    b"a.*=conflate",
    b" lag-events=",
    b"[::1]:80",
    b":80",
    b"https://a",
    b"9" * 20,
)
NAMES = sorted(SETTINGS)


def check(data: bytes) -> None:
    """Check one input: one setting per line, selected by the first byte of the line."""
    flags: dict[str, object] = {}
    for line in data.split(b"\n")[:4]:
        if line:
            each = SETTINGS[NAMES[line[0] % len(NAMES)]]
            text = line[1:].decode(errors="surrogateescape")
            flags[NAMES[line[0] % len(NAMES)]] = [text] if isinstance(each.default, tuple) else text
    try:
        config = load(flags, {})
    except ConfigError as error:
        assert str(error)
        return
    secrets = {name: getattr(config, SETTINGS[name].name) for name in NAMES if SETTINGS[name].metadata["secret"]}
    again = load(secrets, {}, tomllib.loads(to_toml(config)))
    assert again == config
