"""The pure core: events and the time go in, actions come out; no socket, loop, clock or process.

`link` rules are in `sender` and `receiver`, a replica's in `engine`, a project's in `project`.
"""
