"""Logs read one after another, and how far that is."""

from collections.abc import Iterable, Iterator

from adapter.archive import lines
from adapter.archive.files import find
from adapter.archive.parts import opened
from adapter.errors import Damaged


class Archive:
    """Logs to be read once, in the order given. Iterating yields raw messages, each to be judged alone.

    A file that cannot be read to its end costs no other: it is named in `damaged`.
    """

    def __init__(self, names: Iterable[str]) -> None:
        """`names` are files, folders (all files below them, by path), globs, URLs, or `-` for standard input.

        Raises FileNotFoundError if one is not there, SourceUnavailable if it cannot be looked at.
        """
        self._files = list(dict.fromkeys(file for name in names for file in find([name])))
        self.n_bytes = sum(file.n_bytes for file in self._files)  #: as stored
        self.damaged: dict[str, str] = {}  #: what could not be read to its end -> why
        self._done = 0
        self._pieces: lines.Pieces | None = None

    @property
    def position(self) -> int:
        """How many of `n_bytes` have been read."""
        return self._done + (self._pieces.n_read if self._pieces else 0)

    def __iter__(self) -> Iterator[bytes]:
        for file in self._files:
            try:
                with opened(file) as log:
                    self._pieces = lines.Pieces(log)
                    yield from lines.messages(self._pieces)
            except Damaged as error:
                self.damaged[file.name] = str(error)
            # Standard input has no part in n_bytes.
            self._done += file.n_bytes and (self._pieces.n_read if self._pieces else 0)
            self._pieces = None
