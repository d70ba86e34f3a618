"""A dead letter that comes back to the replica that gave it up, or to another of its node."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from flowkit.codecs import Codec, encode_extras
from flowkit.errors import MessageError
from flowkit.protocol import control
from flowkit.protocol.engine import Phase
from flowkit.protocol.receiver import InBatch
from flowkit.store import DeadLetter
from flowkit.wire import Data

if TYPE_CHECKING:
    from flowkit.runtime.runner import Runner


def replay(runner: Runner, letter: DeadLetter, codecs: Mapping[int, Codec[Any]]) -> None:
    """Handle a dead letter again, under the id it has always had. `codecs` are by input link."""
    spec = runner.spec
    link = next((link for link in spec.inputs if link.name == letter.link), None)
    if runner.engine.phase is not Phase.OPEN:
        runner.say(control.Replayed(letter.number, f"{spec.name} is ending"))
        return
    if link is None:
        text = f"{spec.name} has no input link {letter.link}"
        if any(out.name == letter.link for out in spec.outputs):
            text = "it could not be encoded when it was sent: mend the sender"
        runner.say(control.Replayed(letter.number, text))
        return
    codec = codecs[link.index]
    try:
        payload = codec.encode([codec.decode_one(letter.raw)])
    except MessageError as error:
        runner.say(control.Replayed(letter.number, str(error)))
        return
    batch_id, _, index = letter.message.partition("-")
    headers = [letter.headers] if letter.headers else None
    keys = [letter.key] if letter.key is not None else None
    extras = encode_extras(keys, headers)
    frame = Data(0, 0, bytes.fromhex(batch_id), 0, 1, 1, 0, payload, extras)

    def settled(batch: InBatch) -> None:
        again = batch.dead_lettered or batch.dropped
        runner.say(control.Replayed(letter.number, "it failed again" if again else ""))

    runner.engine.inject(link.index, frame, int(index), settled)
