"""`flowkit bench`: flowkit beside what one would use instead, on this machine, in one run.

A *row* is one question (`rows`, one module each), its *contestants* are the answers. Each round of
a contestant is a process of its own (`round`) that starts real producers and consumers (`crew`,
`project`) and hands back figures; `session` runs the contestants of a row in turn, A B A B. What
the figures come to (`results`, `verdict`, `render`) is computed without touching anything.
"""
