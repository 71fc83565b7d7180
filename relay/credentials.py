"""Credentials: tokens, keys and revocations, read from where the settings say, and read again when they change.

Owns when the files and the JWKS are read. Never judges a request (`relay.auth`). What cannot be read at the start is an
error; later it is logged, and what was read last stays in force.
"""

from __future__ import annotations

import asyncio
import logging
import urllib.error
import urllib.request
from collections.abc import Callable

from relay.auth import Auth
from relay.config import Config
from relay.errors import ConfigError
from relay.keys import FILE_BYTES_MAX, Keys, read_file, read_keys, read_lines

FETCH_TIMEOUT_S = 10.0
FETCH_AGAIN_S = 5.0
"""Pause after a fetch that failed."""

_logger = logging.getLogger(__name__)


class Credentials:
    """Keeps an `Auth` up to date.

    Args:
        config: the settings.
        own_token: a token of this run, used where the settings name none.
        wall: the time of day in seconds.
        changed: called when what was valid may be so no more.

    Raises:
        ConfigError: a file cannot be read, or a key cannot be used.
    """

    def __init__(
        self, config: Config, own_token: str, *, wall: Callable[[], float], changed: Callable[[], None]
    ) -> None:
        self._config = config
        self._own_token = own_token
        self._changed = changed
        self._fetching: asyncio.Task[None] | None = None
        self.auth = Auth(config, self._tokens(), self._keys(), self._revoked(), wall=wall)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to fetch the JWKS, if the settings name one; until it is there, JWTs are answered 503."""
        if self._config.jwt_jwks_url:
            self._fetching = loop.create_task(self._fetch_for_ever())

    def close(self) -> None:
        """Fetch no more."""
        if self._fetching is not None:
            self._fetching.cancel()

    def reload(self) -> None:
        """Read the files again; one that cannot be read changes nothing."""
        try:
            tokens, keys, revoked = self._tokens(), self._keys(), self._revoked()
        except ConfigError as error:
            _logger.error("the credentials stay as they were: %s", error)
            return
        self.auth.tokens, self.auth.revoked = tokens, revoked
        if keys is not None:
            self.auth.keys = keys
        _logger.info("read the credentials again: %d tokens, %d revoked", len(tokens), len(revoked))
        self._changed()

    def _tokens(self) -> frozenset[str]:
        config = self._config
        more = read_lines(config.publish_token_file, "publish-token-file") if config.publish_token_file else frozenset()
        if not all("!" <= character <= "~" for token in more for character in token):
            raise ConfigError("publish-token-file: only visible ASCII characters, without spaces, fit into a header")
        return frozenset(config.publish_token) | more or frozenset({self._own_token})

    def _keys(self) -> Keys | None:
        config = self._config
        if config.jwt_key:
            return read_keys(config.jwt_key, "jwt-key")
        if config.jwt_key_file:
            return read_keys(read_file(config.jwt_key_file, "jwt-key-file"), "jwt-key-file")
        return None

    def _revoked(self) -> frozenset[str]:
        path = self._config.jwt_revoked_file
        return read_lines(path, "jwt-revoked-file") if path else frozenset()

    async def _fetch_for_ever(self) -> None:
        while True:
            try:
                text = await asyncio.to_thread(_fetch, self._config.jwt_jwks_url)
                self.auth.keys = read_keys(text, "jwt-jwks-url")
            except (OSError, ValueError, ConfigError) as error:
                _logger.error("the JWKS cannot be fetched, the keys stay as they were: %s", error)
                await asyncio.sleep(FETCH_AGAIN_S)
            else:
                await asyncio.sleep(self._config.jwt_jwks_refresh_s)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Keys come from where the settings say, and from nowhere else."""

    def redirect_request(self, *_: object) -> None:
        """Follow nothing."""


def _fetch(url: str) -> str:
    opener = urllib.request.build_opener(_NoRedirect)
    try:
        with opener.open(url, timeout=FETCH_TIMEOUT_S) as response:
            body: bytes = response.read(FILE_BYTES_MAX + 1)
    except urllib.error.HTTPError as error:
        with error:  # it holds the connection
            raise ValueError(f"HTTP status {error.code}") from None
    if len(body) > FILE_BYTES_MAX:
        raise ValueError(f"it is larger than {FILE_BYTES_MAX} bytes")
    return body.decode()
