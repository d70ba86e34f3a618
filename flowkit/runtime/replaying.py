"""Tries a dead letter again, in the replica that its message is for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from flowkit.codecs import Codec, encode_extras
from flowkit.errors import MessageError
from flowkit.protocol import control
from flowkit.protocol.engine import Engine, Phase
from flowkit.protocol.receiver import InBatch
from flowkit.runtime.spec import ReplicaSpec
from flowkit.store import DeadLetter
from flowkit.wire import Data


def replay(
    letter: DeadLetter,
    spec: ReplicaSpec,
    engine: Engine,
    codecs: Mapping[int, Codec[Any]],
    say: Callable[[control.FromReplica], None],
) -> None:
    """Handle `letter` again, under the id it has always had. What becomes of it is said: at once if
    it cannot be tried, else when it is done downstream or has failed again.

    `codecs` are those of the input links, by their number.
    """

    def answer(error: str) -> None:
        say(control.Replayed(letter.number, error))

    link = next((link for link in spec.inputs if link.name == letter.link), None)
    if engine.phase is not Phase.OPEN:
        answer(f"{spec.name} is ending")
        return
    if link is None:
        text = f"{spec.name} has no input link {letter.link}"
        if any(out.name == letter.link for out in spec.outputs):
            text = "it could not be encoded when it was sent: mend the sender"
        answer(text)
        return
    codec = codecs[link.index]
    try:
        payload = codec.encode([codec.decode_one(letter.raw)])
    except MessageError as error:
        answer(str(error))
        return
    batch_id, _, index = letter.message.partition("-")
    headers = [letter.headers] if letter.headers else None
    keys = [letter.key] if letter.key is not None else None
    frame = Data(0, 0, bytes.fromhex(batch_id), 0, 1, 1, 0, payload, encode_extras(keys, headers))

    def settled(batch: InBatch) -> None:
        answer("it failed again" if batch.dead_lettered or batch.dropped else "")

    engine.inject(link.index, frame, int(index), settled)
