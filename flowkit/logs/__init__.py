"""Log records of many processes and hosts in one place, each signed by who has sent it.

``flowkit logs --listen tcp://ADDRESS:PORT`` collects and shows them; `Handler` is the
`logging.Handler` that sends them::

    logging.getLogger().addHandler(flowkit.logs.Handler("tcp://logs.example:6000"))

Both need the same key: see `flowkit.logs.keys`.
"""

from __future__ import annotations

from flowkit.logs.collector import Collector
from flowkit.logs.handler import Handler
from flowkit.logs.signing import Entry

__all__ = ["Collector", "Entry", "Handler"]
