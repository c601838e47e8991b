"""Three replicas are killed, stopped, slowed and made to answer errors under load: who fails, and how long it takes."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from bench._server import free_port
from bench.features._claim import tell

from vitok.errors import ServiceError
from vitok.serving.balance import Loads, PowerOfTwo
from vitok.serving.breaker import BreakerRules
from vitok.serving.chains import Fallback
from vitok.serving.outliers import OutlierRules
from vitok.serving.pool import Pool
from vitok.serving.remote import RemoteModel
from vitok.serving.retries import Budget
from vitok.serving.targets import Batch, Rules, Target

SCALE = float(os.environ.get("VITOK_BENCH_SCALE", "1"))
RATE = 300.0
DEADLINE_MS = 100
PHASE_SECONDS = max(1.5, 6.0 * SCALE)
REPLICAS = 3
COOL_DOWN = 1.0
PROBES = 3
MAX_SHARE = 0.34
SCRIPT = Path(__file__).parent / "_backend.py"


class Replica:
    """One backend in a process of its own."""

    def __init__(self) -> None:
        self.port = free_port()
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(SCRIPT), str(self.port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        if self.process.stdout.readline().strip() != "ready":
            raise RuntimeError("the backend did not start")

    def kill(self) -> None:
        self.process.send_signal(signal.SIGCONT)
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def obey(self, mode: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(mode + "\n")
        self.process.stdin.flush()


@dataclass
class Found:
    """What a run has seen."""

    took_ms: list[float] = field(default_factory=list)
    fallback: int = 0
    failed: int = 0
    ejected: int = 0


class InTurn:
    """Members one after another, as a plain client with a list of addresses does."""

    def __init__(self) -> None:
        self._next = -1

    def pick(self, candidates: Sequence[int], loads: Loads) -> int:  # noqa: ARG002
        self._next += 1
        return candidates[self._next % len(candidates)]

    def reason(self, member: int, loads: Loads) -> str:  # noqa: ARG002
        return "in turn"


async def load(target: Target, pool: Pool, found: Found, done: asyncio.Event) -> None:
    """Asks at random times at a fixed mean rate, whatever the answers do; measures from the intended time."""
    generator = np.random.default_rng(3)
    batch = Batch(np.array([[1.0, 2.0]]))
    running: set[asyncio.Task[None]] = set()

    async def ask(due: int) -> None:
        try:
            scored = await target.call(batch, due + DEADLINE_MS * 1_000_000)
            found.fallback += scored.choice(0).route == "fallback"
        except ServiceError:
            found.failed += 1
        found.took_ms.append((time.perf_counter_ns() - due) / 1e6)
        found.ejected = max(found.ejected, len(pool.state.ejected))

    due = time.perf_counter_ns()
    while not done.is_set():
        due += round(generator.exponential(1 / RATE) * 1e9)
        wait = (due - time.perf_counter_ns()) / 1e9
        if wait > 0:
            await asyncio.sleep(wait)
        task = asyncio.ensure_future(ask(due))
        running.add(task)
        task.add_done_callback(running.discard)
    await asyncio.gather(*running)


@contextlib.asynccontextmanager
async def under_load(target: Target, pool: Pool, found: Found) -> AsyncIterator[None]:
    done = asyncio.Event()
    work = asyncio.ensure_future(load(target, pool, found, done))
    try:
        yield
    finally:
        done.set()
        await work


async def story(
    replicas: list[Replica], make: Callable[[list[RemoteModel]], tuple[Target, Pool]]
) -> tuple[Found, Pool]:
    members = [RemoteModel(f"http://127.0.0.1:{r.port}", "sum", name=str(k)) for k, r in enumerate(replicas)]
    target, pool = make(members)
    for _ in range(20):
        await pool.call(Batch(np.zeros((1, 2))))
    found = Found()
    first, second, third = replicas
    # To start a process takes a while, and the load must not wait for it.
    loop = asyncio.get_running_loop()
    try:
        async with under_load(target, pool, found):
            await asyncio.sleep(PHASE_SECONDS)
            first.kill()
            await asyncio.sleep(PHASE_SECONDS)
            await loop.run_in_executor(None, first.start)
            second.send(signal.SIGSTOP)
            await asyncio.sleep(PHASE_SECONDS)
            second.send(signal.SIGCONT)
            await asyncio.sleep(PHASE_SECONDS)
            for mode in ("error", "truncate", "slow"):
                third.obey(mode)
                await asyncio.sleep(PHASE_SECONDS)
                third.obey("answer")
                await asyncio.sleep(PHASE_SECONDS / 2)
            for replica in replicas:
                replica.kill()
            await asyncio.sleep(PHASE_SECONDS)
            for replica in replicas:
                await loop.run_in_executor(None, replica.start)
            await asyncio.sleep(2 * PHASE_SECONDS)
    finally:
        for member in members:
            await member.aclose()
    return found, pool


def guarded(members: list[RemoteModel]) -> tuple[Target, Pool]:
    pool = Pool(
        members,
        balancer=PowerOfTwo(),
        breaker=BreakerRules(cool_down=COOL_DOWN, longest=2 * COOL_DOWN, probes=PROBES, min_calls=10),
        outliers=OutlierRules(ejection=COOL_DOWN, max_share=MAX_SHARE, min_calls=50, interval=1.0),
        retries=Budget(0.1),
    )
    return Fallback([pool, Rules(lambda batch: batch.rows[:, 0], otherwise=0.5)]), pool


def plain(members: list[RemoteModel]) -> tuple[Target, Pool]:
    never = BreakerRules(min_calls=10**9)
    pool = Pool(members, balancer=InTurn(), breaker=never, outliers=None, tries=2, retries=Budget(1.0, reserve=1e6))
    return pool, pool


def main() -> None:
    replicas = [Replica() for _ in range(REPLICAS)]
    try:
        found, pool = asyncio.run(story(replicas, guarded))
        without, _ = asyncio.run(story(replicas, plain))
    finally:
        for replica in replicas:
            replica.kill()
    p99, peer = (float(np.quantile(each.took_ms, 0.99)) for each in (found, without))
    closed = all(state == "closed" for state in pool.state.states)
    opened = sum(breaker.opened for breaker in pool.breakers)
    probed = sum(breaker.probed for breaker in pool.breakers)
    # One member always may be: a smaller share of three would be none.
    most = max(1, int(MAX_SHARE * REPLICAS))
    # Each breaker that has opened is closed again, and that only probes can do.
    recovered = closed and opened >= REPLICAS and probed >= PROBES * REPLICAS
    retried = pool.retries / pool.requests
    n = len(found.took_ms)
    late = sum(took > DEADLINE_MS for took in found.took_ms)
    kept = found.failed == 0 and p99 <= DEADLINE_MS and found.ejected <= most and recovered and retried <= 0.1 + 10 / n
    tell(
        "breaker and fallback: replicas killed, stopped, slowed, answering errors and half answers",
        value=p99,
        unit="ms P99",
        peer="the same client in turn, one retry, no breaker, no fallback",
        peer_value=peer,
        ratio=peer / p99,
        bar=f"0 failed, P99 <= {DEADLINE_MS} ms, ejected <= {most} of {REPLICAS}, all recovered by probes",
        met=kept,
        n=n,
        protocol=(
            f"Open loop, {RATE:g} requests a second from the intended time, deadline {DEADLINE_MS} ms; {REPLICAS} "
            f"replicas of one process each; in turn: one killed and started again, one stopped by SIGSTOP, one "
            f"answering 500, one half an answer, one after {1000:g} ms, all killed and started again; phases of "
            f"{PHASE_SECONDS:g} s, cool-down {COOL_DOWN:g} s. {found.failed} failed ({without.failed} of "
            f"{len(without.took_ms)} without); {found.fallback} answered by rules; P50 "
            f"{np.quantile(found.took_ms, 0.5):.2f} ms, P99.9 {np.quantile(found.took_ms, 0.999):.1f} ms, {late} "
            f"after the deadline; at most {found.ejected} ejected at a time; breakers opened {opened} times and let "
            f"{probed} probes through, {'all' if closed else 'not all'} are closed at the end; "
            f"{100 * retried:.1f} % retried."
        ),
    )


if __name__ == "__main__":
    main()
