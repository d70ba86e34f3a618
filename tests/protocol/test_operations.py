"""Changes of a running project, event by event: who is asked what in which order, and what comes
of it when somebody dies, or time runs out.

One chain: ``read`` -> ``work`` (two replicas) -> ``sink``.
"""

from __future__ import annotations

from typing import Any

import pytest

from flowkit.protocol import control
from flowkit.protocol.change import Change
from flowkit.protocol.departure import Arrival, Departure
from flowkit.protocol.project import (
    CONFIGURATION,
    Completed,
    Died,
    Kill,
    Launch,
    Member,
    Operation,
    Phase,
    Restore,
    Status,
    Wanted,
)
from tests.protocol.changing import resized
from tests.protocol.test_project import CHAIN, QUICK, Play, make

LIMIT = 30.0

CALM = (control.Rest(0), control.Rest(0, leaving=True))
"""Begin nothing more; the answer does not count."""


class Changed(Play):
    """A play that operates."""

    def __init__(self, **options: Any) -> None:
        super().__init__(CHAIN, **options)
        self.before = make(CHAIN, **options)
        self.members = [
            _member(name, count, self.before.replicas[name, 0].stateful)
            for name, count in CHAIN[0].items()
        ]

    def operate(self, operation: Operation) -> list[Any]:
        self.project.operate(operation, self.now)
        return self.act() + self.settle()

    def scale(self, node: str, count: int, **options: Any) -> list[Any]:
        members, links = resized(self.members, self.project.links, node, count)
        return self.operate(Change(self.project, members, links, LIMIT, **options))

    def renew(self, node: str, **options: Any) -> list[Any]:
        change = Change(
            self.project,
            self.members,
            self.project.links,
            LIMIT,
            renewed=frozenset([node]),
            whole=True,
            **options,
        )
        return self.operate(change)

    def leave(self, name: str, again: bool = True) -> list[Any]:
        return self.operate(Departure(self.project, self.replica(name), again, LIMIT))

    def carry_out(self, action: Any) -> None:
        if isinstance(action, Completed | Restore):
            return
        if isinstance(action, Launch):
            name, incarnation = action.replica.name, action.replica.incarnation
            assert name not in self.alive, "two processes of one replica"
            self.alive[name] = incarnation
            self.heard[name, incarnation] = []
            return
        super().carry_out(action)

    # -- what replicas answer --------------------------------------------------------------------

    def asked(self, name: str, kind: type) -> Any:
        """The last thing of that kind that the replica was told; None if nothing."""
        words = [word for word in self.words(name) if type(word) is kind]
        return next((word for word in reversed(words) if word not in CALM), None)

    def rest(self, *names: str) -> None:
        for name in names:
            asked = self.asked(name, control.Rest)
            assert asked is not None, f"{name} was not asked"
            replica = self.replica(name)
            self.project.heard(replica, control.Resting(replica.incarnation, asked.round))
            self.act()

    def held(self, *names: str) -> None:
        for name in names:
            asked = self.asked(name, control.Hold)
            replica = self.replica(name)
            self.project.heard(
                replica, control.Held(replica.incarnation, asked.node, asked.replica)
            )
            self.act()

    def resize(self, *names: str) -> None:
        for name in names:
            asked = self.asked(name, control.Resize)
            assert asked is not None, f"{name} was not told"
            replica = self.replica(name)
            self.project.heard(replica, control.Resized(replica.incarnation, asked.round))
            self.act()

    @property
    def result(self) -> str | None:
        """What the operation came to: an error, or ""; None while it is under way."""
        found = [action for action in self.story if isinstance(action, Completed)]
        return found[-1].error if found else None

    def time_out(self) -> list[Any]:
        self.settle()
        self.now += LIMIT
        self.project.tick(self.now)
        return self.act()

    def settle(self) -> list[Any]:
        """A step that has begun has its deadline from the next tick."""
        self.project.tick(self.now)
        return self.act()

    def wait(self) -> list[Any]:
        """Until the next launch, if there is one."""
        actions = self.settle()
        due = [one.launch_at for one in self.project.replicas.values() if one.launch_at is not None]
        self.now = max([self.now, *due])
        return actions + self.settle()


def _member(name: str, count: int, stateful: bool) -> Member:
    origin = {"read": 1, "work": 2, "sink": 4}[name]
    return Member(name, count, QUICK, name == "read", stateful, origin)


def running() -> Changed:
    play = Changed()
    play.up()
    return play


# ---------------------------------------------------------------------------- scaling


def test_scaling_up_step_by_step() -> None:
    play = running()
    actions = play.scale("work", 3)
    assert [action.replica.name for action in actions if isinstance(action, Launch)] == ["work.2"]
    assert play.asked("read.0", control.Rest) is None, "the stream goes on until it is ready"
    play.ready("work.2")
    assert not play.words("work.2"), "nobody is introduced yet"
    assert play.asked("read.0", control.Rest) and not play.asked("work.0", control.Rest)
    play.rest("read.0")
    assert play.asked("sink.0", control.Rest) is None, "what follows need not rest"
    play.rest("work.0", "work.1")
    for name in ("read.0", "work.0", "work.1", "work.2", "sink.0"):
        assert play.asked(name, control.Resume) is None
        assert play.asked("work.2", control.ProducerAt) is None
        play.resize(name)
    assert play.asked("work.2", control.ProducerAt) and play.result == ""
    told = [word for word in play.words("sink.0") if isinstance(word, control.ProducerAt)]
    assert [word.replica for word in told] == [0, 1, 2]
    for name in ("read.0", "work.0", "work.1"):
        assert play.words(name)[-1] == control.Resume()
    assert not any(isinstance(word, control.Resume) for word in play.words("sink.0"))


def test_two_that_follow_each_other_are_scaled_at_once() -> None:
    """Who follows waits for the rest of those who send: new ones do not."""
    play = running()
    members, links = resized(play.members, play.project.links, "work", 3)
    members, links = resized(members, links, "sink", 2)
    play.operate(Change(play.project, members, links, LIMIT))
    for name in ("work.2", "sink.1"):
        play.ready(name)
    play.rest("read.0")
    play.rest("work.0", "work.1")
    play.rest("sink.0")
    for name in ("read.0", "work.0", "work.1", "work.2", "sink.0", "sink.1"):
        play.resize(name)
    assert play.result == ""


def test_scaling_down_ends_what_goes_before_the_links_change() -> None:
    play = running()
    play.scale("work", 1)
    play.rest("read.0", "work.0", "work.1")
    assert play.words("work.1")[-1] == control.Retire()
    assert play.asked("read.0", control.Resize) is None
    play.done("work.1")
    assert control.Gone("work", 1, 1, True) in play.words("sink.0")
    play.resize("read.0", "work.0", "sink.0")
    assert play.words("read.0")[-1] == control.Resume()
    assert play.result is None, "its process has not ended"
    play.exit("work.1")
    assert play.result == ""
    assert play.replica("work.1").phase is Phase.REMOVED
    play.end()
    assert play.project.status is Status.DRAINED


def test_one_that_was_removed_comes_again_in_another_life() -> None:
    play = running()
    play.scale("work", 1)
    play.rest("read.0", "work.0", "work.1")
    play.done("work.1")
    play.resize("read.0", "work.0", "sink.0")
    play.exit("work.1")
    play.members = [one._replace(replicas=1) if one.name == "work" else one for one in play.members]
    play.scale("work", 2)
    replica = play.replica("work.1")
    assert (replica.incarnation, replica.life, replica.wanted) == (2, 2, Wanted.UP)


def test_who_does_not_rest_is_named_and_the_sources_go_on() -> None:
    play = running()
    play.scale("work", 3)
    play.ready("work.2")
    play.rest("read.0", "work.0")
    actions = play.time_out()
    assert play.result == "work.1 did not come to rest in 30 s; nothing was changed"
    assert [action.replica.name for action in actions if isinstance(action, Kill)] == ["work.2"]
    for name in ("read.0", "work.0", "work.1"):
        assert play.words(name)[-1] == control.Resume()
    play.exit("work.2", -15)
    assert play.replica("work.2").phase is Phase.REMOVED
    assert not any(isinstance(action, Died) for action in play.story)
    play.end()
    assert play.project.status is Status.DRAINED


def test_a_new_replica_that_cannot_start_changes_nothing() -> None:
    play = running()
    play.scale("work", 3)
    play.exit("work.2", CONFIGURATION)
    assert play.result == "work.2 cannot start; nothing was changed"
    assert play.project.status is Status.RUNNING
    assert play.replica("work.2").phase is Phase.REMOVED


def test_a_death_while_resting_asks_again_and_what_follows_too() -> None:
    play = running()
    play.scale("work", 3)
    play.ready("work.2")
    play.rest("read.0", "work.0")
    first = play.asked("work.0", control.Rest)
    play.exit("read.0", -9)
    play.rest("work.1")
    play.wait()
    play.ready("read.0")
    assert play.asked("read.0", control.Start) is None, "it is to begin after the rest"
    assert play.asked("work.0", control.Rest) == first, "not before the source rests again"
    play.rest("read.0")
    assert play.asked("work.0", control.Rest).round > first.round
    # What it said of the first time counts no more.
    play.project.heard(play.replica("work.0"), control.Resting(1, first.round))
    play.rest("work.1")
    assert play.asked("read.0", control.Resize) is None
    play.rest("work.0")
    play.resize("read.0", "work.0", "work.1", "work.2", "sink.0")
    assert play.words("read.0")[-2:] == [control.Resume(), control.Start()]
    assert play.result == ""


def test_a_death_after_the_change_is_launched_into_the_new_graph() -> None:
    play = running()
    play.scale("work", 1)
    play.rest("read.0", "work.0", "work.1")
    play.done("work.1")
    play.exit("sink.0", -9)
    play.resize("read.0", "work.0")
    play.exit("work.1")
    assert play.result == "", "it is not waited for"
    play.wait()
    play.ready("sink.0")
    assert play.asked("sink.0", control.Resize) is None
    told = [word for word in play.words("sink.0") if isinstance(word, control.ProducerAt)]
    assert [word.replica for word in told] == [0]


def test_one_that_was_starting_when_the_links_changed_is_told() -> None:
    play = running()
    play.exit("sink.0", -9)
    play.wait()
    play.scale("work", 1)
    play.rest("read.0", "work.0", "work.1")
    play.done("work.1")
    play.resize("read.0", "work.0")
    play.exit("work.1")
    play.ready("sink.0")
    assert isinstance(play.words("sink.0")[0], control.Resize)


def test_a_retiring_replica_that_does_not_end_is_killed() -> None:
    play = running()
    play.scale("work", 1)
    play.rest("read.0", "work.0", "work.1")
    actions = play.time_out()
    assert [action.replica.name for action in actions if isinstance(action, Kill)] == ["work.1"]
    play.exit("work.1", -9)
    assert control.Gone("work", 1, 1, True) in play.words("sink.0")
    play.resize("read.0", "work.0", "sink.0")
    assert play.result == "work.1 did not end in 30 s and was killed"


def test_a_drain_abandons_what_is_not_done_yet() -> None:
    play = running()
    play.scale("work", 3)
    play.ready("work.2")
    play.project.drain()
    play.act()
    assert play.result == "the project is being drained; nothing was changed"
    assert play.words("read.0")[-2:] == [control.Resume(), control.Drain()]


def test_a_project_that_fails_ends_its_operation() -> None:
    play = running()
    play.scale("work", 3)
    play.project.kill()
    play.act()
    assert play.result == "the project ended: killed"


def test_state_that_stays_behind_is_told() -> None:
    play = running()
    play.scale("work", 1, lost_state=frozenset({"work"}))
    play.rest("read.0", "work.0", "work.1")
    play.done("work.1")
    assert play.replica("work.0").lost_state and not play.replica("work.1").lost_state


# ---------------------------------------------------------------------------- departures


def test_a_planned_restart_is_no_death() -> None:
    play = running()
    play.leave("work.0")
    assert play.words("read.0")[-1] == control.Hold("work", 0, True)
    assert play.words("work.0")[-1] == CALM[1]
    play.project.heard(play.replica("work.0"), control.Resting(1, 0))
    assert play.asked("work.0", control.Leave) is None, "something may be under way to it"
    play.held("read.0")
    assert play.words("work.0")[-1] == control.Rest(1, leaving=True)
    play.rest("work.0")
    assert play.words("work.0")[-1] == control.Leave()
    play.exit("work.0")
    assert control.Gone("work", 0, 1, False) in play.words("sink.0")
    assert play.words("read.0")[-1] == control.Hold("work", 0, False)
    play.wait()
    assert play.result is None
    play.ready("work.0")
    assert play.result == ""
    replica = play.replica("work.0")
    assert (replica.restarts, replica.planned, replica.incarnation) == (0, 1, 2)
    assert not any(isinstance(action, Died) for action in play.story)


def test_planned_restarts_are_not_counted() -> None:
    play = running()
    for _ in range(2 * QUICK.max if QUICK.max else 8):
        play.leave("work.0")
        play.held("read.0")
        play.rest("work.0")
        play.exit("work.0")
        play.wait()
        play.ready("work.0")
    assert play.project.status is Status.RUNNING
    play.exit("work.0", -9)
    assert play.replica("work.0").restarts == 1


def test_a_producer_that_dies_meanwhile_is_asked_when_it_is_back() -> None:
    play = running()
    play.leave("sink.0")
    play.held("work.0")
    play.exit("work.1", -9)
    assert play.asked("sink.0", control.Rest).round == 1, "the dead have nothing on the way"
    first = play.asked("sink.0", control.Rest)
    play.wait()
    play.ready("work.1")
    assert play.words("work.1")[-1] == control.Hold("sink", 0, True)
    play.rest("sink.0")
    assert play.asked("sink.0", control.Leave) is None, "it may have got something since"
    play.held("work.1")
    assert play.asked("sink.0", control.Rest).round > first.round
    play.rest("sink.0")
    assert play.words("sink.0")[-1] == control.Leave()


def test_who_does_not_rest_is_killed_and_restarted() -> None:
    play = running()
    play.leave("work.0")
    actions = play.time_out()
    assert [action.replica.name for action in actions if isinstance(action, Kill)] == ["work.0"]
    play.exit("work.0", -9)
    play.wait()
    play.ready("work.0")
    assert play.result == "" and play.replica("work.0").restarts == 0


def test_one_that_dies_of_itself_meanwhile_is_restarted_by_its_policy() -> None:
    play = running()
    play.leave("work.0")
    play.exit("work.0", -9)
    assert any(isinstance(action, Died) for action in play.story)
    assert play.words("read.0")[-1] == control.Hold("work", 0, False)
    play.now += 10
    play.wait()
    play.ready("work.0")
    assert play.result == "" and play.replica("work.0").restarts == 1


@pytest.mark.parametrize("code", [CONFIGURATION, 1])
def test_a_successor_that_does_not_come_up_is_set_aside(code: int) -> None:
    play = running()
    play.leave("work.0")
    play.held("read.0")
    play.rest("work.0")
    play.exit("work.0")
    play.wait()
    for _ in range(1 if code == CONFIGURATION else 4):
        play.exit("work.0", code)
        play.now += 9
        play.project.tick(play.now)
        play.act()
    assert play.result is not None and play.result.startswith("work.0 ")
    assert play.result.endswith("it is stopped now")
    assert play.replica("work.0").phase is Phase.STOPPED
    assert play.project.status is Status.RUNNING, "the others go on"
    play.operate(Arrival(play.project, play.replica("work.0"), LIMIT))
    play.ready("work.0")
    assert play.result == ""


def test_stop_means_stop() -> None:
    play = running()
    play.leave("work.0", again=False)
    play.held("read.0")
    play.rest("work.0")
    play.exit("work.0")
    assert play.result == "" and play.replica("work.0").phase is Phase.STOPPED
    assert play.project.wake_at is None, "nothing will start it"
    play.operate(Arrival(play.project, play.replica("work.0"), LIMIT))
    play.ready("work.0")
    assert play.result == "" and play.replica("work.0").incarnation == 2


def test_one_that_waits_for_its_restart_can_be_stopped_and_restarted_at_once() -> None:
    play = running()
    play.exit("work.0", -9)
    play.leave("work.0", again=False)
    assert play.result == "" and play.replica("work.0").phase is Phase.STOPPED
    assert play.project.wake_at is None
    play.exit("work.1", -9)
    actions = play.leave("work.1")
    assert [action.replica.name for action in actions if isinstance(action, Launch)] == ["work.1"]


def test_one_that_is_starting_is_killed_to_be_stopped() -> None:
    play = running()
    play.exit("work.0", -9)
    play.wait()
    actions = play.leave("work.0", again=False)
    assert [action.replica.name for action in actions if isinstance(action, Kill)] == ["work.0"]
    play.ready("work.0")  # it was that far when the signal came
    assert play.asked("work.0", control.ProducerAt) is None
    play.exit("work.0", -15)
    assert play.result == "" and play.replica("work.0").phase is Phase.STOPPED


def test_a_stopped_replica_ends_with_its_producers() -> None:
    play = running()
    for name in ("work.0", "work.1"):
        play.leave(name, again=False)
        play.held("read.0")
        play.rest(name)
        play.exit(name)
    play.done("read.0")
    play.exit("read.0")
    assert play.replica("work.0").phase is Phase.ENDED
    assert control.Gone("work", 0, 1, True) in play.words("sink.0")
    play.done("sink.0")
    play.exit("sink.0")
    assert play.project.status is Status.DRAINED and play.over


def test_a_stopped_source_ends_when_the_project_is_drained() -> None:
    play = running()
    play.leave("read.0", again=False)
    play.rest("read.0")
    play.exit("read.0")
    assert play.replica("read.0").phase is Phase.STOPPED
    play.project.drain()
    play.act()
    assert control.Gone("read", 0, 1, True) in play.words("work.0")
    for name in ("work.0", "work.1", "sink.0"):
        play.done(name)
        play.exit(name)
    assert play.project.status is Status.DRAINED


def test_new_settings_that_do_not_work_are_taken_back_at_rest() -> None:
    play = running()
    play.renew("work", fallback=play.members)
    play.rest("read.0")
    play.rest("work.0", "work.1")
    play.rest("sink.0")
    play.rest(*[one for one in ("work.0", "work.1", "sink.0") if play.asked(one, control.Rest)])
    play.exit("work.0")
    play.exit("work.1")
    play.wait()
    play.ready("work.1")
    assert not any(isinstance(action, Restore) for action in play.story)
    play.exit("work.0", CONFIGURATION)
    assert sum(isinstance(action, Restore) for action in play.story) == 1
    died = [action for action in play.story if isinstance(action, Died)]
    assert [one.ends for one in died] == [False], "the project goes on"
    play.wait()
    assert play.alive["work.0"] == 3 and play.asked("work.1", control.Leave)
    assert play.asked("read.0", control.Resume) is None, "the sources wait still"
    play.ready("work.0")
    play.exit("work.1")
    play.wait()
    assert play.result is None
    play.ready("work.1")
    assert play.asked("read.0", control.Resume)
    assert play.result == "work.0 cannot start; what ran before runs again, nothing was changed"
    assert play.project.status is Status.RUNNING
    assert [play.replica(f"work.{n}").phase for n in (0, 1)] == [Phase.READY] * 2
    assert not play.replica("work.0").restart.total, "what it died of is gone"


def test_new_settings_that_do_not_work_stop_the_node_if_they_cannot_be_taken_back() -> None:
    play = running()
    play.renew("sink")
    play.rest("read.0")
    play.rest("work.0", "work.1")
    play.rest("sink.0")
    play.exit("sink.0")
    play.wait()
    play.exit("sink.0", CONFIGURATION)
    assert play.result == "sink.0 cannot start"
    assert play.replica("sink.0").phase is Phase.STOPPED
    assert play.asked("read.0", control.Resume)


def test_one_whose_stream_ends_before_it_leaves_is_not_restarted() -> None:
    play = running()
    play.leave("read.0")
    assert play.result is None
    play.done("read.0")
    assert play.result == "read.0 has ended meanwhile"


def test_a_replica_that_has_ended_is_left_alone() -> None:
    play = running()
    play.done("read.0")
    play.leave("read.0")
    assert play.result == "read.0 has ended"
    play.leave("read.0", again=False)
    assert play.result == "read.0 has ended"
    play.exit("read.0")
    assert play.replica("read.0").phase is Phase.ENDED
