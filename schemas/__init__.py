"""The languages spoken at both doors: what Segment sends, what Mixpanel takes and answers.

raw.py       bytes to JSON values, and a body cut into its raw messages
fields.py    the kinds of fields: Segment's scalars, Mixpanel's properties
derived.py   what an address or a user agent says
compiled.py  declared schemas, many times faster
context.py   what surrounds a Segment call
segment.py   one marshmallow schema for each Segment call; the loaded Message
mixpanel.py  the mapping table as dump schemas: events
people.py    the same: people and groups
table.py     the whole table, for people to read
answers.py   what Mixpanel answers

Wire spellings (``anonymousId``, ``$device_id``) stand here; everywhere else names are Python's.
"""
