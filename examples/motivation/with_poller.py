import sys

import zmq


def main(listen: str, target: str) -> None:
    context = zmq.Context()
    lines = context.socket(zmq.PULL)
    lines.bind(listen)
    shouted = context.socket(zmq.PUSH)
    shouted.connect(target)
    poller = zmq.Poller()
    poller.register(lines, zmq.POLLIN)
    while True:
        ready = dict(poller.poll())
        if lines in ready:
            line = lines.recv_string()
            shouted.send_string(line.upper())


if __name__ == "__main__":
    main(*sys.argv[1:])
