"""The object of all settings, its groups and names: `relay.config.model`, `relay.config.declaration`.

The settings are those of `relay.config.settings.access`, `relay.config.settings.input_limits`,
`relay.config.settings.protocols`, `relay.config.settings.retention`, `relay.config.settings.scaling`,
`relay.config.settings.slow_streams`, `relay.config.settings.sources`, `relay.config.settings.stopping`,
`relay.config.settings.stream_limits`, `relay.config.settings.streams`, `relay.config.settings.telemetry`.
"""

from __future__ import annotations

from dataclasses import fields

from relay.config.model import COMMON, GROUPS, SETTINGS, Config, group_settings


def test_a_setting_is_named_without_its_unit_of_time() -> None:
    assert SETTINGS["history-age"].name == "history_age_s"
    assert SETTINGS["history-bytes"].name == "history_bytes"
    assert len(SETTINGS) == len(Config.__dataclass_fields__)


def test_the_help_of_each_setting_ends_with_a_full_stop() -> None:
    for name, each in SETTINGS.items():
        assert each.metadata["help"].endswith("."), name


def test_every_setting_is_in_one_group() -> None:
    groups = group_settings()
    assert sorted(name for names in groups.values() for name in names) == sorted(SETTINGS)
    assert all(groups.values())
    assert next(iter(groups.values()))[0] == "listen"


def test_no_two_groups_declare_a_setting_of_the_same_name() -> None:
    names = [each.name for owner in GROUPS.values() for each in fields(owner)]
    assert len(names) == len(set(names)) == len(SETTINGS)
    assert set(COMMON) <= set(SETTINGS)
