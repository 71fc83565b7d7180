"""The setting `webhook`: how relay reads the requests of programs that do not know relay, such as GitHub and Stripe.

Owns the syntax of `webhook` and of `webhook-secret`. Never reads a file, and never checks a signature
(`relay.auth.signatures`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from relay.config.values import check_pattern, hint
from relay.errors import ConfigError
from relay.topic import overlap

SCHEMES = ("github", "stripe", "none")
FIELDS = ("event", "id", "key", "dedup")
"""The fields of an event that a webhook may set."""

SECRET_BYTES_MIN = 16
"""Shortest secret. With one signed request, an attacker can test guesses of the secret without access to relay."""

_WEBHOOK = re.compile(rf"(.+?)=({'|'.join(SCHEMES)})((?: +\S+)*)")
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_MEMBER = re.compile(r"(?:\.[0-9A-Za-z_-]+)+")


@dataclass(frozen=True, slots=True)
class Webhook:
    """The requests to `/publish/{topic}` on the topics of one pattern.

    Args:
        pattern: topic or pattern.
        scheme: how the sender signs its requests; `none` if it does not sign.
        places: pairs of a field of the event and its place in the request. The place is a header in lower case, or
            the path of a member of a JSON body, such as `.type` or `.data.id`.
    """

    pattern: str
    scheme: str
    places: tuple[tuple[str, str], ...]


def parse_webhook(text: str) -> Webhook:
    """Parse one `webhook`: PATTERN=SCHEME, and after spaces the places of fields as FIELD=HEADER or FIELD=.MEMBER.

    Args:
        text: such as `github.*=github event=X-GitHub-Event dedup=X-GitHub-Delivery`.

    Raises:
        ConfigError: the text is malformed, or names an unknown scheme or field.
    """
    parts = _WEBHOOK.fullmatch(text)
    if parts is None:
        raise ConfigError(f"webhook: {text!r} is not PATTERN=SCHEME FIELD=HEADER …, with a scheme of {_or(SCHEMES)}")
    pattern, scheme, rest = parts.groups()
    check_pattern("webhook", pattern)
    places: dict[str, str] = {}
    for word in rest.split():
        field, _, place = word.partition("=")
        if field not in FIELDS:
            raise ConfigError(f"webhook: {field!r} is not one of {_or(FIELDS)}{hint(field, FIELDS)}")
        if field in places:
            raise ConfigError(f"webhook: {pattern}: {field} is given twice")
        if not (_MEMBER if place.startswith(".") else _HEADER).fullmatch(place):
            raise ConfigError(
                f"webhook: {word!r}: write the name of a header ({field}=X-Name) or of a member ({field}=.name)"
            )
        places[field] = place if place.startswith(".") else place.lower()
    return Webhook(pattern, scheme, tuple(places.items()))


def parse_webhooks(texts: Iterable[str]) -> tuple[Webhook, ...]:
    """Parse all values of the setting.

    Raises:
        ConfigError: a value is malformed, or two have the same pattern.
    """
    webhooks = tuple(map(parse_webhook, texts))
    patterns = [webhook.pattern for webhook in webhooks]
    for place, pattern in enumerate(patterns):
        if pattern in patterns[:place]:
            raise ConfigError(f"webhook: {pattern} is given twice; remove one")
    return webhooks


def find_webhook(webhooks: Iterable[Webhook], topic: str) -> Webhook | None:
    """Return the first webhook whose pattern matches a checked topic."""
    return next((each for each in webhooks if overlap(each.pattern, topic)), None)


def split_secret(setting: str, text: str, webhooks: Iterable[Webhook]) -> tuple[str, str]:
    """Split PATTERN=VALUE, where a webhook with a scheme has this pattern. The error never shows the value.

    Args:
        setting: `webhook-secret` or `webhook-secret-file`, for errors.
        text: the pattern, and a secret or the path of a file.
        webhooks: all webhooks.

    Raises:
        ConfigError: no webhook that checks signatures has this pattern, or the value is empty.
    """
    signed = [webhook.pattern for webhook in webhooks if webhook.scheme != "none"]
    found = [pattern for pattern in signed if text.startswith(f"{pattern}=")]
    if not found:
        known = f"; the patterns are {', '.join(signed)}" if signed else ""
        raise ConfigError(f"{setting}: a value does not begin with PATTERN= of a webhook with a scheme{known}")
    pattern = max(found, key=len)
    value = text[len(pattern) + 1 :]
    if not value:
        raise ConfigError(f"{setting}: {pattern}: the value is empty")
    return pattern, value


def check_secret(where: str, secret: str) -> None:
    """Check the length of a secret.

    Args:
        where: the setting and the pattern or the file, for the error. The error never shows the secret.
        secret: the secret.

    Raises:
        ConfigError: it is shorter than `SECRET_BYTES_MIN`.
    """
    if (size := len(secret.encode())) < SECRET_BYTES_MIN:
        raise ConfigError(
            f"{where}: the secret has {size} bytes, and needs at least {SECRET_BYTES_MIN}; create one with "
            "`openssl rand -hex 32`, and set it at the sender too"
        )


def _or(names: Iterable[str]) -> str:
    return ", ".join(names)
