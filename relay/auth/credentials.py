"""Credentials: tokens, keys and revocations from the files and the URL in the settings.

Owns the times at which the files and the JWKS are read. Never checks a request (`relay.auth.tokens`). At the start, a
source that cannot be read is an error. Later, relay logs the error and keeps the current credentials.
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
from relay.config.webhooks import check_secret, parse_webhooks, split_secret
from relay.errors import ConfigError

SKIPPED_SHOWN = 10
"""Maximum number of skipped lines or keys that one log line lists; the others are counted."""
_OLD_NAMES = {"jwt-key": "jwt-secret", "jwt-key-file": "jwt-public-key-file"}

_logger = logging.getLogger("relay.credentials")


class Credentials:
    """Keeps an `Auth` up to date.

    Args:
        config: the settings.
        own_token: the generated publish token, used if the settings contain none.
        wall: returns the Unix time in seconds.
        changed: called after a reload, because grants may have become invalid.

    Raises:
        ConfigError: a file cannot be read, or a key is unusable.
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
        self.auth.webhook_secrets = self._webhook_secrets()
        self.auth.admin_tokens = self._admin_tokens()
        self.fetched_s: float | None = None  # Unix time of the last successful fetch of the JWKS

    @property
    def keys_expire_s(self) -> float | None:
        """Unix time at which the last key expires; None without keys, or if a key states no expiry."""
        return None if self.auth.keys is None else self.auth.keys.expire_s

    def warn_of_old_names(self) -> None:
        """Log a warning for each deprecated setting in use."""
        given = {"jwt-key": self._config.jwt_key, "jwt-key-file": self._config.jwt_key_file}
        for old, new in _OLD_NAMES.items():
            if given[old]:
                _logger.warning("%s is deprecated and will be removed; use %s", old, new)

    def start(self, loop: AbstractEventLoop) -> None:
        """Start to fetch the JWKS, if it is set. Until it has arrived, requests with JWTs receive 503."""
        if self._jwks is not None:
            self._jwks.start(loop)

    def close(self) -> None:
        """Stop fetching."""
        if self._jwks is not None:
            self._jwks.close()

    def reload(self) -> None:
        """Reload each file and fetch the JWKS. If a file cannot be read, keep its current content."""
        for name, what, read in (
            ("tokens", "tokens", self._tokens),
            ("admin_tokens", "admin tokens", self._admin_tokens),
            ("revoked", "revocations", self._revoked),
            ("webhook_secrets", "secrets of webhooks", self._webhook_secrets),
            ("keys", "keys", lambda: self._keys() or self.auth.keys),
        ):
            try:
                setattr(self.auth, name, read())
            except ConfigError as error:
                _logger.error("kept the current %s: %s", what, error)
        if self._jwks is not None:
            self._jwks.refresh()
        _logger.info(
            "reloaded the credentials: %d tokens, %d admin tokens, %d secrets of webhooks, %d revoked",
            len(self.auth.tokens),
            len(self.auth.admin_tokens),
            sum(map(len, self.auth.webhook_secrets.values())),
            len(self.auth.revoked),
        )
        self._changed()

    def _tokens(self) -> frozenset[str]:
        config, more = self._config, frozenset[str]()
        if config.publish_token_file:
            listed = read_tokens(config.publish_token_file, "publish-token-file")
            more = self._items("publish-token-file", listed)
        return frozenset(config.publish_token) | more or frozenset({self._own_token})

    def _admin_tokens(self) -> frozenset[str]:
        config, more = self._config, frozenset[str]()
        if config.admin_token_file:
            more = self._items("admin-token-file", read_tokens(config.admin_token_file, "admin-token-file"))
            if not more:  # Without a token, everybody could read the paths.
                raise ConfigError(f"admin-token-file: {config.admin_token_file} contains no token")
        return frozenset(config.admin_token) | more

    def _webhook_secrets(self) -> dict[str, frozenset[str]]:
        """Return the secrets of each webhook by its pattern. A webhook without a secret is not in the result."""
        config, secrets = self._config, dict[str, frozenset[str]]()
        webhooks = parse_webhooks(config.webhook)
        for text in config.webhook_secret:
            pattern, secret = split_secret("webhook-secret", text, webhooks)
            secrets[pattern] = secrets.get(pattern, frozenset()) | {secret}
        for text in config.webhook_secret_file:
            pattern, path = split_secret("webhook-secret-file", text, webhooks)
            found = self._items("webhook-secret-file", read_tokens(path, "webhook-secret-file"))
            if not found:
                raise ConfigError(f"webhook-secret-file: {path} contains no secret")
            for secret in found:
                check_secret(f"webhook-secret-file: {path}", secret)
            secrets[pattern] = secrets.get(pattern, frozenset()) | found
        return secrets

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
        """Use fetched keys."""
        if self.auth.keys is None:
            _logger.info("fetched the JWKS: %d keys", len(keys))
        self.auth.keys, self.fetched_s = keys, self.auth.wall()
        self._note("jwt-jwks-url", "keys", keys.skipped)

    def _note(self, setting: str, items: str, skipped: tuple[object, ...]) -> None:
        """Log the skipped lines or keys, if they differ from the last ones."""
        if skipped and skipped != self._skipped.get(setting):
            shown = "; ".join(map(str, skipped[:SKIPPED_SHOWN]))
            more = f"; and {len(skipped) - SKIPPED_SHOWN} more" if len(skipped) > SKIPPED_SHOWN else ""
            _logger.warning("%s: skipped %d unusable %s: %s%s", setting, len(skipped), items, shown, more)
        self._skipped[setting] = skipped
