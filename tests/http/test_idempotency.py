"""`relay.http.idempotency`: a key in quotes or without them, and nothing else."""

from __future__ import annotations

import pytest

from relay.errors import RequestError
from relay.http.idempotency import KEY_CHARACTERS_MAX, number_key, read_key


def test_a_key_is_a_string_in_quotes_or_a_bare_word() -> None:
    assert read_key(None) is None
    assert read_key('"8e03978e-40d5"') == read_key("8e03978e-40d5") == "8e03978e-40d5"
    assert read_key(r'"a \"b\" \\"') == r'a "b" \ '.strip()
    assert read_key("k" * KEY_CHARACTERS_MAX) == "k" * KEY_CHARACTERS_MAX
    assert number_key("k", 7) == "k:7"


@pytest.mark.parametrize(
    "value", ["", '""', '"a', 'a"b', '"a", "b"', "a, b", "a b", '"a\\x"', "\xe9", '"\xe9"', "k" * 201]
)
def test_another_value_is_rejected(value: str) -> None:
    with pytest.raises(RequestError) as caught:
        read_key(value)
    assert caught.value.status == 400
