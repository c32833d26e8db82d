"""Whether a message is sent at all. Pure: same message, same filters, same answer.

The first filter that drops it gives the reason, a stable word that is counted:

    type             drop_types       its type
    source           drop_sources     its Segment source
    event            keep_events      a track whose name none of them matches
                     drop_events      a track whose name one of them matches; stronger than keep_events
    integrations     always           the message itself says that it is not for Mixpanel (segment.md 1.5)
    violations       drop_violations  Segment found that it breaks the tracking plan
    consent          consent          the person did not agree to one of the categories
    consent_missing  consent          the message carries no preferences, and they are required

A delete is subject to the first two only: whoever asks to be forgotten has often taken back the consent as well.
"""

import fnmatch
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from schemas.segment import Message

ALL = "All"
#: The destinations of Segment that bring messages here. Their true stands against {"All": false}: so Segment marks
#: what it replays to one of them (segment.md 5.2). Their false is about a webhook, and says nothing of Mixpanel.
CARRIERS = ("Webhooks", "Webhooks (Actions)", "Extensible Webhook")
#: As Segment documents the preferences, and as its first Kotlin releases wrote them.
_PREFERENCES = ("categoryPreferences", "categoryPreference")
#: Distinct event names whose verdict is remembered, and the longest of them.
REMEMBERED = 8_192
MAX_CHARS = 255


@dataclass(frozen=True, kw_only=True)
class Filters:
    """What is not to be sent. Names of events are exact or globs (`*`, `?`, `[ab]`); case matters everywhere."""

    drop_types: frozenset[str] = frozenset()
    drop_sources: frozenset[str] = frozenset()  #: projectId
    keep_events: tuple[str, ...] = ()  #: no track but these; none: all of them
    drop_events: tuple[str, ...] = ()
    integration_names: tuple[str, ...] = ("Mixpanel", "Mixpanel (Actions)", "Mixpanel (Legacy)")
    drop_violations: bool = False
    consent_categories: tuple[str, ...] = ()  #: ids; all of them must be agreed to
    consent_required: bool = True  #: False: what carries no preferences is sent, as Segment does

    idle: bool = field(init=False, repr=False, compare=False)  #: only what a message itself says can drop it
    names: frozenset[str] = field(init=False, repr=False, compare=False)
    spoken_for: frozenset[str] = field(init=False, repr=False, compare=False)  #: keys of `integrations` that matter
    drops: Callable[[str], bool] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        chosen = (self.drop_types, self.drop_sources, self.keep_events, self.drop_events)
        kept, dropped = _matcher(self.keep_events), _matcher(self.drop_events)
        derived = {
            "idle": not (any(chosen) or self.drop_violations or self.consent_categories),
            "names": frozenset(self.integration_names) - {ALL},
            "spoken_for": frozenset(self.integration_names) | {ALL},
            "drops": (lambda name: dropped(name) or not kept(name)) if self.keep_events else dropped,
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)


def _matcher(patterns: tuple[str, ...]) -> Callable[[str], bool]:
    """Whether a name is or matches one of the patterns. For one seen before, their number costs nothing."""
    exact = frozenset(patterns)
    globs = [fnmatch.translate(one) for one in patterns if not set("*?[").isdisjoint(one)]
    if not globs:
        return exact.__contains__
    found = re.compile("|".join(globs)).match

    def matches(name: str) -> bool:
        return name in exact or found(name) is not None

    remembered = lru_cache(REMEMBERED)(matches)
    return lambda name: remembered(name) if len(name) <= MAX_CHARS else matches(name)


def reason(message: Message, filters: Filters) -> str | None:
    """The word for why a message is not sent; None: send it. Raises nothing."""
    said = message.integrations
    if said and filters.spoken_for.isdisjoint(said):
        said = None
    if filters.idle and not said:
        return None
    if message.type in filters.drop_types:
        return "type"
    if message.project_id in filters.drop_sources:
        return "source"
    if message.type == "delete":
        return None
    if message.event is not None and filters.drops(message.event):
        return "event"
    if said and not _is_for_us(said, filters.names):
        return "integrations"
    if filters.drop_violations and _has_violations(message.context):
        return "violations"
    return _unagreed(message.context, filters) if filters.consent_categories else None


def _is_for_us(integrations: dict[str, Any], names: frozenset[str]) -> bool:
    """A false of any of our names drops, a true or an object outweighs {"All": false}; anything else is not said."""
    for_us = integrations.get(ALL) is not False  # by identity: a 0 is not a false
    for name in names:
        if integrations.get(name) is False:
            return False
        for_us = for_us or _is_yes(integrations.get(name))
    return for_us or any(_is_yes(integrations.get(name)) for name in CARRIERS)


def _is_yes(said: Any) -> bool:
    return said is True or isinstance(said, dict)


def _has_violations(context: Any) -> bool:
    """`context.protocols` alone is none: Segment also notes there which properties it left out, or a version."""
    protocols = getattr(context, "protocols", None)
    inner = protocols.get("violations") if isinstance(protocols, dict) else None
    return any(isinstance(one, (list, dict)) and one for one in (inner, getattr(context, "violations", None)))


def _unagreed(context: Any, filters: Filters) -> str | None:
    """Only a true agrees: as Segment has it, a category that the preferences leave out is refused."""
    consent = getattr(context, "consent", None)
    if isinstance(consent, dict):
        for spelling in _PREFERENCES:
            if isinstance(preferences := consent.get(spelling), dict):
                agreed = all(preferences.get(one) is True for one in filters.consent_categories)
                return None if agreed else "consent"
    return "consent_missing" if filters.consent_required else None
