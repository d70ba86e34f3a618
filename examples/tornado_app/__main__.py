"""Run the service: ``python -m examples.tornado_app [PORT]``; Ctrl-C or SIGTERM ends it."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys

from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets

from examples.tornado_app.service import Site


async def main(port: int) -> int:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    site = Site(fresh=True)
    await site.start()
    try:
        server = HTTPServer(site.application, max_body_size=64 << 10)
        sockets = bind_sockets(port, "127.0.0.1")
        server.add_sockets(sockets)
        print(f"http://127.0.0.1:{sockets[0].getsockname()[1]}", flush=True)
        ended = asyncio.ensure_future(site.project.wait())  # should it fail by itself
        stopping = asyncio.ensure_future(stop.wait())
        await asyncio.wait({ended, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        ended.cancel()
        server.stop()  # nobody new; who waits gets an answer
        while site.pending:
            await asyncio.sleep(0.01)
        await server.close_all_connections()
    finally:
        await site.stop()
    return site.project.report().exit


if __name__ == "__main__":
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    sys.exit(asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 8000)))
