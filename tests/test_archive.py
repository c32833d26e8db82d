"""Every raw message of a log comes out once, whatever the form of the file (segment.md 5.1)."""

import gzip
import io
import json
import sys
from pathlib import Path

import orjson
import pytest

from adapter.archive import Archive, lines
from adapter.errors import Damaged
from schemas.raw import MAX_MESSAGE_BYTES

ONE, TWO = {"type": "track", "event": "[,]"}, {"type": "page", "name": "ü"}


def compact(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def read(log: bytes) -> list[bytes]:
    return list(lines.messages(lines.Pieces(io.BytesIO(log))))


FORMS = {
    "lines": f"{compact(ONE)}\n{compact(TWO)}\n",
    "lines of windows, blank ones between, none at the end": f"\n  \r\n{compact(ONE)}\r\n\r\n\t\n{compact(TWO)}",
    "lines with byte order marks": f"\ufeff{compact(ONE)}\n\ufeff{compact(TWO)}\n",
    "an array": compact([ONE, TWO]),
    "an array with a byte order mark": "\ufeff" + json.dumps([ONE, TWO], indent=2),
    "an array over several lines": json.dumps([ONE, TWO], indent=2),
    "an array with its commas in front": f"[{compact(ONE)}\n,{compact(TWO)}\n]",
    "an array a line": f"{compact([ONE])}\n{compact([TWO])}\n",
    "an array and a message": f"{compact([ONE])}\n{compact(TWO)}\n",
    "a batch": compact({"batch": [ONE, TWO]}),
    "a batch over several lines": json.dumps({"batch": [ONE, TWO]}, indent=2),
    "a batch and a message": f"{compact({'batch': [ONE]})}\n{compact(TWO)}\n",
}


@pytest.mark.parametrize("unpacked", [True, False], ids=["plain", "gzip"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_log_has_the_same_messages(form: str, unpacked: bool) -> None:
    log = FORMS[form].encode()
    assert [orjson.loads(one) for one in read(log if unpacked else gzip.compress(log))] == [ONE, TWO]


def test_what_stands_around_a_batch_holds_for_its_messages() -> None:
    (one,) = read(compact({"batch": [ONE], "context": {"ip": "192.0.2.9"}}).encode())
    assert json.loads(one) == {**ONE, "context": {"ip": "192.0.2.9"}}


def test_several_gzip_members_are_one_log() -> None:
    log = gzip.compress(compact(ONE).encode() + b"\n") + gzip.compress(compact(TWO).encode())
    assert [json.loads(one) for one in read(log)] == [ONE, TWO]


@pytest.mark.parametrize("log", [b"", b"\n \n", b"[]", b"[ ]\n", gzip.compress(b"", mtime=0)])
def test_an_empty_log_has_no_messages(log: bytes) -> None:
    assert read(log) == []


def test_a_line_passes_byte_for_byte_and_a_broken_one_costs_no_other() -> None:
    lines = [b'{"a" : 1.0}', b'{"cut', b"\xff\xfe", b'{"batch": 5}', b"{", compact(ONE).encode()]
    assert read(b"\n".join(lines)) == lines


def test_an_array_that_breaks_off_in_the_first_line_costs_no_other() -> None:
    texts = [b'{"a":1}', b'{"b', b'{"c":3}', b'{"d":4}']
    assert read(b"[%b,%b\n%b\n%b\n" % tuple(texts)) == texts


def test_a_broken_element_costs_no_other() -> None:
    assert read(b'[{"a": 1}, {"b": "\\ud83d"}, {"c": 3}]') == [b'{"a": 1}', b'{"b": "\\ud83d"}', b'{"c": 3}']


def test_an_array_of_more_messages_than_a_body_may_have_is_read() -> None:
    for text in (compact([ONE] * 50_000), json.dumps([ONE] * 50_000, indent=1)):
        assert len(text) > MAX_MESSAGE_BYTES
        assert len(read(text.encode())) == 50_000


@pytest.mark.parametrize("first", [b"{", b"[", b'"'])
def test_a_line_too_long_for_a_message_is_cut_and_the_next_one_read(first: bytes) -> None:
    long = first + b"x" * 3_000_000
    before, cut, after = read(b"1\n" + long + b"\n2\n")
    assert (before, after) == (b"1", b"2")
    assert long.startswith(cut)
    assert MAX_MESSAGE_BYTES < len(cut) < MAX_MESSAGE_BYTES + 10


def test_a_line_as_long_as_a_message_may_be_is_whole() -> None:
    for end in (b"\n", b"\r\n"):
        line = b'"' + b"x" * (MAX_MESSAGE_BYTES - 2) + b'"'
        assert read(line + end + b"2") == [line, b"2"]


def test_an_array_too_large_to_be_read_whole_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "MAX_DOCUMENT_BYTES", 100)
    with pytest.raises(Damaged, match="at most 100 bytes, or a message a line"):
        read(json.dumps([ONE] * 50, indent=1).encode())


def test_files_folders_and_standard_input_are_read_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "day" / "2").mkdir(parents=True)
    (tmp_path / "day" / "2" / "b.gz").write_bytes(gzip.compress(b"2\n"))
    (tmp_path / "day" / "1.gz").write_bytes(gzip.compress(b"1\n"))
    (tmp_path / "last").write_bytes(b"4\n")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(b"3\n"))))
    logs = Archive([str(tmp_path / "day"), "-", str(tmp_path / "last")])
    assert list(logs) == [b"1", b"2", b"3", b"4"]
    assert logs.damaged == {}
    assert logs.position == logs.n_bytes == 2 * len(gzip.compress(b"1\n")) + 2


def test_how_far_it_is_is_known_on_the_way(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"1234567\n" * 100_000)
    logs = Archive([str(log)])
    positions = [logs.position for _ in logs]
    assert positions == sorted(positions)
    assert 0 < positions[50_000] < logs.n_bytes


def test_a_damaged_file_costs_no_other_and_is_named(tmp_path: Path) -> None:
    lines = gzip.compress(b"".join(b'{"n": %d}\n' % n for n in range(100_000)))
    (tmp_path / "1-cut.gz").write_bytes(lines[: len(lines) // 2])
    (tmp_path / "2-garbled.gz").write_bytes(lines[:1000] + b"\0" * 1000 + lines[2000:])
    (tmp_path / "3-good").write_bytes(b"good\n")
    logs = Archive([str(tmp_path)])
    found = list(logs)
    assert found[0] == b'{"n": 0}'
    assert 1000 < len(found) < 200_000
    assert found[-1] == b"good"
    assert [Path(name).name for name in logs.damaged] == ["1-cut.gz", "2-garbled.gz"]
    assert all(logs.damaged.values())


def test_a_file_that_is_not_there_is_said_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no file"):
        Archive([str(tmp_path), str(tmp_path / "gone")])
