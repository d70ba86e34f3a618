"""A program that uses plain pyzmq: asks, sends and receives, and prints what it got as JSON.

Arguments: how many; the addresses to ask, to push to and to pull from.
"""

from __future__ import annotations

import json
import sys

import zmq


def main() -> None:
    count, ask, push, pull = int(sys.argv[1]), *sys.argv[2:]
    context = zmq.Context()
    asking, pushing = context.socket(zmq.REQ), context.socket(zmq.PUSH)
    pulling = context.socket(zmq.PULL)
    sockets = [(asking, ask), (pushing, push), (pulling, pull)]
    for socket, address in sockets:
        socket.setsockopt(zmq.RCVTIMEO, 60_000)
        socket.connect(address)
    for number in range(count):
        pushing.send_json({"number": number, "text": "grüße", "by": ["python"]})
    answers = []
    for number in range(count):
        asking.send_json({"number": number})
        answers.append(asking.recv_json()["number"])
    got = [pulling.recv_json() for _ in range(count)]
    print(json.dumps({"answers": answers, "got": got}))
    for socket, _ in sockets:
        socket.close(60_000)
    context.term()


if __name__ == "__main__":
    main()
