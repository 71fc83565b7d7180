"""Uploads over a connection: the response to a publish request that stays open, and its signals.

Owns the response of an upload: its head, the answers to its lines, the signals of its topics, and its report. Never
reads or publishes a line (`relay.sources.upload`), and never changes the phase of a connection
(`relay.front.connection`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from relay.core.forms.framing import wrap
from relay.errors import RETRY_SOON, RequestError
from relay.front.publish import authorise
from relay.front.routes import PublishBody
from relay.http.request import Request
from relay.http.response import JSON, upload_head
from relay.sources.upload import Upload

if TYPE_CHECKING:
    from relay.front.connection import FrontProtocol


class UploadResponse:
    """The response to one upload. Its head is sent at once if the upload answers each line.

    Args:
        connection: the connection of the request.
        upload: the lines.
        request: the head of the request.
        route: its route.
    """

    __slots__ = ("_connection", "_is_chunked", "_request", "_route", "_upload")

    def __init__(self, connection: FrontProtocol, upload: Upload, request: Request, route: PublishBody) -> None:
        self._connection, self._upload, self._request, self._route = connection, upload, request, route
        self._is_chunked = request.version == "1.1"
        front = connection.front
        front.metrics.uploads += 1
        if upload.answering:
            headers = (("Date", front.dates.now()), *front.router.cors(request))
            connection.transport.write(upload_head(headers, chunked=self._is_chunked))
            upload.topics = front.signals.feeder(self._write_line)

    @property
    def is_paced(self) -> bool:
        """Whether the upload waits for its publish rate."""
        return self._upload.is_paced

    def serve(self) -> bool:
        """Publish the next lines, or read more; return False if no more input has arrived.

        Raises:
            RequestError: the input is malformed, the token is no longer valid, or all uploads must end.
        """
        connection, upload = self._connection, self._upload
        if not connection.front.takes_uploads:
            raise uploads_end()
        if upload.fill():
            authorise(connection.front, self._request, self._route)  # The token may have expired, or may be revoked.
            connection.wait_for(upload.publish, self._published)
        elif upload.ended:
            self.end(None)
        elif not upload.decoding:
            data, ended = connection.parser.body_part()
            if not data and not ended:
                return False
            upload.receive(data, ended=ended)
        return True

    def _published(self, _: None) -> None:
        self._send_answers()
        self._connection.wait_for_more()

    def _send_answers(self, rest: bytes = b"") -> None:
        """Send the answers of the upload, and `rest`."""
        answers = self._upload.take_answers() + rest
        if answers and not self._connection.transport.is_closing():
            self._write(answers)

    def _write_line(self, line: bytes) -> bool:
        """Send a signal to the client of the upload, unless the client does not read."""
        if not self._connection.can_write:
            return False
        self._write(line)
        return True

    def _write(self, data: bytes) -> None:
        self._connection.transport.write(wrap(data) if self._is_chunked else data)

    def end(self, error: RequestError | None) -> None:
        """Send the report of the upload; without answers to its lines, it is the whole response."""
        connection, report = self._connection, self._upload.report(error)
        if not self._upload.answering:
            headers = JSON if error is None else (*JSON, *error.headers)
            connection.respond(200 if error is None else error.status, headers, report)
            return
        self._send_answers(report)
        connection.answer(b"0\r\n\r\n" if self._is_chunked else b"", keep=False)

    def lost(self) -> None:
        """Log that the client has closed the connection before the end of the upload."""
        lines = f"{self._upload.published} lines are published, {self._upload.rejected} are rejected"
        connection = self._connection
        connection.front.errors.report("unpublished", "lost the upload of %s: %s", connection.address(), lines)

    def close(self) -> None:
        """Release everything that the upload holds."""
        if self._upload.topics is not None:
            self._upload.topics.close()
        self._connection.front.metrics.uploads -= 1


def uploads_end() -> RequestError:
    """Return the error of an upload that a drain or an upgrade ends."""
    return RequestError(503, "the server is draining or is being replaced; connect again and send the rest", RETRY_SOON)
