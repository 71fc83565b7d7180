"""How the log looks: text for people on a terminal, else one JSON object a line.

Owns the formats and the one handler; never decides what is logged.
"""

from __future__ import annotations

import logging
import re
import sys
import time
from typing import TextIO

from pythonjsonlogger.json import JsonFormatter

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class TextFormatter(logging.Formatter):
    """`12:00:01 warning hub: message key=value`; control characters of others' text are escaped."""

    def format(self, record: logging.LogRecord) -> str:
        """Write one record in one line, followed by its traceback if it has one."""
        extra = [f" {key}={value}" for key, value in vars(record).items() if key not in _STANDARD]
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        name = record.name.removeprefix("relay.")
        line = f"{clock} {record.levelname.lower():7} {name}: {record.getMessage()}{''.join(extra)}"
        line = _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), line)
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def set_up(level: str, form: str, stream: TextIO | None = None) -> None:
    """Send the log to one place in one form; what was set up before is replaced.

    Args:
        level: `debug`, `info`, `warning` or `error`, for relay's own loggers; libraries' begin at warning.
        form: `text`, `json`, or `auto`: text on a terminal, else JSON.
        stream: where to; standard error if None.
    """
    stream = stream or sys.stderr
    if form == "auto":
        form = "text" if stream.isatty() else "json"
    handler = logging.StreamHandler(stream)
    handler.setFormatter(TextFormatter() if form == "text" else _json_formatter())
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger("relay").setLevel(level.upper())


def _json_formatter() -> logging.Formatter:
    """Build the formatter of JSON: level, logger, message, what the record brought along, time (UTC)."""
    return JsonFormatter(
        ["levelname", "name", "message"],
        rename_fields={"levelname": "level", "name": "logger"},
        timestamp="time",
    )
