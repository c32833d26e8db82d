"""Who becomes whom in a project from before ID Merge: L1-L5 of reference/mixpanel.md 9.3, by number, over HTTP."""

from contextlib import closing

import pytest

from adapter.sandbox.project import Project
from tests.scenarios import Doors


@pytest.fixture
def doors(tmp_path):
    with closing(Project.open(tmp_path / "sandbox.db", "legacy")) as project:
        yield Doors(project)


def seen(doors, *ids):
    for id in ids:
        doors.arrive(doors.event(id=id))


def alias(doors, new, existing, door="/track"):
    doors.arrive(doors.event("$create_alias", alias=new, id=existing), door=door)


@pytest.mark.parametrize("door", ["/track", "/import"])
def test_l1_what_is_sent_to_the_alias_is_filed_under_the_first_id(doors, door):
    seen(doors, "A1"), alias(doors, "U", "A1", door), seen(doors, "U")
    assert doors.persons() == ["A1", "A1"]
    assert doors.clusters() == [{"A1", "U"}]


def test_l2_a_second_alias_of_a_user_is_refused_and_its_device_orphaned(doors):
    seen(doors, "A1"), alias(doors, "U", "A1"), seen(doors, "U")
    seen(doors, "A2"), alias(doors, "U", "A2"), seen(doors, "U")
    assert doors.persons() == ["A1", "A1", "A2", "A1"]
    assert doors.clusters() == [{"A1", "U"}, {"A2"}]
    assert doors.failures() == [None, "errAliasAlreadyExists"]


def test_l3_what_was_sent_before_the_alias_stays_where_it_was(doors):
    doors.set_profile("U", name="Ada")
    seen(doors, "U"), alias(doors, "U", "A1"), seen(doors, "U")
    assert doors.persons() == ["U", "A1"]
    doors.set_profile("U", plan="pro")
    assert doors.profiles() == {"A1": {"plan": "pro"}, "U": {"name": "Ada"}}
    assert "$distinct_id_before_identity" not in str(doors.export())


def test_l4_identify_joins_nothing(doors):
    """That the verb is stored is UNCONFIRMED; the choice: it is, as an event of the user's."""
    seen(doors, "A1")
    doors.arrive(doors.event("$identify", **{"$identified_id": "U", "$anon_id": "A1"}), door="/track")
    doors.arrive(doors.event("$merge", **{"$distinct_ids": ["U", "A1"]}))
    seen(doors, "U")
    assert doors.persons() == ["A1", "U"]
    assert doors.clusters() == [{"A1"}, {"U"}]
    assert doors.failures() == [None, None]


def test_l5_a_chain_of_aliases_is_followed(doors):
    alias(doors, "U", "A1"), alias(doors, "E", "U"), seen(doors, "E", "U", "A1")
    assert doors.persons() == ["A1"] * 3


def test_every_scenario_of_the_reference_is_here():
    numbers = {name.split("_")[1] for name in globals() if name.startswith("test_l")}
    assert numbers == {f"l{n}" for n in range(1, 6)}


def test_a_chain_that_was_made_from_its_end_is_followed_as_well(doors):
    alias(doors, "E", "U"), seen(doors, "E"), alias(doors, "U", "A1"), seen(doors, "E", "U")
    assert doors.persons() == ["U", "A1", "A1"]


def test_an_alias_that_leads_back_to_itself_is_its_own_person(doors):
    alias(doors, "U", "A1"), alias(doors, "A1", "U"), seen(doors, "U", "A1")
    assert doors.persons() == ["A1", "A1"]


def test_aliases_and_events_of_one_batch_are_taken_in_their_order(doors):
    doors.arrive(
        doors.event(id="U"),
        doors.event("$create_alias", alias="U", id="A1"),
        doors.event(id="U"),
    )
    assert doors.persons() == ["U", "A1"]


def test_device_and_user_properties_join_nothing(doors):
    doors.arrive(doors.event(id="A1", d="A1", u="U")), seen(doors, "U")
    assert doors.persons() == ["A1", "U"]
