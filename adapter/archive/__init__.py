"""Logs of Segment messages, wherever they are kept: their raw messages, one after another, nothing read whole.

    names -> files -> parts -> lines -> messages

files     what a folder, a glob or a bucket holds, and of which source and day it is
remote    what has a URL: s3:// and whatever else fsspec opens
growth    whether a log is still what it was when it was found
lines     the bytes of a log, plain or gzip, to its messages
parts     a log, or a range of a large plain one, read
sequence  logs read one after another, and how far that is
"""

from adapter.archive.files import STDIN, File, find
from adapter.archive.growth import Now, marked, since
from adapter.archive.parts import Part, parts, read
from adapter.archive.sequence import Archive

__all__ = ["STDIN", "Archive", "File", "Now", "Part", "find", "marked", "parts", "read", "since"]
