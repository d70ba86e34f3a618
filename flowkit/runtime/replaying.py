"""Dead letters that a replica tries again, under the ids that their messages have always had."""

from __future__ import annotations

from collections.abc import Callable

from flowkit.codecs import encode_extras
from flowkit.errors import MessageError
from flowkit.protocol import control
from flowkit.protocol.engine import Phase
from flowkit.protocol.receiver import InBatch
from flowkit.runtime.inlet import Shop
from flowkit.runtime.spec import ReplicaSpec
from flowkit.store import DeadLetter
from flowkit.topology.plan import foreign_links
from flowkit.wire import Data


def replay(
    letter: DeadLetter,
    spec: ReplicaSpec,
    shop: Shop,
    say: Callable[[control.FromReplica], None],
) -> None:
    """Handle `letter` again; `say` is told what became of it, also if it cannot be tried."""
    links = [*spec.inputs, *foreign_links([spec.node])]
    link = next((link for link in links if link.into and link.name == letter.link), None)
    if shop.engine.phase is not Phase.OPEN:
        say(control.Replayed(letter.number, f"{spec.name} is ending"))
        return
    if link is None:
        text = f"{spec.name} has no input link {letter.link}"
        if any(out.name == letter.link for out in spec.outputs):
            text = "it could not be encoded when it was sent: mend the sender"
        say(control.Replayed(letter.number, text))
        return
    codec = shop.codecs[link.index]
    try:
        payload = codec.encode([codec.decode_one(letter.raw)])
    except MessageError as error:
        say(control.Replayed(letter.number, str(error)))
        return
    batch_id, _, index = letter.message.partition("-")
    headers = [letter.headers] if letter.headers else None
    keys = [letter.key] if letter.key is not None else None
    extras = encode_extras(keys, headers)
    frame = Data(0, 0, bytes.fromhex(batch_id), 0, 1, 1, 0, payload, extras)

    def settled(batch: InBatch) -> None:
        again = batch.dead_lettered or batch.dropped
        say(control.Replayed(letter.number, "it failed again" if again else ""))

    shop.engine.inject(link.index, frame, int(index), settled)
