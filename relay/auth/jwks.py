"""The JWKS: public keys, fetched from an address again and again.

Owns when they are fetched, and what an answer may look like. Whatever goes wrong, the keys that were fetched last stay
in force, the log says why, and the next try comes. Redirects are not followed: keys come from the address in the
settings and from nowhere else. Never reads a key (`relay.auth.keys`) and never judges a token.

Theory of operation. After a success, the next fetch comes after `jwt-jwks-refresh`, or at once when a token names an
unknown key; the latter at most every `ASKED_EVERY_S`, since anybody can name keys that do not exist. After a failure,
the pause doubles from `AGAIN_S` to `AGAIN_S_MAX`, and unknown keys do not cut it short. SIGHUP cuts every pause short.
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
"""Longest fetch, from the look-up of the name to the last byte."""
AGAIN_S = 1.0
AGAIN_S_MAX = 60.0
"""Pauses after a fetch that failed; each is shortened by up to a half, by chance, so that many relays spread out."""
ASKED_EVERY_S = 10.0
"""Least time between two fetches because of unknown keys."""

_HEADERS = {"Accept": "application/jwk-set+json, application/json", "Accept-Encoding": "identity"}

_logger = logging.getLogger("relay.jwks")


class Jwks:
    """Fetches one JWKS from `start()` until `close()`.

    Args:
        url: the address.
        refresh_s: the pause after a success.
        take: receives the keys.

    Raises:
        ConfigError: httpx is not installed, or the address is malformed.
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
            raise ConfigError(f"{SETTING}: the address is malformed: {error}") from None
        self._refresh_s = refresh_s
        self._take = take
        self._task: asyncio.Task[None] | None = None
        self._asked = asyncio.Event()
        self._asked_s = -math.inf
        self._resting = False  # a success is behind it, and the next fetch has not begun
        self._fetching = False

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin."""
        self._task = loop.create_task(self._run())

    def close(self) -> None:
        """Fetch no more."""
        if self._task is not None:
            self._task.cancel()

    def ask(self) -> bool:
        """Have the keys fetched at once, if they may be; return whether they are being fetched."""
        now_s = asyncio.get_running_loop().time()
        if self._resting and now_s - self._asked_s >= ASKED_EVERY_S:
            self._asked_s = now_s
            self._resting, self._fetching = False, True
            self._asked.set()
        return self._fetching

    def refresh(self) -> None:
        """Have the keys fetched at once, whatever came of the last fetch."""
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
                _logger.error("the keys stay as they were; the next try comes in %.1f s", pause_s)
            self._asked.clear()
            self._resting = fetched
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._asked.wait()
            self._resting = False

    async def _try(self) -> bool:
        """Fetch once; log what goes wrong."""
        import httpx

        try:
            keys = await asyncio.to_thread(read_jwks, await self._fetch(), SETTING)
        except TimeoutError:
            _logger.error("the JWKS cannot be fetched: there was no whole answer within %.0f s", TIMEOUT_S)
        except (httpx.HTTPError, httpx.StreamError, OSError, ValueError) as error:
            _logger.error("the JWKS cannot be fetched: %s: %s", type(error).__name__, error)
        except ConfigError as error:
            _logger.error("the JWKS cannot be used: %s", error)
        except Exception:
            _logger.exception("the JWKS cannot be fetched")  # the outermost callback of this task
        else:
            self._take(keys)
            return True
        return False

    async def _fetch(self) -> str:
        """Return the body of an answer 200.

        Raises:
            ValueError: the answer is another, is compressed, too large or not UTF-8.
        """
        import httpx

        # Reads a large file: on the loop it would delay every stream.
        trusted = await asyncio.to_thread(ssl.create_default_context)
        client = httpx.AsyncClient(verify=trusted, timeout=TIMEOUT_S, follow_redirects=False)
        async with asyncio.timeout(TIMEOUT_S), client, client.stream("GET", self._url, headers=_HEADERS) as response:
            if response.is_redirect:
                raise ValueError(f"HTTP status {response.status_code}, a redirect; set the address that it leads to")
            if response.status_code != 200:
                raise ValueError(f"HTTP status {response.status_code}")
            coding = response.headers.get("Content-Encoding", "identity")
            if coding.lower() != "identity":
                raise ValueError(f"the answer is compressed ({coding[:20]!r}), though it was asked not to be")
            body = bytearray()
            async for piece in response.aiter_raw():
                body += piece
                if len(body) > FILE_BYTES_MAX:
                    raise ValueError(f"the answer is larger than {FILE_BYTES_MAX} bytes")
        return body.decode()
