"""Three replicas behind a balancer, real processes all: one killed, one cut off, and nobody notices.

The replicas keep nothing of their own: each reads what it needs out of one store that all share.
"""

import asyncio
import contextlib
import json
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from tests.engines.servers import free_ports, valkey

from vitok.engines import Row, open_rows
from vitok.serving.balance import Loads
from vitok.serving.breaker import CLOSED, BreakerRules
from vitok.serving.outliers import OutlierRules
from vitok.serving.pool import Pool
from vitok.serving.remote import RemoteModel
from vitok.serving.retries import Budget, Hedge
from vitok.serving.targets import Batch, Scored, TargetFailed
from vitok.stats import LatencyHistogram

MODEL = """
import struct
import numpy as np
from vitok.engines import HEADER, open_rows

def load(folder):
    rows = open_rows({store!r})
    def answer(tensors):
        keys = [b"limit/%d" % key for key in tensors["x"][:, 0]]
        limits = [struct.unpack("<d", row[HEADER:])[0] if row else 0.0 for row in rows.read(keys)]
        return {{"y": np.array(limits) + tensors["x"][:, 1]}}
    return answer
"""
TENSORS = {
    "inputs": [{"name": "x", "datatype": "FP64", "shape": [-1, 2]}],
    "outputs": [{"name": "y", "datatype": "FP64", "shape": [-1]}],
}
SERVICE = """
import sys
from pathlib import Path
from starlette.applications import Starlette
from vitok.serving import handlers, serve
from vitok.serving.hosting import FolderCatalogue, ModelHost
from vitok.serving.inference_http import inference_routes

host = ModelHost(FolderCatalogue(Path(sys.argv[1])), pinned=["limits"])
host.start()
app = Starlette(routes=inference_routes(host), exception_handlers=handlers())
serve(app, list(host.endpoints.values()), port=int(sys.argv[2]), ready=lambda service: print("ready", flush=True))
host.close()
"""
DEADLINE = 4.0
PATIENCE = 40.0
CUSTOMERS = 50


def limit(customer: int) -> float:
    return 100.0 * customer


class Replicas:
    """The processes, each at its port."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        self.ports = free_ports(3)
        self._folder = folder
        self._stack = stack
        self.processes = [self.start(port) for port in self.ports]
        for process in self.processes:
            self.until_ready(process)

    def start(self, port: int) -> subprocess.Popen[str]:
        command = [sys.executable, "-W", "error", "-c", SERVICE, str(self._folder), str(port)]
        process = self._stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        # Before the wait of the block's end, also for one that has been halted.
        self._stack.callback(process.kill)
        return process

    def until_ready(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"

    def kill(self, place: int) -> None:
        self.processes[place].kill()
        self.processes[place].wait()

    def restart(self, place: int) -> None:
        self.processes[place] = self.start(self.ports[place])
        self.until_ready(self.processes[place])

    def halt(self, place: int) -> None:
        self.processes[place].send_signal(signal.SIGSTOP)

    def resume(self, place: int) -> None:
        self.processes[place].send_signal(signal.SIGCONT)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with valkey() as server:
        store = open_rows(server.url)
        store.write(Row(b"limit/%d" % k, (1, 1), struct.pack("<d", limit(k))) for k in range(CUSTOMERS))
        place = tmp_path_factory.mktemp("models")
        version = place / "limits" / "1"
        version.mkdir(parents=True)
        (version / "model.py").write_text(MODEL.format(store=server.url))
        (version / "callable.json").write_text(json.dumps({"factory": "model.py:load", **TENSORS}))
        yield place


@pytest.fixture
def replicas(folder: Path) -> Iterator[Replicas]:
    with contextlib.ExitStack() as stack:
        yield Replicas(folder, stack)


class Traffic:
    """Sends requests one after another from several places at once, and checks every answer."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.sent = 0
        self.latency = LatencyHistogram()
        self.answers: list[Scored] = []

    async def ask(self) -> None:
        number = self.sent
        self.sent += 1
        rows = np.array([[number % CUSTOMERS, number]], float)
        started = time.perf_counter_ns()
        scored = await self.pool.call(Batch(rows), started + round(DEADLINE * 1e9))
        self.latency.record((time.perf_counter_ns() - started) / 1e3)
        assert scored.values.tolist() == [limit(number % CUSTOMERS) + number]
        self.answers.append(scored)

    async def until(self, condition: Callable[[], bool], *, most: float = PATIENCE) -> None:
        """Sends from eight places until the condition holds."""
        end = time.monotonic() + most

        async def work() -> None:
            while not condition():
                assert time.monotonic() < end, self.pool.state
                await self.ask()

        await asyncio.gather(*(work() for _ in range(8)))

    async def more(self, n: int) -> None:
        end = self.sent + n
        await self.until(lambda: self.sent >= end)


class InTurn:
    """One member after the other, whatever is known of them."""

    def __init__(self) -> None:
        self._turn = 0

    def pick(self, candidates: Sequence[int], loads: Loads) -> int:
        self._turn += 1
        return candidates[self._turn % len(candidates)]

    def reason(self, member: int, loads: Loads) -> str:
        return "in turn"


def pool_of(replicas: Replicas, *, hedge: Hedge | None = None) -> Pool:
    """Two of three may be ejected at a time; an ejection is short, as the test has no half-minutes to wait."""
    targets = [RemoteModel(f"http://127.0.0.1:{port}", "limits", input_name="x") for port in replicas.ports]
    return Pool(
        targets,
        breaker=BreakerRules(cool_down=0.5, longest=1.0),
        outliers=OutlierRules(consecutive_errors=3, ejection=0.5, max_share=0.67, panic_share=0.3),
        tries=3,
        # As many retries as may be in flight when two replicas go at once, twice over, and a tenth from then on.
        retries=Budget(0.1, reserve=64),
        hedge=hedge,
        # In turn nobody is left alone for what is known of him, so that only an ejection helps.
        balancer=InTurn() if hedge is not None else None,
    )


def test_one_is_killed_and_one_cut_off(replicas: Replicas) -> None:
    async def story() -> None:
        pool = pool_of(replicas)
        traffic = Traffic(pool)
        await traffic.more(400)
        assert pool.state.states == (CLOSED,) * 3
        assert min(pool.state.calls) > 40

        replicas.kill(0)
        replicas.halt(1)
        # It is cut off, not dead: connections to it are still taken, and then nothing comes.
        with socket.create_connection(("127.0.0.1", replicas.ports[1]), timeout=5):
            pass
        await traffic.until(lambda: CLOSED not in pool.state.states[:2])
        assert pool.detector is not None
        assert pool.detector.ejections + pool.breakers[0].opened + pool.breakers[1].opened >= 2
        before = pool.state.calls
        await traffic.more(1000)
        # While it lasts the two get probes, one at a time, and the good one gets the rest.
        probes = [after - calls for after, calls in zip(pool.state.calls, before, strict=True)]
        assert probes[2] >= 1000
        assert probes[0] + probes[1] < 100
        assert pool.breakers[2].opened == 0

        replicas.resume(1)
        await traffic.until(lambda: pool.state.states[1] == CLOSED)
        assert pool.state.states[2] == CLOSED
        restarting = asyncio.ensure_future(asyncio.to_thread(replicas.restart, 0))
        await traffic.until(lambda: restarting.done() and pool.state.states == (CLOSED,) * 3)
        await restarting
        assert pool.state.ejected == ()
        # Back by half-open probes, never by all the traffic at once.
        assert all(pool.breakers[k].probed >= pool.breakers[k].rules.probes for k in (0, 1))
        before = pool.state.calls
        await traffic.more(600)
        assert min(after - calls for after, calls in zip(pool.state.calls, before, strict=True)) > 60

        # Every answer was right, within its deadline, and each that was retried says what had failed.
        assert len(traffic.answers) == traffic.sent == pool.state.requests
        assert traffic.latency.max < DEADLINE * 1e6
        retried = [scored.choice(0) for scored in traffic.answers if len(scored.choice(0).attempts) > 1]
        assert 0 < len(retried) <= pool.state.retries
        failures = " ".join(attempt.failure for choice in retried for attempt in choice.attempts)
        assert "no connection" in failures or "closed the connection" in failures
        assert "no answer within" in failures
        await pool.aclose()

    asyncio.run(story())


def test_a_hedge_does_not_wait_for_the_one_that_is_cut_off(replicas: Replicas) -> None:
    async def story() -> None:
        pool = pool_of(replicas, hedge=Hedge(quantile=0.99, share=0.05, reserve=256))
        traffic = Traffic(pool)
        await traffic.more(600)
        replicas.halt(1)
        traffic.latency = LatencyHistogram()
        await traffic.more(600)
        # Without hedging, whoever is sent there waits for its share of the deadline: more than a second.
        assert traffic.latency.max < DEADLINE / 3 * 1e6
        assert pool.state.hedges > 0
        # Hedges answered in its place, and all the same it was found out and got nothing but probes.
        assert pool.breakers[1].opened >= 1
        assert "overtaken" in pool.breakers[1].reason
        before = pool.state.calls[1]
        await traffic.more(600)
        assert pool.state.calls[1] - before < 60
        replicas.resume(1)
        await traffic.until(lambda: pool.state.states == (CLOSED,) * 3)
        assert len(traffic.answers) == traffic.sent
        await pool.aclose()

    asyncio.run(story())


def test_all_gone_is_said_at_once_and_not_at_the_deadline(replicas: Replicas) -> None:
    async def story() -> None:
        pool = pool_of(replicas)
        await Traffic(pool).more(50)
        for place in range(3):
            replicas.kill(place)
        started = time.monotonic()
        with pytest.raises(TargetFailed, match=r"no connection|closed the connection"):
            await pool.call(Batch(np.zeros((1, 2))), time.perf_counter_ns() + round(DEADLINE * 1e9))
        assert time.monotonic() - started < DEADLINE / 2
        await pool.aclose()

    asyncio.run(story())
