"""`relay.config.webhooks`: the settings `webhook`, `webhook-secret` and `webhook-secret-file`, and their errors."""

from __future__ import annotations

import pytest

from relay.config.load import load
from relay.config.webhooks import (
    SECRET_BYTES_MIN,
    Webhook,
    check_secret,
    find_webhook,
    parse_webhook,
    parse_webhooks,
    split_secret,
)
from relay.errors import ConfigError


def test_a_webhook_names_its_scheme_and_the_places_of_fields() -> None:
    webhook = parse_webhook("github.*=github event=X-GitHub-Event  dedup=X-GitHub-Delivery key=.repository.full_name")
    places = (("event", "x-github-event"), ("dedup", "x-github-delivery"), ("key", ".repository.full_name"))
    assert webhook == Webhook("github.*", "github", places)
    assert parse_webhook("a=none") == Webhook("a", "none", ())


def test_a_pattern_may_contain_an_equals_sign() -> None:
    webhook = parse_webhook("a=b=none")
    assert webhook.pattern == "a=b"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("github", "is not PATTERN=SCHEME"),
        ("a=gitlab", "is not PATTERN=SCHEME"),
        ("a.**.b=github", "must be the last level"),
        ("a=github type=X", "'type' is not one of event, id, key, dedup"),
        ("a=github evnt=X", "did you mean event?"),
        ("a=github event=X event=Y", "event is given twice"),
        ("a=github event=", "write the name of a header"),
        ("a=github event=X Y", "'Y' is not one of"),
        ("a=github event=..a", "write the name of a header"),
        ("a=github event=X:Y", "write the name of a header"),
    ],
)
def test_errors_name_the_wrong_part(text: str, error: str) -> None:
    with pytest.raises(ConfigError, match=r"^webhook: ") as caught:
        parse_webhook(text)
    assert error in str(caught.value)


def test_a_pattern_is_given_once_and_the_first_match_is_used() -> None:
    with pytest.raises(ConfigError, match=r"a\.\* is given twice"):
        parse_webhooks(["a.*=none", "a.*=github"])
    webhooks = parse_webhooks(["a.b=stripe", "a.*=github"])
    schemes = [each.scheme if (each := find_webhook(webhooks, topic)) else None for topic in ("a.b", "a.c", "b")]
    assert schemes == ["stripe", "github", None]


def test_a_secret_belongs_to_the_webhook_with_its_pattern() -> None:
    webhooks = parse_webhooks(["a=github", "a=b=stripe", "plain=none"])
    assert split_secret("webhook-secret", "a=s=1", webhooks) == ("a", "s=1")
    assert split_secret("webhook-secret", "a=b=s", webhooks) == ("a=b", "s")
    for text in ("plain=hidden", "c=hidden", "a", "a="):
        with pytest.raises(ConfigError, match=r"^webhook-secret: ") as caught:
            split_secret("webhook-secret", text, webhooks)
        assert "hidden" not in str(caught.value)


def test_the_settings_are_checked_at_the_start() -> None:
    webhook = {"webhook": ["a=github"]}
    secret = "a=" + "s" * SECRET_BYTES_MIN
    config = load(webhook | {"webhook-secret": [secret]}, {})
    assert config.webhook_secret == (secret,)
    for name in ("webhook-secret", "webhook-secret-file"):
        with pytest.raises(ConfigError, match=f"{name}: "):
            load(webhook | {name: ["b=s"]}, {})


@pytest.mark.parametrize("secret", ["", "s" * (SECRET_BYTES_MIN - 1)])
def test_an_empty_or_short_secret_is_an_error_that_does_not_show_it(secret: str) -> None:
    with pytest.raises(ConfigError, match=r"^webhook-secret: a: ") as caught:
        load({"webhook": ["a=github"], "webhook-secret": [f"a={secret}"]}, {})
    assert "sss" not in str(caught.value)
    check_secret("", "é" * (SECRET_BYTES_MIN // 2))
