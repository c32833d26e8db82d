"""Benchmarks: `python -m tests.benchmarks`. Figures are ratios of things measured in one run, interleaved, medians.

messages.py   generated Segment messages
load.py       keep-alive connections that post as fast as they are answered
servers.py    the WSGI servers that were compared, and the processes that run them
sandbox.py    a sandbox project with a million events
__main__.py   the measurements
"""
