"""A TCP proxy that resets connections at random, before, while and after a call is done."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_AT_ONCE = struct.pack("ii", 1, 0)  # SO_LINGER 0: closing sends RST, and what waits is dropped
_LARGEST = 1 << 16


class CuttingProxy:
    """Passes bytes on to `port`, and now and then only some of them, and then resets.

    Attributes:
        port: where it listens.
        cuts: connections that it has reset.
    """

    def __init__(self, target: int, *, share: float, seed: int) -> None:
        self.port = 0
        self.cuts = 0
        self._target = target
        self._share = share
        self._random = random.Random(seed)

    async def serve(self) -> asyncio.Server:
        server = await asyncio.start_server(self._pass, "127.0.0.1", 0, backlog=512)
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        both = (writer, far_writer)
        ways = [
            asyncio.create_task(self._pump(source, sink, both))
            for source, sink in ((reader, far_writer), (far_reader, writer))
        ]
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
        for side in both:
            side.transport.abort()

    async def _pump(
        self,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        both: tuple[asyncio.StreamWriter, ...],
    ) -> None:
        while data := await source.read(_LARGEST):
            if self._random.random() >= self._share:
                sink.write(data)
                continue
            # All of it is as likely as nothing of it: a request that is done and never answered.
            kept = self._random.choice([0, len(data), self._random.randrange(len(data))])
            sink.write(data[:kept])
            self.cuts += 1
            for side in both:
                if side is not sink:  # what the sink was given must still arrive
                    _reset(side)
            if kept == 0:
                _reset(sink)
            return


def _reset(side: asyncio.StreamWriter) -> None:
    raw: socket.socket = side.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)


@contextmanager
def cutting_proxy(target: int, *, share: float, seed: int) -> Iterator[CuttingProxy]:
    """A proxy on a thread of its own."""
    proxy = CuttingProxy(target, share=share, seed=seed)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    server = asyncio.run_coroutine_threadsafe(proxy.serve(), loop).result(10)

    async def end() -> None:
        server.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await asyncio.sleep(0)

    try:
        yield proxy
    finally:
        asyncio.run_coroutine_threadsafe(end(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
