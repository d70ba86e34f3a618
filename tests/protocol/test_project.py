"""The life of a project, event by event: who is started, told, buried; how it ends.

The scripted histories name what must happen; the generated ones let replicas die, come up, report
and be drained in any order that processes can, and check after each event what always holds.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from flowkit.protocol import control
from flowkit.protocol.events import Terms
from flowkit.protocol.project import (
    CONFIGURATION,
    Bury,
    Died,
    Kill,
    Launch,
    Member,
    Over,
    Phase,
    Poisoned,
    Project,
    Replica,
    Started,
    Status,
    Tell,
)
from flowkit.protocol.restart import RestartPolicy

QUICK = RestartPolicy(max=3, window=60.0, backoff=1.0, backoff_max=8.0)

Graph = tuple[dict[str, int], list[tuple[str, str]]]
CHAIN: Graph = ({"read": 1, "work": 2, "sink": 1}, [("read", "work"), ("work", "sink")])
GRAPHS: dict[str, Graph] = {
    "alone": ({"read": 1}, []),
    "pair": ({"read": 1, "sink": 1}, [("read", "sink")]),
    "chain": CHAIN,
    "diamond": (
        {"read": 2, "left": 1, "right": 2, "sink": 1},
        [("read", "left"), ("read", "right"), ("left", "sink"), ("right", "sink")],
    ),
    "two": ({"a": 1, "b": 1, "sink": 2}, [("a", "sink"), ("b", "sink")]),
}


def make(
    graph: Graph,
    policy: RestartPolicy = QUICK,
    stateful: Iterable[str] = (),
    external: Iterable[str] = (),
) -> Project:
    nodes, edges = graph
    targets = {target for _, target in edges}
    members = [
        Member(name, count, policy, name not in targets, name in stateful, 0, name in external)
        for name, count in nodes.items()
    ]
    links = [
        Terms(number, f"{a} -> {b}", a, "out", b, "x", nodes[a], nodes[b])
        for number, (a, b) in enumerate(edges)
    ]
    return Project(members, links)


class Play:
    """A project, and processes that do what it says; every action is kept in `story`."""

    def __init__(self, graph: Graph = CHAIN, **options: Any) -> None:
        self.graph = graph
        self.project = make(graph, **options)
        self.now = 100.0
        self.story: list[Any] = []
        self.alive: dict[str, int] = {}
        """Incarnation of each process that runs, by the replica's name."""
        self.killed: set[str] = set()
        self.heard: dict[tuple[str, int], list[Any]] = {}
        """What each incarnation was told."""
        self.buried: set[tuple[str, int]] = set()
        self.over = 0

    def replica(self, name: str) -> Replica:
        node, _, number = name.rpartition(".")
        return self.project.replicas[node, int(number)]

    @property
    def names(self) -> list[str]:
        return [replica.name for replica in self.project.replicas.values()]

    def act(self) -> list[Any]:
        """Take the actions; returns them."""
        taken = []
        while self.project.actions:
            action = self.project.actions.popleft()
            taken.append(action)
            self.carry_out(action)
        self.story += taken
        return taken

    def carry_out(self, action: Any) -> None:
        assert not self.over, f"{action} after Over"
        if isinstance(action, Launch):
            name, incarnation = action.replica.name, action.replica.incarnation
            assert name not in self.alive, "two processes of one replica"
            assert incarnation == 1 or (name, incarnation - 1) in self.buried
            self.alive[name] = incarnation
            self.heard[name, incarnation] = []
            self.check_announced(action.replica)
        elif isinstance(action, Tell):
            key = (action.replica.name, action.replica.incarnation)
            assert action.replica.phase in (Phase.READY, Phase.DONE), "it does not listen"
            self.heard[key].append(action.message)
        elif isinstance(action, Kill):
            assert action.replica.name in self.alive
            if action.replica.over:
                assert action.replica.external
                del self.alive[action.replica.name]  # an offer, which nobody has taken
            else:
                self.killed.add(action.replica.name)
        elif isinstance(action, Bury):
            key = (action.replica.name, action.incarnation)
            assert key not in self.buried
            self.buried.add(key)
        elif isinstance(action, Over):
            assert not self.alive
            self.over += 1

    def check_announced(self, replica: Replica) -> None:
        """Every peer that listens knows that the incarnation before is dead."""
        before = replica.incarnation - 1
        if before == 0:
            return
        _, edges = self.graph
        peers = {b for a, b in edges if a == replica.node} | {
            a for a, b in edges if b == replica.node
        }
        for other in self.project.replicas.values():
            if other.node not in peers or other.phase is not Phase.READY:
                continue
            words = self.heard[other.name, other.incarnation]
            met = any(
                isinstance(word, control.ProducerAt)
                and edges[word.link][0] == replica.node
                and (word.replica, word.incarnation) == (replica.number, before)
                for word in words
            )
            gone = control.Gone(replica.node, replica.number, before, False)
            assert gone in words or not met

    # -- events ----------------------------------------------------------------------------------

    def start(self) -> list[Any]:
        self.project.start(self.now)
        return self.act()

    def ready(self, name: str, incarnation: int | None = None) -> bool:
        replica = self.replica(name)
        incarnation = incarnation or self.alive[name]
        addresses = {
            number: f"{name}#{incarnation}/{number}"
            for number, (source, _) in enumerate(self.graph[1])
            if source == replica.node
        }
        # Words of the supervisor to the newcomer find it only once it has spoken.
        self.heard.setdefault((name, incarnation), [])
        if replica.external:
            self.project.attached(replica, incarnation)
        answer = self.project.ready(replica.node, replica.number, incarnation, addresses)
        self.act()
        return answer

    def done(self, name: str, incarnation: int | None = None) -> list[Any]:
        self.project.done(self.replica(name), incarnation or self.alive[name])
        return self.act()

    def exit(self, name: str, code: int = 0, incarnation: int | None = None) -> list[Any]:
        if incarnation is None:
            incarnation = self.alive.pop(name)
            self.killed.discard(name)
        self.project.exited(self.replica(name), incarnation, code, None, self.now)
        return self.act()

    def wait(self) -> list[Any]:
        """Let the time pass until something is due."""
        due = self.project.wake_at
        if due is not None:
            self.now = max(self.now, due)
        self.project.tick(self.now)
        return self.act()

    def up(self) -> Play:
        self.start()
        for name in self.names:
            self.ready(name)
        return self

    def words(self, name: str, incarnation: int = 0) -> list[Any]:
        return self.heard[name, incarnation or self.replica(name).incarnation]

    def end(self) -> None:
        """All report and leave, upstream first."""
        for name in self.names:
            if name in self.alive:
                self.done(name)
        for name in self.names:
            if name in self.alive:
                self.exit(name)


def kinds(actions: list[Any]) -> list[type]:
    return [type(action) for action in actions]


# -- the usual way -------------------------------------------------------------------------------


def test_all_are_started_at_once() -> None:
    play = Play()
    actions = play.start()
    assert [action.replica.name for action in actions] == ["read.0", "work.0", "work.1", "sink.0"]
    assert kinds(actions) == [Launch] * 4 and play.project.wake_at is None


def test_sources_begin_when_all_are_ready() -> None:
    play = Play()
    play.start()
    for name in ["read.0", "sink.0", "work.1"]:
        assert play.ready(name)
    assert not play.project.started
    assert not any(isinstance(word, control.Start) for word in play.words("read.0"))
    play.ready("work.0")
    assert play.project.started
    assert [action for action in play.story if isinstance(action, Started)] == [Started()]
    assert play.words("read.0")[-1] == control.Start()
    for name in ["work.0", "work.1", "sink.0"]:
        assert not any(isinstance(word, control.Start) for word in play.words(name))


@pytest.mark.parametrize("order", [1, -1])
def test_consumers_learn_where_their_producers_are_in_any_order(order: int) -> None:
    play = Play()
    play.start()
    for name in play.names[::order]:
        play.ready(name)
    for consumer, producers in {
        "work.0": ["read.0"],
        "work.1": ["read.0"],
        "sink.0": ["work.0", "work.1"],
        "read.0": [],
    }.items():
        told = [word for word in play.words(consumer) if isinstance(word, control.ProducerAt)]
        link = 0 if consumer.startswith("work") else 1
        assert sorted(word.address for word in told) == [f"{one}#1/{link}" for one in producers]


def test_done_is_confirmed_and_told_to_those_who_hold_a_link() -> None:
    play = Play().up()
    play.done("read.0")
    assert play.words("read.0")[-1] == control.Released()
    gone = control.Gone("read", 0, 1, True)
    assert gone in play.words("work.0") and gone in play.words("work.1")
    assert gone not in play.words("sink.0")
    assert play.replica("read.0").phase is Phase.DONE


def test_the_whole_way_to_the_end() -> None:
    play = Play().up()
    play.end()
    assert play.over == 1 and play.project.status is Status.DRAINED
    assert {replica.phase for replica in play.project.replicas.values()} == {Phase.ENDED}
    assert play.buried == set() and play.project.reason == ""


def test_a_project_without_links() -> None:
    play = Play(GRAPHS["alone"]).up()
    play.end()
    assert play.over == 1 and play.project.status is Status.DRAINED


# -- deaths --------------------------------------------------------------------------------------


def test_a_death_while_starting() -> None:
    play = Play()
    play.start()
    play.ready("read.0")
    actions = play.exit("work.0", -9)
    assert kinds(actions) == [Bury, Tell, Died]
    assert actions[1].replica.name == "read.0"
    assert actions[2].delay == 1.0 and play.replica("work.0").phase is Phase.WAITING
    assert play.project.wake_at == play.now + 1.0
    launched = play.wait()
    assert kinds(launched) == [Launch] and play.replica("work.0").incarnation == 2
    for name in ["work.1", "sink.0", "work.0"]:
        play.ready(name)
    assert play.project.started


def test_a_death_while_ready_is_announced_before_the_next_one_starts() -> None:
    play = Play().up()
    actions = play.exit("work.1", -11)
    gone = control.Gone("work", 1, 1, False)
    assert kinds(actions) == [Bury, Tell, Tell, Died]
    assert [(action.replica.name, action.message) for action in actions[1:3]] == [
        ("read.0", gone),
        ("sink.0", gone),
    ]
    play.wait()
    assert gone not in play.words("work.0")
    play.ready("work.1")
    assert play.words("sink.0")[-1] == control.ProducerAt(1, 1, 2, "work.1#2/1")
    assert control.ProducerAt(0, 0, 1, "read.0#1/0") in play.words("work.1")
    assert control.Start() not in play.words("work.1")


def test_a_source_that_died_is_started_with_the_word_to_begin() -> None:
    play = Play().up()
    play.exit("read.0", 1)
    play.wait()
    play.ready("read.0")
    assert play.words("read.0") == [control.Start()]
    assert len([action for action in play.story if isinstance(action, Started)]) == 1


def test_a_death_after_done_is_no_death() -> None:
    for code in (0, 1, -9):
        play = Play().up()
        play.done("read.0")
        assert play.exit("read.0", code) == []
        assert play.replica("read.0").phase is Phase.ENDED
        assert play.buried == set() and play.replica("read.0").restarts == 0


def test_an_exit_without_done_is_a_death_even_with_code_0() -> None:
    play = Play().up()
    actions = play.exit("sink.0", 0)
    assert Died in kinds(actions) and play.replica("sink.0").restarts == 1


def test_who_comes_later_hears_who_is_done() -> None:
    play = Play().up()
    play.exit("work.0", -9)
    play.done("read.0")
    play.wait()
    play.ready("work.0")
    assert play.words("work.0") == [control.Gone("read", 0, 1, True)]
    play.exit("read.0")
    play.exit("work.0", -9)
    play.wait()
    play.ready("work.0")
    assert play.words("work.0") == [control.Gone("read", 0, 1, True)]


def test_a_dead_producer_is_not_introduced() -> None:
    play = Play().up()
    play.exit("sink.0", -9)
    play.exit("work.0", -9)
    play.wait()
    play.ready("sink.0")
    assert [word.address for word in play.words("sink.0")] == ["work.1#1/1"]
    play.ready("work.0")
    assert [word.address for word in play.words("sink.0")] == ["work.1#1/1", "work.0#2/1"]


def test_what_a_dead_incarnation_says_late_counts_for_nothing() -> None:
    play = Play()
    play.start()
    play.exit("work.0", -9)
    assert not play.ready("work.0", incarnation=1)
    play.wait()
    assert not play.ready("work.0", incarnation=1)
    assert play.replica("work.0").phase is Phase.STARTING
    for name in play.names:
        play.ready(name)
    assert play.done("work.0", incarnation=1) == []
    play.project.stop(play.replica("work.0"), 1, "late")
    assert play.act() == [] and play.project.status is Status.RUNNING
    assert play.replica("work.0").phase is Phase.READY
    assert play.exit("work.0", -9, incarnation=1) == []
    assert play.replica("work.0").phase is Phase.READY


def test_what_is_said_twice_or_by_nobody_counts_for_nothing() -> None:
    play = Play().up()
    before = len(play.story)
    assert not play.ready("work.0")
    assert not play.project.ready("work", 7, 1, {}) and not play.project.ready("nobody", 0, 1, {})
    play.done("sink.0")
    told = play.done("sink.0")
    assert told == [] and len(play.story) > before


def test_an_exit_that_is_told_twice_is_one_death() -> None:
    play = Play().up()
    play.exit("work.0", -9)
    assert play.exit("work.0", -9, incarnation=1) == []
    assert play.replica("work.0").restarts == 1
    assert kinds(play.wait()) == [Launch]


def test_done_before_ready_counts_for_nothing() -> None:
    play = Play()
    play.start()
    assert play.done("sink.0") == []
    assert play.replica("sink.0").phase is Phase.STARTING


def test_the_backoff_grows_and_the_replica_is_given_up() -> None:
    play = Play().up()
    delays = []
    while not play.over:
        actions = play.exit("work.0", -9)
        delays += [action.delay for action in actions if isinstance(action, Died)]
        if play.project.status is not Status.RUNNING:
            break
        play.wait()
        play.ready("work.0")
    assert delays == [1.0, 2.0, 4.0, None]
    assert play.project.status is Status.FAILED
    assert play.project.reason.startswith("work.0 was given up: died 4 times in 60 s")
    assert play.killed == {"read.0", "work.1", "sink.0"}
    for name in list(play.alive):
        play.exit(name, -15)
    assert play.over == 1
    assert {replica.phase for replica in play.project.replicas.values()} == {Phase.LOST}


def test_nothing_is_started_after_the_end_has_begun() -> None:
    play = Play(policy=RestartPolicy(max=1, backoff=5.0)).up()
    play.exit("work.1", -9)
    play.exit("work.0", -9)
    play.wait()
    play.ready("work.0")
    play.exit("work.0", -9)
    assert play.project.status is Status.FAILED
    assert play.wait() == [] and play.project.wake_at is None
    for name in list(play.alive):
        play.exit(name, -15)
    assert play.over == 1


def test_who_cannot_start_as_configured_ends_the_project() -> None:
    play = Play()
    play.start()
    actions = play.exit("sink.0", CONFIGURATION)
    assert play.project.status is Status.MISCONFIGURED
    assert play.project.reason == "sink.0 cannot start"
    assert [action.delay for action in actions if isinstance(action, Died)] == [None]
    assert play.killed == {"read.0", "work.0", "work.1"}
    for name in list(play.alive):
        play.exit(name, 143)
    assert play.over == 1


def test_once_the_stream_flows_that_is_a_death_like_any_other() -> None:
    """What is under way is not given up for a file that is being replaced."""
    play = Play().up()
    play.exit("work.0", 1)
    play.wait()
    play.exit("work.0", CONFIGURATION)
    assert play.project.status is Status.RUNNING
    died = [one for one in play.story if isinstance(one, Died)]
    assert [(one.code, one.delay, one.number) for one in died] == [(1, 1.0, 1), (2, 2.0, 2)]


def test_a_stream_that_has_ended_and_is_to_begin_again() -> None:
    """Nobody is told that it is done, and its peers are told that this incarnation is no more."""
    play = Play(policy=RestartPolicy("always", max=0, backoff=1.0)).up()
    read = play.replica("read.0")
    play.project.stream_ended(read, 7)  # some other
    assert not read.ended
    play.project.stream_ended(read, 1)
    play.act()
    assert play.heard["read.0", 1][-1] == control.Released()
    play.exit("read.0", 0)
    died = [one for one in play.story if isinstance(one, Died)]
    assert [(one.number, one.delay) for one in died] == [(0, 1.0)]
    assert control.Gone("read", 0, 1, False) in play.heard["work.0", 1]
    play.wait()
    assert play.alive["read.0"] == 2 and not read.ended and read.restarts == 1
    play.ready("read.0")
    play.exit("read.0", 0)  # it has not said that its stream has ended
    assert play.project.status is Status.FAILED


def test_the_same_code_of_a_replica_that_ran_is_a_death() -> None:
    play = Play().up()
    play.exit("sink.0", CONFIGURATION)
    assert play.project.status is Status.RUNNING


@pytest.mark.parametrize("phase", ["starting", "ready", "done"])
def test_lost_state_is_remembered(phase: str) -> None:
    play = Play(stateful=["work"])
    play.start()
    if phase != "starting":
        for name in play.names:
            play.ready(name)
    if phase == "done":
        play.done("work.0")
    play.exit("work.0", -9)
    assert play.replica("work.0").lost_state == (phase == "ready")
    assert not play.replica("work.1").lost_state


def test_a_replica_without_memory_loses_none() -> None:
    play = Play(stateful=["sink"]).up()
    play.exit("work.0", -9)
    assert not play.replica("work.0").lost_state


# -- messages that kill ------------------------------------------------------------------------


def test_a_message_in_hand_at_two_deaths_is_given_up_by_all_replicas() -> None:
    play = Play().up()
    poison = control.Poison(0, b"i" * 16, 3)

    def dies_with(index: int) -> list[Any]:
        name = "work.0" if play.alive.get("work.0") else "work.1"
        play.project.had_in_hand(play.replica(name), 0, b"i" * 16, index)
        actions = play.act()
        play.exit(name, -9)
        return actions

    assert dies_with(3) == []
    assert dies_with(4) == [], "another message of the same batch"
    for _ in range(2):
        play.wait()
    play.ready("work.0")
    play.ready("work.1")
    assert poison not in play.words("work.0")
    actions = dies_with(3)
    assert kinds(actions) == [Poisoned, Tell]
    assert actions[0].replica.name == "work.0"
    assert (actions[1].replica.name, actions[1].message) == ("work.1", poison)
    play.wait()
    play.ready("work.0")
    assert poison in play.words("work.0"), "who comes later hears it too"
    assert poison not in play.words("sink.0")
    # It is told of once.
    assert Poisoned not in kinds(dies_with(3))


# -- drain, stop, kill ---------------------------------------------------------------------------


def test_a_drain_is_told_to_sources_once() -> None:
    play = Play(GRAPHS["two"]).up()
    play.project.drain()
    actions = play.act()
    assert [(action.replica.name, action.message) for action in actions] == [
        ("a.0", control.Drain()),
        ("b.0", control.Drain()),
    ]
    play.project.drain()
    assert play.act() == []
    play.end()
    assert play.project.status is Status.DRAINED and play.over == 1


def test_a_source_that_comes_back_while_draining_is_told() -> None:
    play = Play().up()
    play.exit("read.0", -9)
    play.project.drain()
    assert play.act() == []
    play.wait()
    play.ready("read.0")
    assert play.words("read.0") == [control.Start(), control.Drain()]


def test_a_drain_while_starting_ends_the_project() -> None:
    play = Play()
    play.start()
    play.ready("read.0")
    play.project.drain()
    actions = play.act()
    assert kinds(actions) == [Kill] * 4 and play.project.status is Status.DRAINED
    assert play.project.reason == "stopped while starting"
    for name in list(play.alive):
        play.exit(name, -15)
    assert play.over == 1 and play.project.status is Status.DRAINED


def test_a_drain_while_one_waits_to_be_started_again() -> None:
    play = Play()
    play.start()
    for name in list(play.alive):
        play.exit(name, -9)
    play.project.drain()
    play.act()
    assert play.over == 1 and play.wait() == []


def test_stop_is_an_end_of_its_own() -> None:
    play = Play().up()
    play.project.stop(play.replica("sink.0"), 1, "sink.0 x: ValueError: no")
    play.act()
    assert play.project.status is Status.STOPPED
    assert "ValueError: no" in play.project.reason
    play.project.stop(play.replica("sink.0"), 1, "again")
    assert play.act() == []
    for name in list(play.alive):
        play.exit(name, -15)
    assert play.over == 1


@pytest.mark.parametrize("first", [None, "drain", "kill"])
def test_kill_ends_all_at_once(first: str | None) -> None:
    play = Play().up()
    if first == "drain":
        play.project.drain()
    elif first == "kill":
        play.project.kill(Status.TIMED_OUT, "too late")
    play.act()
    play.project.kill()
    play.act()
    assert play.killed == set(play.names)
    expected = Status.TIMED_OUT if first == "kill" else Status.KILLED
    assert play.project.status is expected
    play.done("read.0")
    for name in list(play.alive):
        play.exit(name, -9)
    assert play.over == 1 and play.project.status is expected


def test_kill_when_all_is_over_changes_nothing() -> None:
    play = Play().up()
    play.end()
    play.project.kill()
    play.project.drain()
    assert play.act() == [] and play.project.status is Status.DRAINED


# -- generated histories -------------------------------------------------------------------------

Step = tuple[str, int]
steps = st.lists(
    st.tuples(
        st.sampled_from(
            ["ready"] * 6
            + ["done"] * 3
            + ["exit"] * 3
            + ["wait"] * 4
            + ["die"] * 3
            + ["late", "twice", "misconfigured", "drain", "stop", "kill"]
        ),
        st.integers(0, 30),
    ),
    min_size=10,
    max_size=80,
)


def check(play: Play) -> None:
    """What always holds between two events."""
    core = play.project
    for replica in core.replicas.values():
        lives = replica.phase in (Phase.STARTING, Phase.READY, Phase.DONE)
        assert lives == (replica.name in play.alive), replica
        if lives:
            assert play.alive[replica.name] == replica.incarnation
        waits = replica.phase is Phase.WAITING
        assert waits == (replica.launch_at is not None), replica
        assert not (waits and core.status is not Status.RUNNING), "it would be started for nothing"
        if core.status is not Status.RUNNING and lives:
            assert replica.name in play.killed, "nobody ends it"
        assert replica.incarnation - replica.restarts in (0, 1), replica
    assert bool(play.over) == all(replica.over for replica in core.replicas.values())
    assert not play.over or core.status is not Status.RUNNING
    knows_where(play)


def knows_where(play: Play) -> None:
    """Every consumer that listens knows of each producer what is true now."""
    core = play.project
    nodes, edges = play.graph
    for number, (source, target) in enumerate(edges):
        for consumer in core.replicas.values():
            if consumer.node != target or consumer.phase is not Phase.READY:
                continue
            for producer in core.replicas.values():
                if producer.node != source:
                    continue
                said = [
                    word
                    for word in play.words(consumer.name)
                    if isinstance(word, control.ProducerAt | control.Gone)
                    and (getattr(word, "node", source), word.replica) == (source, producer.number)
                    and (isinstance(word, control.Gone) or word.link == number)
                ]
                last = said[-1] if said else None
                if producer.phase is Phase.READY:
                    assert isinstance(last, control.ProducerAt)
                    assert last.incarnation == producer.incarnation
                elif producer.phase in (Phase.DONE, Phase.ENDED):
                    assert isinstance(last, control.Gone) and last.done
                    assert last.incarnation == producer.incarnation
                elif last is not None and core.status is Status.RUNNING:
                    assert isinstance(last, control.Gone) and not last.done


def may_be_done(play: Play, replica: Replica) -> bool:
    """Whether its inputs can all have ended, so that it may report."""
    if replica.phase is not Phase.READY or not play.project.started:
        return False
    nodes, edges = play.graph
    sources = {a for a, b in edges if b == replica.node}
    return all(
        other.phase in (Phase.DONE, Phase.ENDED)
        for other in play.project.replicas.values()
        if other.node in sources
    )


@given(
    st.sampled_from(sorted(GRAPHS)),
    steps,
    st.sampled_from([QUICK, RestartPolicy(max=None, backoff=0.5), RestartPolicy(policy="never")]),
    st.booleans(),
    st.sets(st.sampled_from(["read", "work", "sink", "left", "a"]), max_size=2),
    st.booleans(),
)
def test_any_history(
    name: str,
    history: list[Step],
    policy: RestartPolicy,
    up: bool,
    external: set[str],
    away: bool,
) -> None:
    """Applications attach the `external` nodes, and none does at the end if they are `away`."""
    play = Play(GRAPHS[name], policy=policy, external=external)
    if up:
        play.up()
    else:
        play.start()
    check(play)
    for kind, which in history:
        if play.over:
            break
        one = play.names[which % len(play.names)]
        replica = play.replica(one)
        if kind == "ready" and replica.phase is Phase.STARTING:
            assert play.ready(one)
        elif kind == "done" and may_be_done(play, replica):
            play.done(one)
        elif kind == "exit" and (replica.phase is Phase.DONE or one in play.killed):
            play.exit(one, 0 if replica.phase is Phase.DONE else -9)
        elif kind == "die" and one in play.alive:
            play.exit(one, -9)
        elif replica.external and kind in ("misconfigured", "late") and replica.absent:
            continue  # nobody is there to say it
        elif kind == "misconfigured" and replica.phase is Phase.STARTING and which < 2:
            play.exit(one, CONFIGURATION)
        elif kind == "late" and replica.incarnation > 1:
            old = replica.incarnation - 1
            assert not play.ready(one, old)
            assert play.done(one, old) == [] == play.exit(one, -9, old)
        elif kind == "twice" and replica.phase is Phase.WAITING and replica.incarnation:
            assert play.exit(one, -9, replica.incarnation) == []
        elif kind == "wait":
            play.wait()
        elif kind == "drain" and which < 10:
            play.project.drain()
            play.act()
        elif kind == "stop" and which < 2 and replica.phase is Phase.READY:
            play.project.stop(replica, replica.incarnation, "policy")
            play.act()
        elif kind == "kill" and which < 2:
            play.project.kill()
            play.act()
        check(play)
    finish(play, away)
    event(f"ended {play.project.status.value}")
    event(f"deaths {min(len(play.buried), 5)}")


def finish(play: Play, away: bool = False) -> None:
    """From wherever it is, a project whose processes behave comes to its end; also if applications
    stay `away`, once it is drained."""
    if away:
        play.project.drain()
        play.act()
    for _ in range(10 * len(play.names)):
        if play.over:
            break
        play.wait()
        for name in play.names:
            replica = play.replica(name)
            if name in play.killed:
                play.exit(name, -9)
            elif replica.phase is Phase.STARTING and not (away and replica.absent):
                play.ready(name)
            elif may_be_done(play, replica):
                play.done(name)
            elif replica.phase is Phase.DONE:
                play.exit(name)
            check(play)
    assert play.over == 1
    core = play.project
    if core.status is Status.DRAINED and not core.reason:
        assert {replica.phase for replica in core.replicas.values()} == {Phase.ENDED}
    assert core.wake_at is None
