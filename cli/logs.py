"""Log lines on standard error: text for people or one JSON object a line, always one line an event."""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime
from typing import TextIO

import msgspec


def configure_logging(level: str, style: str, name: str, stream: TextIO | None = None) -> None:
    """Sends all logging of this process to `stream` (default: standard error), replacing earlier handlers.

    level: DEBUG, INFO, WARNING or ERROR; style: "text" or "json"; name: who is speaking ("node-1").
    Call it in the main thread, before others begin.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter(name) if style == "json" else TextFormatter(name))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    logging.captureWarnings(True)
    for chatty in ("pymongo", "redis", "asyncio"):  # at DEBUG they tell of every packet
        logging.getLogger(chatty).setLevel(max(root.level, logging.WARNING))


def _time(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"


class TextFormatter(logging.Formatter):
    """`time LEVEL node thread: message`; a traceback follows on lines of its own."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def format(self, record: logging.LogRecord) -> str:
        # What others sent may be part of a message: it must not be able to forge a line of the log.
        message = "".join(
            c if c.isprintable() else c.encode("unicode_escape").decode() for c in record.getMessage()
        )
        line = f"{_time(record)} {record.levelname:<7} {self._name} {record.threadName}: {message}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


class JsonFormatter(logging.Formatter):
    """{"time", "level", "node", "thread", "message"} and, with a traceback, "exception"."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "time": _time(record),
            "level": record.levelname,
            "node": self._name,
            "thread": record.threadName,
            "message": record.getMessage(),
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(fields).decode()
