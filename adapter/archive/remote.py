"""What has a URL: s3:// and whatever else fsspec opens. Credentials and endpoints come from the environment, as each
of its stores reads them: for S3 AWS_PROFILE, AWS_ENDPOINT_URL and so on.

fsspec is an extra, and slow to load: it is loaded when the first URL is.
"""

import glob
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from adapter.errors import SourceUnavailable

#: One request reads so much: at 100 ms each still 80 MB/s, and all of the memory that a remote log takes.
BLOCK_BYTES = 8_000_000


def is_url(name: str) -> bool:
    """Whether fsspec is asked for it. A local path never is."""
    return "://" in name


def listing(url: str) -> list[tuple[str, int | None, str]]:
    """The URL, size in bytes (None if unknown) and version of each object that is, or is below, or matches `url`.

    Raises FileNotFoundError if there is none, SourceUnavailable if nobody can tell.
    """
    with _errors_of_ours(url):
        files, path = _files_of(url)
        # What another look has found may have changed.
        files.invalidate_cache()
        if files.isfile(path):
            found = {path: files.info(path)}
        elif glob.has_magic(path):
            found = {}
            for match, info in files.glob(path, detail=True).items():
                found |= files.find(match, detail=True) if info["type"] == "directory" else {match: info}
        else:
            found = files.find(path, detail=True)
        names = {files.unstrip_protocol(one): info for one, info in found.items() if info["type"] == "file"}
    if not names:
        raise FileNotFoundError(f"there is no file {url}")
    return [(name, info.get("size"), _version(info)) for name, info in names.items()]


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
            f"{url}: {error}; s3:// needs `pip install 'segment-mixpanel-adapter[s3]'`"
        ) from error
    return found


@contextmanager
def _errors_of_ours(url: str) -> Iterator[None]:
    """Each of fsspec's stores has errors of its own."""
    try:
        yield
    except (FileNotFoundError, SourceUnavailable):
        raise
    except Exception as error:
        raise SourceUnavailable(f"{url}: {type(error).__name__}: {error}") from error


def _version(info: dict[str, Any]) -> str:
    for name in ("ETag", "etag", "md5Hash", "generation"):
        if info.get(name):
            return str(info[name]).strip('"')
    changed = [
        str(info[name]) for name in ("LastModified", "last_modified", "mtime", "updated", "created") if info.get(name)
    ]
    return "-".join([str(info.get("size")), *changed])
