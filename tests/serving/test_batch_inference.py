"""Oracles: the model's definition on the whole input, and arithmetic on counts; the clouds are fakes on loopback."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.serving.batch_files import NAMES, put_batch_model, read

from vitok.errors import Conflict, InvalidInput, NotFound, StoreError
from vitok.serving.batch_inference import RESUME, BatchResult, Progress, checkpoint_seconds, score_files
from vitok.serving.batch_manifest import MANIFEST
from vitok.serving.batch_shards import QUARANTINE
from vitok.serving.preemption import PreemptionWatch
from vitok.serving.runtime import Runtime


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return put_batch_model(tmp_path)


@pytest.fixture
def runtime(package: Path) -> Runtime:
    return Runtime.load(package)


def write(path: Path, n: int, *, seed: int = 0, **columns: Any) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    data = {"a": rng.normal(size=n), "b": rng.normal(size=n), "key": np.arange(n) + 1000 * seed, **columns}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(data), path, row_group_size=70)
    return data


def test_rows_keep_their_order_and_get_ids(runtime: Runtime, tmp_path: Path) -> None:
    first = write(tmp_path / "in" / "a.parquet", 250)
    second = write(tmp_path / "in" / "deep" / "b.parquet", 130, seed=1)
    (tmp_path / "in" / "_no.parquet").write_bytes(b"not looked at")
    write(tmp_path / "in" / "empty.parquet", 0)
    seen: list[Progress] = []
    result = score_files(
        runtime,
        tmp_path / "in",
        tmp_path / "out",
        names=NAMES,
        keep=["key"],
        batch_rows=32,
        checkpoint_every=2,
        progress=seen.append,
    )
    assert (result.done, result.scored, result.quarantined, result.exit_code) == (True, 380, 0, 0)
    found = read(tmp_path / "out")
    assert found.column_names == ["row_id", "key", "score"]
    wanted = np.concatenate([2 * x["a"] + x["b"] for x in (first, second)])
    assert np.array_equal(found["score"].to_numpy(), wanted)
    assert found["key"].to_pylist() == [*range(250), *range(1000, 1130)]
    ids = found["row_id"].to_pylist()
    assert len(set(ids)) == 380
    assert [item.rows for item in seen] == sorted(item.rows for item in seen)
    assert seen[-1].rows == seen[-1].total == 380
    assert "380 of 380 rows (100.0%)" in str(seen[-1])
    assert "done: 380 of 380 rows" in str(result)
    # Done is done; elsewhere, in shards of another size, the same rows have the same ids.
    again = score_files(runtime, tmp_path / "in", tmp_path / "out", names=NAMES, keep=["key"])
    assert (again.done, again.resumed, again.shards) == (True, 380, result.shards)
    score_files(runtime, tmp_path / "in", tmp_path / "other", names=NAMES, keep=["key"])
    assert read(tmp_path / "other")["row_id"].to_pylist() == ids


def test_rows_that_cannot_be_scored_go_to_the_quarantine(runtime: Runtime, tmp_path: Path) -> None:
    texts = ["1.5", "2", "many", None, "666", "3"] * 10
    write(tmp_path / "in.parquet", 60, a=pa.array(texts))
    result = score_files(
        runtime,
        tmp_path / "in.parquet",
        tmp_path / "out",
        names=NAMES,
        id_column="key",
        batch_rows=16,
        checkpoint_every=1,
    )
    assert (result.scored, result.quarantined, result.total) == (30, 30, 60)
    bad = read(tmp_path / "out" / QUARANTINE)
    reasons = dict(zip(bad["key"].to_pylist(), bad["reason"].to_pylist(), strict=True))
    assert reasons[2] == "a is 'many', no number"
    assert reasons[3] == "the model gave no number"
    assert "666 cannot be scored" in reasons[4]
    assert sorted([*bad["row_id"].to_pylist(), *read(tmp_path / "out")["row_id"].to_pylist()]) == list(range(60))


def test_a_model_of_several_inputs_takes_columns_by_name(tmp_path: Path) -> None:
    from vitok.serving.runners import CallableRunner
    from vitok.serving.tensors import TensorSpec

    runner = CallableRunner(
        lambda t: {"y": t["a"][:, 0] + np.array([len(item) for item in t["word"][:, 0]])},
        [TensorSpec("a", "FP32", (-1, 1)), TensorSpec("word", "BYTES", (-1, 1))],
        [TensorSpec("y", "FP64", (-1,))],
    )
    write(tmp_path / "in.parquet", 3, a=[1.0, 2.0, 3.0], word=["x", None, "xyz"])
    result = score_files(Runtime(runner, version="w/1"), tmp_path / "in.parquet", tmp_path / "out", names=["a", "word"])
    assert result.quarantined == 1
    assert read(tmp_path / "out")["score"].to_pylist() == [2.0, 6.0]
    assert read(tmp_path / "out" / QUARANTINE)["reason"].to_pylist() == ["word is missing"]


WORKER = """
import sys
from vitok.serving.batch_inference import score_files
from vitok.serving.preemption import PreemptionWatch
from vitok.serving.runtime import Runtime
runtime = Runtime.load(sys.argv[1])
with PreemptionWatch() as watch:
    result = score_files(runtime, sys.argv[2], sys.argv[3], names=["a", "b"], keep=["key"], batch_rows=50,
        checkpoint_every=2, watch=watch, progress=lambda p: print(p.rows, flush=True))
sys.exit(result.exit_code)
"""


def start(package: Path, source: Path, out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WORKER, str(package), str(source), str(out)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def whole(out: Path, data: dict[str, np.ndarray]) -> None:
    found = read(out)
    assert found["key"].to_pylist() == data["key"].tolist()
    assert np.array_equal(found["score"].to_numpy(), 2 * data["a"] + data["b"])
    assert len(set(found["row_id"].to_pylist())) == len(found)
    assert not list(out.glob(".part-*"))


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_without_a_row_twice_or_lost(package: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "in.parquet", 12_345)
    out = tmp_path / "out"
    moments = random.Random(0)
    kills = 0
    for _ in range(6):
        process = start(package, tmp_path / "in.parquet", out)
        assert process.stdout is not None
        for _ in range(moments.randint(1, 25)):
            process.stdout.readline()
        for _ in range(moments.randint(0, 200_000)):  # somewhere between two checkpoints
            pass
        process.kill()
        kills += process.wait() == -signal.SIGKILL
        process.stdout.close()
    with start(package, tmp_path / "in.parquet", out) as process:
        assert process.wait() == 0
    assert kills >= 4
    whole(out, data)


def test_sigterm_finishes_the_shard_and_says_resume(package: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "in.parquet", 20_000)
    out = tmp_path / "out"
    with start(package, tmp_path / "in.parquet", out) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.terminate()
        process.stdout.read()
        assert process.wait() == RESUME
    part = read(out)
    assert part["key"].to_pylist() == data["key"][: len(part)].tolist()
    with start(package, tmp_path / "in.parquet", out) as process:
        process.communicate()
        assert process.returncode == 0
    whole(out, data)


def test_what_a_crash_leaves_is_taken_back(runtime: Runtime, tmp_path: Path) -> None:
    data = write(tmp_path / "in.parquet", 400)
    out = tmp_path / "out"

    def run(watch: PreemptionWatch | None = None) -> BatchResult:
        return score_files(
            runtime,
            tmp_path / "in.parquet",
            out,
            names=NAMES,
            keep=["key"],
            batch_rows=50,
            checkpoint_every=2,
            watch=watch,
        )

    watch = PreemptionWatch(sigterm=False)
    watch.give("told")
    stopped = run(watch)
    assert (stopped.done, stopped.notice, stopped.exit_code, stopped.shards) == (False, "told", RESUME, 0)
    assert "handed over (told)" in str(stopped)
    run()
    manifest = out / MANIFEST
    lines = manifest.read_bytes().splitlines(keepends=True)
    # The line of the last shard cut short, its file there, a temporary one beside it.
    manifest.write_bytes(b"".join(lines[:-2]) + lines[-2][:20])
    (out / ".part-000009.parquet.tmp").write_bytes(b"half")
    assert run().resumed == 400 - json.loads(lines[-2])["rows"]
    whole(out, data)
    # The very first line cut short.
    manifest.write_bytes(lines[0][:10])
    assert run().resumed == 0
    whole(out, data)


def test_another_job_or_changed_inputs_are_told_apart(runtime: Runtime, tmp_path: Path) -> None:
    source, out = tmp_path / "in.parquet", tmp_path / "out"
    write(source, 10)
    score_files(runtime, source, out, names=NAMES)
    with pytest.raises(Conflict, match="keep differ"):
        score_files(runtime, source, out, names=NAMES, keep=["key"])
    write(source, 10, seed=5)
    with pytest.raises(Conflict, match="inputs differ"):
        score_files(runtime, source, out, names=NAMES)
    write(source, 10)
    (out / "part-000000.parquet").unlink()
    with pytest.raises(StoreError, match="are gone"):
        score_files(runtime, source, out, names=NAMES)
    (out / MANIFEST).write_text("{}\nnonsense\n")
    with pytest.raises(StoreError, match="cannot be read"):
        score_files(runtime, source, out, names=NAMES)


def test_two_do_not_work_on_one_folder(runtime: Runtime, tmp_path: Path) -> None:
    from vitok.registry.files import exclusive

    write(tmp_path / "in.parquet", 10)
    with exclusive(tmp_path / "out" / "_lock"), pytest.raises(Conflict, match="held by another process"):
        score_files(runtime, tmp_path / "in.parquet", tmp_path / "out", names=NAMES)


def test_inputs_that_cannot_be(runtime: Runtime, tmp_path: Path) -> None:
    source = tmp_path / "in.parquet"
    write(source, 3)
    (tmp_path / "bad.parquet").write_bytes(b"PAR1nothing")
    out = tmp_path / "out"
    cases: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
        (tmp_path / "none.parquet", {}, NotFound, "none"),
        (tmp_path / "model" / "1", {}, NotFound, "Parquet file"),
        (tmp_path / "bad.parquet", {}, InvalidInput, "readable Parquet"),
        ([source, source], {}, InvalidInput, "each file once"),
        (source, {"names": ["a", "z"]}, InvalidInput, "have the columns"),
        (source, {"names": ["a"]}, InvalidInput, "2 features"),
        (source, {"names": ["a", "a"]}, InvalidInput, "each name once"),
        (source, {"keep": ["score"]}, InvalidInput, "not hold"),
        (source, {"id_column": "z"}, InvalidInput, "have the columns"),
        (source, {"batch_rows": 0}, InvalidInput, "at least 1"),
        (source, {"checkpoint_every": 0}, InvalidInput, "at least 1"),
    ]
    for inputs, change, error, message in cases:
        with pytest.raises(error, match=message):
            score_files(runtime, inputs, out, **{"names": NAMES, **change})


def test_shards_grow_with_the_cost_of_a_checkpoint(runtime: Runtime, tmp_path: Path) -> None:
    assert checkpoint_seconds(2.0, 100.0) == 20.0
    with pytest.raises(InvalidInput, match="above 0"):
        checkpoint_seconds(0.0, 1.0)
    write(tmp_path / "in.parquet", 1000)
    now = iter(range(10**6))
    result = score_files(
        runtime,
        tmp_path / "in.parquet",
        tmp_path / "out",
        names=NAMES,
        batch_rows=10,
        mean_time_between_failures=50.0,
        clock=lambda: float(next(now)),
    )
    # A batch and a checkpoint take one tick each: the root of 2 x 1 x 50 is ten batches, after sixteen at first.
    sizes = [pq.read_metadata(path).num_rows for path in sorted((tmp_path / "out").glob("part-*"))]
    assert sizes[0] == 160
    assert set(sizes[1:-1]) == {100}
    assert result.scored == 1000


@contextmanager
def metadata(answers: Any) -> Iterator[tuple[str, list[str]]]:
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            asked.append(f"{self.command} {self.path}")
            status, body, headers = answers(len(asked), self)
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body.encode())

        do_GET = do_PUT = answer  # noqa: N815

        def log_message(self, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join()


def aws(n: int, request: Any) -> tuple[int, str, dict[str, str]]:
    if request.command == "PUT":
        assert request.headers["X-aws-ec2-metadata-token-ttl-seconds"]
        return 200, f"token-{n}", {}
    if n == 3:
        return 401, "", {}
    assert request.headers["X-aws-ec2-metadata-token"] in ("token-1", "token-4")
    return (404, "", {}) if n < 6 else (200, '{"action": "terminate", "time": "2026-01-01T00:00:00Z"}', {})


def gcp(n: int, request: Any) -> tuple[int, str, dict[str, str]]:
    assert request.headers["Metadata-Flavor"] == "Google"
    assert ("wait_for_change=true" in request.path) == (n > 1)
    return 200, "TRUE" if n == 3 else "FALSE", {"ETag": str(n)}


def azure(n: int, request: Any) -> tuple[int, str, dict[str, str]]:
    assert request.headers["Metadata"] == "true"
    if n == 1:
        return 500, "", {}
    kind = "Freeze" if n == 2 else "Preempt"
    events = [{"EventType": kind, "NotBefore": "Mon, 19 Sep 2022 18:29:47 GMT"}]
    return 200, json.dumps({"DocumentIncarnation": n, "Events": events}), {}


@pytest.mark.parametrize(
    ("cloud", "answers", "notice"),
    [
        ("aws", aws, "aws: terminate at 2026-01-01T00:00:00Z"),
        ("gcp", gcp, "gcp: preempted"),
        ("azure", azure, "azure: Preempt not before Mon, 19 Sep 2022 18:29:47 GMT"),
    ],
)
def test_notices_of_the_clouds(cloud: str, answers: Any, notice: str) -> None:
    with metadata(answers) as (address, asked):
        with PreemptionWatch(clouds=[cloud], addresses={cloud: address}, interval=0.01, timeout=5) as watch:
            assert watch.wait(20)
        assert watch.notice == notice
        assert len(asked) >= 3


def test_no_metadata_server_is_no_notice() -> None:
    with PreemptionWatch(clouds=["aws"], addresses={"aws": "http://127.0.0.1:1"}, interval=0.001) as watch:
        deadline = threading.Event()
        for _ in range(500):
            if watch.failures:
                break
            deadline.wait(0.01)
        assert watch.failures
        assert watch.notice is None
    with pytest.raises(InvalidInput, match="clouds"):
        PreemptionWatch(clouds=["moon"])


def test_sigterm_is_a_notice_and_the_old_handler_comes_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with PreemptionWatch() as watch:
        os.kill(os.getpid(), signal.SIGTERM)
        assert watch.wait(5)
        assert watch.notice == "signal SIGTERM"
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_folder_that_cannot_be_written_is_said(runtime: Runtime, tmp_path: Path) -> None:
    write(tmp_path / "in.parquet", 10, a=np.full(10, 666.0))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / QUARANTINE).write_text("in the way")
    with pytest.raises(StoreError, match="cannot be written"):
        score_files(runtime, tmp_path / "in.parquet", tmp_path / "out", names=NAMES)
