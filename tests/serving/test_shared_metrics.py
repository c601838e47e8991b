"""Metrics of several workers: totals that add up, whoever dies and whenever."""

import asyncio
import contextlib
import fcntl
import json
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from starlette.applications import Starlette
from tests.serving.conftest import called

from vitok.errors import InvalidInput, StoreError
from vitok.serving.inference_http import metrics_route
from vitok.serving.metrics import Metrics
from vitok.serving.shared_metrics import SharedMetrics, described
from vitok.stats import LatencyHistogram

WORKER = """
import json, sys, time
from vitok.serving.metrics import Metrics
from vitok.serving.shared_metrics import SharedMetrics
from vitok.stats import LatencyHistogram

metrics, waited = Metrics(), LatencyHistogram()
requests = metrics.counter("requests_total", "Requests.", labels=("path",))
metrics.gauge("open", "Connections.", lambda: {(): 1.0})
metrics.latencies("wait_seconds", "Waited.", lambda: {(): waited})
shared = SharedMetrics(sys.argv[1], metrics, latencies=lambda: {"wait": waited})
shared.publish()
print("ready", flush=True)
for line in sys.stdin:
    word, n = line.split()
    if word == "count":
        requests.add(int(n), "/a")
        waited.record_many([1000] * int(n))
        shared.publish()
    elif word == "lose":
        requests.add(int(n), "/a")
    elif word == "close":
        shared.close()
    elif word == "read":
        for _ in range(int(n)):
            shared.expose()
    print("done", flush=True)
"""


class Worker:
    """A process that counts on command."""

    def __init__(self, folder: Path) -> None:
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", WORKER, str(folder)], stdin=pipe, stdout=pipe, text=True
        )
        assert self._line() == "ready"

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def ask(self, word: str, n: int = 0) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{word} {n}\n")
        self.process.stdin.flush()

    def do(self, word: str, n: int = 0) -> None:
        self.ask(word, n)
        assert self._line() == "done"

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[list[Worker]]:
    found = [Worker(tmp_path) for _ in range(2)]
    yield found
    for worker in found:
        worker.kill()


def samples(shared: SharedMetrics) -> dict[str, float]:
    lines = shared.expose().decode().splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}


def made(folder: Path, n: float = 0, *, name: str = "requests_total") -> SharedMetrics:
    metrics = Metrics()
    metrics.counter(name, "Requests.").add(n)
    return SharedMetrics(folder, metrics)


def test_any_worker_answers_for_all(tmp_path: Path, workers: list[Worker]) -> None:
    workers[0].do("count", 3)
    workers[1].do("count", 4)
    with SharedMetrics(tmp_path, Metrics()) as shared:
        found = samples(shared)
        assert found['requests_total{path="/a"}'] == 7
        # Gauges are of a process each.
        pids = {worker.process.pid for worker in workers}
        assert {name for name in found if name.startswith("open")} == {f'open{{worker="{pid}"}}' for pid in pids}
        assert found["wait_seconds_count"] == found['wait_seconds_bucket{le="+Inf"}'] == 7
        assert found["wait_seconds_sum"] == pytest.approx(0.007)
        waited = shared.latencies()["wait"]
        assert (waited.count, waited.total, waited.max) == (7, 7000, 1000)


def test_kill_9_keeps_totals_and_a_restart_does_not_count_twice(tmp_path: Path, workers: list[Worker]) -> None:
    first, second = workers
    first.do("count", 10)
    second.do("count", 5)
    with SharedMetrics(tmp_path, Metrics()) as shared:
        first.kill()
        for _ in range(3):
            found = samples(shared)
            assert found['requests_total{path="/a"}'] == 15
            assert [name for name in found if name.startswith("open")] == [f'open{{worker="{second.process.pid}"}}']
            assert shared.latencies()["wait"].count == 15
        workers[0] = again = Worker(tmp_path)
        assert samples(shared)['requests_total{path="/a"}'] == 15
        again.do("count", 1)
        assert samples(shared)['requests_total{path="/a"}'] == 16
        # What was not written down before the end is lost, and nothing else.
        again.do("lose", 100)
        again.kill()
        assert samples(shared)['requests_total{path="/a"}'] == 16
        # One that ends in order writes down all.
        second.do("lose", 2)
        second.do("close")
        second.kill()
        assert samples(shared)['requests_total{path="/a"}'] == 18
        assert shared.latencies()["wait"].count == 16
    # Nothing is left of those that are gone, but what they counted.
    with SharedMetrics(tmp_path, Metrics()) as shared:
        assert samples(shared)['requests_total{path="/a"}'] == 18
        assert len(list(tmp_path.glob("*-*.metrics*"))) == 1


def test_many_readers_and_many_deaths(tmp_path: Path) -> None:
    total = 0
    with SharedMetrics(tmp_path, Metrics()) as shared, contextlib.ExitStack() as stack:
        readers = [Worker(tmp_path) for _ in range(2)]
        for reader in readers:
            stack.callback(reader.kill)
            reader.ask("read", 400)
        last = 0.0
        for n in range(1, 4):
            worker = Worker(tmp_path)
            worker.do("count", n)
            total += n
            worker.kill()
            for _ in range(20):
                found = samples(shared).get('requests_total{path="/a"}', 0.0)
                assert last <= found == total
                last = found
        for reader in readers:
            assert reader._line() == "done"
        assert samples(shared)['requests_total{path="/a"}'] == total


@pytest.mark.parametrize("step", range(6))
def test_death_in_the_middle_of_moving_the_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    for n in (1, 2):
        made(tmp_path, n).close()
    steps = iter(range(100))

    def dies(real: object) -> object:
        def call(*arguments: object, **options: object) -> object:
            if next(steps) == step:
                raise KeyboardInterrupt
            return real(*arguments, **options)  # type: ignore[operator]

        return call

    with made(tmp_path, 4) as shared:
        shared.publish()
        with monkeypatch.context() as patch:
            for method in ("replace", "unlink"):
                patch.setattr(Path, method, dies(getattr(Path, method)))
            with pytest.raises(KeyboardInterrupt):
                samples(shared)
        assert samples(shared) == {"requests_total": 7}
        assert samples(shared) == {"requests_total": 7}


def test_one_that_is_halted_with_the_lock_halts_nobody(tmp_path: Path) -> None:
    with made(tmp_path, 1) as shared, (tmp_path / "gone.lock").open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        made(tmp_path, 2).close()
        assert samples(shared) == {"requests_total": 3}
        fcntl.flock(held, fcntl.LOCK_UN)
        assert samples(shared) == {"requests_total": 3}
        assert len(list(tmp_path.glob("*-*.metrics"))) == 1


def test_a_full_disk_does_not_hide_what_this_worker_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with made(tmp_path, 2) as other, made(tmp_path, 1) as shared:
        other.publish()
        with monkeypatch.context() as patch:
            patch.setattr(Path, "write_bytes", full)
            with pytest.raises(StoreError, match="No space left"):
                shared.publish()
            assert samples(shared) == {"requests_total": 3}
        assert "not kept" in caplog.text
        assert samples(shared) == {"requests_total": 3}


@pytest.mark.parametrize("content", [b"", b"{", b'{"text": 3}'])
def test_a_broken_page_takes_nobody_along(tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    with made(tmp_path, 2) as broken, made(tmp_path, 1) as shared:
        broken.publish()
        (tmp_path / f"{broken.worker}.metrics").write_bytes(content)
        assert samples(shared) == {"requests_total": 1}
        assert "counts as empty" in caplog.text


def test_a_folder_that_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written"):
        made(tmp_path / "file")


def test_it_is_published_beside_the_service(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        metrics = Metrics()
        counter = metrics.counter("requests_total", "Requests.")
        shared = SharedMetrics(tmp_path, metrics)
        path = tmp_path / f"{shared.worker}.metrics"
        task = asyncio.create_task(shared.keep_published(every=0.001))
        counter.add(5)

        async def comes(text: str) -> None:
            async with asyncio.timeout(10):
                while not path.is_file() or text not in path.read_text():
                    await asyncio.sleep(0)

        await comes("requests_total 5")
        path.unlink()
        path.mkdir()
        async with asyncio.timeout(10):
            while "cannot be written" not in caplog.text:
                await asyncio.sleep(0)
        path.rmdir()
        counter.add(1)
        await comes("requests_total 6")
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        shared.close()
        with pytest.raises(InvalidInput):
            await shared.keep_published(every=0)

    asyncio.run(story())
    # A fault is told once as long as it lasts.
    assert caplog.text.count("cannot be written") <= 2


def test_the_route_of_prometheus(tmp_path: Path, workers: list[Worker]) -> None:
    workers[0].do("count", 3)
    with made(tmp_path, 4, name="own_total") as shared:
        app = Starlette(routes=[metrics_route(shared)])  # type: ignore[arg-type]
        text = called(app, "GET", "/metrics").body.decode()
    families = pytest.importorskip("prometheus_client.parser").text_string_to_metric_families(text)
    # Oracle: prometheus-client's parser.
    found = {sample.name: sample for family in families for sample in family.samples}
    assert found["requests_total"].value == 3
    assert found["own_total"].value == 4
    assert found["open"].labels["worker"] in {str(worker.process.pid) for worker in workers}
    assert found["wait_seconds_count"].value == 3


def test_labels_of_any_content_are_kept_apart(tmp_path: Path) -> None:
    awkward = ['a"b', "a\\b", "a}b", "a b", "a\nb", "", "{a} 5"]
    shared = []
    for _ in range(2):
        metrics = Metrics()
        counter = metrics.counter("requests_total", "Of\nall \\ kinds.", labels=("kind", "x"))
        for k, value in enumerate(awkward):
            counter.add(k + 0.5, value, "y")
        metrics.gauge("level", "Level.", lambda: {("v",): float("nan"), ("w",): float("-inf")}, labels=("of",))
        shared.append(SharedMetrics(tmp_path, metrics))
    shared[0].publish()
    text = shared[1].expose().decode()
    families = pytest.importorskip("prometheus_client.parser").text_string_to_metric_families(text)
    found = [sample for family in families for sample in family.samples]
    counts = {sample.labels["kind"]: sample.value for sample in found if sample.name == "requests_total"}
    assert counts == {value: 2 * k + 1.0 for k, value in enumerate(awkward)}
    # Both are of this process, so one gauge hides the other here.
    assert sum(sample.name == "level" for sample in found) == 2
    for one in shared:
        one.close()


def test_quantiles_of_all_workers_together(tmp_path: Path) -> None:
    rng = random.Random(3)
    values = [[rng.lognormvariate(6, 1) for _ in range(4000)] for _ in range(3)]
    histograms = []
    with contextlib.ExitStack() as stack:
        for part in values:
            own = LatencyHistogram()
            own.record_many(part)
            histograms.append(own)
            shared = stack.enter_context(SharedMetrics(tmp_path, Metrics(), latencies=lambda own=own: {"model": own}))  # type: ignore[misc]
            shared.publish()
        shown = described(shared.latencies())["model"]
    every = np.concatenate(values)
    # Oracle: numpy's quantiles of all values; the mean of the workers' P99.9 is another number.
    for name, q in (("p50_us", 0.5), ("p99_us", 0.99), ("p999_us", 0.999)):
        assert shown[name] == pytest.approx(np.quantile(every, q, method="inverted_cdf"), rel=0.01)
    assert shown["count"] == 12_000
    assert LatencyHistogram.from_dict(json.loads(json.dumps(shown["histogram"]))).quantile(0.5) == shown["p50_us"]
    assert described({"log": LatencyHistogram()})["log"]["p99_us"] is None


def test_a_halted_worker_is_no_dead_one(tmp_path: Path, workers: list[Worker]) -> None:
    workers[0].do("count", 2)
    workers[0].process.send_signal(signal.SIGSTOP)
    with SharedMetrics(tmp_path, Metrics()) as shared:
        assert samples(shared)['requests_total{path="/a"}'] == 2
        workers[0].process.send_signal(signal.SIGCONT)
        workers[0].do("count", 1)
        assert samples(shared)['requests_total{path="/a"}'] == 3
