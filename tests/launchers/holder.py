"""A process that holds a launcher, to be killed by a test.

Arguments: the directory of the children, the modules to preload (comma separated), and the specs.
A spec "+fork" is no child of the launcher but a process that this one forks, and which so inherits
all of its descriptors. Prints a line of JSON once every child has
said a word: {"nursery": pid, "children": [...], "forked": [...]}.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys

from flowkit.launchers.process import ProcessLauncher


async def main(directory: str, preload: str, specs: list[str]) -> None:
    pids: list[int] = []
    forked: list[int] = []
    launcher = ProcessLauncher(
        lambda name, pid: pids.append(pid),
        lambda *ended: print("unexpected", ended, file=sys.stderr),
        entry="launched:main",
        preload=preload.split(",") if preload else [],
        path=[directory],
    )
    await launcher.start()
    loop = asyncio.get_running_loop()
    for number, spec in enumerate(specs):
        if spec == "+fork":
            forked.append(os.fork())
            if forked[-1] == 0:
                signal.pause()
            continue
        reader, writer = os.pipe()
        said = asyncio.Event()
        loop.add_reader(reader, said.set)
        launcher.launch(
            f"child.{number}", spec.encode(), title="child", env={}, stdout=writer, stderr=None
        )
        await said.wait()
        loop.remove_reader(reader)
    print(json.dumps({"nursery": launcher.pid, "children": pids, "forked": forked}), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
