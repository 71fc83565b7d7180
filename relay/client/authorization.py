"""The credentials of a subscriber: a bearer token or a ticket, which may be new for each request.

Owns the calls of the functions that return them, and the decision whether to try again after a rejection. Never sends a
request.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING

from relay.errors import RelayError

if TYPE_CHECKING:
    import httpx

Provider = Callable[[bool], str | Awaitable[str]]
"""Returns a token or a ticket for one request. The argument is true if the server rejected the last one."""


_TOKEN = re.compile(r"[!-~]*")


def bearer(token: str) -> str:
    """Return the value of the header Authorization for a bearer token.

    Raises:
        RelayError: a header cannot contain the token. The error does not show it.
    """
    if not _TOKEN.fullmatch(token):
        raise RelayError("the token has a character other than visible ASCII, such as a line feed at its end")
    return f"Bearer {token}"


class Authorization:
    """The credentials of one subscription.

    Args:
        token: a bearer token, or a function that returns one for each request.
        ticket: a function that returns a ticket for each request. A ticket opens one stream.
    """

    def __init__(self, token: str | Provider | None = None, ticket: Provider | None = None) -> None:
        self._token = token
        self._ticket = ticket
        self._rejected = False

    async def add(self, address: httpx.URL, headers: Mapping[str, str]) -> tuple[httpx.URL, Mapping[str, str]]:
        """Return the address and the headers of one request, with its credentials.

        Raises:
            RelayError: a header cannot contain the token.
        """
        token = await self._current(self._token)
        ticket = await self._current(self._ticket)
        if token is not None:
            headers = {**headers, "Authorization": bearer(token)}
        if ticket is not None:
            address = address.copy_set_param("ticket", ticket)
        return address, headers

    def accept(self) -> None:
        """Record that the server has accepted the credentials."""
        self._rejected = False

    def reject(self) -> bool:
        """Record that the server has rejected the credentials. Return whether to try once more, with new ones."""
        was_rejected, self._rejected = self._rejected, True
        return not was_rejected and (callable(self._token) or self._ticket is not None)

    async def _current(self, source: str | Provider | None) -> str | None:
        if source is None or isinstance(source, str):
            return source
        current = source(self._rejected)
        return await current if inspect.isawaitable(current) else current
