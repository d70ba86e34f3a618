"""Replicas that applications run, as the pure part of the supervisor sees them."""

from __future__ import annotations

from typing import Any

from flowkit.protocol import control
from flowkit.protocol.events import Terms
from flowkit.protocol.project import (
    Bury,
    Kill,
    Launch,
    Member,
    Over,
    Phase,
    Project,
    Replica,
    Started,
    Status,
    Tell,
    Vacated,
)
from flowkit.protocol.restart import RestartPolicy

ONCE = RestartPolicy(max=0)
ADDRESSES = {0: "here", 1: "there"}


class Play:
    """``read -> work -> show``; the `external` ones are run by applications."""

    def __init__(self, *external: str, stateful: bool = False) -> None:
        names = ("read", "work", "show")
        self.project = Project(
            [
                Member(name, 1, ONCE, name == "read", stateful, external=name in external)
                for name in names
            ],
            [
                Terms(number, f"{a} -> {b}", a, "out", b, "x", 1, 1)
                for number, (a, b) in enumerate((("read", "work"), ("work", "show")))
            ],
        )
        self.project.start(1.0)

    def __getitem__(self, name: str) -> Replica:
        return self.project.replicas[name, 0]

    def take(self, *kinds: type) -> list[Any]:
        """The actions so far; of these kinds, if any are named."""
        taken = list(self.project.actions)
        self.project.actions.clear()
        return [one for one in taken if not kinds or isinstance(one, kinds)]

    def ready(self, *names: str) -> None:
        for name in names:
            one = self[name]
            if one.external:
                self.project.attached(one, one.incarnation)
            assert self.project.ready(name, 0, one.incarnation, ADDRESSES)

    def leave(self, name: str, error: str | None = None) -> None:
        self.project.exited(self[name], self[name].incarnation, 0, error, 2.0)
        self.project.tick(2.0)

    def end(self, name: str) -> None:
        self.project.done(self[name], self[name].incarnation)
        self.leave(name)

    def heard(self, name: str) -> list[Any]:
        return [one.message for one in self.take(Tell) if one.replica is self[name]]


def test_nobody_waits_for_one_that_is_absent() -> None:
    play = Play("read", "show")
    assert [one.replica.node for one in play.take(Launch)] == ["read", "work", "show"]
    assert play["read"].absent and play["show"].absent and not play["work"].absent
    play.ready("work")
    assert play.take(Started)
    play.ready("read")
    assert control.Start() in play.heard("read"), "it begins as soon as it comes"


def test_a_project_of_guests_alone_has_started() -> None:
    assert Play("read", "work", "show").take(Started)


def test_its_place_is_offered_again_however_often_it_goes() -> None:
    """The restart policy would have given it up at the first death."""
    play = Play("show")
    play.ready("read", "work", "show")
    for incarnation in range(2, 9):
        play.take()
        play.leave("show", "has gone")
        actions = play.take()
        assert [type(one) for one in actions if not isinstance(one, Tell)] == [
            Bury, Vacated, Launch,
        ]  # fmt: skip
        gone = [one.message for one in actions if isinstance(one, Tell)]
        assert gone == [control.Gone("show", 0, incarnation - 1, False)], "its peer is told"
        assert (play["show"].incarnation, play["show"].absent) == (incarnation, True)
        play.ready("show")
    assert play["show"].restarts == 7
    assert play.project.status is Status.RUNNING


def test_what_it_held_in_memory_is_lost_with_it() -> None:
    play = Play("show", stateful=True)
    play.leave("show")
    assert not play["show"].lost_state, "it was never there"
    play.ready("show")
    play.leave("show")
    assert play["show"].lost_state


def test_an_absent_one_ends_with_its_producers() -> None:
    play = Play("show")
    play.ready("read", "work")
    play.end("read")
    assert play["show"].phase is Phase.STARTING
    play.take()
    play.end("work")
    assert play["show"].phase is Phase.ENDED
    assert [one.replica.node for one in play.take(Kill, Over)[:1]] == ["show"], "no offer is left"
    assert play.project.status is Status.DRAINED


def test_an_absent_source_ends_when_the_project_is_drained() -> None:
    play = Play("read")
    play.ready("work", "show")
    play.take()
    play.project.drain()
    assert play["read"].phase is Phase.ENDED
    assert control.Gone("read", 0, 1, True) in play.heard("work")


def test_a_source_that_goes_while_the_project_is_drained_ends() -> None:
    play = Play("read")
    play.ready("read", "work", "show")
    play.project.drain()
    assert control.Drain() in play.heard("read")
    play.leave("read", "has gone")
    assert play["read"].phase is Phase.ENDED


def test_one_that_is_there_is_waited_for() -> None:
    play = Play("show")
    play.project.attached(play["show"], 1)
    play.ready("read", "work")
    play.end("read")
    play.end("work")
    assert play["show"].phase is Phase.STARTING, "it was taken, and will learn that all has ended"
    play.ready("show")
    play.end("show")
    assert play.take(Over)


def test_killing_withdraws_what_is_offered() -> None:
    play = Play("show")
    play.ready("read", "work")
    play.take()
    play.project.kill()
    assert {one.replica.node for one in play.take(Kill)} == {"read", "work", "show"}
    play.leave("read")
    play.leave("work")
    assert play.take(Over)
    assert play["show"].phase is Phase.ENDED
