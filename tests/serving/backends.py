"""Servers that fail in every way on command, targets with a script, and an event loop whose time passes at once."""

import asyncio
import contextlib
import json
import selectors
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any, TypeVar

import numpy as np

from vitok.serving.retries import NO_DEADLINE
from vitok.serving.targets import Batch, Choice, Scored

T = TypeVar("T")
MS = 1_000_000


class Ticks:
    """A clock that stands until it is moved."""

    def __init__(self, now: int = 0) -> None:
        self.now = now

    def __call__(self) -> int:
        return self.now

    def pass_seconds(self, seconds: float) -> None:
        self.now += round(seconds * 1e9)


class _Jumping(selectors.SelectSelector):
    loop: "VirtualLoop"

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        found = super().select(0)
        if not found and timeout is None:
            raise RuntimeError("everybody waits and no timer is set")
        if not found and timeout:
            self.loop.seconds += timeout
        return found


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop that jumps to the next timer instead of waiting for it."""

    def __init__(self) -> None:
        self.seconds = 1000.0
        selector = _Jumping()
        super().__init__(selector)
        selector.loop = self

    def time(self) -> float:
        return self.seconds

    def nanoseconds(self) -> int:
        return round(self.seconds * 1e9)


def in_virtual_time(main: Callable[[Callable[[], int]], Coroutine[Any, Any, T]]) -> T:
    """Runs `main(clock)` on a virtual loop."""
    loop = VirtualLoop()
    try:
        return loop.run_until_complete(main(loop.nanoseconds))
    finally:
        loop.close()


class Scripted:
    """A target that does what its script says: seconds to wait, then an answer or an exception."""

    def __init__(
        self,
        name: str,
        script: Callable[[int], tuple[float, float | Exception]],
        *,
        cost: float = 1.0,
        quality: float | None = None,
        billed: bool = False,
    ) -> None:
        self.name = name
        self.version = f"{name}/1"
        self.billed = billed
        self.cost = cost
        self.quality = quality
        self.calls = 0
        self.cancelled = 0
        self.deadlines: list[int] = []
        self._script = script

    async def call(self, batch: Batch, deadline: int = NO_DEADLINE) -> Scored:
        seconds, outcome = self._script(self.calls)
        self.calls += 1
        self.deadlines.append(deadline)
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if isinstance(outcome, Exception):
            raise outcome
        values = np.full(len(batch), outcome)
        return Scored(values, (Choice(self.name, self.version, reason="it was asked"),), None, self.cost * len(batch))


def always(seconds: float, outcome: float | Exception) -> Callable[[int], tuple[float, float | Exception]]:
    return lambda _: (seconds, outcome)


class Backend:
    """A real server of the Open Inference Protocol whose model adds up each row; it can be told to misbehave.

    Attributes:
        mode: What it does with the next request: one of the methods `_do_*`.
        requests: How many it has read.
        port: Where it listens; the same after `kill` and `start`.
    """

    def __init__(self) -> None:
        self.mode = "answer"
        self.port = 0
        self.requests = 0
        self.heads: list[bytes] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        self._do(self._start())

    async def _start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    def kill(self) -> None:
        """Ends it with all its connections, in the middle of whatever they do."""
        self._do(self._kill())

    async def _kill(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in tuple(self._writers):
            writer.transport.abort()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def close_idle(self) -> None:
        """Closes all connections politely, as a server does that has waited long enough."""

        async def work() -> None:
            for writer in tuple(self._writers):
                writer.close()

        self._do(work())

    def close(self) -> None:
        self.kill()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._writers.add(writer)
        self._tasks.add(task)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                headers = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line)
                body = await reader.readexactly(int(headers[b"content-length"]))
                self.requests += 1
                self.heads.append(head)
                mode: Callable[..., Awaitable[None]] = getattr(self, f"_do_{self.mode}")
                await mode(writer, headers, body)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            self._writers.discard(writer)
            writer.close()

    @staticmethod
    def _reply(headers: dict[bytes, bytes], body: bytes, *, version: str = "7") -> bytes:
        length = headers.get(b"inference-header-content-length")
        asked = json.loads(body[: int(length)] if length else body)
        tensor = asked["inputs"][0]
        if length:
            rows = np.frombuffer(body[int(length) :], "<f8").reshape(tensor["shape"])
        else:
            rows = np.array(tensor["data"], float).reshape(tensor["shape"])
        values = rows.sum(axis=1)
        shape = [len(values)]
        output: dict[str, Any] = {"name": "sum", "datatype": "FP64", "shape": shape}
        told = {"model_name": "sum", "model_version": version, "outputs": [output]}
        if not length:
            output["data"] = values.tolist()
            answer = json.dumps(told).encode()
            return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(answer), answer)
        output["parameters"] = {"binary_data_size": 8 * len(values)}
        answer = json.dumps(told).encode()
        return b"HTTP/1.1 200 OK\r\ninference-header-content-length: %d\r\ncontent-length: %d\r\n\r\n%b%b" % (
            len(answer),
            len(answer) + 8 * len(values),
            answer,
            values.tobytes(),
        )

    async def _do_answer(self, writer: asyncio.StreamWriter, headers: dict[bytes, bytes], body: bytes) -> None:
        writer.write(self._reply(headers, body))

    async def _do_hang(self, writer: asyncio.StreamWriter, headers: dict[bytes, bytes], body: bytes) -> None:
        await asyncio.Event().wait()

    async def _do_slow(self, writer: asyncio.StreamWriter, headers: dict[bytes, bytes], body: bytes) -> None:
        await asyncio.sleep(0.15)
        writer.write(self._reply(headers, body))

    async def _do_error(self, writer: asyncio.StreamWriter, headers: dict[bytes, bytes], body: bytes) -> None:
        writer.write(b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 5\r\n\r\nburnt")

    async def _do_refuse(self, writer: asyncio.StreamWriter, headers: dict[bytes, bytes], body: bytes) -> None:
        writer.write(b"HTTP/1.1 422 Unprocessable\r\ncontent-length: 9\r\n\r\nbad shape")

    async def _do_truncate(self, writer: asyncio.StreamWriter, headers: dict[bytes, bytes], body: bytes) -> None:
        writer.write(self._reply(headers, body)[:-5])
        await writer.drain()
        writer.close()

    async def _do_garbage(self, writer: asyncio.StreamWriter, headers: dict[bytes, bytes], body: bytes) -> None:
        writer.write(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")

    async def _do_nonsense(self, writer: asyncio.StreamWriter, headers: dict[bytes, bytes], body: bytes) -> None:
        writer.write(b'HTTP/1.1 200 OK\r\ncontent-length: 15\r\n\r\n{"outputs": 12}')

    async def _do_fewer(self, writer: asyncio.StreamWriter, headers: dict[bytes, bytes], body: bytes) -> None:
        answer = b'{"outputs": [{"name": "y", "datatype": "FP64", "shape": [0], "data": []}]}'
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(answer), answer))

    async def _do_chunks(self, writer: asyncio.StreamWriter, headers: dict[bytes, bytes], body: bytes) -> None:
        answer = b'{"outputs": [{"name": "p", "datatype": "FP32", "shape": [1, 2], "data": [0.25, 0.75]}]}'
        parts = [answer[:20], answer[20:]]
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        for part in parts:
            writer.write(b"%x\r\n%b\r\n" % (len(part), part))
        writer.write(b"0\r\n\r\n")

    async def _do_goodbye(self, writer: asyncio.StreamWriter, headers: dict[bytes, bytes], body: bytes) -> None:
        writer.write(self._reply(headers, body).replace(b"200 OK\r\n", b"200 OK\r\nconnection: close\r\n"))
        await writer.drain()
        writer.close()

    async def _do_twice(self, writer: asyncio.StreamWriter, headers: dict[bytes, bytes], body: bytes) -> None:
        writer.write(2 * self._reply(headers, body, version="8"))


@contextlib.contextmanager
def backends(n: int) -> Iterator[list[Backend]]:
    servers: list[Backend] = []
    try:
        for _ in range(n):
            servers.append(Backend())
        yield servers
    finally:
        for server in servers:
            server.close()
