"""`relay.config.data_rules`: the setting `validate` and its errors."""

from __future__ import annotations

import pytest

from relay.config.data_rules import DataRule, parse_rule
from relay.config.load import load
from relay.errors import ConfigError


def test_a_rule_is_a_size_or_a_schema() -> None:
    assert parse_rule("logs.**=size 4KiB") == DataRule("logs.**", 4096, "")
    assert parse_rule("orders.*=schema /etc/my schemas/order.json") == DataRule(
        "orders.*", None, "/etc/my schemas/order.json"
    )
    assert parse_rule("a=b=size 0").pattern == "a=b"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("orders", "is neither PATTERN=size SIZE nor PATTERN=schema PATH"),
        ("orders=schema", "is neither"),
        ("orders=length 5", "is neither"),
        ("=size 5", "is neither"),
        ("a.**.b=size 5", "must be the last level"),
        ("a=size many", "'many' is not a size"),
    ],
)
def test_an_error_names_the_wrong_part(text: str, error: str) -> None:
    with pytest.raises(ConfigError, match=r"^validate: ") as caught:
        load({"validate": [text]}, {})
    assert error in str(caught.value)
