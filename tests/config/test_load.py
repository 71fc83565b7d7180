"""Settings come from flags, variables and a file, in this order of priority. An error names the setting and has a hint.

Covers relay.config.load, relay.config.values and relay.config.check.
"""

from __future__ import annotations

import dataclasses
import grp
import os
import re
import tomllib
from typing import Any

import pytest

from relay.config.check import check
from relay.config.declaration import MIB
from relay.config.load import load, to_toml, variable, worker_count
from relay.config.model import SETTINGS, Config
from relay.errors import ConfigError

CLUSTER = {"cluster": "redis://127.0.0.1"}


def test_without_settings_the_defaults_apply_and_agree() -> None:
    assert load({}, {}) == Config() == check(Config())


def test_a_flag_overrides_a_variable_and_a_variable_overrides_the_file() -> None:
    table = {"history-age": "3s", "heartbeat": "3s", "retry-max": "3s"}
    environment = {"RELAY_HISTORY_AGE": "2s", "RELAY_HEARTBEAT": "2s", "PATH": "/bin"}
    config = load({"history-age": "1s"}, environment, table)
    assert (config.history_age_s, config.heartbeat_s, config.retry_max_s) == (1, 2, 3)


def test_every_setting_can_be_set_by_flag_variable_and_file() -> None:
    samples = {"text": "x", "number": "7", "size": "9KiB", "duration": "3s", "switch": "no"}
    own = {
        "listen": ":1",
        "cors-origin": "https://a.example",
        "allowed-host": "a.example",
        "source": "redis://127.0.0.1?stream=a",
        "unix-mode": "0600",
        "unix-group": grp.getgrgid(os.getgid()).gr_name,
        "policy-for": "a.*=conflate",
        "history-for": "a.*=events 1",
        "policy-request": "conflate",
        "event-bytes-max": "100",
        "retry-min": "2s",
        "exit-on-eof": "yes",
        "durable": "yes",
        "history-bytes": "9MiB",
        "workers": "2",
        "upstream": "https://127.0.0.1:1",
        "admin-listen": "127.0.0.1:9090",
        "trusted-proxy": "10.0.0.0/8",
        "proxy-protocol": "yes",
        "jwt-jwks-url": "https://a.example/keys",
        "cluster": "redis://127.0.0.1",
        "otlp-url": "http://127.0.0.1:4318",
        "validate": "a.*=size 1KiB",
        "webhook": "a=github event=X-GitHub-Event",
        "webhook-secret": "a=sixteen-characters",
        "webhook-secret-file": "a=path",
    }
    for name, each in SETTINGS.items():
        kind = each.metadata["kind"]
        text = own.get(name) or samples.get(kind) or kind.split("|")[-1]
        needed = {
            "subscribe": {"jwt-secret": "x"},
            "tls-key": {"tls-cert": "x"},
            "proxy-protocol": {"trusted-proxy": "::1"},
            "durable": {"data": "relay.db"},
            "unix-mode": {"unix": "relay.sock"},
            "unix-group": {"unix": "relay.sock"},
            "webhook-secret": {"webhook": "a=github"},
            "webhook-secret-file": {"webhook": "a=github"},
            "cluster-password-file": CLUSTER,
            "cluster-tls-ca": CLUSTER,
            "cluster-tls-cert": CLUSTER,
            "cluster-tls-key": CLUSTER,
        }.get(name, {})
        by_flag = load({name: text, **needed}, {})
        assert by_flag == load(needed, {variable(name): text}) == load(needed, {}, {name: text}), name
        assert by_flag == load(needed, {}, {name.replace("-", "_"): text})
        assert by_flag != load(needed, {}), name


def test_the_number_of_workers_can_be_a_number_in_toml() -> None:
    assert load({}, {}, {"workers": 4}).workers == "4"
    assert worker_count(load({}, {}, {"workers": 4})) == 4
    assert worker_count(load({"workers": "0"}, {})) == 1
    assert worker_count(load({"workers": "auto"}, {})) == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"workers": "many"}, "workers: 'many' is neither `auto` nor a number from 0 to 1024"),
        ({"workers": "1025"}, "workers: '1025' is neither `auto` nor a number from 0 to 1024"),
        ({"upstream": "tcp://a:1"}, "upstream: the address of an event stream begins with http:// or https://"),
    ],
)
def test_invalid_workers_and_upstreams_are_rejected(flags: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        load(flags, {})


@pytest.mark.parametrize(
    ("environment", "table", "begin"),
    [
        ({"RELAY_LINK_LISTEN": ":1"}, {}, "RELAY_LINK_LISTEN: has been removed; "),
        ({"RELAY_LINK_TOKEN": "hush"}, {}, "RELAY_LINK_TOKEN: has been removed; "),
        ({"RELAY_UPSTREAM": "relay://hush"}, {}, "upstream: relay:// has been removed; "),
        ({}, {"link-listen": ":1"}, "relay.toml: link-listen: has been removed; "),
        ({}, {"link_token": "hush"}, "relay.toml: link-token: has been removed; "),
        ({}, {"upstream": "relays://hush"}, "upstream: relay:// has been removed; "),
    ],
)
def test_the_error_for_a_removed_setting_names_its_replacement(
    environment: dict[str, str], table: dict[str, object], begin: str
) -> None:
    with pytest.raises(ConfigError, match="cluster") as raised:
        load({}, environment, table, "relay.toml")
    assert str(raised.value).startswith(begin)
    assert "use a broker: cluster (--cluster redis://HOST:PORT/0)" in str(raised.value)
    assert ("upstream-token" in str(raised.value)) == ("token" in begin.lower())
    assert "hush" not in str(raised.value)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"cluster": "http://a"}, "cluster: the address must have one of the forms redis://HOST:PORT/DB"),
        ({"cluster-tls-ca": "x"}, "cluster-tls-ca: needs a broker; add cluster (--cluster URL)"),
        ({"cluster-password-file": "x"}, "cluster-password-file: needs a broker"),
        ({**CLUSTER, "cluster-name": "a b"}, "cluster-name: must have 1 to 64 letters"),
        ({**CLUSTER, "data": "x.db"}, "data: not possible with cluster: the broker stores the history"),
        ({**CLUSTER, "upstream": "https://a"}, "upstream: not possible with cluster"),
        ({**CLUSTER, "policy": "block"}, "policy: `block` is not possible with cluster, because a node cannot hold up"),
        ({**CLUSTER, "policy-for": ["a=block"]}, "policy: `block` is not possible with cluster"),
        ({**CLUSTER, "policy-request": ["block"]}, "policy: `block` is not possible with cluster"),
        ({"cluster": "redis://:hush@a"}, "--cluster: other users of this machine can read a password"),
    ],
)
def test_settings_that_contradict_a_cluster_are_rejected(flags: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as raised:
        load(flags, {})
    assert "hush" not in str(raised.value)


def test_a_password_of_the_broker_may_be_in_a_variable_or_in_a_file_and_is_not_shown() -> None:
    url = "redis://user:hush@127.0.0.1"
    for config in (load({}, {"RELAY_CLUSTER": url}), load({}, {}, {"cluster": url})):
        assert config.cluster == url
        assert "hush" not in to_toml(config)


def test_a_file_can_use_the_types_of_toml() -> None:
    table = {
        "history-bytes": 1048576,
        "heartbeat": 0.5,
        "exit-on-eof": True,
        "listen": [":1", ":2"],
        "backlog": 1_000,
    }
    config = load({}, {}, table)
    assert (config.history_bytes, config.heartbeat_s, config.exit_on_eof) == (MIB, 0.5, True)
    assert (config.listen, config.backlog) == ((":1", ":2"), 1000)


def test_a_repeatable_setting_is_split_at_commas_in_a_variable() -> None:
    assert load({}, {"RELAY_LISTEN": ":1, :2,"}).listen == (":1", ":2")
    assert load({}, {"RELAY_POLICY_REQUEST": ""}).policy_request == ()
    assert load({"policy-request": [""]}, {}).policy_request == ()


@pytest.mark.parametrize(
    ("environment", "table", "message"),
    [
        ({"RELAY_HISTORY_AG": "1"}, {}, "RELAY_HISTORY_AG; did you mean RELAY_HISTORY_AGE?"),
        ({"RELAY_ZZZZZZ": "1"}, {}, "unknown environment variable RELAY_ZZZZZZ"),
        ({}, {"histry-age": "1"}, "unknown setting 'histry-age'; did you mean history-age?"),
        ({}, {"server": {"listen": ":1"}}, "'server' is a table; all settings are keys at the top of the file"),
        ({}, {"history-age": "1s", "history_age": "2s"}, "history-age is set twice"),
    ],
)
def test_an_unknown_setting_is_an_error_with_a_hint(
    environment: dict[str, str], table: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        load({}, environment, table)
    assert message in str(raised.value)


def test_other_variables_are_ignored() -> None:
    environment = {"RELAY_ENGINE": "native", "RELAY_BUILD": "pure", "RELAY_CONFIG": "x", "HOME": "/"}
    links = {
        "RELAY_SERVICE_HOST": "10.0.0.1",
        "RELAY_SERVICE_PORT_HTTP": "80",
        "RELAY_PORT": "tcp://10.0.0.1:80",
        "RELAY_PORT_80_TCP_ADDR": "10.0.0.1",
        "RELAY_EDGE_PORT_80_TCP": "tcp://10.0.0.1:80",
    }
    assert load({}, environment | links) == Config()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("history-bytes", "lots", "'lots' is not a size"),
        ("history-bytes", 1.5, "not a whole number"),
        ("history-bytes", True, "must be a size such as 64MiB, not True"),
        ("heartbeat", "-1s", "not a time"),
        ("heartbeat", float("inf"), "not a time"),
        ("backlog", "0", "at least 1"),
        ("backlog", "many", "not a whole number"),
        ("backlog", 2**40, "at most"),
        ("client-buffer", "1K", "at least 4KiB"),
        ("policy", "drop-oldst", "did you mean drop-oldest?"),
        ("prime", "perhaps", "neither true nor false"),
        ("unix", 7, "must be text"),
        ("unix", "/tmp/a\0b", "control character"),
        ("unix", "/tmp/\udcff", "not UTF-8"),
        ("listen", ["8080"], "is not HOST:PORT"),
        ("listen", [], "at least one address"),
        ("listen", "::1:8080", "is not HOST:PORT"),
        ("cors-origin", ["https://a.example/"], "cors-origin: no browser sends 'https://a.example/'; write https://a.example"),
        ("heartbeat", [1], "must be a time such as 15s, not [1]"),
        ("unix-mode", "0600", "unix-mode: needs a Unix socket; add unix"),
        ("durable", True, "durable: needs a file; add data (--data PATH)"),
        ("listen", [":1", ":1"], "listen: :1 is given twice"),
        ("cors-origin", ["null"], "cors-origin: 'null': every sandboxed page"),
        ("allowed-host", ["a.example:80"], "allowed-host: 'a.example:80' never matches; write a.example"),
        ("publish-token", "two words", "publish-token"),
        ("subscribe", "jwt", "needs a key"),
        ("jwt-secret", "-----BEGIN PUBLIC KEY-----\nMII", "Public keys belong in jwt-public-key-file"),
        ("trusted-proxy", ["10.0.0.1/8"], "host bits"),
        ("proxy-protocol", True, "add trusted-proxy"),
        ("otlp-url", "127.0.0.1:4318", "begins with http://"),
        ("jwt-jwks-url", "http://example.com/jwks", "must begin with https://"),
        ("jwt-jwks-url", "http://127.0.0.1:80@example.com/jwks", "must begin with https://"),
        ("jwt-jwks-url", "file:///etc/jwks", "needs a host"),
        ("jwt-jwks-url", "ftp://127.0.0.1/jwks", "must begin with https://"),
        ("jwt-jwks-url", "https://", "needs a host"),
        ("jwt-jwks-url", "https://:8080/", "needs a host"),
        ("jwt-jwks-url", "https://a:port/", "malformed"),
        ("jwt-jwks-url", "https://[::1/", "malformed"),
        *(("jwt-cookie", name, "name of a cookie") for name in ("a b", "a=b", "a;b", "\xe9")),
        ("topic", "a..b", "topic: has an empty level"),
        ("topic", "a.*", "topic:"),
        *(("unix-mode", mode, "octal") for mode in ("0999", "8", "rw", "-1", "1777", "")),
        ("unix-group", "no such group", "no group"),
        ("policy-for", ["orders.*"], "PATTERN=POLICY"),
        ("policy-for", ["orders.*=keep"], "is not one of"),
        ("policy-for", ["or*rs=block"], "policy-for: 'or*rs'"),
        ("policy-request", ["keep"], "is not one of"),
    ],
)
def test_the_error_for_a_wrong_value_names_the_setting(name: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load({}, {}, {name: value}, "relay.toml")
    assert name in str(raised.value)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"history_bytes": MIB // 2}, "event-bytes-max: 1MiB exceeds history-bytes (512KiB)"),
        ({"retry_min_s": 6.0}, "retry-min"),
        ({"lag_soft_bytes": 9 * MIB}, "lag-soft-bytes"),
        ({"lag_events": 5, "lag_soft_events": 6}, "lag-soft-events"),
        ({"lag_s": 5.0, "lag_soft_s": 6.0}, "lag-soft:"),
        ({"exit_on_eof": True, "stdin": "off"}, "exit-on-eof"),
        ({"policy": "block", "lag_bytes": 0}, "needs a limit"),
        ({"policy": "block", "lag_bytes": 40 * MIB}, "lag-bytes: policy `block`"),
        ({"policy_for": ("a=block",), "lag_events": 600_000}, "lag-events: policy `block`"),
        ({"policy_request": ("block",), "lag_s": 6.0, "history_age_s": 10.0}, "lag: policy `block`"),
    ],
)
def test_contradictory_settings_are_rejected(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        check(dataclasses.replace(Config(), **changes))
    assert message in str(raised.value)


def test_large_lags_are_accepted_if_nothing_blocks() -> None:
    check(Config(lag_bytes=100 * MIB, lag_soft_bytes=50 * MIB))
    check(Config(policy="block"))


def test_the_printed_settings_are_toml_that_reads_back_the_same() -> None:
    config = Config(
        listen=(":1", "[::1]:2"),
        topic='say "news" \\ é 😀',
        history_age_s=5400,
        heartbeat_s=0.25,
        exit_on_eof=True,
        policy_for=("a.*=conflate",),
    )
    assert load({}, {}, tomllib.loads(to_toml(config))) == config


def test_no_token_is_printed() -> None:
    text = to_toml(Config(publish_token=("sesame",)))
    assert "sesame" not in text
    assert load({}, {}, tomllib.loads(text)).publish_token == ()
    for name in ("upstream", "jwt-jwks-url", "otlp-url"):
        assert "sesame" not in to_toml(load({}, {}, {name: "http://ann:sesame@127.0.0.1/x"}))
        assert "http://ann@127.0.0.1/x" in to_toml(load({}, {}, {name: "http://ann@127.0.0.1/x"}))
    with pytest.raises(ConfigError) as raised:
        load({"publish-token": "sesame\n"}, {})
    assert "sesame" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a=conflate lag-byts=1", "'lag-byts' is not one of"),
        ("a=conflate lag-bytes=x", "policy-for: lag-bytes: "),
        ("a=conflate lag-events=1 lag-soft-events=2", "lag-soft-events: must not exceed the hard limit lag-events"),
    ],
)
def test_the_error_for_an_invalid_limit_of_a_pattern_names_the_limit(text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        check(Config(policy_for=(text,)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '[relay]\nhistory-age = "1h"',
            "'relay' is a table; all settings are keys at the top of the file, without a [header]: write history-age",
        ),
        ('[history]\nage = "1h"', "write history-age = …"),
        ('[lag.soft]\nbytes = 1', "'lag' is a table"),
        ('[streams]\nper_topic_max = 1', "write streams-per-topic-max = …"),
        ("[anything]", 'such as history-age = "1h"'),
        ('[[listen]]\nhost = "x"', "listen: must be text in quotes, not {'host': 'x'}"),
    ],
)
def test_the_error_for_a_table_shows_the_right_form(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load({}, {}, tomllib.loads(text), "relay.toml")
    assert str(caught.value).startswith("relay.toml: ")
    assert message in str(caught.value)
