"""A Segment message becomes Mixpanel records that carry the right identity. The way it goes, and the rooms:

    webhook -> intake -> store -> delivery -> Mixpanel

A call comes in through the webhook, is validated, is committed to disk and only then acknowledged. Delivery reads
what waits, maps it, posts it in batches and settles it by the answer.

errors     every error, and what follows from each
logs       one line a fact, with its ids
declared   the settings, each declared once
config     the settings as the environment gives them, and what follows from them
doubts     what is doubtful about settings that can be read
values     what the text of a setting means
addresses  which IP addresses are private
identity   who did it: device, user and distinct id
links      what is known of a device, and what a message adds to it
verbs      the event that links, in each ID system
keys       when it happened, the key of duplicate removal, the lane
persons    who is to be forgotten, and which messages are theirs
filters    whether a message is sent at all
limits     what Mixpanel's limits make of a record
records    what mapping gives, and the settings that change it
touch      what brought a person
surroundings  what an event takes from its context
profiles   what a message changes on a profile
mapping    one message to its records for one endpoint
store      what survives a crash: entries that wait, refusals, tallies
intake     the one way in: validate, store, acknowledge
parcels    an entry made ready to be sent
trials     what ends the process that has it in hand, found and set aside
devices    what is known of the devices of the messages in hand
deletes    which deletes must still wait, and what waits for them
rounds     work in rounds, until it is stopped
pace       how fast an endpoint may be sent to, and whether at all
apart      lanes that wait by themselves, so that nobody waits behind them
sending    batches sent, in halves to find the records that are at fault
archive    logs in files, folders and buckets, their messages one after another
census     what a set of logs will do to the identity graph
delivery   the one way out: claim, map, post, settle
deletions  what Mixpanel is asked to delete, followed to its end
wire       one HTTP request and its answer
ingestion  what one POST looks like and what its answer means
bodies     how many bodies of requests are read at once, and held
webhook    Segment's Webhooks destinations, classic and Actions
control    how a command asks the process that serves
changes    what commands change, and who does it
refusals   the commands about what was refused
dossier    what is known of one id, in words
preview    what would be sent for some messages
check      whether the endpoint is there, and takes our credentials
demo       the main job in one minute
replay     archived messages sent again, with an identity plan first
sandbox    the embedded endpoint that answers as Mixpanel does
reports    the commands that only tell
app, cli   put together: the web application, the command `adapter`

Imports run downhill only (tests/test_architecture.py).
"""
