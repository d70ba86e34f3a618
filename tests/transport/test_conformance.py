"""The conformance suite over every transport there is."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from flowkit.testing.conformance import EndpointConformance, ProcessConformance
from flowkit.transport.base import Transport
from flowkit.transport.memory import MemoryHub, MemoryTransport
from flowkit.transport.zmq import ZmqTransport


class TestMemory(EndpointConformance):
    @pytest.fixture(autouse=True)
    def _hub(self) -> None:
        self.hub = MemoryHub()

    def factory(self) -> Callable[[], Transport]:
        return partial(MemoryTransport, self.hub)


class TestMemoryDelayed(TestMemory):
    @pytest.fixture(autouse=True)
    def _hub(self) -> None:
        self.hub = MemoryHub()
        self.hub.delay = 0.001


@pytest.mark.e2e
class TestIpc(EndpointConformance, ProcessConformance):
    @pytest.fixture(autouse=True)
    def _directory(self, tmp_path: Path) -> None:
        self.directory = tmp_path

    def factory(self) -> Callable[[], Transport]:
        return partial(ZmqTransport, self.directory)

    def test_no_socket_file_is_left_behind(self) -> None:
        async def test(make: Callable[[], Transport]) -> None:
            await self.pair(make())
            assert len(list(self.directory.iterdir())) == 1

        self.run(test)
        assert list(self.directory.iterdir()) == []


@pytest.mark.e2e
class TestTcp(EndpointConformance, ProcessConformance):
    @pytest.fixture(autouse=True)
    def _directory(self, tmp_path: Path) -> None:
        self.directory = tmp_path

    def factory(self) -> Callable[[], Transport]:
        return partial(ZmqTransport, self.directory, tcp=True)
