"""Under which ids a message goes out (mixpanel.md 1.2.1, design 3.5)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapter import identity
from adapter.errors import Refused
from schemas.segment import STRUCTS

PUBLISHED_JUNK = [
    *("00000000-0000-0000-0000-000000000000", "anon", "anonymous", "nil", "none", "null", "n/a", "na", "undefined"),
    *("unknown", "<nil>", "0", "-1", "true", "false", "[]", "{}"),
]


def resolved(anonymous_id: str | None = None, user_id: str | None = None) -> identity.Identity:
    message = STRUCTS["track"](type="track", event="E", message_id="m", anonymous_id=anonymous_id, user_id=user_id)
    return identity.resolve(message)


def linked(user_id: str, previous_id: str, anonymous_id: str | None) -> identity.Identity | None:
    message = STRUCTS["alias"](
        type="alias", message_id="m", user_id=user_id, previous_id=previous_id, anonymous_id=anonymous_id
    )
    return identity.resolve_alias(message)


@pytest.mark.parametrize(
    ("anonymous_id", "user_id", "device", "user", "distinct_id", "notes"),
    [
        ("a", None, "a", None, "$device:a", ()),
        ("a", "u", "a", "u", "u", ()),
        (None, "u", None, "u", "u", ()),
        ("$device:a", None, "a", None, "$device:a", ()),
        ("$device:$device:a", "u", "a", "u", "u", ()),
        ("a", "a", None, "a", "a", ("ids_are_equal",)),
        ("$device:a", "a", None, "a", "a", ("ids_are_equal",)),
        ("a", "$device:x", "a", None, "$device:a", ("user_id_is_a_device",)),
        (None, "$device:x", "x", None, "$device:x", ()),
        ("null", "$device:x", "x", None, "$device:x", ("junk_anonymous_id",)),
        ("null", "u", None, "u", "u", ("junk_anonymous_id",)),
        ("a", "undefined", "a", None, "$device:a", ("junk_user_id",)),
        ("a", " Undefined ", "a", None, "$device:a", ("junk_user_id",)),
        ("a", "  ", "a", None, "$device:a", ("junk_user_id",)),
    ],
)
def test_each_combination_of_ids(anonymous_id, user_id, device, user, distinct_id, notes) -> None:
    who = resolved(anonymous_id, user_id)
    assert (who.device_id, who.user_id, who.distinct_id, who.notes) == (device, user, distinct_id, notes)


@pytest.mark.parametrize("junk", [*PUBLISHED_JUNK, *(one.upper() for one in PUBLISHED_JUNK), "", "   "])
def test_a_message_left_with_no_id_is_refused(junk: str) -> None:
    with pytest.raises(Refused) as refused:
        resolved(junk, junk)
    assert refused.value.reason == "no_id"


def test_a_prefixed_junk_id_is_junk() -> None:
    with pytest.raises(Refused):
        resolved("$device:null")
    with pytest.raises(Refused):
        resolved(None, "$device:null")


ids = (
    st.none() | st.text(max_size=12) | st.sampled_from(["a", "$device:a", "$device:$device:a", "null", "Anon", " 0 "])
)


@given(anonymous_id=ids, user_id=ids)
def test_no_junk_and_no_prefix_ever_goes_out(anonymous_id: str | None, user_id: str | None) -> None:
    try:
        who = resolved(anonymous_id, user_id)
    except Refused:
        return
    for one in (who.device_id, who.user_id):
        assert one is None or not (identity.is_junk(one) or one.startswith("$device:"))
    assert who.device_id is not None or who.user_id is not None
    assert who.device_id != who.user_id
    assert who.user_id in (None, user_id), "nobody's event goes out under a user it did not name"
    assert who.distinct_id == (who.user_id or f"$device:{who.device_id}")


@pytest.mark.parametrize(
    ("user_id", "previous_id", "anonymous_id"), [("u", "a", "a"), ("u", "$device:a", None), ("u", "a", "$device:a")]
)
def test_an_alias_of_what_is_plainly_a_device_is_a_link(user_id, previous_id, anonymous_id) -> None:
    link = linked(user_id, previous_id, anonymous_id)
    assert link is not None
    assert (link.device_id, link.user_id, link.distinct_id) == ("a", "u", "u")


@pytest.mark.parametrize("previous_id", ["u", "$device:u"])
def test_an_alias_of_equal_ids_is_nothing(previous_id: str) -> None:
    assert linked("u", previous_id, "a") is None


@pytest.mark.parametrize(
    ("user_id", "previous_id", "anonymous_id", "reason"),
    [
        ("null", "a", "a", "no_id"),
        ("u", "null", "null", "no_id"),
        ("$device:b", "a", "a", "alias_to_a_device"),
    ],
)
def test_an_alias_that_cannot_be_a_link_is_refused_with_its_reason(
    user_id, previous_id, anonymous_id, reason
) -> None:
    with pytest.raises(Refused) as refused:
        linked(user_id, previous_id, anonymous_id)
    assert refused.value.reason == reason
