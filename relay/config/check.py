"""The checks of settings that depend on each other, or that the kind of a setting does not cover.

Owns these rules and their errors. Never parses a value, except the limits inside `policy-for`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from relay.config.broker_address import has_password, parse_broker
from relay.config.data_rules import parse_rule
from relay.config.formats import parse_address, parse_group, parse_mode, size_text
from relay.config.model import SETTINGS, Config
from relay.config.networks import parse_networks
from relay.config.origins import check_host, check_origin
from relay.config.source_address import parse_source
from relay.config.topic_retention import parse_history
from relay.config.values import check_pattern, hint, read, show
from relay.config.webhooks import check_secret, parse_webhooks, split_secret
from relay.errors import ConfigError, EventError
from relay.topic import check_topic

WORKERS_MAX = 1024
_HARD_AND_SOFT = (("lag-bytes", "lag-soft-bytes"), ("lag-events", "lag-soft-events"), ("lag", "lag-soft"))
_LIMITS = (*(name for pair in _HARD_AND_SOFT for name in pair), "lag-soft-for")
_JWT_KEYS = ("jwt-secret", "jwt-secret-file", "jwt-public-key-file", "jwt-jwks-url", "jwt-key", "jwt-key-file")
"""The settings of keys that verify JWTs. The last two are older spellings."""
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
USE_CLUSTER = "to share events between machines, use a broker: cluster (--cluster redis://HOST:PORT/0)"
_CLUSTER_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_COOKIE = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]*")  # a token (RFC 6265 section 4.1.1)


def check(config: Config) -> Config:
    """Check the settings as a whole.

    Args:
        config: settings, each of them valid.

    Returns:
        The same settings.

    Raises:
        ConfigError: two settings contradict each other, or a value is malformed. The text begins with the setting's
            name.
    """
    _check_front(config)
    _check_sources(config)
    _check_policies(config)
    for text in config.history_for:
        parse_history(text)
    _check_scale(config)
    _check_cluster(config)
    if config.otlp_url and not config.otlp_url.startswith(("http://", "https://")):
        raise ConfigError("otlp-url: the address of a collector begins with http:// or https://")
    if config.retry_min_s > config.retry_max_s:
        raise ConfigError("retry-min: must not exceed retry-max")
    return config


def _check_front(config: Config) -> None:
    if not config.listen:
        raise ConfigError("listen: give at least one address, such as 127.0.0.1:8080")
    for place, address in enumerate(config.listen):
        try:
            _, port = parse_address(address)
        except ValueError as error:
            raise ConfigError(f"listen: {error}") from None
        if port and address in config.listen[:place]:
            raise ConfigError(f"listen: {address} is given twice; remove one")
    _check_admin_listen(config)
    if config.tls_key and not config.tls_cert:
        raise ConfigError("tls-key: needs a certificate; add tls-cert (--tls-cert PATH)")
    try:
        parse_networks(config.trusted_proxy)
    except ValueError as error:
        raise ConfigError(f"trusted-proxy: {error}") from None
    if config.proxy_protocol and not config.trusted_proxy:
        raise ConfigError("proxy-protocol: needs the networks of the proxies; add trusted-proxy")
    for name, items, check_item in (
        ("cors-origin", config.cors_origin, check_origin),
        ("allowed-host", config.allowed_host, check_host),
    ):
        try:
            for item in items:
                check_item(item)
        except ValueError as error:
            raise ConfigError(f"{name}: {error}") from None
    for name, tokens in (("publish-token", config.publish_token), ("admin-token", config.admin_token)):
        if not all("!" <= character <= "~" for token in tokens for character in token):
            raise ConfigError(f"{name}: a header accepts only visible ASCII characters without spaces")
    webhooks = parse_webhooks(config.webhook)
    for text in config.webhook_secret:
        pattern, secret = split_secret("webhook-secret", text, webhooks)
        check_secret(f"webhook-secret: {pattern}", secret)
    for text in config.webhook_secret_file:
        split_secret("webhook-secret-file", text, webhooks)
    keys = [name for name in _JWT_KEYS if getattr(config, SETTINGS[name].name)]
    if len(keys) > 1:
        raise ConfigError(f"{keys[1]}: {keys[0]} is also set; set only one of {', '.join(_JWT_KEYS[:4])}")
    if config.subscribe == "jwt" and not keys:
        raise ConfigError(f"subscribe: `jwt` needs a key: one of {', '.join(_JWT_KEYS[:4])}")
    if config.jwt_jwks_url:
        _check_jwks_url(config.jwt_jwks_url)
    if not _COOKIE.fullmatch(config.jwt_cookie):
        raise ConfigError(f"jwt-cookie: {config.jwt_cookie!r} is not a valid name of a cookie (RFC 6265)")


def _check_admin_listen(config: Config) -> None:
    if not config.admin_listen:
        return
    try:
        _, port = parse_address(config.admin_listen)
    except ValueError as error:
        raise ConfigError(f"admin-listen: {error}") from None
    if port and config.admin_listen in config.listen:
        raise ConfigError(f"admin-listen: {config.admin_listen} is an address of listen too; choose another port")


def _check_jwks_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"jwt-jwks-url: the address is malformed: {error}") from None
    if not parts.hostname or port == 0:
        raise ConfigError("jwt-jwks-url: the address needs a host, such as https://login.example/jwks.json")
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _LOOPBACK):
        raise ConfigError("jwt-jwks-url: must begin with https://, or with http:// for this machine (127.0.0.1)")


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
            raise ConfigError(f"{name}: needs a Unix socket; add unix (--unix PATH)")
    shown = [parse_source(each).shown for each in config.source]
    for place, source in enumerate(shown):
        if source in shown[:place]:
            raise ConfigError(f"source: {source} is given twice; remove one")
    if config.exit_on_eof and config.stdin == "off":
        raise ConfigError("exit-on-eof: needs standard input, but stdin is off; set stdin, or remove exit-on-eof")
    if config.durable and not config.data:
        raise ConfigError("durable: needs a file; add data (--data PATH), or remove durable")
    for text in config.validate:
        parse_rule(text)
    if config.event_bytes_max > config.history_bytes:
        raise ConfigError(
            f"event-bytes-max: {size_text(config.event_bytes_max)} exceeds history-bytes "
            f"({size_text(config.history_bytes)}); lower event-bytes-max or raise history-bytes"
        )


def _check_scale(config: Config) -> None:
    number = re.fullmatch("[0-9]{1,4}", config.workers)
    if config.workers != "auto" and (number is None or int(config.workers) > WORKERS_MAX):
        raise ConfigError(f"workers: {config.workers!r} is neither `auto` nor a number from 0 to {WORKERS_MAX}")
    if config.upstream.startswith(("relay://", "relays://")):
        raise ConfigError(f"upstream: relay:// has been removed; {USE_CLUSTER}")
    if config.upstream and not config.upstream.startswith(("http://", "https://")):
        raise ConfigError("upstream: the address of an event stream begins with http:// or https://")


def _check_cluster(config: Config) -> None:
    """Check that no other setting contradicts `cluster`."""
    if not config.cluster:
        for name in ("cluster-password-file", "cluster-tls-ca", "cluster-tls-cert", "cluster-tls-key"):
            if getattr(config, SETTINGS[name].name):
                raise ConfigError(f"{name}: needs a broker; add cluster (--cluster URL)")
        return
    parse_broker(config.cluster)
    if not _CLUSTER_NAME.fullmatch(config.cluster_name):
        raise ConfigError("cluster-name: must have 1 to 64 letters, digits, `-`, `_` or `.`")
    for name, reason in (
        ("data", "the broker stores the history; remove data, and configure persistence in the broker"),
        ("upstream", "the nodes of a cluster follow the broker; remove upstream, or publish from outside the cluster"),
    ):
        if getattr(config, SETTINGS[name].name):
            raise ConfigError(f"{name}: not possible with cluster: {reason}")
    rules = [config, *(split_policy(text, config)[1] for text in config.policy_for)]
    if any(each.policy == "block" for each in rules) or "block" in config.policy_request:
        raise ConfigError(
            "policy: `block` is not possible with cluster, because a node cannot hold up the publishers of other "
            "nodes; use disconnect, and clients resume without loss"
        )


def check_flags(flags: Mapping[str, object]) -> None:
    """Check that the command line contains no password of a broker.

    Raises:
        ConfigError: it does. The text does not contain the password.
    """
    if has_password(str(flags.get("cluster", ""))):
        raise ConfigError(
            "--cluster: other users of this machine can read a password in the command line; set RELAY_CLUSTER, or "
            "cluster-password-file"
        )
    sources = flags.get("source", ())
    if any(has_password(str(each)) for each in (sources if isinstance(sources, (list, tuple)) else [sources])):
        raise ConfigError(
            "--source: other users of this machine can read a password in the command line; set RELAY_SOURCE, or the "
            "option password-file of the address"
        )


def split_policy(text: str, config: Config) -> tuple[str, Config]:
    """Parse one `policy-for`: PATTERN=POLICY, and after spaces its own limits as NAME=VALUE.

    Args:
        text: such as `orders.*=conflate` or `audit=disconnect lag-events=10 lag=5s`.
        config: the settings of the server. They provide the limits that `text` does not name.

    Returns:
        The pattern, and the settings for its streams.

    Raises:
        ConfigError: the text is malformed, or names an unknown policy or limit.
    """
    policies = SETTINGS["policy"].metadata["kind"]
    parts = re.fullmatch(rf"(.+?)=({policies})((?: +\S+)*)", text)
    if parts is None:
        _, equals, policy = text.partition(" ")[0].rpartition("=")
        if not equals:
            raise ConfigError(f"policy-for: {text!r} is not PATTERN=POLICY, such as orders.*=conflate")
        known = policies.split("|")
        raise ConfigError(f"policy-for: {policy!r} is not one of {', '.join(known)}{hint(policy, known)}")
    pattern, policy, limits = parts.groups()
    check_pattern("policy-for", pattern)
    changes: dict[str, Any] = {"policy": policy}
    for word in limits.split():
        name, _, value = word.partition("=")
        if name not in _LIMITS:
            raise ConfigError(f"policy-for: {name!r} is not one of {', '.join(_LIMITS)}{hint(name, _LIMITS)}")
        changes[SETTINGS[name].name] = read(f"policy-for: {name}", SETTINGS[name], value)
    return pattern, replace(config, **changes)


def _check_policies(config: Config) -> None:
    policies = SETTINGS["policy"].metadata["kind"].split("|")
    for policy in config.policy_request:
        if policy not in policies:
            raise ConfigError(f"policy-request: {policy!r} is not one of {', '.join(policies)}")
    for term in config.envelope:
        check_pattern("envelope", term)
    for each in [config, *(split_policy(text, config)[1] for text in config.policy_for)]:
        for hard, soft in _HARD_AND_SOFT:
            most = getattr(each, SETTINGS[hard].name)
            if 0 < most < getattr(each, SETTINGS[soft].name):
                raise ConfigError(f"{soft}: must not exceed the hard limit {hard}")
        if each.policy == "block" or (each is config and "block" in config.policy_request):
            _check_block(each)


def _check_block(config: Config) -> None:
    """Check that publishers are held up before the log laps the stream. The limit is half of the history."""
    pairs = (("lag-bytes", "history-bytes"), ("lag-events", "history-events"), ("lag", "history-age"))
    for lag, history in pairs:
        kind = SETTINGS[lag].metadata["kind"]
        limit, held = (getattr(config, SETTINGS[name].name) for name in (lag, history))
        if limit and held and limit > held / 2:
            raise ConfigError(
                f"{lag}: policy `block` needs a limit of at most half of {history}: {show(kind, limit)} "
                f"exceeds half of {show(kind, held)}"
            )
    if not (config.lag_bytes or config.lag_events or config.lag_s):
        raise ConfigError("policy: `block` needs a limit; set lag-bytes, lag-events or lag")
