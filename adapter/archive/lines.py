"""The bytes of a log to its raw messages, each to be judged alone.

A log is plain or gzip, told by its first bytes, for some programs unpack what they fetch (segment.md 5.1). It holds
a message a line; a line, or all of a log, may also be an array of messages or a batch of the tracking API. A line may
also be a message that `adapter replay` refused, with its reason.
"""

import sys
from collections.abc import Callable, Iterator
from io import BytesIO
from itertools import chain
from typing import Protocol, cast

import orjson
from isal import igzip_lib
from marshmallow import ValidationError

from adapter.errors import Damaged, Unreached
from schemas import raw, segment

#: An array or object over several lines is read whole, so there is an end to how large it may be.
MAX_DOCUMENT_BYTES = 32_000_000
#: Of a line no more is kept: more than a message may have.
LINE_BYTES = raw.MAX_MESSAGE_BYTES + 3
#: Small enough for the cache of a core: lines of 1 MB are cut half as fast.
PIECE_BYTES = 262_144
_NotGzip = cast(type[Exception], igzip_lib.error)  # its stub says that it is an instance
_GZIP = b"\x1f\x8b"
#: A byte order mark, which Windows puts before UTF-8; where logs are joined, before any line.
_MARK = b"\xef\xbb\xbf"
_REFUSED = (b'{"message":', b'{"reason":')
_WRAPPED = (b"[", *_REFUSED)


class Log(Protocol):
    """What a log is read from; only a range of one needs `seek`."""

    def read(self, n_bytes: int, /) -> bytes: ...
    def seek(self, position: int, /) -> int: ...


class Pieces:
    """A log in pieces of its plain bytes, to be iterated once.

    Of a range, the bytes of all lines that begin in it. Iterating raises nothing: what ended it early is in `damage`.
    """

    def __init__(
        self, log: Log, start: int = 0, end: int | None = None, told: Callable[[int], None] = lambda _: None
    ) -> None:
        """`start` and `end` are bytes of a plain log; `told` is called with how many were read, as stored."""
        self.start = start
        self.n_read = 0  #: bytes, as stored
        self.is_gzip = False
        self.damage = ""
        self.is_unreached = False  #: what ended it is not in the log
        self._log = log
        self._end = end
        self._told = told

    def __iter__(self) -> Iterator[bytes]:
        try:
            if self.start or self._end is not None:
                yield from self._lines_of_range()
                return
            first = self._read()
            self.is_gzip = first[:2] == _GZIP
            if self.is_gzip:
                yield from self._unpacked(first)
                return
            while first:
                yield first
                first = self._read()
        except (OSError, EOFError, _NotGzip) as error:
            self.damage = str(error) or type(error).__name__
            self.is_unreached = isinstance(error, OSError)

    def _read(self) -> bytes:
        piece = self._log.read(PIECE_BYTES)
        if len(piece) == 1:  # a pipe may give so little, and gzip is told by two
            piece += self._log.read(PIECE_BYTES)
        self.n_read += len(piece)
        self._told(len(piece))
        return piece

    def _unpacked(self, packed: bytes) -> Iterator[bytes]:
        while packed:
            # Members may be padded with zeros, as in Python's own gzip.
            if not (packed := packed.lstrip(b"\0")):
                packed = self._read()
                continue
            member = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
            while not member.eof:
                if plain := member.decompress(packed, PIECE_BYTES):
                    yield plain
                packed = b""
                if member.needs_input and not member.eof and not (packed := self._read()):
                    raise EOFError("Compressed file ended before the end-of-stream marker")
            packed = member.unused_data or self._read()

    def _lines_of_range(self) -> Iterator[bytes]:
        end = sys.maxsize if self._end is None else self._end
        # The byte before says whether a line begins at the start.
        position = max(self.start - 1, 0)
        self._log.seek(position)
        is_begun = self.start == 0
        while piece := self._read():
            begin = 0
            if not is_begun:
                begin = piece.find(b"\n") + 1
                is_begun = begin > 0
                if position + (begin or len(piece)) >= end:
                    return
            if is_begun:
                after = piece.find(b"\n", max(begin, end - 1 - position)) + 1
                yield piece[begin : after or None]
                if after:
                    return
            position += len(piece)


def messages(pieces: Pieces) -> Iterator[bytes]:
    """The raw messages of a log; of a line too long to be a message only so much that this can be told.

    Raises Damaged after them if the log ends early, or holds an array or object over several lines that is too large;
    Unreached if it could not be read on.
    """
    rest = iter(pieces)
    head = b"" if pieces.start else _head(rest)
    if _begins_document(head):
        yield from _of_document(pieces, head, rest)
    else:
        yield from _of_lines(pieces, chain([head], rest))
    if pieces.damage:
        raise (Unreached if pieces.is_unreached else Damaged)(pieces.damage)


def is_a_message_a_line(pieces: Pieces) -> bool:
    """Whether each line of a log can be read without the others. Reads no more than its first line."""
    head = _head(iter(pieces))
    return not (pieces.is_gzip or pieces.damage or _begins_document(head))


def _head(pieces: Iterator[bytes]) -> bytes:
    """The first bytes that are not blank, with all of their line that may count; of an array, also with more."""
    head = b""
    for piece in pieces:
        head = (head + piece).removeprefix(_MARK).lstrip()
        _first, end, after = head.partition(b"\n")
        if len(head) >= LINE_BYTES or (end and (head[:1] != b"[" or after.strip())):
            break
    return head


def _begins_document(head: bytes) -> bool:
    """Whether an array or object begins that does not end in its line."""
    first, _end, after = (one.strip() for one in head[:LINE_BYTES].partition(b"\n"))
    if first[:1] != b"[" or _is_json(first):
        return first == b"{"
    # One that is only broken costs no other line.
    return not after or first.endswith((b"[", b"{", b",", b":")) or after.startswith((b"]", b"}", b","))


def _of_document(pieces: Pieces, head: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    whole = bytearray(head)
    for piece in chain([b""], rest):
        whole += piece
        if len(whole) > MAX_DOCUMENT_BYTES:
            raise Damaged(f"expected an array of at most {MAX_DOCUMENT_BYTES} bytes, or a message a line")
    text = bytes(whole.strip())
    found = list(_of(text))
    # The last of one that ends early is but a part of a message.
    yield from found[:-1] if pieces.damage and not _is_json(text) else found


def _of_lines(pieces: Pieces, rest: Iterator[bytes]) -> Iterator[bytes]:
    for lines, may_be_batch in _lines(pieces, rest):
        for line in lines:
            text = line.strip().removeprefix(_MARK)
            if text.startswith(_WRAPPED) or (may_be_batch and b'"batch"' in text):
                yield from _of(text) if len(text) <= raw.MAX_MESSAGE_BYTES else [text]
            elif text:
                yield text


def _lines(pieces: Pieces, rest: Iterator[bytes]) -> Iterator[tuple[list[bytes], bool]]:
    """Lines, some at a time, and whether a batch may be among them, which is faster to tell of all at once.

    A line is cut after LINE_BYTES. A last one that damage has cut short is none.
    """
    line, is_cut = b"", False
    for piece in rest:
        if is_cut:
            _skipped, end, piece = piece.partition(b"\n")
            is_cut = not end
        text = line + piece
        # Twice as fast as bytes.split, which looks at one byte after the other.
        lines = BytesIO(text).readlines()
        line = b"" if text.endswith(b"\n") or not lines else lines.pop()
        if len(text) > LINE_BYTES:
            lines = [one[:LINE_BYTES] for one in lines]
            if len(line) > LINE_BYTES:
                lines.append(line[:LINE_BYTES])
                line, is_cut = b"", True
        yield lines, b'"batch"' in text
    if not pieces.damage or (line[:1] in (b"{", b"[") and _is_json(line)):
        yield [line], True


def _of(text: bytes) -> Iterator[bytes]:
    """The messages of an array, of a batch, of what was refused; else the text itself."""
    if text[:1] == b"[":
        yield from raw.cut(text)
        return
    try:
        value = raw.parse(text) if text.startswith(_REFUSED) or b'"batch"' in text else None
        if not isinstance(value, dict):
            yield text
        elif "type" not in value and "reason" in value and isinstance(value.get("message"), dict):
            yield orjson.dumps(value["message"])
        elif "batch" in value:
            yield from [orjson.dumps(message) for message in segment.messages(value)]
        else:
            yield text
    except (raw.Malformed, ValidationError):
        yield text


def _is_json(text: bytes) -> bool:
    try:
        raw.parse(text)
    except raw.Malformed:
        return False
    return True
