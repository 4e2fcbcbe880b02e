"""Logs as one JSON object per line, with the request's id and nothing that a caller sent."""

import logging
from datetime import UTC, datetime

import orjson

from serving.monitoring.correlation import CURRENT


class JsonFormatter(logging.Formatter):
    """``time``, ``level``, ``logger``, ``message``, and ``request_id`` while a request is being answered.

    Of an exception it keeps the type alone: its text may quote the request.
    """

    def format(self, record: logging.LogRecord) -> str:
        """One line of JSON."""
        correlation = CURRENT.get()
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if correlation is not None:
            line["request_id"] = correlation.request_id
        if record.exc_info and record.exc_info[0] is not None:
            line["exception"] = record.exc_info[0].__name__
        return orjson.dumps(line, default=str).decode()


def configure() -> None:
    """Log to standard error from level INFO on."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
