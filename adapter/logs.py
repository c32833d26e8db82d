"""Log lines: one line a fact, with its ids as name=value. Payloads and secrets are never handed to a logger."""

import json
import logging

from adapter.errors import place_of

_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


class LineFormatter(logging.Formatter):
    """Time, level, room, message, then every extra field as JSON, so that no value can forge a line of its own."""

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


def configure() -> None:
    """Send the log to standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    # It may warn of an answer with the address it came from, in which there is a token.
    logging.getLogger("urllib3").setLevel(logging.ERROR)
