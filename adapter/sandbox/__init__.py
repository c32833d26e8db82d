"""What does Mixpanel do with what we send it, when there is no Mixpanel?

The sandbox is an embedded ingestion endpoint that answers as a Mixpanel project does, with Simplified or Original ID
Merge or from before either. It is the default destination, so the main job runs with no account, and an independent
judge: it imports nothing else of the adapter.

    endpoints   the doors: POST /import, /track, /engage, /groups; credentials, the wording of answers
    questions   the doors to read: GET /people, /events, /funnel
    bodies      a request's bytes to records, under the limits
    validation  pure: what is refused and with which words
    project     what is kept and what can be asked of it
    people      everybody, with the ids that are theirs
    systems     the three ID systems: simplified, original, legacy; verbs, what an identity verb says
    clusters    which ids are one person: read, joined, written back
    tables      the SQLite file
    profiles    pure: what one update makes of a profile
    occurrences which events are steps of a funnel, and whose
    counting    pure: what share of the people who did this went on to do that?
    attempts    pure: how far one person got, each time
    drawing     pure: a funnel as text
    funnel      pure: what can be asked of a funnel, and how it is written
    ids         pure: which strings can be an id

Where Mixpanel's documents are silent or disagree, a comment says UNCONFIRMED and what is done here: mostly the
stricter of two readings, so that what passes here passes there.
"""
