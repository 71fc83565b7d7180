"""The JWKS: public keys, fetched periodically from a URL.

Owns the times of the fetches and the checks of the response. After an error, it keeps the current keys, logs the reason
and tries again. It does not follow redirects: keys come only from the URL in the settings. Never parses a key
(`relay.auth.keys`) and never checks a token.

Theory of operation. After a success, the next fetch starts after `jwt-jwks-refresh`, or at once when a token names an
unknown key. The latter happens at most every `ASKED_EVERY_S`, because any client can name a key that does not exist.
After a failure, the pause doubles from `AGAIN_S` to `AGAIN_S_MAX`; unknown keys do not shorten it. SIGHUP ends every
pause.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import ssl
from collections.abc import Callable

from relay.auth.keys import FILE_BYTES_MAX, Keys, read_jwks
from relay.backoff import Backoff, half_jitter
from relay.errors import ConfigError, RelayError
from relay.extras import need_httpx

SETTING = "jwt-jwks-url"
TIMEOUT_S = 10.0
"""Time limit of a fetch, from the name lookup to the last byte."""
AGAIN_S = 1.0
AGAIN_S_MAX = 60.0
"""Pauses after a failed fetch. Each is shortened randomly by up to half, so that several relays spread out."""
ASKED_EVERY_S = 10.0
"""Minimum time between two fetches for unknown keys."""

_HEADERS = {"Accept": "application/jwk-set+json, application/json", "Accept-Encoding": "identity"}

_logger = logging.getLogger("relay.jwks")


class Jwks:
    """Fetches one JWKS from `start()` until `close()`.

    Args:
        url: the URL of the JWKS.
        refresh_s: the pause after a success, in seconds.
        take: receives the keys.

    Raises:
        ConfigError: httpx is not installed, or the URL is malformed.
    """

    def __init__(self, url: str, refresh_s: float, take: Callable[[Keys], None]) -> None:
        try:
            need_httpx("auth")
        except RelayError as error:
            raise ConfigError(f"{SETTING}: {error}") from None
        import httpx

        try:
            self._url = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise ConfigError(f"{SETTING}: malformed URL: {error}") from None
        self._refresh_s = refresh_s
        self._take = take
        self._task: asyncio.Task[None] | None = None
        self._asked = asyncio.Event()
        self._asked_s = -math.inf
        self._resting = False  # the last fetch succeeded, and the next has not begun
        self._fetching = False

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start to fetch."""
        self._task = loop.create_task(self._run())

    def close(self) -> None:
        """Stop fetching."""
        if self._task is not None:
            self._task.cancel()

    def ask(self) -> bool:
        """Request a fetch for an unknown key, if the limit allows one; return whether a fetch is in progress."""
        now_s = asyncio.get_running_loop().time()
        if self._resting and now_s - self._asked_s >= ASKED_EVERY_S:
            self._asked_s = now_s
            self._resting, self._fetching = False, True
            self._asked.set()
        return self._fetching

    def refresh(self) -> None:
        """Start the next fetch at once, even after a failure."""
        self._asked.set()

    async def _run(self) -> None:
        backoff = Backoff(AGAIN_S, AGAIN_S_MAX, half_jitter)
        while True:
            self._fetching = True
            fetched = await self._try()
            self._fetching = False
            if fetched:
                backoff.reset()
                pause_s = self._refresh_s
            else:
                pause_s = backoff.next_s()
                _logger.error("kept the current keys; next fetch in %.1f s", pause_s)
            self._asked.clear()
            self._resting = fetched
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._asked.wait()
            self._resting = False

    async def _try(self) -> bool:
        """Fetch once, and log an error; return whether it succeeded."""
        import httpx

        try:
            keys = await asyncio.to_thread(read_jwks, await self._fetch(), SETTING)
        except TimeoutError:
            _logger.error("cannot fetch the JWKS: no complete response within %.0f s", TIMEOUT_S)
        except (httpx.HTTPError, httpx.StreamError, OSError, ValueError) as error:
            _logger.error("cannot fetch the JWKS: %s: %s", type(error).__name__, error)
        except ConfigError as error:
            _logger.error("cannot use the JWKS: %s", error)
        except Exception:
            _logger.exception("cannot fetch the JWKS")  # the outermost callback of this task
        else:
            self._take(keys)
            return True
        return False

    async def _fetch(self) -> str:
        """Return the body of a response with status 200.

        Raises:
            ValueError: the response has another status, is compressed, too large or not UTF-8.
        """
        import httpx

        # This reads a large file. In the event loop, it would delay every stream.
        trusted = await asyncio.to_thread(ssl.create_default_context)
        client = httpx.AsyncClient(verify=trusted, timeout=TIMEOUT_S, follow_redirects=False)
        async with asyncio.timeout(TIMEOUT_S), client, client.stream("GET", self._url, headers=_HEADERS) as response:
            if response.is_redirect:
                raise ValueError(f"HTTP status {response.status_code}, a redirect; set the URL of its target")
            if response.status_code != 200:
                raise ValueError(f"HTTP status {response.status_code}")
            coding = response.headers.get("Content-Encoding", "identity")
            if coding.lower() != "identity":
                raise ValueError(f"the response is compressed ({coding[:20]!r}), but the request asked for identity")
            body = bytearray()
            async for piece in response.aiter_raw():
                body += piece
                if len(body) > FILE_BYTES_MAX:
                    raise ValueError(f"the response is larger than {FILE_BYTES_MAX} bytes")
        return body.decode()
