"""A running topology and programs that know nothing of flowkit, in processes of their own."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import zmq

from tests.conftest import Deadline
from tests.e2e.harness import Place, Run

NODES = "tests.e2e.foreign_nodes:"
PEERS = Path(__file__).parent / "peers"

pytestmark = pytest.mark.e2e


@pytest.fixture
def place() -> Iterator[Place]:
    place = Place()
    yield place
    place.close()


def free_ports(count: int) -> list[str]:
    """Addresses on ports that nobody had a moment ago."""
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    addresses = [f"tcp://127.0.0.1:{probe.getsockname()[1]}" for probe in probes]
    for probe in probes:
        probe.close()
    return addresses


def interface() -> str:
    """The address of an interface that is no loopback: multicast needs one."""
    for addresses in psutil.net_if_addrs().values():
        for one in addresses:
            if one.family is socket.AF_INET and not one.address.startswith("127."):
                return str(one.address)
    pytest.skip("no network interface but the loopback")


def javascript() -> list[str]:
    """The command of Node.js; skips the test where it, or its package, is missing."""
    command = shutil.which("node")
    if command is None:
        pytest.skip("Node.js is missing: https://nodejs.org")
    tried = subprocess.run(
        [command, "-e", "require('zeromq')"], cwd=PEERS, capture_output=True, check=False
    )
    if tried.returncode:
        pytest.skip("Node.js has no zeromq: npm install zeromq, and NODE_PATH=.../node_modules")
    return [command, str(PEERS / "plain.js")]


def python() -> list[str]:
    return [sys.executable, str(PEERS / "plain.py")]


def exchange(place: Place, first: list[str], second: list[str], count: int) -> Run:
    """Each program asks the topology, sends it what the other one gets, and gets what that sends.
    Returns the run, which still goes on."""
    ask, in_a, out_a, in_b, out_b = free_ports(5)
    topology = place.topology(
        {
            "twice": {"use": f"{NODES}Twice"},
            "one": {"use": f"{NODES}Sign"},
            "other": {"use": f"{NODES}Sign"},
        },
        [],
        endpoints=[
            {"channel": ["twice.asked", "twice.answers"], "socket": "REP", "bind": ask},
            {"channel": "one.items", "socket": "PULL", "bind": in_a},
            {"channel": "one.signed", "socket": "PUSH", "bind": out_a},
            {"channel": "other.items", "socket": "PULL", "bind": in_b},
            {"channel": "other.signed", "socket": "PUSH", "bind": out_b},
        ],
    )
    run = place.up(topology)
    programs = [
        subprocess.Popen([*command, str(count), ask, push, pull], stdout=subprocess.PIPE, text=True)
        for command, push, pull in ((first, in_a, out_b), (second, in_b, out_a))
    ]
    said: list[Any] = []
    for program in programs:
        try:
            out, _ = program.communicate(timeout=90)
        finally:
            program.kill()
            program.wait()
        assert program.returncode == 0
        said.append(json.loads(out))
    for one in said:
        assert one["answers"] == [2 * number for number in range(count)]
        assert [item["number"] for item in one["got"]] == list(range(count))
        assert {item["text"] for item in one["got"]} == {"grüße"}
    names = ["node" if command[0].endswith("node") else "python" for command in (first, second)]
    assert said[0]["got"][0]["by"] == [names[1], "other"]
    assert said[1]["got"][0]["by"] == [names[0], "one"]
    return run


def test_two_programs_with_plain_pyzmq(place: Place) -> None:
    run = exchange(place, python(), python(), 200)
    run.interrupt()
    result = run.wait()
    result.check_drained()
    links = {
        (link["from"].split()[0], link["to"].split()[0]): link for link in result.report["links"]
    }
    assert links["PULL", "one.items"]["done"] == 200
    assert links["one.signed", "PUSH"]["done"] == 200
    assert links["REP", "twice.asked"]["done"] == links["twice.answers", "REP"]["done"] == 400


@pytest.mark.slow
def test_python_and_javascript_through_one_topology(place: Place) -> None:
    run = exchange(place, python(), javascript(), 200)
    run.interrupt()
    run.wait().check_drained()


@pytest.mark.slow
@pytest.mark.skipif(not zmq.has("pgm"), reason="this ZeroMQ has no PGM: see README")
def test_multicast(place: Place) -> None:
    """epgm, published by the topology and heard by a plain SUB on the same machine."""
    address = f"epgm://{interface()};239.192.7.7:5577"
    with zmq.Context() as context:
        with context.socket(zmq.SUB) as hearing, context.socket(zmq.PUB) as saying:
            hearing.linger = saying.linger = 0
            hearing.subscribe(b"")
            hearing.connect(address)
            saying.bind(address)
            deadline = Deadline(5)
            while not hearing.poll(100):
                if deadline.passed:
                    pytest.skip("plain pyzmq does not hear itself by epgm on this machine")
                saying.send(b"x")
    topology = place.topology(
        {"one": {"use": f"{NODES}Sign"}},
        [],
        endpoints=[
            {"channel": "one.items", "socket": "PULL", "bind": f"ipc://{place.path}/in"},
            {
                "channel": "one.signed",
                "socket": "PUB",
                "bind": address,
                "insecure": True,
                "options": {"rate": 10_000},
            },
        ],
    )
    run = place.up(topology)
    run.ready()
    with zmq.Context() as context:
        with context.socket(zmq.SUB) as hearing, context.socket(zmq.PUSH) as sending:
            hearing.subscribe(b"")
            hearing.connect(address)
            sending.connect(f"ipc://{place.path}/in")
            got: list[bytes] = []
            deadline = Deadline(30)
            while not got:
                assert not deadline.passed
                sending.send(json.dumps({"number": 7}).encode())
                if hearing.poll(200):
                    got.append(hearing.recv())
            sending.linger = 0
        assert json.loads(got[0])["number"] == 7
    run.interrupt()
    run.wait()


def test_a_control_channel_ends_a_project(place: Place) -> None:
    """TERM from a plain PUB drains it; anything else is no reason."""
    (address,) = free_ports(1)
    topology = place.topology(
        {"control": {"use": "flowkit.connectors.control:Control"}},
        [],
        endpoints=[{"channel": "control.commands", "socket": "SUB", "connect": address}],
    )
    run = place.up(topology)
    run.ready()
    with zmq.Context() as context, context.socket(zmq.XPUB) as herald:
        herald.linger = 0
        herald.bind(address)
        assert herald.recv() == b"\1"
        herald.send_multipart([b"all", b"hello"])
        run.says("received hello")
        herald.send_multipart([b"all", b"TERM"])
        result = run.wait()
    result.check_drained()
    assert "TERM: the project is drained" in result.out


def test_a_proxy_with_a_monitor(place: Place) -> None:
    inbound, outbound, monitor = free_ports(3)
    topology = place.topology(
        {"proxy": {"use": "flowkit.connectors.proxy:Proxy"}},
        [],
        endpoints=[
            {"channel": "proxy.inbound", "socket": "PULL", "bind": inbound},
            {"channel": "proxy.outbound", "socket": "PUSH", "bind": outbound},
            {"channel": "proxy.monitor", "socket": "PUB", "bind": monitor},
        ],
    )
    run = place.up(topology, "--in-process")
    run.ready()
    with zmq.Context() as context:
        push, pull = context.socket(zmq.PUSH), context.socket(zmq.PULL)
        watch = context.socket(zmq.SUB)
        for one, address in ((push, inbound), (pull, outbound), (watch, monitor)):
            one.rcvtimeo = 30_000
            one.connect(address)
        watch.subscribe(b"")
        seen: list[list[bytes]] = []
        sent = 0
        while not seen:  # the monitor joins while messages pass
            push.send_multipart([b"a", b"%d" % sent])
            assert pull.recv_multipart() == [b"a", b"%d" % sent]
            sent += 1
            if watch.poll(20):
                seen.append(watch.recv_multipart())
        assert seen[0][0] == b"a"
        for one in (push, pull, watch):
            one.close(0)
    run.interrupt()
    result = run.wait()
    assert result.code == 0, result.text
    assert result.link(f"proxy.outbound -> PUSH {outbound}")["done"] == sent
