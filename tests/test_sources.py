"""Where logs are kept: what names stand for, and each message of it once, whatever its size and state."""

import gzip
import os
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapter.archive import File, Part, find, lines, parts, read
from adapter.errors import Damaged, SourceUnavailable

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


@pytest.mark.parametrize("name", ["gone", "gone/*.gz", "*/gone"])
def test_a_name_that_stands_for_nothing_is_an_error_that_names_it(name: str, tree: Path) -> None:
    with pytest.raises(FileNotFoundError, match="gone"):
        find([str(tree), str(tree / name)])


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
    assert parts(file) == [Part(file)]
    assert list(read(Part(file))) == [b"1", b"2"]
    os.close(reads)


LINES = st.lists(st.tuples(st.integers(0, 40), st.sampled_from([b"\n", b"\r\n", b"\n\n"])), max_size=30)


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
    for part in cut:
        begins = [0, *(at + 1 for at, byte in enumerate(log.read_bytes()) if byte == 10)]
        owned = [at for at in begins if part.start <= at < (part.end or file.n_bytes)]
        assert len(list(read(part))) == sum(log.read_bytes()[at : at + 1] not in (b"\n", b"\r", b"") for at in owned)


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
