"""Opens a stream of another server, or polls it, over HTTP: redirects, content codings and error responses.

The server is not trusted. Waits, redirects and decompression therefore have limits. The text of an error never contains
the query of an address, which may contain a token.

Owns these limits and the check that a response is a stream. Never waits before a new attempt and never parses
events.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import ssl
import zlib
from collections.abc import AsyncGenerator, Collection, Iterator, Mapping
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import TYPE_CHECKING

import msgspec

from relay.errors import EventError, LostError, RelayError, RequestError

if TYPE_CHECKING:
    import httpx

RETRY_AFTER_S_MAX = 300.0
"""Longest reconnection time that a server can request, by `retry` or by `Retry-After`."""

SSE = "text/event-stream"
NDJSON = "application/x-ndjson"
"""Content types of the streams that the client reads."""

UNTRUSTED = (2, 18, 19, 20, 21)
"""OpenSSL's verification errors for a certificate whose issuer is not trusted (`X509_V_ERR_…` in x509_vfy.h)."""

REDIRECTS_MAX = 10
"""Redirects followed for one attempt; browsers follow 20."""

INFLATED_PIECE_BYTES = 64 * 1024
"""Most bytes that are decompressed at once."""

INFLATED_FREE_BYTES = 1024 * 1024
INFLATED_RATIO_MAX = 250
"""Largest expansion of a compressed stream after the first MiB. Event streams reach about 50, a bomb 1,000."""

REASON_BYTES_MAX = 4096
"""Most bytes of an error response that are read."""
REASON_CHARACTERS_MAX = 400
"""Most characters of an error response that are shown."""


def no_cookies() -> CookieJar:
    """Return a cookie jar that stays empty, so that a server cannot fill memory or later requests with cookies."""
    return CookieJar(DefaultCookiePolicy(allowed_domains=[]))


async def listen(
    client: httpx.AsyncClient, request: httpx.Request, private: Collection[str], open_s_max: float
) -> AsyncGenerator[str | bytes, None]:
    """Open one stream and yield its content type, `SSE` or `NDJSON`, then its bytes. Return only after 204.

    Args:
        client: sends the request.
        request: the first request.
        private: names of headers that a redirect to another origin removes.
        open_s_max: time limit for all redirects, the head of the response and the text of an error response.

    Raises:
        LostError: a new attempt may succeed.
        RelayError: the server rejects the request, or the response is not an event stream.
    """
    with _translated(request, open_s_max):
        async with asyncio.timeout(open_s_max):
            response = await _open(client, request, private, (SSE, NDJSON))
        async with contextlib.aclosing(response):
            if response.status_code == 204:
                return
            yield _media_type(response)
            inflater = _Inflater() if _coding(response) == "gzip" else None
            async for data in response.aiter_raw():
                for piece in inflater.feed(data) if inflater is not None else (data,):
                    if piece:
                        yield piece
        raise LostError("the server closed the stream")


async def fetch(
    client: httpx.AsyncClient,
    request: httpx.Request,
    private: Collection[str],
    answer_s_max: float,
    media_type: str,
    bytes_max: int,
) -> bytes | None:
    """Make one request and return its body; None after 204.

    Args:
        client: sends the request.
        request: the first request.
        private: names of headers that a redirect to another origin removes.
        answer_s_max: time limit for all redirects and the whole response.
        media_type: the only accepted content type.
        bytes_max: largest body.

    Raises:
        LostError: a new attempt may succeed.
        RelayError: the server rejects the request, or the response has another content type.
    """
    with _translated(request, answer_s_max):
        async with asyncio.timeout(answer_s_max):
            response = await _open(client, request, private, (media_type,))
            async with contextlib.aclosing(response):
                if response.status_code == 204:
                    return None
                if _coding(response):
                    raise LostError("the answer to a poll is compressed, although the client requested identity")
                body = bytearray()
                async for data in response.aiter_raw():
                    body += data
                    if len(body) > bytes_max:
                        raise LostError(f"the answer to a poll is larger than {bytes_max} bytes")
                return bytes(body)


@contextlib.contextmanager
def _translated(request: httpx.Request, s_max: float) -> Iterator[None]:
    """Turn the errors of httpx into errors of relay."""
    import httpx

    try:
        yield
    except TimeoutError:
        raise LostError(f"the server did not respond within {s_max:g} s") from None
    except (httpx.UnsupportedProtocol, httpx.LocalProtocolError) as error:
        reason = str(error)
        if "header value" in reason:  # It shows the value, which may be a token.
            reason = "the value of a header has a character that HTTP does not allow, such as a line feed"
        raise RelayError(f"{shown(request.url)}: {reason}") from None
    except httpx.TransportError as error:
        if fault := certificate_fault(error):
            raise RelayError(f"{shown(request.url)}: {'; '.join(fault)}") from None
        raise LostError(f"{type(error).__name__}: {error}".removesuffix(": ")) from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise RelayError(f"{shown(request.url)}: {error}") from error


def certificate_fault(error: BaseException) -> tuple[str, str] | None:
    """Return the reason why the verification of a certificate failed, and the remedy; None for any other error.

    Args:
        error: an error of httpx. Its causes include the error of TLS.
    """
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ssl.SSLCertVerificationError):
        cause = cause.__cause__ or cause.__context__
    if cause is None:
        return None
    remedy = "correct the address, or the certificate of the server"
    if cause.verify_code in UNTRUSTED:
        remedy = "trust its issuer with --ca FILE (in Python: ca=FILE), a PEM file"
    return f"CERTIFICATE_VERIFY_FAILED: {cause.verify_message}", remedy


def shown(url: httpx.URL) -> str:
    """Return an address for messages: without user, password, query and fragment."""
    return str(url.copy_with(query=None, userinfo=b"", fragment=None))


async def _open(
    client: httpx.AsyncClient, request: httpx.Request, private: Collection[str], media_types: Collection[str]
) -> httpx.Response:
    """Send a request, follow redirects, and return a response that has one of the content types or is 204."""
    for _ in range(REDIRECTS_MAX + 1):
        response = await client.send(request, stream=True, follow_redirects=False)
        try:
            following = response.next_request
            if following is None:
                await _check(response, media_types)
                return response
        except BaseException:
            await response.aclose()
            raise
        await response.aclose()
        request = _redirected(request, following, private)
    raise RelayError(f"{shown(request.url)}: more than {REDIRECTS_MAX} redirects")


def _redirected(request: httpx.Request, following: httpx.Request, private: Collection[str]) -> httpx.Request:
    """Check the target of a redirect. For another origin, remove all headers that are private to the first."""
    here, there = request.url, following.url
    if there.scheme not in ("http", "https"):
        raise RelayError(f"{shown(here)} redirects to an address that is not http or https: {shown(there)}")
    if here.scheme == "https" and there.scheme == "http":
        raise RelayError(f"{shown(here)} redirects from https to http, which relay does not follow: {shown(there)}")
    if (here.scheme, here.host, here.port) != (there.scheme, there.host, there.port):
        for name in (*private, "Authorization", "Cookie"):
            following.headers.pop(name, None)
        # httpx copies the user and password of the first address.
        following.url = there.copy_with(userinfo=b"")
    return following


def is_temporary(status: int) -> bool:
    """Return whether a later request may succeed after a response with this status."""
    return status in (408, 429) or status >= 500


async def _check(response: httpx.Response, media_types: Collection[str]) -> None:
    """Accept a response of these content types or 204.

    Raises:
        LostError: a temporary failure.
        RelayError: a permanent failure.
    """
    status = response.status_code
    if is_temporary(status):
        raise LostError(str(await refusal(response)), retry_after_s(response.headers))
    if status >= 400:
        raise await refusal(response)
    if status == 204:
        return
    media = _media_type(response)
    if status != 200 or media not in media_types:
        wanted = "an event stream" if SSE in media_types else " or ".join(media_types)
        given = f"status {status}, content type {media[:100] or 'missing'}"
        raise RelayError(f"{shown(response.url)} did not respond with {wanted}: {given}")
    coding = _coding(response)
    if coding not in ("", "gzip"):
        supported = "relay requested identity, and supports only gzip"
        raise RelayError(f"{shown(response.url)} responded with the content coding {coding[:100]!r}: {supported}")


def _media_type(response: httpx.Response) -> str:
    return str(response.headers.get("Content-Type", "")).partition(";")[0].strip().lower()


def _coding(response: httpx.Response) -> str:
    coding = str(response.headers.get("Content-Encoding", "")).strip().lower()
    return {"identity": "", "x-gzip": "gzip"}.get(coding, coding)


def retry_after_s(headers: Mapping[str, str]) -> float:
    """Read Retry-After (RFC 9110 section 10.2.3): seconds, or a date relative to the response's Date.

    Args:
        headers: the headers of a response; their names are in lower case, or compared without case.
    """
    text = headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return min(float(text), RETRY_AFTER_S_MAX)
    try:
        then = email.utils.parsedate_to_datetime(text)
        wait = then - email.utils.parsedate_to_datetime(headers.get("date", ""))
    except (TypeError, ValueError):
        return 0.0
    return min(max(wait.total_seconds(), 0.0), RETRY_AFTER_S_MAX)


class _Inflater:
    """Decompresses gzip (RFC 1952) in pieces of bounded size, and limits the expansion."""

    def __init__(self) -> None:
        self._member = zlib.decompressobj(wbits=31)
        self._bytes_in = 0
        self._bytes_out = 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Decompress the next bytes.

        Raises:
            LostError: the data is not gzip, or expands too much.
        """
        self._bytes_in += len(data)
        piece = b""
        while data or len(piece) == INFLATED_PIECE_BYTES:
            if self._member.eof:
                self._member = zlib.decompressobj(wbits=31)
            try:
                piece = self._member.decompress(data, INFLATED_PIECE_BYTES)
            except zlib.error as error:
                raise LostError(f"the stream has Content-Encoding gzip, but is not gzip: {error}") from None
            data = self._member.unused_data if self._member.eof else self._member.unconsumed_tail
            self._bytes_out += len(piece)
            if self._bytes_out > max(INFLATED_FREE_BYTES, INFLATED_RATIO_MAX * self._bytes_in):
                raise LostError(f"the compressed stream expands more than {INFLATED_RATIO_MAX} times")
            yield piece


async def refusal(response: httpx.Response) -> RelayError:
    """Convert an error response into an error: an EventError if it names a field, else a RequestError."""
    text = b""
    # A compressed body from an untrusted server could expand without limit.
    if response.is_closed or "Content-Encoding" not in response.headers:
        async for data in response.aiter_bytes():
            text += data
            if len(text) >= REASON_BYTES_MAX:
                break
    reason, field = text[:REASON_BYTES_MAX].decode(errors="replace"), None
    with contextlib.suppress(msgspec.DecodeError, RecursionError):
        answer = msgspec.json.decode(text)
        if isinstance(answer, dict):
            reason, field = str(answer.get("error", reason)), answer.get("field")
    if _media_type(response) == "text/html" or reason.lstrip().startswith("<"):
        server = response.headers.get("Server") or "another server"
        reason = f"an HTML page of {server[:60]}, not an answer of relay; check the address, and the paths of the proxy"
    reason = _line(reason)
    if isinstance(field, str):
        return EventError(field, reason.removeprefix(f"{field}: "))
    shown = f"{response.status_code}: {reason or response.reason_phrase}"
    return RequestError(response.status_code, shown, tuple(response.headers.items()))


def _line(text: str) -> str:
    """Shorten the text of a response, and replace unprintable characters, for one line of a log."""
    line = " ".join(text.split())[:REASON_CHARACTERS_MAX]
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line)
