"""Credentials: tokens, keys and revocations, read from where the settings say, and read again when they change.

Owns when the files and the JWKS are read. Never judges a request (`relay.auth.tokens`). What cannot be read at the
start is an error; later it is logged, and what was read last stays in force.
"""

from __future__ import annotations

import logging
from asyncio import AbstractEventLoop
from collections.abc import Callable

from relay.auth.jwks import Jwks
from relay.auth.keys import Keys, read_file, read_public, read_secret
from relay.auth.lists import Listed, read_revoked, read_tokens
from relay.auth.tokens import Auth
from relay.config.model import Config
from relay.errors import ConfigError

SKIPPED_SHOWN = 10
"""Skipped lines and keys that one line of the log names; the others are counted."""
_OLD_NAMES = {"jwt-key": "jwt-secret", "jwt-key-file": "jwt-public-key-file"}

_logger = logging.getLogger("relay.credentials")


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
        self._skipped: dict[str, tuple[object, ...]] = {}
        url = config.jwt_jwks_url
        self._jwks = Jwks(url, config.jwt_jwks_refresh_s, self._take) if url else None
        unknown_key = self._jwks.ask if self._jwks is not None else None
        tokens, keys, revoked = self._tokens(), self._keys(), self._revoked()
        self.auth = Auth(config, tokens, keys, revoked, wall=wall, unknown_key=unknown_key)

    def warn_of_old_names(self) -> None:
        """Log which settings have a newer name."""
        given = {"jwt-key": self._config.jwt_key, "jwt-key-file": self._config.jwt_key_file}
        for old, new in _OLD_NAMES.items():
            if given[old]:
                _logger.warning("%s is an older spelling of %s, and will be removed", old, new)

    def start(self, loop: AbstractEventLoop) -> None:
        """Begin to fetch the JWKS, if the settings name one; until it has come, JWTs are answered 503."""
        if self._jwks is not None:
            self._jwks.start(loop)

    def close(self) -> None:
        """Fetch no more."""
        if self._jwks is not None:
            self._jwks.close()

    def reload(self) -> None:
        """Read the files again, each by itself, and fetch the JWKS; what cannot be read changes nothing."""
        try:
            self.auth.tokens = self._tokens()
        except ConfigError as error:
            _logger.error("the tokens stay as they were: %s", error)
        try:
            self.auth.revoked = self._revoked()
        except ConfigError as error:
            _logger.error("the revocations stay as they were: %s", error)
        try:
            self.auth.keys = self._keys() or self.auth.keys
        except ConfigError as error:
            _logger.error("the keys stay as they were: %s", error)
        if self._jwks is not None:
            self._jwks.refresh()
        _logger.info("credentials: %d tokens, %d revoked", len(self.auth.tokens), len(self.auth.revoked))
        self._changed()

    def _tokens(self) -> frozenset[str]:
        config, more = self._config, frozenset[str]()
        if config.publish_token_file:
            listed = read_tokens(config.publish_token_file, "publish-token-file")
            more = self._items("publish-token-file", listed)
        return frozenset(config.publish_token) | more or frozenset({self._own_token})

    def _revoked(self) -> frozenset[str]:
        path = self._config.jwt_revoked_file
        return self._items("jwt-revoked-file", read_revoked(path, "jwt-revoked-file")) if path else frozenset()

    def _items(self, setting: str, listed: Listed) -> frozenset[str]:
        self._note(setting, "lines", listed.skipped)
        return listed.items

    def _keys(self) -> Keys | None:
        config = self._config
        keys: Keys | None = None
        if config.jwt_secret:
            keys = read_secret(config.jwt_secret, "jwt-secret")
        elif config.jwt_key:
            keys = read_secret(config.jwt_key, "jwt-key")
        elif config.jwt_secret_file:
            keys = read_secret(read_file(config.jwt_secret_file, "jwt-secret-file"), "jwt-secret-file")
        elif path := config.jwt_public_key_file or config.jwt_key_file:
            name = "jwt-public-key-file" if config.jwt_public_key_file else "jwt-key-file"
            keys = read_public(read_file(path, name), name)
            self._note(name, "keys", keys.skipped)
        return keys

    def _take(self, keys: Keys) -> None:
        """Use keys that were fetched."""
        if self.auth.keys is None:
            _logger.info("fetched the JWKS: %d keys", len(keys))
        self.auth.keys = keys
        self._note("jwt-jwks-url", "keys", keys.skipped)

    def _note(self, setting: str, what: str, skipped: tuple[object, ...]) -> None:
        """Log what is skipped, where that is not what was skipped before."""
        if skipped and skipped != self._skipped.get(setting):
            shown = "; ".join(map(str, skipped[:SKIPPED_SHOWN]))
            more = f"; and {len(skipped) - SKIPPED_SHOWN} more" if len(skipped) > SKIPPED_SHOWN else ""
            _logger.warning("%s: skipped %d %s that cannot be used: %s%s", setting, len(skipped), what, shown, more)
        self._skipped[setting] = skipped
