"""What has a URL: s3:// and whatever else fsspec opens. Credentials and endpoints come from the environment, as each
of its stores reads them: for S3 AWS_PROFILE, AWS_ENDPOINT_URL and so on.

fsspec is an extra, and slow to load: it is loaded when the first URL is.
"""

import importlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from types import TracebackType
from typing import Any
from uuid import uuid4

from adapter.errors import SourceUnavailable

#: One request reads so much: at 100 ms each still 80 MB/s, and all of the memory that a remote log takes.
BLOCK_BYTES = 8_000_000
_Info = dict[str, Any]


def is_url(name: str) -> bool:
    """Whether fsspec is asked for it. A local path never is."""
    return "://" in name


def listing(url: str, is_wanted: Callable[[str], bool] | None) -> list[tuple[str, int | None, str]]:
    """The URL, size in bytes (None if unknown) and version of each object that is, is below, or matches `url`.

    Hidden ones are left out. A folder of which `is_wanted` is false stands itself, as empty, for what is in it.
    Raises FileNotFoundError if nothing is there, SourceUnavailable if nobody can tell.
    """
    with _errors_of_ours(url):
        files, path = _files_of(url)
        try:
            found = {
                # The listings of some stores name the objects and say no more.
                info["name"]: info if _marks(info) or info["type"] != "file" else files.info(info["name"])
                for info, below in _infos(files, path, is_wanted)
                if not (_is_marker(info) or any(part.startswith(".") for part in below.split("/")))
            }
        finally:
            # Memory for each object; and what is read later may be another version.
            files.invalidate_cache()
    return [
        (files.unstrip_protocol(name), info.get("size") if info["type"] == "file" else 0, _version(info))
        for name, info in found.items()
    ]


def _infos(files: Any, path: str, is_wanted: Callable[[str], bool] | None) -> Iterator[tuple[_Info, str]]:
    """What fsspec knows of each object, and its path below the folder that was named."""
    try:
        # Also asked of a glob, for a signed URL has a question mark.
        info = files.info(path)
    except FileNotFoundError:
        if not (magic := re.search(r"[*?[]", path)):
            raise
        root = path[: magic.start()].rpartition("/")[0]
        pattern = path[len(root) :].strip("/").split("/")
    else:
        if info["type"] == "file":
            yield info, ""
            return
        root, pattern = path.rstrip("/"), []

    def walk(folder: str) -> Iterator[_Info]:
        # fsspec's own walk, and what is built on it, leaves out without a word what it could not list.
        for info in files.ls(folder, detail=True):
            if info["type"] == "file":
                yield info
            # A marker of a folder is an object within it that has its name.
            elif info["name"].rstrip("/") != folder.rstrip("/") and _fits(parts(info), pattern, is_folder=True):
                if is_wanted is None or is_wanted(files.unstrip_protocol(info["name"])):
                    yield from walk(info["name"])
                else:
                    yield info

    def parts(info: _Info) -> list[str]:
        return str(info["name"])[len(root) :].strip("/").split("/")

    # S3 lists a thousand objects at a time, whatever their folders, if none of these is to be told apart.
    is_flat = not pattern and is_wanted is None and "s3" in files.protocol
    infos = files.find(root, detail=True).values() if is_flat else walk(root)
    matches = [
        (info, "/".join(parts(info)))
        for info in infos
        if _fits(parts(info), pattern, is_folder=info["type"] != "file")
    ]
    if pattern and not matches:
        raise FileNotFoundError(path)
    yield from matches


def _is_marker(info: _Info) -> bool:
    """Whether it is but the sign of a folder, which need not have anything in it."""
    return info["type"] == "file" and str(info["name"]).endswith("/")


def _fits(parts: list[str], pattern: list[str], *, is_folder: bool) -> bool:
    """Whether a path matches a glob or is below what does; of a folder, whether what is below it may."""
    if not pattern:
        return True
    if pattern[0] == "**":
        return is_folder or any(_fits(parts[n:], pattern[1:], is_folder=False) for n in range(len(parts)))
    if not parts:
        return is_folder
    return fnmatchcase(parts[0], pattern[0]) and _fits(parts[1:], pattern[1:], is_folder=is_folder)


def open_url(url: str, block_bytes: int) -> "Remote":
    """An object to read from, by requests of `block_bytes` and a little. Raises OSError."""
    try:
        with _errors_of_ours(url):
            files, path = _files_of(url)
            return Remote(files.open(path, "rb", block_size=block_bytes))
    except SourceUnavailable as error:
        raise OSError(str(error)) from error


class Remote:
    """An open object, whose errors are OSError whatever the library's own are."""

    def __init__(self, opened: Any) -> None:
        self._opened = opened

    def read(self, n_bytes: int) -> bytes:
        try:
            found: bytes = self._opened.read(n_bytes)
        except Exception as error:
            raise OSError(f"{type(error).__name__}: {error}") from error
        return found

    def seek(self, position: int) -> int:
        return int(self._opened.seek(position))

    def version(self) -> str | None:
        """As `listing` tells it; None if the store does not say."""
        try:
            info: _Info = getattr(self._opened, "details", {})
        except Exception as error:
            raise OSError(f"{type(error).__name__}: {error}") from error
        return _version(info) if _marks(info) else None

    def __enter__(self) -> "Remote":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened.close()


def _files_of(url: str) -> tuple[Any, str]:
    try:
        found: tuple[Any, str] = importlib.import_module("fsspec.core").url_to_fs(url)
    except ImportError as error:
        raise SourceUnavailable(
            f"{url}: {error}; s3:// needs `pip install '.[s3]'` in a checkout of the adapter"
        ) from error
    return found


@contextmanager
def _errors_of_ours(url: str) -> Iterator[None]:
    """Each of fsspec's stores has errors of its own."""
    try:
        yield
    except SourceUnavailable:
        raise
    except FileNotFoundError as error:
        raise FileNotFoundError(f"there is no file {url}") from error
    except Exception as error:
        raise SourceUnavailable(f"{url}: {type(error).__name__}: {error}") from error


def _marks(info: _Info) -> list[str]:
    """What changes with the content, as each store calls it."""
    for names in (("ETag", "etag", "md5Hash"), ("LastModified", "Last-Modified", "mtime", "updated", "created")):
        if marks := [str(info[name]).strip('"') for name in names if info.get(name)]:
            return marks
    return []


def _version(info: _Info) -> str:
    # To send again what has not changed is better than to leave out what has.
    return "-".join([str(info.get("size")), *(_marks(info) or [uuid4().hex])])
