"""The files of tokens and of revocations, with one entry per line.

Owns the format of a line. An unusable line is skipped and does not make the file unusable: otherwise a typing error
would prevent every later change, such as a revocation, from taking effect. A file that is a document, such as the page
of an error that a download left, is unusable as a whole. Otherwise its lines would become tokens, and revocations would
be lost. Never shows the text of a skipped line, only its number.
"""

from __future__ import annotations

import contextlib
import json
import re
from codecs import BOM_UTF8
from collections.abc import Iterator
from dataclasses import dataclass

from relay.auth.keys import read_bytes
from relay.errors import ConfigError

LINES_MAX = 100_000

_PAGE = re.compile(rb"\s*<(?:!doctype|\?xml|html|head|body)\b", re.IGNORECASE)
_PEM = re.compile(rb"^\s*-----BEGIN ", re.MULTILINE)
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
        ConfigError: the file cannot be read, is too large, is a document, or has no usable line.
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
        ConfigError: the file cannot be read, is too large, or is a document.
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
    data = read_bytes(path, setting).removeprefix(BOM_UTF8)
    if kind := _document_kind(data):
        raise ConfigError(f"{setting}: {path} is {kind}, and not a list with one entry per line")
    lines = _LINE_END.split(data)
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


def _document_kind(data: bytes) -> str:
    """Return the kind of a document; empty for a list."""
    if _PAGE.match(data):
        return "a page of HTML or XML"
    if _PEM.search(data):
        return "a PEM file"
    if data.lstrip()[:1] in (b"{", b"["):
        with contextlib.suppress(ValueError, RecursionError):
            json.loads(data)
            return "JSON"
    return ""
