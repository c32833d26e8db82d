"""Archived Segment messages sent again, with the identities right (design 3.13).

An identity plan comes first: one pass over everything decides whose each device is, by when messages happened and not
by where they stand. What must be linked first is linked first; then events go out from many places at once, in any
order; then the profiles, a person at a time. What was settled is in a journal, so that a replay can be gone on with.

    archive -> plan -> links -> events, side by side -> profiles -> links told to the store

choice   which messages are meant
job      one replay: what of, where to, and how
gone     whose data somebody asked to delete, and what of the logs is theirs
absent   when who used a shared device is one of these
limit    whether so many are read as are to be sent
read     a part of a log as the plan found it, and whether it is still that
planning the plan taken: everything read once, and decided
plan     whose each device is; who used a shared one, and when
fold     all that messages say of one profile, as few updates
again    refused updates, to be read by another replay
journal  what was settled, on disk
polite   how fast anything is sent, and who goes first
posting  batches sent side by side, each to its end
found    what messages came to beside their events
work     the messages of one part of a file: mapped, sent, settled in order
forgetting  what was kept of people who were deleted since
phases   the replay from its plan to its end
telling  how far it is, and what became of it
command  `adapter replay`
"""
