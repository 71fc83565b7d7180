"""`relay.extras`: the error for a missing optional dependency names the command that installs it."""

from __future__ import annotations

import importlib.util

import pytest

from relay.errors import ConfigError, RelayError
from relay.extras import missing_extra, need_extra, need_httpx


def test_installed_httpx_passes_the_check() -> None:
    need_httpx("client")


@pytest.mark.parametrize("extra", ["client", "auth"])
def test_missing_httpx_is_reported_with_the_extra(extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RelayError, match="httpx, which is not installed") as raised:
        need_httpx(extra)
    assert str(raised.value).endswith(missing_extra(extra))


def test_a_missing_library_of_a_setting_is_reported_with_the_setting_and_the_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    need_extra("redis", "cluster")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "hiredis" else find(name))
    with pytest.raises(ConfigError, match="cluster: needs the library hiredis, which is not installed") as raised:
        need_extra("redis", "cluster")
    assert str(raised.value).endswith(missing_extra("redis"))
