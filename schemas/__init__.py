"""The languages spoken at both doors: what Segment sends, what Mixpanel takes and answers.

raw.py       bytes to JSON values, and a body cut into its raw messages
segment.py   one marshmallow schema for each Segment call; the loaded Message
mixpanel.py  the mapping table as dump schemas; load schemas for what Mixpanel answers

Wire spellings (``anonymousId``, ``$device_id``) stand here; everywhere else names are Python's.
"""
