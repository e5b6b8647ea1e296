"""A TCP proxy for each directed link between two nodes: delays, stalls, loss as TCP sees it, resets.

One thread with an event loop of its own; the methods may be called from any thread. The link (a, b) is what
node a dials to node b; bytes flow both ways on it, and each direction has its own delay, loss and stall.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import threading
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

Link = tuple[int, int]
_CHUNK, _QUEUED = 65536, 32
_RETRANSMIT_S = 0.2  # what a lost segment costs at the least


@dataclass
class Weather:
    """What the links are like now, by (sender, receiver)."""

    delay_s: dict[Link, float] = field(default_factory=dict)
    loss: dict[Link, float] = field(default_factory=dict)
    stalled: set[Link] = field(default_factory=set)


class Proxy:
    """Listeners on one address. Close it when done."""

    def __init__(self, host: str, rng: random.Random) -> None:
        self.host = host
        self.weather = Weather()
        self._rng = rng
        self._ports: dict[Link, int] = {}
        self._writers: dict[Link, set[asyncio.StreamWriter]] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()

    def port(self, a: int, b: int, target: tuple[str, int]) -> int:
        """The port at which node a reaches node b through here."""
        if (a, b) not in self._ports:
            self._ports[a, b] = self._do(self._listen((a, b), target))
        return self._ports[a, b]

    def reset(self, a: int, b: int) -> None:
        """Break all connections of this link with RST."""
        self._do(self._reset((a, b)))

    def close(self) -> None:
        """End everything."""
        for link in list(self._writers):
            self._do(self._reset(link))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)

    def _do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(5)

    async def _listen(self, link: Link, target: tuple[str, int]) -> int:
        async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self._serve(link, target, reader, writer)

        server = await asyncio.start_server(accepted, self.host, 0)
        return int(server.sockets[0].getsockname()[1])

    async def _reset(self, link: Link) -> None:
        for writer in self._writers.pop(link, set()):
            _abort(writer)

    async def _serve(
        self, link: Link, target: tuple[str, int], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        a, b = link
        mine = self._writers.setdefault(link, set())
        mine.add(writer)
        onward = None
        try:
            there, onward = await asyncio.open_connection(*target)
            mine.add(onward)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._pump((a, b), reader, onward))
                tasks.create_task(self._pump((b, a), there, writer))
        except* (OSError, EOFError):
            pass
        finally:
            for each in (writer, onward):
                if each is not None:
                    mine.discard(each)
                    _abort(each)

    async def _pump(self, way: Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_QUEUED)

        async def deliver() -> None:
            while True:
                due, data = await queue.get()
                if (left := due - self._loop.time()) > 0:
                    await asyncio.sleep(left)
                while way in self.weather.stalled:
                    await asyncio.sleep(0.01)
                writer.write(data)
                await writer.drain()

        async with asyncio.TaskGroup() as tasks:
            delivery = tasks.create_task(deliver())
            while data := await reader.read(_CHUNK):
                await queue.put((self._loop.time() + self._delay_s(way), data))
            while not queue.empty():
                await asyncio.sleep(0.01)
            delivery.cancel()
        raise EOFError  # ends the other direction as well

    def _delay_s(self, way: Link) -> float:
        delay = self.weather.delay_s.get(way, 0.0)
        delay *= 0.5 + self._rng.random()
        if self._rng.random() < self.weather.loss.get(way, 0.0):
            delay += _RETRANSMIT_S * self._rng.choice((1, 1, 1, 3, 7))
        return delay


def _abort(writer: asyncio.StreamWriter) -> None:
    sock: socket.socket | None = writer.get_extra_info("socket")
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
