"""A closed-loop HTTP client: each connection sends its next request when it has its answer."""

import asyncio
import dataclasses
import itertools
import time
from collections.abc import Iterator, Sequence

import numpy as np
import uvloop

WARM = 0.2  # share of the time that is not counted


@dataclasses.dataclass(frozen=True, kw_only=True)
class Load:
    """What a number of connections saw: requests a second, and latencies in milliseconds."""

    connections: int
    per_second: float
    median: float
    p99: float
    n: int


class _Connection(asyncio.Protocol):
    def __init__(self, requests: Iterator[bytes], log: list[tuple[float, float]], failed: asyncio.Future[None]) -> None:
        self.requests, self.log, self.failed = requests, log, failed
        self.buffer = bytearray()
        self.stopped = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.send()

    def send(self) -> None:
        self.began = time.perf_counter()
        self.transport.write(next(self.requests))

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        end = self.buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = bytes(self.buffer[:end]).lower()
        at = head.find(b"content-length:")
        if not head.startswith(b"http/1.1 200") or at < 0:
            self.fail(f"an answer was not 200 with a length: {bytes(self.buffer[:300])!r}")
            return
        length = int(head[at + 15 :].split(b"\r\n", 1)[0])
        if len(self.buffer) < end + 4 + length:
            return
        now = time.perf_counter()
        self.log.append((now, now - self.began))
        self.buffer.clear()
        if not self.stopped:
            self.send()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.stopped:
            self.fail(f"the server closed the connection: {error}")

    def fail(self, why: str) -> None:
        self.stopped = True
        if not self.failed.done():
            self.failed.set_exception(RuntimeError(why))


def post(path: str, body: bytes) -> bytes:
    """Writes a request."""
    head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


def load(port: int, requests: Sequence[bytes], *, connections: int, seconds: float) -> Load:
    """Asks a server on the loopback for some seconds.

    Args:
        port: Where it listens.
        requests: What is sent, one after another, over and over.
        connections: How many wait for an answer at any time.
        seconds: For how long; the first fifth is not counted.

    Raises:
        RuntimeError: If an answer is not 200 or a connection is lost.
    """

    async def ask() -> list[tuple[float, float]]:
        loop = asyncio.get_running_loop()
        log: list[tuple[float, float]] = []
        failed: asyncio.Future[None] = loop.create_future()
        supply = itertools.cycle(requests)
        made = [
            await loop.create_connection(lambda: _Connection(supply, log, failed), "127.0.0.1", port)
            for _ in range(connections)
        ]
        done, _ = await asyncio.wait([failed], timeout=seconds)
        for transport, connection in made:
            connection.stopped = True
            transport.close()
        if done:
            failed.result()
        return log

    began = time.perf_counter()
    log = uvloop.run(ask())
    counted = began + WARM * seconds
    latencies = np.array([taken for at, taken in log if at >= counted]) * 1_000
    if len(latencies) == 0:
        raise RuntimeError(f"no answer in {seconds:g} s over {connections} connections")
    span = log[-1][0] - counted
    return Load(
        connections=connections,
        per_second=len(latencies) / span,
        median=float(np.median(latencies)),
        p99=float(np.quantile(latencies, 0.99)),
        n=len(latencies),
    )


def at_equal_p99(ours: Sequence[Load], theirs: Sequence[Load]) -> tuple[Load, Load, float]:
    """Compares requests a second where our P99 is no worse than theirs.

    For each of their loads our fastest load of no larger P99 is taken; the least favourable pair is returned.

    Returns:
        Our load, their load, and the ratio of requests a second; the ratio is 0 where we have no load that good.
    """
    pairs = []
    for other in theirs:
        good = [mine for mine in ours if mine.p99 <= other.p99]
        best = max(good, key=lambda mine: mine.per_second, default=None)
        pairs.append((best or ours[0], other, best.per_second / other.per_second if best else 0.0))
    return min(pairs, key=lambda pair: pair[2])
