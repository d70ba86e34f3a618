import asyncio
import sys

import zmq
from zmq.eventloop.zmqstream import ZMQStream


async def main(listen: str, target: str) -> None:
    lines = ZMQStream(zmq.Context.instance().socket(zmq.PULL))
    lines.bind(listen)
    shouted = ZMQStream(zmq.Context.instance().socket(zmq.PUSH))
    shouted.connect(target)
    lines.on_recv(lambda frames: shouted.send_string(frames[0].decode().upper()))
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
