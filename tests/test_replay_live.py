"""What becomes of a message in a replay is what becomes of it live."""

import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from adapter import links
from adapter.preview import preview
from tests.conftest import raw
from tests.test_replay import K, Sandbox, a_world, alias, call, identify, track
from tests.world import World as Live

SENT, EXISTS, LINKED, ANOTHERS = "sent", "errAliasAlreadyExists", "linked_already", "alias_of_anothers_device"
#: Calls of devices A and B and users, and how the last of them, an alias, ends in each system.
ALIASES = {
    "a device of nobody": ("visit A, alias A ada", SENT, SENT, SENT),
    "a device of this user": ("identify A ada, alias A ada", LINKED, LINKED, SENT),
    "the same once more": ("alias A ada, alias A ada", LINKED, LINKED, LINKED),
    "another's device": ("identify A ada, alias A ben", ANOTHERS, SENT, SENT),
    "another's device once more": ("identify A ada, alias A ben, alias A ben", ANOTHERS, EXISTS, LINKED),
    "a second device": ("alias A ada, alias B ada", SENT, EXISTS, EXISTS),
    "a second device once more": ("alias A ada, alias B ada, alias B ada", LINKED, EXISTS, EXISTS),
    "a user": ("identify A ben, alias ben ada", "alias_of_a_user", SENT, SENT),
    "a user once more": ("identify A ben, alias ben ada, alias ben ada", "alias_of_a_user", LINKED, LINKED),
    "equal ids": ("alias ada ada", *["alias_of_equal_ids"] * 3),
    "junk": ("alias null ada", *["no_id"] * 3),
    "junk for a user": ("alias A null", *["no_id"] * 3),
    "a device for a user": ("alias A $device:B", *["alias_to_a_device"] * 3),
    "an id too long": (f"alias {'x' * 300} ada", *["id_too_long"] * 3),
}


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with closing(Sandbox()) as sandbox:
        yield sandbox


SYSTEMS = ["simplified", "original", "legacy"]


def calls_of(history: str, number: int, second: int) -> Iterator[dict[str, Any]]:
    """The calls of a case, with ids of its own."""
    made = {"visit": lambda *call: track("visit", *call), "identify": identify, "alias": alias}
    devices = {one: str(uuid.UUID(int=2 * number + (one == "B"))) for one in "AB"}
    for at, one in enumerate(history.split(", "), second):
        kind, *who = one.split()
        yield made[kind](
            at, *[devices.get(an_id, an_id if an_id == "null" else f"{an_id}-{number}") for an_id in who]
        )


@pytest.mark.parametrize("system", SYSTEMS)
def test_an_alias_ends_in_a_replay_as_it_does_live(tmp_path: Path, sandbox: Sandbox, system: str) -> None:
    calls: list[dict[str, Any]] = []
    last = {}
    for number, (case, (history, *_)) in enumerate(ALIASES.items(), 1):
        calls += calls_of(history, number, len(calls))
        last[case] = len(calls) - 1
    with a_world(tmp_path, sandbox, identity_api=system) as world:
        live = preview([b"\n".join(map(raw, calls))], world.settings, "http://none.test")
        ended = {one["index"]: one["reason"] for one in (*live["nothing"], *live["refused"])}
        expected = {case: ends[SYSTEMS.index(system)] for case, (_, *ends) in ALIASES.items()}
        assert {case: ended.get(number, SENT) for case, number in last.items()} == expected

        world.replay(world.log(*calls))
        refused = Counter(one["reason"] for one in live["refused"])
        assert Counter(one.reason for one in world.kept) == refused
        assert (world.tally["refused"], world.report["json"]["refused"]) == (refused.total(), refused)
        nothing = Counter(one["reason"] for one in live["nothing"] if calls[one["index"]]["type"] == "alias")
        assert {name: n for name, n in world.tally.items() if name.startswith("nothing")} == {
            f"nothing: {reason}": n for reason, n in nothing.items()
        }
        posted = [one for request in live["requests"] if "/import" in request["url"] for one in request["body"]]
        assert Counter(world.events()) == Counter(one["event"] for one in posted)


SHARED = {
    "of the first user": [track("by ben", 1, K, "ben"), track("of ben", 2, K), track("by ada", 10, K, "ada")],
    "of another": [track("of ada", 0, K), track("by ada", 1, K, "ada"), track("by ben", 10, K, "ben")],
    "who comes again": [
        *(track("of ada", 0, K), track("by ada", 1, K, "ada"), track("by ben", 5, K, "ben"), track("of ben", 6, K)),
        *(
            track("again", 10, K, "ada"),
            track("of her", 11, K),
            track("by eve", 12, K, "eve"),
            track("of eve", 13, K),
        ),
    ],
    "by a group call": [track("by ben", 1, K, "ben"), call("group", 10, K, "ada", groupId="acme")],
    "nobody else": [track("of ada", 0, K), track("by ada", 1, K, "ada")],
}


@pytest.mark.parametrize("case", SHARED)
def test_with_split_what_is_left_out_of_who_was_deleted_is_theirs_as_it_was_live(
    tmp_path: Path, sandbox: Sandbox, case: str
) -> None:
    calls = [*SHARED[case], track("last", 15, K)]
    (tmp_path / "live").mkdir()
    theirs = persons_live(tmp_path / "live", calls)
    hers = {"ada", f"$device:{links.split_id(K, 'ada')}"}
    with a_world(tmp_path, sandbox, shared_devices="split") as world:
        world.replay(world.log(*calls, call("delete", 20, None, "ada")))
        assert world.persons() == {name: who for name, who in theirs.items() if who not in hers}


def persons_live(folder: Path, calls: list[dict[str, Any]]) -> dict[str, str]:
    """Whose each event is when the calls come in one after another."""
    with closing(Live(folder, f"sqlite:///{folder}/live.db", shared_devices="split")) as live:
        for one in calls:
            live.send(one["type"], **one)
            live.deliver()
        return live.persons()
