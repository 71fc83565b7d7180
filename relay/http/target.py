"""The target of a request: its host, path and query (RFC 9112 section 3.2).

Owns the grammar of targets and of their percent escapes. Never interprets a path (`relay.front.routes`).
"""

from __future__ import annotations

import re
from urllib.parse import unquote_to_bytes

from relay.errors import RequestError

NAME = r"(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})"
IP_LITERAL = r"\[[A-Za-z0-9._~!$&'()*+,;=:-]+\]"
# RFC 9110 section 4.2: the host of a target is not empty and has no user information.
_ABSOLUTE = re.compile(rf"https?://({IP_LITERAL}|{NAME}+)(?::[0-9]*)?(?=[/?#]|$)", re.IGNORECASE)
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")


def parse_target(target: str, *, asterisk: bool) -> tuple[str, str, str, tuple[tuple[str, str], ...]]:
    """Split a request target: origin form, absolute form or, for OPTIONS, `*` (RFC 9112 section 3.2).

    Returns:
        The host (empty unless the form is absolute), the path as sent, the decoded path and the pairs of the query.
    """
    host = ""
    if not target.startswith("/") and (absolute := _ABSOLUTE.match(target)):
        host, target = absolute[1], target[absolute.end() :]
        target = target if target.startswith("/") else f"/{target}"
    if not target.startswith("/") and not (asterisk and target == "*"):
        raise RequestError(400, "malformed request target")
    if "#" in target:
        raise RequestError(400, "the request target contains a fragment (#)")
    raw_path, _, raw_query = target.partition("?")
    pairs = []
    for pair in raw_query.split("&") if raw_query else ():
        name, _, value = pair.partition("=")
        try:
            pairs.append((unescape(name.replace("+", " "), "query"), value))
        except RequestError:
            continue  # relay has no name that contains a malformed escape
    path = unescape(raw_path, "path")
    if "\0" in path:
        raise RequestError(400, "the path contains NUL")
    return host, raw_path, path, tuple(pairs)


def unescape(text: str, where: str) -> str:
    """Decode percent escapes to strict UTF-8; `where` names the part of the target in errors."""
    if "%" not in text:
        return text
    if _BAD_ESCAPE.search(text):
        raise RequestError(400, f"{where}: malformed percent escape")
    try:
        return unquote_to_bytes(text).decode()
    except UnicodeDecodeError:
        raise RequestError(400, f"{where}: a percent escape is not UTF-8") from None
