"""What names stand for: the logs in folders, in globs and in buckets, and of which source and day they are.

Segment keeps raw logs as `segment-logs/{source}/{day}/{file}.gz`, the day being the UTC midnight of receivedAt in
milliseconds (segment.md 5.1). Other files may stand anywhere.
"""

import glob
import os
import re
import stat
from collections.abc import Callable, Collection, Iterable, Iterator

import msgspec

from adapter.archive import remote
from adapter.errors import SourceUnavailable

STDIN = "-"
DAY_MS = 86_400_000
_LAYOUT = re.compile(r"(?:(?:^|/)segment-logs/(?P<source>[^/]+)/|/|^)(?P<day>\d{12,14})/[^/]+$")
#: What Segment's set-up and Hadoop leave among logs.
_DEBRIS = {"dummy-object.txt", "_SUCCESS"}


class File(msgspec.Struct, frozen=True):
    """A log that was there when it was looked for."""

    name: str  #: path or URL, or `-` for standard input
    n_bytes: int  #: as stored; 0 if that is not known, as of standard input
    version: str  #: another one once the content is another
    source: str | None  #: of Segment's layout, equal to projectId of its messages
    day_ms: int | None  #: of Segment's layout: UTC midnight of receivedAt
    ends: int | None = None  #: of a local file once it is marked: equal for equal first and last bytes


def find(
    names: Iterable[str],
    *,
    since_ms: int | None = None,
    until_ms: int | None = None,
    sources: Collection[str] = (),
) -> list[File]:
    """The logs that `names` stand for, by name, none twice: files, folders, globs, URLs of these, `-`.

    Left out is what Segment's layout says to lie before `since_ms`, at or after `until_ms` (by receivedAt,
    milliseconds), or to be of none of `sources`; and debris: hidden and empty files, and what is no log.
    Raises FileNotFoundError if a name stands for nothing at all, SourceUnavailable if it cannot be looked at.
    """

    def is_wanted(file: File) -> bool:
        if sources and file.source is not None and file.source not in sources:
            return False
        if file.day_ms is None:
            return True
        return (until_ms is None or file.day_ms < until_ms) and (since_ms is None or file.day_ms + DAY_MS > since_ms)

    # Without any wish there is nothing to leave out, and folders need not be told apart.
    is_selective = bool(sources) or since_ms is not None or until_ms is not None
    is_wanted_folder = (lambda name: is_wanted(_file(f"{name}/log", 0, ""))) if is_selective else None
    found: dict[str, File] = {}
    for name in names:
        if not name:  # a variable that is not set must not be the folder where we are
            raise FileNotFoundError("a source is empty: expected a file, a folder, a glob, a URL or -")
        there = list(_files(name, is_wanted_folder))
        if not there:
            raise FileNotFoundError(f"there is no file in {name}")
        for file in filter(None, there):
            found.setdefault(file.name if "://" in file.name else os.path.abspath(file.name), file)
    return sorted(filter(is_wanted, found.values()), key=lambda file: file.name)


def _files(name: str, is_wanted_folder: Callable[[str], bool] | None) -> Iterator[File | None]:
    """The logs that a name stands for; None for what is there and none to be read."""
    if name == STDIN:
        yield File(name, 0, "", None, None)
    elif remote.is_url(name):
        for url, n_bytes, version in remote.listing(name, is_wanted_folder):
            is_log = n_bytes != 0 and os.path.basename(url) not in _DEBRIS
            yield _file(url, n_bytes or 0, version) if is_log else None
    else:
        yield from _local(os.path.normpath(name))


def _local(name: str) -> Iterator[File | None]:
    if os.path.exists(name):
        matches = [name]
    elif not (matches := sorted(glob.glob(name, recursive=True))):
        raise FileNotFoundError(f"there is no file {name}")
    try:
        for match in matches:
            for path in _below(match) if os.path.isdir(match) else [match]:
                found = os.stat(path)
                # A pipe has no size and is read all the same.
                may_be_read = found.st_size or not stat.S_ISREG(found.st_mode)
                is_log = may_be_read and os.path.basename(path) not in _DEBRIS
                yield _file(path, found.st_size, version(found)) if is_log else None
    except PermissionError as error:
        raise SourceUnavailable(f"{error.filename}: {error.strerror}") from error


def version(found: os.stat_result) -> str:
    """What is another once the content of a local file is."""
    return f"{found.st_size}-{found.st_mtime_ns}-{found.st_ino}"


def _below(folder: str) -> Iterator[str]:
    def fail(error: OSError) -> None:
        raise error

    seen: set[str] = set()  # for a link may lead back
    for root, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        if (real := os.path.realpath(root)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(one for one in folders if not one.startswith("."))
        paths = [os.path.join(root, one) for one in names if not one.startswith(".")]
        yield from filter(os.path.isfile, paths)


def _file(name: str, n_bytes: int, version: str) -> File:
    layout = _LAYOUT.search(name)
    if not layout or int(layout["day"]) % DAY_MS:
        return File(name, n_bytes, version, None, None)
    return File(name, n_bytes, version, layout["source"], int(layout["day"]))
