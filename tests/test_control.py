"""The socket by which a command asks the process that serves: its owner's alone, and never in the way."""

import dataclasses
import os
import socket
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from adapter import control
from adapter.app import House
from adapter.config import Settings
from adapter.control import Control
from adapter.errors import AdapterError
from schemas.mixpanel import IMPORT
from tests.conftest import on_sqlite


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[Path]:
    """A database whose owner answers."""
    with closing(Control(tmp_path / "adapter.db", answered)):
        yield tmp_path / "adapter.db"


def answered(verb: str, arguments: dict[str, Any]) -> Any:
    if verb == "fail":
        raise AdapterError("so it is")
    if verb == "break":
        raise KeyError("s3cret")
    return {"verb": verb, **arguments}


def test_the_socket_is_its_owners_alone_also_where_files_are_everybodys(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with closing(Control(tmp_path / "adapter.db", answered)):
            mode = (tmp_path / "adapter.db.sock").stat().st_mode
            assert (stat.S_ISSOCK(mode), stat.S_IMODE(mode)) == (True, 0o600)
    finally:
        assert os.umask(before) == 0
    assert list(tmp_path.iterdir()) == []


def test_a_question_gets_its_answer_or_what_went_wrong(listening: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert control.ask(listening, "say", {"numbers": [1, 2]}) == {"verb": "say", "numbers": [1, 2]}
    with pytest.raises(AdapterError, match=r"^so it is$"):
        control.ask(listening, "fail", {})
    with pytest.raises(AdapterError, match="KeyError in answered"):
        control.ask(listening, "break", {})
    assert "s3cret" not in caplog.text


def test_nobody_answers_where_nobody_is_or_ever_was(tmp_path: Path) -> None:
    database = tmp_path / "adapter.db"
    assert control.ask(database, "say", {}) is None
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(tmp_path / "adapter.db.sock"))
    assert control.ask(database, "say", {}) is None
    with closing(Control(database, answered)):
        assert control.ask(database, "say", {}) == {"verb": "say"}


def test_who_hangs_keeps_others_waiting_for_a_while_only(listening: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "QUESTION_S", 0.3)
    with socket.socket(socket.AF_UNIX) as silent, socket.socket(socket.AF_UNIX) as slow:
        for one in (silent, slow):
            one.connect(str(listening) + ".sock")
        stop = threading.Event()

        def drip() -> None:
            while not stop.wait(0.05):
                try:
                    slow.send(b" ")
                except OSError:
                    return

        dripping = threading.Thread(target=drip)
        dripping.start()
        begun = time.monotonic()
        assert control.ask(listening, "say", {}) == {"verb": "say"}
        assert 0.5 < time.monotonic() - begun < 10
        stop.set()
        dripping.join()


@pytest.mark.parametrize("question", [b"", b"{", b"{}\n", b"[]\n", b"\xff\n", b"x" * 2_000_000])
def test_what_is_no_question_harms_nobody(question: bytes, listening: Path) -> None:
    with socket.socket(socket.AF_UNIX) as asking:
        asking.connect(str(listening) + ".sock")
        try:
            asking.sendall(question)
        except OSError:
            assert len(question) > control.MAX_QUESTION_BYTES
    assert control.ask(listening, "say", {}) == {"verb": "say"}


def test_a_path_too_long_for_a_socket_is_reached_by_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 40)
    folder.mkdir()
    with closing(Control(folder / "adapter.db", answered)):
        assert control.ask(folder / "adapter.db", "say", {}) == {"verb": "say"}
        assert stat.S_IMODE((folder / "adapter.db.sock").stat().st_mode) == 0o600
    assert list(folder.iterdir()) == []


def test_without_a_socket_messages_are_taken_all_the_same(
    tmp_path: Path, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    name = "n" * 120 + ".db"
    chosen = dataclasses.replace(settings, database_url=f"sqlite:///{tmp_path / name}")
    with closing(House.open(chosen)) as house:
        house.start()
        assert "no socket for commands" in caplog.text
        assert control.ask(tmp_path / name, "retry", {}) is None
        assert house.store.claim(IMPORT, 1) == []


@on_sqlite
def test_a_file_that_is_no_socket_stays(tmp_path: Path, house: House, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "adapter.db.sock").write_text("mine")
    house.start()
    house.close()
    assert "no socket for commands" in caplog.text
    assert (tmp_path / "adapter.db.sock").read_text() == "mine"
