"""What does Mixpanel do with what we send it, when there is no Mixpanel?

The sandbox is an embedded ingestion endpoint that answers as a Mixpanel project with Simplified ID Merge.
It is the default destination, so the main job runs with no account, and an independent judge: it imports
nothing else of the adapter.

    endpoints   the doors: POST /import, /track, /engage, /groups; limits, credentials, the wording of answers
    validation  pure: what is refused and with which words; which device and user an event belongs to
    project     what is kept, in one SQLite file: events, links, profiles; the joining of ids
    profiles    pure: what one update makes of a profile
    funnel      pure: what share of the people who did this went on to do that?

Where Mixpanel's documents are silent or disagree, a comment says UNCONFIRMED and the sandbox is the stricter
one: what passes here passes there.
"""
