"""The files of tokens and of revocations, with one entry per line.

Owns the format of a line. An unusable line is skipped and does not make the file unusable: otherwise a typing error
would prevent every later change, such as a revocation, from taking effect. Never shows the text of a skipped line, only
its number.
"""

from __future__ import annotations

import re
from codecs import BOM_UTF8
from collections.abc import Iterator
from dataclasses import dataclass

from relay.auth.keys import read_bytes
from relay.errors import ConfigError

LINES_MAX = 100_000

_LINE_END = re.compile(rb"\r\n|\r|\n")
_COMMENT = re.compile(r"\s#")
_VISIBLE = re.compile(r"[!-~]+")


@dataclass(frozen=True, slots=True)
class Listed:
    """The content of a file.

    Args:
        items: the tokens, or the revoked subjects and token ids.
        skipped: the numbers of the unusable lines.
    """

    items: frozenset[str]
    skipped: tuple[int, ...]


def read_tokens(path: str, setting: str) -> Listed:
    """Read a file of bearer tokens, one per line, in visible ASCII; after white space, `#` begins a comment.

    Raises:
        ConfigError: the file cannot be read, is too large, or has no usable line.
    """
    items, skipped = set(), []
    for number, line in _lines(path, setting):
        token = _without_comment(line)
        if token is not None and _VISIBLE.fullmatch(token):
            items.add(token)
        else:
            skipped.append(number)
    if skipped and not items:
        raise ConfigError(f"{setting}: no line of {path} is a token; a token is visible ASCII without spaces")
    return Listed(frozenset(items), tuple(skipped))


def read_revoked(path: str, setting: str) -> Listed:
    """Read a file of revoked subjects and token ids, one per line.

    A subject may contain ` #`. So such a line revokes both the whole line and the part before ` #`.

    Raises:
        ConfigError: the file cannot be read, or is too large.
    """
    items: set[str] = set()
    skipped = []
    for number, line in _lines(path, setting):
        if line is None:
            skipped.append(number)
        else:
            items.update((line, _without_comment(line) or line))
    return Listed(frozenset(items), tuple(skipped))


def _without_comment(line: str | None) -> str | None:
    return None if line is None else _COMMENT.split(line, maxsplit=1)[0].rstrip()


def _lines(path: str, setting: str) -> Iterator[tuple[int, str | None]]:
    """Yield the number and text of each line that is not empty or a comment; the text is None if not UTF-8."""
    lines = _LINE_END.split(read_bytes(path, setting).removeprefix(BOM_UTF8))
    if len(lines) > LINES_MAX + 1:
        raise ConfigError(f"{setting}: {path} has more than {LINES_MAX} lines")
    for number, line in enumerate(lines, 1):
        try:
            text = line.decode().strip()
        except UnicodeDecodeError:
            yield number, None
            continue
        if text and not text.startswith("#"):
            yield number, text
