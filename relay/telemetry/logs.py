"""The log: text on a terminal, otherwise one JSON object per line.

Owns the formats, the one handler and its thread. Never decides which messages are logged.
"""

from __future__ import annotations

import logging
import os
import re
import select
import signal
import sys
import threading
import time
from collections import deque
from types import TracebackType
from typing import TextIO

from pythonjsonlogger.json import JsonFormatter

STANDARD_ERROR = 2

QUEUED_LINES_MAX = 10_000
"""Most lines that are queued while the reader of the log stalls."""

QUEUED_BYTES_MAX = 1024 * 1024
"""Most bytes of these lines."""

FLUSH_S = 2.0
"""Longest time that a process waits for a stalled reader before it exits."""

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class TextFormatter(logging.Formatter):
    """`12:00:01 warning hub: message key=value`. Control characters in the line are escaped."""

    def format(self, record: logging.LogRecord) -> str:
        """Format one record as one line, followed by its traceback if it has one."""
        extra = [f" {key}={value}" for key, value in vars(record).items() if key not in _STANDARD]
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        name = record.name.removeprefix("relay.")
        line = f"{clock} {record.levelname.lower():7} {name}: {record.getMessage()}{''.join(extra)}"
        line = _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), line)
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


class QueueingHandler(logging.Handler):
    """Passes lines to a thread that writes them, so that a stalled reader never blocks the event loop.

    The queue is bounded. When it is full, new lines are dropped and counted until the thread has written the whole
    queue. Then one line states how many were dropped.

    Args:
        fd: receives the lines. Its mode is not changed, because other processes, such as a shell, may share it.
    """

    def __init__(self, fd: int) -> None:
        super().__init__()
        self.dropped = 0
        self._fd = fd
        self._lines: deque[bytes] = deque()
        self._bytes = 0
        self._told = 0  # dropped lines that the log has already reported
        self._dropping = False
        self._closed = False
        self._stuck = False  # the last flush timed out
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._write_lines, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue one record."""
        try:
            line = self.format(record)
        except Exception:  # noqa: BLE001 (the handlers of logging do the same)
            self.handleError(record)
            return
        self.say(line)

    def say(self, line: str) -> None:
        """Queue one line, in order with the records."""
        data = (line + "\n").encode("utf-8", "backslashreplace")
        with self._changed:
            full = len(self._lines) >= QUEUED_LINES_MAX or self._bytes + len(data) > QUEUED_BYTES_MAX
            self._dropping = self._dropping or (full and bool(self._lines))
            if self._dropping:
                self.dropped += 1
                return
            self._lines.append(data)
            self._bytes += len(data)
            self._changed.notify_all()

    def flush(self) -> None:
        """Wait until the queue is written. Give up after `FLUSH_S`; after a timeout, the next call does not wait."""
        with self._changed:
            wait_s = 0.0 if self._stuck else FLUSH_S
            self._stuck = not self._changed.wait_for(lambda: not (self._lines or self._dropping), wait_s)

    def close(self) -> None:
        """Write the queue, then stop the thread."""
        self.flush()
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        super().close()

    def _write_lines(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # The main thread handles signals.
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._lines or self._dropping or self._closed)
                if not self._lines and self._dropping:
                    self._dropping = False
                    self._lines.append(self._loss())
                    self._bytes += len(self._lines[0])
                if not self._lines:
                    return
                line = self._lines[0]
            written = self._write(line)
            with self._changed:
                self._lines.popleft()
                self._bytes -= len(line)
                self.dropped += not written
                self._changed.notify_all()

    def _loss(self) -> bytes:
        """Format the line that states how many lines were dropped."""
        lost, self._told = self.dropped - self._told, self.dropped
        text = f"{lost} lines of the log were dropped, because its reader stalled"
        record = logging.LogRecord(__name__, logging.WARNING, __file__, 0, text, None, None)
        return (self.format(record) + "\n").encode("utf-8", "backslashreplace")

    def _write(self, line: bytes) -> bool:
        """Write one line. Return False if that fails, such as after the reader has closed or on a full disk."""
        left = memoryview(line)
        while left:
            try:
                left = left[os.write(self._fd, left) :]
            except BlockingIOError:  # Another process has made the shared descriptor non-blocking.
                select.select([], [self._fd], [])
            except OSError:
                return False
        return True


_queueing: QueueingHandler | None = None


def set_up(level: str, form: str, stream: TextIO | None = None) -> None:
    """Set the level, format and destination of the log. A later call replaces an earlier one.

    Args:
        level: `debug`, `info`, `warning` or `error`, for relay's own loggers. Loggers of libraries use `warning`.
        form: `text`, `json`, or `auto` (text on a terminal, otherwise JSON).
        stream: receives the log; writes may block. If None, the log goes to standard error and never blocks the caller.
    """
    global _queueing
    if form == "auto":
        form = "text" if (stream or sys.stderr).isatty() else "json"
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
        old.close()
    _queueing = QueueingHandler(STANDARD_ERROR) if stream is None else None
    handler = _queueing or logging.StreamHandler(stream)
    handler.setFormatter(TextFormatter() if form == "text" else _json_formatter())
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    set_level(level)
    if _queueing is not None:
        sys.excepthook = _log_crash


def current_level() -> str:
    """Return the level of relay's own loggers."""
    return logging.getLevelName(logging.getLogger("relay").level).lower()


def set_level(level: str) -> None:
    """Set the level of relay's own loggers: `debug`, `info`, `warning` or `error`."""
    logging.getLogger("relay").setLevel(level.upper())


def _log_crash(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """Log the exception that ends the process instead of printing it."""
    logging.getLogger("relay.logs").critical("relay failed", exc_info=(kind, error, traceback))


def dropped() -> int:
    """Return the number of log lines that this process has dropped."""
    return 0 if _queueing is None else _queueing.dropped


def say(line: str) -> None:
    """Write a line that is not a record, such as a command's error, to standard error, in order with the log."""
    if _queueing is None:
        print(line, file=sys.stderr, flush=True)
    else:
        _queueing.say(line)


def _json_formatter() -> logging.Formatter:
    """Build the JSON formatter: level, logger, message, the record's extra fields and the time (UTC)."""
    return JsonFormatter(
        ["levelname", "name", "message"],
        rename_fields={"levelname": "level", "name": "logger"},
        timestamp="time",
    )
