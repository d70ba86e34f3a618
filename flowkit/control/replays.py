"""Dead letters on their way back: who tries which, who asked, and what became of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from flowkit.protocol import control
from flowkit.protocol.ledger import Entry
from flowkit.protocol.project import Phase, Replica
from flowkit.store import DeadLetter

Answer = Callable[[control.Replayed], None]


class Replays:
    """The replays of one run. `tell` sends a message to a replica; `run` is the run's id."""

    def __init__(self, run: str, tell: Callable[[Replica, control.FromSupervisor], None]) -> None:
        self._run = run
        self._tell = tell
        self._under_way: dict[int, tuple[DeadLetter, Replica, list[Answer]]] = {}
        self.booked: dict[str, Entry] = {}
        """By link: what replays add to the books."""

    @property
    def idle(self) -> bool:
        return not self._under_way

    def ask(
        self,
        numbers: Sequence[int],
        letters: Sequence[DeadLetter],
        replicas: Sequence[Replica],
        answer: Answer,
    ) -> None:
        """Send `letters` (those of `numbers` that exist) to replicas that can try them."""
        missing = set(numbers) - {letter.number for letter in letters}
        for number in sorted(missing):
            answer(control.Replayed(number, "there is no such dead letter"))
        for letter in letters:
            if letter.number in self._under_way:
                self._under_way[letter.number][2].append(answer)
                continue
            replica = _choose(letter, replicas)
            if replica is None:
                text = f"no replica of {letter.node} runs that could try it"
                answer(control.Replayed(letter.number, text))
                continue
            self._under_way[letter.number] = (letter, replica, [answer])
            self._tell(replica, control.Replay([letter.number]))

    def answered(self, message: control.Replayed) -> bool:
        """A replica says what became of a letter. True if it is done: take it out of the store."""
        found = self._under_way.pop(message.number, None)
        if found is None:
            return False
        letter, _, answers = found
        entry = self.booked.setdefault(letter.link, Entry())
        if letter.run != self._run:
            # It was sent in an earlier run, whose books are closed: here it counts as sent anew.
            entry.sent += 1
            entry.delivered += 1
            if message.error:
                entry.dead_lettered += 1
            else:
                entry.done += 1
        elif not message.error:
            entry.dead_lettered -= 1
            entry.done += 1
        for answer in answers:
            answer(message)
        return not message.error

    def died(self, replica: Replica) -> None:
        """A replica died: what it was trying stays a dead letter."""
        for number, (_, trying, _) in list(self._under_way.items()):
            if trying is replica:
                self.answered(control.Replayed(number, f"{replica.name} died while it tried"))


def _choose(letter: DeadLetter, replicas: Sequence[Replica]) -> Replica | None:
    """The replica that gave it up, if it runs: on a keyed link it has the key. Else any."""
    able = [
        replica
        for replica in replicas
        if replica.node == letter.node and replica.phase is Phase.READY
    ]
    same = [replica for replica in able if replica.number == letter.replica]
    return next(iter(same or able), None)
