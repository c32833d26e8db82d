"""Where logs are kept: what names stand for, and each message of it once, whatever its size and state."""

import gzip
import json
import os
import random
import re
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property, partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from werkzeug.serving import WSGIRequestHandler, make_server

from adapter.archive import File, Now, Part, find, lines, marked, parts, read, since
from adapter.cli import main
from adapter.errors import Damaged, SourceUnavailable
from tests.endpoint import Answer, Endpoint, stored
from tests.processes import adapter

DAY_MS = 86_400_000
FIRST = 1_441_152_000_000
TREE = {
    f"segment-logs/{source}/{FIRST + day * DAY_MS}/{hour}.gz": gzip.compress(b'{"of":"%d"}\n' % day)
    for source in ("web", "ios")
    for day in range(3)
    for hour in range(2)
} | {
    "segment-logs/dummy-object.txt": b"dummy",
    "segment-logs/.DS_Store": b"\0\0\0\1Bud1",
    "segment-logs/.trash/1.gz": b"1\n",
    "segment-logs/web/_SUCCESS": b"ok",
    f"segment-logs/web/{FIRST}/empty.gz": b"",
    "others.jsonl": b'{"of":"nobody"}\n',
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name, content in TREE.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    return tmp_path


def below(root: str, files: list[File]) -> list[str]:
    return [file.name.removeprefix(f"{root}/") for file in files]


def ours(*days: int, sources: tuple[str, ...] = ("ios", "web")) -> list[str]:
    return [
        f"segment-logs/{one}/{FIRST + day * DAY_MS}/{hour}.gz" for one in sources for day in days for hour in "01"
    ]


def test_a_folder_is_all_logs_below_it_without_the_debris(tree: Path) -> None:
    files = find([str(tree)])
    assert below(str(tree), files) == ["others.jsonl", *ours(0, 1, 2)]
    assert [(file.source, file.day_ms) for file in files[:3]] == [(None, None), ("ios", FIRST), ("ios", FIRST)]
    assert [file.n_bytes for file in files[:2]] == [16, len(TREE[ours(0)[0]])]
    assert [list(read(Part(file))) for file in files[:2]] == [[b'{"of":"nobody"}'], [b'{"of":"0"}']]


@pytest.mark.parametrize(
    ("since_ms", "until_ms", "days"),
    [
        (FIRST + DAY_MS, None, (1, 2)),
        (FIRST + DAY_MS - 1, None, (0, 1, 2)),
        (None, FIRST + DAY_MS, (0,)),
        (None, FIRST + DAY_MS + 1, (0, 1)),
        (FIRST + DAY_MS + 5, FIRST + DAY_MS + 6, (1,)),
        (FIRST + 3 * DAY_MS, None, ()),
    ],
)
def test_days_wholly_outside_of_the_time_are_left_out(
    since_ms: int | None, until_ms: int | None, days: tuple[int, ...], tree: Path
) -> None:
    files = find([str(tree)], since_ms=since_ms, until_ms=until_ms)
    assert below(str(tree), files) == ["others.jsonl", *ours(*days)]


def test_a_folder_that_is_a_link_is_looked_into_and_one_that_leads_back_is_not_again(
    tree: Path, tmp_path: Path
) -> None:
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "web").symlink_to(tree / "segment-logs" / "web")
    (tree / "segment-logs" / "web" / "back").symlink_to(tmp_path / "links")
    names = [name.replace("segment-logs", "links") for name in ours(0, 1, 2, sources=("web",))]
    assert below(str(tmp_path), find([str(tmp_path / "links")])) == names


def test_other_sources_are_left_out_and_what_has_none_is_kept(tree: Path) -> None:
    assert below(str(tree), find([str(tree)], sources={"web"})) == ["others.jsonl", *ours(0, 1, 2, sources=("web",))]


def test_days_are_understood_where_segments_own_folder_was_left_behind(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "segment-logs").rename(tmp_path / "copied")
    (kept,) = find([str(tmp_path / "copied" / "web")], since_ms=FIRST + 2 * DAY_MS, sources={"ios"})[::2]
    assert (kept.day_ms, kept.source) == (FIRST + 2 * DAY_MS, None)


def test_globs_and_names_that_overlap_give_no_file_twice(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    names = [
        "segment-logs/*/*/0.gz",
        "segment-logs/web",
        f"./segment-logs//web/{FIRST}/1.gz",
        str(tree / "others.jsonl"),
    ]
    names += ["others.jsonl", "**/1.gz"]
    found = [os.path.relpath(file.name) for file in find(names)]
    assert sorted(found) == ["others.jsonl", *ours(0, 1, 2)]


@pytest.mark.parametrize("name", ["gone", "gone/*.gz", "*/gone", "gone-since", "gone-*"])
def test_a_name_that_stands_for_nothing_is_an_error_that_names_it(name: str, tree: Path) -> None:
    (tree / "gone-since" / ".hidden").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=re.escape(str(tree / name))):
        find([str(tree), str(tree / name)])


@pytest.mark.parametrize("name", ["segment-logs", f"segment-logs/web/{FIRST}", "segment-logs/*/*", "**/*.gz"])
def test_what_is_there_and_of_other_days_or_empty_is_no_error(name: str, tree: Path) -> None:
    assert find([str(tree / name)], since_ms=FIRST + 3 * DAY_MS) == []
    assert find([str(tree / f"segment-logs/web/{FIRST}/empty.gz"), str(tree / "segment-logs/web/_SUCCESS")]) == []


def test_a_version_is_another_once_the_content_is(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"1\n")
    (before,) = find([str(tmp_path)])
    assert find([str(tmp_path / "log")]) == [before]
    (tmp_path / "new").write_bytes(b"2\n")
    os.utime(tmp_path / "new", ns=(0, (tmp_path / "log").stat().st_mtime_ns))
    (tmp_path / "new").rename(tmp_path / "log")
    (after,) = find([str(tmp_path)])
    assert (after.name, after.n_bytes) == (before.name, before.n_bytes)
    assert after.version != before.version


def test_a_pipe_is_read(tmp_path: Path) -> None:
    reads, writes = os.pipe()
    os.write(writes, b"1\n2")
    os.close(writes)
    (file,) = find([f"/dev/fd/{reads}"])
    assert parts(file, 2) == [Part(file)]
    assert list(read(Part(file))) == [b"1", b"2"]
    os.close(reads)


LINES = st.lists(st.tuples(st.integers(0, 40), st.sampled_from([b"\n", b"\r\n", b"\n\n"])), max_size=30)


@settings(deadline=None)
@given(LINES, st.binary(max_size=0) | st.just(b"last"), st.integers(1, 200), st.integers(1, 50))
def test_parts_give_each_line_once_and_in_order(
    tmp_path_factory: pytest.TempPathFactory,
    drawn: list[tuple[int, bytes]],
    last: bytes,
    part_bytes: int,
    piece_bytes: int,
) -> None:
    texts = [b"%d" % n + b"x" * length for n, (length, _end) in enumerate(drawn)]
    log = tmp_path_factory.getbasetemp() / f"lines-{os.getpid()}"
    log.write_bytes(b"".join(text + end for text, (_length, end) in zip(texts, drawn, strict=True)) + last)
    file = File(str(log), log.stat().st_size, "", None, None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "PIECE_BYTES", piece_bytes)
        cut = parts(file, part_bytes)
        assert [one for part in cut for one in read(part)] == texts + [last] * bool(last)
    assert len(cut) == max(1, -(-file.n_bytes // part_bytes))
    whole = log.read_bytes()
    begins = [match.start() for match in re.finditer(rb"(?m)^[^\r\n]", whole)]
    for part in cut:
        n_owned = sum(part.start <= begin < (part.end or file.n_bytes) for begin in begins)
        assert sum(1 for _ in read(part)) == n_owned


def test_a_line_longer_than_its_part_belongs_to_where_it_begins(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"1\n" + b"x" * 3_000_000 + b"\n2\n")
    (file,) = find([str(tmp_path)])
    found = [[one[:1] for one in read(part)] for part in parts(file, 1_000_000)]
    assert found == [[b"1", b"x"], [], [], [b"2"]]


@pytest.mark.parametrize(
    "text", [b"[\n1,\n2\n]", b'{\n"batch": []\n}', b"[1,\n2]", gzip.compress(b"1\n2\n", mtime=0)]
)
def test_what_cannot_be_read_in_parts_stays_whole(text: bytes, tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(text)
    (file,) = find([str(tmp_path)])
    assert parts(file, 2) == [Part(file)]


def test_what_was_refused_is_the_message_again(tmp_path: Path) -> None:
    kept = [
        b'{"message": {"type": "track", "event": "x"}, "reason": "no_id"}',
        b'{"reason":"no_id","message":{"type":"page"}}',
        b'{"message":{"a":1},"reason":"r","type":"track"}',
        b'{"message":"text","reason":"r"}',
        b'{"message":{"a":1}}',
    ]
    (tmp_path / "refused").write_bytes(b"\n".join(kept))
    (file,) = find([str(tmp_path)])
    assert list(read(Part(file))) == [b'{"type":"track","event":"x"}', b'{"type":"page"}', *kept[2:]]


def all_of(part: Part) -> tuple[list[bytes], str]:
    found = []
    try:
        for one in read(part):
            found.append(one)
    except Damaged as error:
        return found, str(error)
    return found, ""


def test_a_gzip_that_ends_early_gives_every_line_it_had_and_no_half_one(tmp_path: Path) -> None:
    draw = random.Random(1)
    texts = [b'{"n":%d,"of":"%d"}' % (n, draw.getrandbits(200)) for n in range(3_000)]
    whole = gzip.compress(b"\n".join(texts)) + gzip.compress(b"\nlast")
    for n_bytes in (5, 50, 5_000, len(whole) // 2, len(whole) - 30, len(whole) - 1):
        (tmp_path / "log").write_bytes(whole[:n_bytes])
        found, why = all_of(Part(*find([str(tmp_path)])))
        assert found == texts[: len(found)]
        assert len(found) >= (n_bytes / len(whole)) * len(texts) * 0.9 - 500
        assert why.startswith("Compressed file ended")
    (tmp_path / "log").write_bytes(whole + b"\0" * 600_000 + gzip.compress(b"\nmore"))
    assert all_of(Part(*find([str(tmp_path)]))) == ([*texts, b"last", b"more"], "")


def test_a_last_line_that_damage_spared_is_a_message(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(gzip.compress(b'{"n":1}\n{"n":2}') + b"what gzip leaves out")
    found, why = all_of(Part(*find([str(tmp_path)])))
    assert (found, bool(why)) == ([b'{"n":1}', b'{"n":2}'], True)


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_log_is_read_as_far_as_it_went_when_it_was_found(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "log"
    path.write_bytes(pack(b'{"n":1}\n{"n":2}\n{"n"'))
    (file,) = find([str(tmp_path)])
    with path.open("ab") as log:
        log.write(pack(b':3}\n{"n":4}\n'))
    assert since(file) is Now.GROWN
    assert all_of(Part(file)) == ([b'{"n":1}', b'{"n":2}', b'{"n"'], "")
    assert [one for part in parts(file, 6) for one in read(part)] == [b'{"n":1}', b'{"n":2}', b'{"n"']
    os.truncate(path, 5)
    assert since(file) is Now.ANOTHER
    assert all_of(Part(file)) == ([], f"{path} has changed since it was looked for")


@pytest.mark.parametrize("at", [0, 4_095, 5_904, 9_999])
def test_a_log_that_was_rewritten_in_place_is_another_however_long_it_is(tmp_path: Path, at: int) -> None:
    path = tmp_path / "log"
    path.write_bytes(b'"%b"\n' % (b"x" * 97) * 100)
    (file,) = map(marked, find([str(path)]))
    with path.open("ab") as log:
        log.write(b"more\n")
    assert since(file) is Now.GROWN
    with path.open("r+b") as log:
        log.seek(at)
        log.write(b"y")
    assert since(file) is Now.ANOTHER
    assert all_of(Part(file)) == ([], f"{path} has changed since it was looked for")


def test_an_array_that_ends_early_gives_every_message_it_had(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(
        gzip.compress(b"[\n{},\n[1],\n" + random.Random(1).randbytes(1_000).hex().encode())[:-60]
    )
    found, why = all_of(Part(*find([str(tmp_path)])))
    assert (found, bool(why)) == ([b"{}", b"[1]"], True)


def test_a_file_that_has_gone_is_damaged(tmp_path: Path) -> None:
    assert "No such file" in all_of(Part(File(str(tmp_path / "gone"), 1, "", None, None)))[1]


def test_a_folder_that_may_not_be_read_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def scandir(path: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    # Whoever runs the tests may read everything.
    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(SourceUnavailable, match="Permission denied"):
        find([str(tmp_path)])


class _Silent(WSGIRequestHandler):
    def log(self, *_arguments: object) -> None: ...


class Bucket:
    """A bucket `logs` on a real server that remembers what it was asked, and can hang up in the middle of answers."""

    def __init__(self) -> None:
        # Seconds to load, and every process of the suite loads this file.
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app

        self.asked: list[str] = []  #: path and query
        self.asked_bytes: list[int] = []  #: of each range that was asked
        self.hang_ups = 0  #: how many of the next ranges to cut short
        self._app = DomainDispatcherApplication(create_backend_app)
        self.server = make_server("127.0.0.1", 0, self, threaded=True, request_handler=_Silent)

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        self.asked.append(f"{environ['PATH_INFO']}?{environ['QUERY_STRING']}")
        if asked := re.fullmatch(r"bytes=(\d+)-(\d+)", environ.get("HTTP_RANGE", "")):
            self.asked_bytes.append(int(asked[2]) - int(asked[1]) + 1)
            if self.hang_ups:
                self.hang_ups -= 1
                answer = b"".join(self._app(environ, start_response))
                return self._half(answer)
        answered: Iterable[bytes] = self._app(environ, start_response)
        return answered

    def _half(self, answer: bytes) -> Iterator[bytes]:
        yield answer[: len(answer) // 2]
        raise ConnectionAbortedError

    @cached_property
    def client(self) -> Any:
        import boto3

        return boto3.client("s3")

    def put(self, key: str, body: bytes, **more: str) -> None:
        self.client.put_object(Bucket="logs", Key=key, Body=body, **more)


@pytest.fixture(scope="module")
def store() -> Iterator[Bucket]:
    bucket = Bucket()
    threading.Thread(target=bucket.server.serve_forever, daemon=True).start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{bucket.server.server_port}")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "of-the-tests")
        yield bucket
    bucket.server.shutdown()
    bucket.server.server_close()


@pytest.fixture
def bucket(store: Bucket) -> Iterator[Bucket]:
    store.client.create_bucket(Bucket="logs")
    store.asked.clear()
    store.asked_bytes.clear()
    yield store
    for one in store.client.list_objects_v2(Bucket="logs").get("Contents", []):
        store.client.delete_object(Bucket="logs", Key=one["Key"])
    store.client.delete_bucket(Bucket="logs")


@pytest.fixture
def filled(bucket: Bucket) -> Bucket:
    for name, content in TREE.items():
        bucket.put(f"old/{name}", content)
    bucket.put(f"old/segment-logs/web/{FIRST}/", b"")
    bucket.asked.clear()
    return bucket


ROOT = "s3://logs/old"


@pytest.mark.parametrize("name", [ROOT, f"{ROOT}/", "s3://logs", "s3://logs/o*", "s3://logs/**"])
def test_a_bucket_is_all_logs_in_it_without_the_debris(name: str, filled: Bucket) -> None:
    files = find([name])
    assert below(ROOT, files) == ["others.jsonl", *ours(0, 1, 2)]
    assert [(file.source, file.day_ms) for file in files[:2]] == [(None, None), ("ios", FIRST)]
    assert [file.n_bytes for file in files[:2]] == [16, len(TREE[ours(0)[0]])]
    assert [list(read(Part(file))) for file in files[:2]] == [[b'{"of":"nobody"}'], [b'{"of":"0"}']]


@pytest.mark.parametrize("glob", ["", "/*", "/**/*.gz"])
def test_days_and_sources_that_are_not_wanted_are_not_even_listed(glob: str, filled: Bucket) -> None:
    since_ms, until_ms = FIRST + DAY_MS, FIRST + 2 * DAY_MS
    files = find([f"{ROOT}/segment-logs{glob}"], since_ms=since_ms, until_ms=until_ms, sources=["ios"])
    assert below(ROOT, files) == ours(1, sources=("ios",))
    listed = {day for one in filled.asked for day in re.findall(r"prefix=[^&]*%2F(\d+)%2F&", one)}
    assert listed == {str(since_ms)}


def test_globs_of_a_bucket_and_what_they_share_give_no_file_twice(filled: Bucket) -> None:
    names = [f"{ROOT}/segment-logs/*/*/0.gz", f"{ROOT}/segment-logs/web", f"{ROOT}/others.jsonl", f"{ROOT}/*.jsonl"]
    found = below(ROOT, find(names))
    assert found == ["others.jsonl", *sorted({*(one for one in ours(0, 1, 2) if "web" in one or "0.gz" in one)})]


@pytest.mark.parametrize("name", ["s3://logs/gone", "s3://logs/old/gone*", "s3://gone", "s3://gone/*.gz"])
@pytest.mark.parametrize("since_ms", [None, FIRST])
def test_what_is_not_in_a_bucket_is_an_error_that_names_it(name: str, since_ms: int | None, filled: Bucket) -> None:
    with pytest.raises(FileNotFoundError, match=re.escape(f"there is no file {name}")):
        find([ROOT, name], since_ms=since_ms)


@pytest.mark.parametrize("name", ["s3://logs", "s3://logs/folder"])
def test_an_empty_bucket_and_a_folder_of_nothing_but_itself_are_an_error(name: str, bucket: Bucket) -> None:
    if name == "s3://logs/folder":
        bucket.put("folder/", b"")
    with pytest.raises(FileNotFoundError, match=re.escape(f"there is no file in {name}")):
        find([name])


@pytest.mark.parametrize("glob", ["", "/**/*.gz", "/ios/*/0.gz"])
@pytest.mark.parametrize("since_ms", [FIRST + 3 * DAY_MS, None])
def test_what_is_in_a_bucket_of_other_days_or_sources_is_no_error(
    glob: str, since_ms: int | None, filled: Bucket
) -> None:
    assert find([f"{ROOT}/segment-logs{glob}"], since_ms=since_ms, sources=["android"]) == []


def test_a_replaced_object_has_another_version(bucket: Bucket) -> None:
    bucket.put("log", b"1\n")
    (before,) = find(["s3://logs/log"])
    assert find(["s3://logs"]) == [before]
    bucket.put("log", b"2\n")
    (after,) = find(["s3://logs"])
    assert (after.name, after.n_bytes) == (before.name, before.n_bytes)
    assert after.version != before.version
    assert all_of(Part(before)) == ([], "s3://logs/log has changed since it was looked for")
    assert list(read(Part(after))) == [b"2"]


@pytest.mark.parametrize("encoding", ["gzip", "identity"])
@pytest.mark.parametrize("body", [b"1\n2\n", gzip.compress(b"1\n2\n", mtime=0)], ids=["plain", "packed"])
def test_content_says_what_is_packed_and_not_its_headers(body: bytes, encoding: str, bucket: Bucket) -> None:
    bucket.put("log", body, ContentEncoding=encoding, ContentType="text/plain")
    assert all_of(Part(*find(["s3://logs/log"]))) == ([b"1", b"2"], "")


def test_an_object_that_ends_early_or_has_gone_is_damaged(bucket: Bucket) -> None:
    texts = [b'{"n":%d}' % n for n in range(50_000)]
    whole = gzip.compress(b"\n".join(texts))
    bucket.put("log", whole[: len(whole) // 2])
    (file,) = find(["s3://logs"])
    found, why = all_of(Part(file))
    assert 20_000 < len(found) < 30_000
    assert found == texts[: len(found)]
    assert why.startswith("Compressed file ended")
    bucket.client.delete_object(Bucket="logs", Key="log")
    assert all_of(Part(file)) == ([], "there is no file s3://logs/log")


def test_a_large_object_is_streamed_and_its_parts_are_all_of_it(bucket: Bucket) -> None:
    texts = [b'{"n":%d,"of":"%s"}' % (n, b"x" * 1_200) for n in range(50_000)]
    bucket.put("log", b"\n".join(texts))
    (file,) = find(["s3://logs"])
    assert file.n_bytes > 60_000_000
    messages = read(Part(file))
    assert [next(messages) for _ in range(10)] == texts[:10]
    messages.close()
    assert sum(bucket.asked_bytes) < 10_000_000
    bucket.asked_bytes.clear()
    cut = parts(file, 25_000_000)
    assert len(cut) == 3
    assert sum(bucket.asked_bytes) < 1_000_000, "its first line says whether it may be cut"
    assert [one for part in cut for one in read(part)] == texts
    assert max(bucket.asked_bytes) < 10_000_000
    assert sum(bucket.asked_bytes) < file.n_bytes * 1.3


def test_a_connection_that_breaks_is_made_again_and_in_the_end_given_up(bucket: Bucket) -> None:
    texts = [b'{"n":%d,"of":"%s"}' % (n, b"x" * 1_200) for n in range(10_000)]
    bucket.put("log", b"\n".join(texts))
    (file,) = find(["s3://logs"])
    bucket.hang_ups = 2
    assert all_of(Part(file)) == (texts, "")
    assert bucket.hang_ups == 0
    messages = read(Part(file))
    found = [next(messages)]
    bucket.hang_ups = 99
    with pytest.raises(Damaged):
        found.extend(messages)
    bucket.hang_ups = 0
    assert 6_000 < len(found) < 7_000
    assert found == texts[: len(found)]


def test_the_report_reads_a_bucket(bucket: Bucket) -> None:
    bucket.put("logs/1.jsonl", b'{"type":"page","messageId":"1","anonymousId":"a","userId":"u"}\n')
    found = CliRunner().invoke(main, ["identity", "report", "s3://logs/**/*.jsonl"])
    assert (found.exit_code, found.stderr) == (0, "")
    assert "People                     1  users seen" in found.stdout


def test_a_bucket_is_replayed_and_what_broke_off_is_read_again(
    bucket: Bucket, tmp_path: Path, endpoint: Endpoint
) -> None:
    for n in range(4):
        call = {"type": "track", "event": "Seen", "messageId": f"m-{n}", "anonymousId": f"d-{n}"}
        bucket.put(f"segment-logs/web/{FIRST}/{n}.gz", gzip.compress(json.dumps(call).encode()))
    variables = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    variables |= {"INGESTION_URL": endpoint.url, "MIXPANEL_TOKEN": "the-token"}

    def replayed() -> tuple[int, str]:
        found = adapter(tmp_path, "replay", "s3://logs/segment-logs", "--processes", "2", **variables)
        # Whoever is slow is told now and then how far it is.
        return found.returncode, "".join(line for line in found.stderr.splitlines() if line.startswith("adapter: "))

    endpoint.default = lambda got: (
        Answer(400, {"failed_records": [{"index": 0, "message": "no time"}]})
        if got.records[0].get("event") == "Adapter Check"
        else stored(got)
    )
    bucket.hang_ups = 99
    code, told = replayed()
    assert (code, "once that is mended run the same command to go on" in told) == (3, True)
    bucket.hang_ups = 0
    assert replayed() == (0, "")
    events = [one for got in endpoint.got for one in got.records if one.get("event") == "Seen"]
    assert sorted(one["properties"]["$insert_id"] for one in events) == [f"m-{n}" for n in range(4)]
    assert replayed() == (0, "")


def test_without_credentials_one_line_says_so(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from s3fs import S3FileSystem

    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    S3FileSystem.clear_instance_cache()
    found = CliRunner().invoke(main, ["identity", "report", "s3://logs"])
    S3FileSystem.clear_instance_cache()
    assert (found.exit_code, found.stdout) == (2, "")
    assert re.fullmatch(r"adapter: s3://logs: .*[Cc]redentials.*\n", found.stderr)


@pytest.mark.parametrize("tells_time", [True, False])
def test_what_else_has_a_url_is_read_and_a_version_that_nobody_tells_is_a_new_one(
    tells_time: bool, tmp_path: Path
) -> None:
    class Handler(SimpleHTTPRequestHandler):
        def send_header(self, keyword: str, value: str) -> None:
            if tells_time or keyword != "Last-Modified":
                super().send_header(keyword, value)

        def log_message(self, *_arguments: object) -> None: ...

    (tmp_path / "log").write_bytes(b"1\n2\n")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(tmp_path))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/l*"
        (before,), (again,) = find([url]), find([url])
        assert (before.name, before.n_bytes) == (url.replace("*", "og"), 4)
        assert (again == before) is tells_time
        assert list(read(Part(before))) == [b"1", b"2"]
        os.utime(tmp_path / "log", (0, 0))
        assert find([url])[0].version != before.version
        server.shutdown()


def test_without_the_library_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(SourceUnavailable, match=re.escape("pip install '.[s3]'")):
        find(["s3://logs"])


def test_an_address_that_nobody_knows_is_said() -> None:
    with pytest.raises(SourceUnavailable, match="foo"):
        find(["foo://logs"])
