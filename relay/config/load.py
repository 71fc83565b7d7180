"""From text to a checked `Config`, and back to TOML.

Owns the order of strength (flag, environment, TOML file, default), how each kind of setting is read, and what
settings must not contradict each other. Never opens a file and never looks at `os.environ`: `relay.cli` does.

The order is three loops here and not click's `auto_envvar_prefix` and `default_map`: click splits repeated values of a
variable at spaces, ignores unknown variables and keys, and does not name the file in an error.

The module is longer than 400 lines because it has the checks of all settings that depend on one another.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import Field, replace
from typing import Any
from urllib.parse import urlsplit

from relay.config.model import (
    SETTINGS,
    Config,
    duration_text,
    is_event_stream,
    parse_address,
    parse_duration,
    parse_group,
    parse_mode,
    parse_size,
    parse_upstream,
    size_text,
)
from relay.config.networks import parse_networks
from relay.config.origins import check_host, check_origin
from relay.errors import ConfigError, EventError
from relay.topic import CONTROL, check_term, check_topic

WORKERS_MAX = 1024

PREFIX = "RELAY_"
RESERVED = frozenset({"RELAY_BUILD", "RELAY_CONFIG", "RELAY_ENGINE", "RELAY_TAKEOVER"})
"""Variables that are ours but no settings of the server."""

_SWITCH = {
    "1": True,
    "true": True,
    "yes": True,
    "on": True,
    "0": False,
    "false": False,
    "no": False,
    "off": False,
}
_EXPECTED = {"number": "a whole number", "size": "a size such as 64MiB", "duration": "a time such as 15s"}
_HARD_AND_SOFT = (("lag-bytes", "lag-soft-bytes"), ("lag-events", "lag-soft-events"), ("lag", "lag-soft"))
_LIMITS = (*(name for pair in _HARD_AND_SOFT for name in pair), "lag-soft-for")
_JWT_KEYS = ("jwt-secret", "jwt-secret-file", "jwt-public-key-file", "jwt-jwks-url", "jwt-key", "jwt-key-file")
"""The settings that say what JWTs are checked with; the last two are older spellings."""
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_COOKIE = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]*")  # a token (RFC 6265 section 4.1.1)
# Kubernetes and Docker tell every container about a service named `relay` or `relay-…` in such variables.
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
        flags: values by setting name, of the flags that were given: text, a bool, or a list of texts.
        environment: variables; those that begin with `RELAY_` are settings or an error.
        table: the TOML file's top level, with `-` or `_` in its keys.
        source: the TOML file's name, for errors.

    Raises:
        ConfigError: a setting is unknown, malformed, or contradicts another.
    """
    values: dict[str, Any] = {}
    for key, value in (table or {}).items():
        name = key.replace("_", "-")
        if isinstance(value, dict):
            raise ConfigError(f"{source}: {_table_error(key, value)}")
        if name not in SETTINGS:
            raise ConfigError(f"{source}: unknown setting {key!r}{hint(name, SETTINGS)}")
        if SETTINGS[name].name in values:
            raise ConfigError(f"{source}: {name} is set twice")
        values[SETTINGS[name].name] = _read(f"{source}: {name}", SETTINGS[name], value)
    variables = {variable(name): name for name in SETTINGS}
    for key, text in environment.items():
        if not key.startswith(PREFIX) or key in RESERVED or _SERVICE_LINK.fullmatch(key):
            continue
        if key not in variables:
            raise ConfigError(f"unknown environment variable {key}{hint(key, [*variables, *RESERVED])}")
        each = SETTINGS[variables[key]]
        repeatable = isinstance(each.default, tuple)
        split = [part.strip() for part in text.split(",") if part.strip()] if repeatable else text
        values[each.name] = _read(key, each, split)
    for name, value in flags.items():
        values[SETTINGS[name].name] = _read(f"--{name}", SETTINGS[name], value)
    return check(Config(**values))


def _table_error(key: str, table: Mapping[str, object]) -> str:
    """Say that settings are not in tables, and show the right form of one that is."""
    error = f"{key!r} is a table; all settings are keys at the top of the file, without a [header]"
    for part in table:
        for name in (f"{key}-{part}".replace("_", "-"), part.replace("_", "-")):
            if name in SETTINGS:
                return f"{error}: write {name} = …"
    return f"{error}, such as history-age = \"1h\""


def variable(name: str) -> str:
    """Return the environment variable of a setting."""
    return PREFIX + name.upper().replace("-", "_")


def hint(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean …?` if a known name is close, else nothing."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _read(where: str, each: Field[Any], value: object) -> Any:
    """Turn text or a TOML value into the setting's own type."""
    try:
        if not isinstance(each.default, tuple):
            return _read_one(each, value)
        items = value if isinstance(value, (list, tuple)) else [value]
        return tuple(_read_one(each, item) for item in items if item != "")
    except ValueError as error:
        shown = _unseen(each, value) if each.metadata["secret"] else error
        raise ConfigError(f"{where}: {shown}") from None


def _unseen(each: Field[Any], value: object) -> str:
    """Say what is wrong with a secret without showing it."""
    values = value if isinstance(value, (list, tuple)) else [value]
    if any(isinstance(text, str) and CONTROL.search(text) for text in values):
        return f"the value contains a control character, such as a line end. {each.metadata['help']}"
    return "the value cannot be used"


def _read_one(each: Field[Any], value: object) -> Any:
    """Read one value; ValueError says what is wrong with it."""
    kind = each.metadata["kind"]
    if kind == "switch":
        return _read_switch(value)
    if kind in ("number", "size", "duration"):
        return _read_number(each, value)
    if kind == "count" and type(value) is int:
        value = str(value)
    if not isinstance(value, str):
        raise ValueError(f"must be text in quotes, not {value!r}")
    if CONTROL.search(value):
        raise ValueError(f"{value!r} contains a control character")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError(f"{value!r} is not UTF-8")
    if "|" in kind and value not in kind.split("|"):
        raise ValueError(f"{value!r} is none of {kind.replace('|', ', ')}{hint(value, kind.split('|'))}")
    return value


def _read_switch(value: object) -> bool:
    """Read a switch."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().lower() in _SWITCH:
        return _SWITCH[value.strip().lower()]
    raise ValueError(f"{value!r} is neither true nor false")


def _read_number(each: Field[Any], value: object) -> int | float:
    """Read a number, size or duration, and keep it within the setting's limits."""
    kind = each.metadata["kind"]
    number: int | float
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError(f"must be {_EXPECTED[kind]}, not {value!r}")
    if isinstance(value, float) and kind != "duration":
        raise ValueError(f"{value!r} is not a whole number")
    if kind == "duration":
        number = parse_duration(value if isinstance(value, str) else repr(value))
    elif kind == "size":
        number = parse_size(str(value))
    else:
        digits = str(value).strip().replace("_", "")
        if not (digits.isascii() and digits.isdigit() and len(digits) < 20):
            raise ValueError(f"{value!r} is not a whole number")
        number = int(digits)
    least, most = each.metadata["least"], each.metadata["most"]
    if number < least:
        raise ValueError(f"must be at least {show(kind, least)}, not {value}")
    if number > most:
        raise ValueError(f"must be at most {show(kind, most)}, not {value}")
    return number


def show(kind: str, value: Any) -> str:
    """Write a value of a kind as text that is read back the same."""
    if kind == "size":
        return size_text(value)
    if kind == "duration":
        return duration_text(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return ", ".join(value)
    return str(value)


def check(config: Config) -> Config:
    """Check what no setting can say alone.

    Args:
        config: settings, each right by itself.

    Returns:
        The same settings.

    Raises:
        ConfigError: two settings contradict each other, or one names something that there cannot be; the text
            begins with the setting's name.
    """
    _check_front(config)
    _check_sources(config)
    _check_policies(config)
    _check_scale(config)
    if config.retry_min_s > config.retry_max_s:
        raise ConfigError("retry-min: must not be above retry-max")
    return config


def _check_front(config: Config) -> None:
    if not config.listen:
        raise ConfigError("listen: at least one address is needed")
    for place, address in enumerate(config.listen):
        try:
            _, port = parse_address(address)
        except ValueError as error:
            raise ConfigError(f"listen: {error}") from None
        if port and address in (*config.listen[:place], config.link_listen):
            raise ConfigError(f"listen: {address} is given twice; each address can have one listener")
    if config.tls_key and not config.tls_cert:
        raise ConfigError("tls-key: tls-cert must name the certificate")
    try:
        parse_networks(config.trusted_proxy)
    except ValueError as error:
        raise ConfigError(f"trusted-proxy: {error}") from None
    if config.proxy_protocol and not config.trusted_proxy:
        raise ConfigError("proxy-protocol: trusted-proxy must name who may send it")
    for name, items, check_item in (
        ("cors-origin", config.cors_origin, check_origin),
        ("allowed-host", config.allowed_host, check_host),
    ):
        try:
            for item in items:
                check_item(item)
        except ValueError as error:
            raise ConfigError(f"{name}: {error}") from None
    for token in config.publish_token:
        if not all("!" <= character <= "~" for character in token):
            raise ConfigError("publish-token: only visible ASCII characters, without spaces, fit into a header")
    keys = [name for name in _JWT_KEYS if getattr(config, SETTINGS[name].name)]
    if len(keys) > 1:
        raise ConfigError(f"{keys[1]}: {keys[0]} is set too; give one of {', '.join(_JWT_KEYS[:4])}")
    if config.subscribe == "jwt" and not keys:
        raise ConfigError(f"subscribe: `jwt` needs a key: one of {', '.join(_JWT_KEYS[:4])}")
    if config.jwt_jwks_url:
        _check_jwks_url(config.jwt_jwks_url)
    if not _COOKIE.fullmatch(config.jwt_cookie):
        raise ConfigError(f"jwt-cookie: {config.jwt_cookie!r} cannot be the name of a cookie")


def _check_jwks_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"jwt-jwks-url: the address is malformed: {error}") from None
    if not parts.hostname or port == 0:
        raise ConfigError("jwt-jwks-url: the address needs a host, as in https://login.example/.well-known/jwks.json")
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _LOOPBACK):
        raise ConfigError("jwt-jwks-url: keys are fetched over https, or over http from this machine (127.0.0.1)")


def _check_sources(config: Config) -> None:
    try:
        check_topic(config.topic)
    except EventError as error:
        raise ConfigError(f"topic: {error.reason}") from None
    try:
        parse_mode(config.unix_mode)
    except ValueError as error:
        raise ConfigError(f"unix-mode: {error}") from None
    try:
        parse_group(config.unix_group)
    except ValueError as error:
        raise ConfigError(f"unix-group: {error}") from None
    for name in ("unix-mode", "unix-group"):
        each = SETTINGS[name]
        if not config.unix and getattr(config, each.name) != each.default:
            raise ConfigError(f"{name}: there is no Unix socket to apply it to; add unix (--unix PATH)")
    if config.exit_on_eof and config.stdin == "off":
        raise ConfigError("exit-on-eof: standard input is off, so its end is never seen")
    if config.durable and not config.data:
        raise ConfigError("durable: needs a file to write to; add data (--data PATH), or leave durable out")
    if config.event_bytes_max > config.history_bytes:
        raise ConfigError(
            f"event-bytes-max: {size_text(config.event_bytes_max)} is more than history-bytes holds "
            f"({size_text(config.history_bytes)}); lower the one or raise the other"
        )


def _check_scale(config: Config) -> None:
    number = re.fullmatch("[0-9]{1,4}", config.workers)
    if config.workers != "auto" and (number is None or int(config.workers) > WORKERS_MAX):
        raise ConfigError(f"workers: {config.workers!r} is neither `auto` nor a number up to {WORKERS_MAX}")
    follows = bool(config.upstream) and not is_event_stream(config.upstream)
    if follows:
        try:
            parse_upstream(config.upstream)
        except ValueError as error:
            raise ConfigError(f"upstream: {error}") from None
        if config.unix or config.stdin not in ("auto", "off"):
            raise ConfigError("upstream: an edge has no sources of its own; feed the relay that it follows")
        if config.data:
            raise ConfigError("upstream: an edge keeps no history of its own; give data to the relay that it follows")
    if config.link_listen:
        try:
            parse_address(config.link_listen)
        except ValueError as error:
            raise ConfigError(f"link-listen: {error}") from None
    if (follows or config.link_listen) and not config.link_token:
        raise ConfigError("link-token: upstream and link-listen need one, the same at both ends")


def worker_count(config: Config) -> int:
    """Return how many processes hold streams; 1 for this process alone."""
    return len(os.sched_getaffinity(0)) if config.workers == "auto" else max(1, int(config.workers))


def split_policy(text: str, config: Config) -> tuple[str, Config]:
    """Read one `policy-for`: PATTERN=POLICY, and after spaces limits of its own as NAME=VALUE.

    Args:
        text: `orders.*=conflate`, `audit=disconnect lag-events=10 lag=5s`.
        config: whose limits hold where it names none.

    Returns:
        the pattern, and the settings as they are for its streams.

    Raises:
        ConfigError: it names what is wrong.
    """
    policies = SETTINGS["policy"].metadata["kind"]
    parts = re.fullmatch(rf"(.+?)=({policies})((?: +\S+)*)", text)
    if parts is None:
        _, equals, policy = text.partition(" ")[0].rpartition("=")
        if not equals:
            raise ConfigError(f"policy-for: {text!r} is not PATTERN=POLICY")
        known = policies.split("|")
        raise ConfigError(f"policy-for: {policy!r} is none of {', '.join(known)}{hint(policy, known)}")
    pattern, policy, limits = parts.groups()
    try:
        check_term(pattern)
    except EventError as error:
        raise ConfigError(f"policy-for: {pattern!r}: {error.reason}") from None
    changes: dict[str, Any] = {"policy": policy}
    for word in limits.split():
        name, _, value = word.partition("=")
        if name not in _LIMITS:
            raise ConfigError(f"policy-for: {name!r} is none of {', '.join(_LIMITS)}{hint(name, _LIMITS)}")
        changes[SETTINGS[name].name] = _read(f"policy-for: {name}", SETTINGS[name], value)
    return pattern, replace(config, **changes)


def _check_policies(config: Config) -> None:
    policies = SETTINGS["policy"].metadata["kind"].split("|")
    for policy in config.policy_request:
        if policy not in policies:
            raise ConfigError(f"policy-request: {policy!r} is none of {', '.join(policies)}")
    for each in [config, *(split_policy(text, config)[1] for text in config.policy_for)]:
        for hard, soft in _HARD_AND_SOFT:
            most = getattr(each, SETTINGS[hard].name)
            if 0 < most < getattr(each, SETTINGS[soft].name):
                raise ConfigError(f"{soft}: must not be above {hard}, which acts at once")
        if each.policy == "block" or (each is config and "block" in config.policy_request):
            _check_block(each)


def _check_block(config: Config) -> None:
    """A publisher has to be held before the log laps the stream; half of the history leaves it room."""
    pairs = (("lag-bytes", "history-bytes"), ("lag-events", "history-events"), ("lag", "history-age"))
    for lag, history in pairs:
        kind = SETTINGS[lag].metadata["kind"]
        limit, held = (getattr(config, SETTINGS[name].name) for name in (lag, history))
        if limit and held and limit > held / 2:
            raise ConfigError(
                f"{lag}: policy `block` needs it to be at most half of {history}: {show(kind, limit)} "
                f"is more than half of {show(kind, held)}"
            )
    if not (config.lag_bytes or config.lag_events or config.lag_s):
        raise ConfigError("policy: `block` needs a limit to act at: lag-bytes, lag-events or lag")


def to_toml(config: Config) -> str:
    """Write the settings as a TOML file that `load` reads back; a secret is left out, and said so."""
    lines = ["# The settings of relay, as they are in force."]
    for name, each in SETTINGS.items():
        value = getattr(config, each.name)
        lines += ["", f"# {each.metadata['help']}"]
        if each.metadata["secret"] and value:
            lines.append(f'# {name} = "(set, not shown)"')
        else:
            lines.append(f"{name} = {_toml(each.metadata['kind'], value)}")
    return "\n".join(lines) + "\n"


def _toml(kind: str, value: Any) -> str:
    """Write one value; JSON's strings are TOML's, since control characters were refused."""
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(kind, item) for item in value) + "]"
    if kind in ("number", "switch"):
        return show(kind, value)
    return json.dumps(show(kind, value), ensure_ascii=False)
