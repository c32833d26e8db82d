"""Log lines: one line a fact, with its ids as name=value. Payloads and secrets are never handed to a logger."""

import json
import logging
import time
from collections import Counter
from typing import Any

from adapter.errors import place_of

_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


class LineFormatter(logging.Formatter):
    """Time, level, room, message, then every extra field as JSON, so that no value can forge a line of its own."""

    # In UTC, as the commands say it.
    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def format(self, record: logging.LogRecord) -> str:
        fields = (
            f"{name}={json.dumps(value, default=str)}"
            for name, value in record.__dict__.items()
            if name not in _STANDARD
        )
        line = " ".join((self.formatTime(record), record.levelname, record.name, record.getMessage(), *fields))
        if record.exc_info and record.exc_info[1] is not None:
            # The text of an exception may carry a payload: its class and place must do.
            line += f" error={json.dumps(place_of(record.exc_info[1]))}"
        # No line break forges a line, and no escape sequence reaches a terminal.
        return "".join(letter if letter.isprintable() else " " for letter in line)


#: A flood of requests must not fill the log.
SAID_EVERY_S = 1.0


class Seldom:
    """Says what can happen with each request, at most once a second for each code."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._said_at: dict[str, float] = {}
        self.counts: Counter[str] = Counter()  #: how often it was, by code

    def say(self, code: str, message: str, level: int = logging.WARNING, /, **extra: Any) -> None:
        """Count one, and say so with how many there were, unless that was said a moment ago."""
        self.counts[code] += 1
        now = time.monotonic()
        if now - self._said_at.get(code, -SAID_EVERY_S) >= SAID_EVERY_S:
            self._said_at[code] = now
            self._logger.log(level, message, extra={**extra, "count": self.counts[code]})


def configure() -> None:
    """Send the log to standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    # It may warn of an answer with the address it came from, in which there is a token.
    logging.getLogger("urllib3").setLevel(logging.ERROR)
