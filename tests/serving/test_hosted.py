"""What goes with a model's answers: the meter, the cache, the stages, and whose the rows in the log are."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitok import decisions
from vitok.serving import HotRequest, InferenceLog, Reply, Runtime
from vitok.serving.inference import INLINE_SECONDS, Answered, Hosted, InferEndpoint
from vitok.serving.response_cache import ResponseCache
from vitok.serving.runners import CallableRunner
from vitok.serving.tensors import TensorSpec
from vitok.serving.tracing import Tracing

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE}-00f067aa0ba902b7-01".encode()


class Charges:
    """A meter that keeps what it was asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[Answered, int]] = []

    def charge(self, batch: Answered, cpu_ns: int) -> float | np.ndarray:
        self.calls.append((batch, cpu_ns))
        batch.teams = ["payments"] * len(batch)
        return np.arange(len(batch)) / 8


def runtime_of(version: str = "3") -> Runtime:
    runner = CallableRunner(
        lambda tensors: {"sum": tensors["x"].sum(axis=1)},
        [TensorSpec("x", "FP64", (-1, 2))],
        [TensorSpec("sum", "FP64", (-1,))],
    )
    return Runtime(runner, version=f"sums/{version}")


def request(
    *rows: tuple[float, float], tenant: str = "", headers: list[tuple[bytes, bytes]] | None = None, **more: Any
) -> HotRequest:
    flat = [value for row in rows for value in row]
    body = {"inputs": [{"name": "x", "shape": [len(rows), 2], "datatype": "FP64", "data": flat}], **more}
    return HotRequest(json.dumps(body).encode(), 0, headers or [], tenant=tenant)


def sums_of(replies: Any) -> list[list[float]]:
    assert all(isinstance(reply, Reply) and reply.status == 200 for reply in replies)
    return [json.loads(reply.body)["outputs"][0]["data"] for reply in replies]


def test_a_meter_says_what_each_row_costs_and_whose_it_is(tmp_path: Path) -> None:
    meter = Charges()
    log = InferenceLog(tmp_path, system="sums", features=["a", "b"])
    endpoint = InferEndpoint(Hosted("sums", runtime_of(), recorder=log, meter=meter))
    endpoint.handle([request((1, 2), tenant="acme"), request((3, 4), (5, 6)), request((7, 8), tenant="zeta")])
    log.close()
    ((batch, cpu_ns),) = meter.calls
    assert (len(batch), batch.version, batch.tenants, batch.ran) == (4, "sums/3", ["acme", "", "", "zeta"], None)
    assert batch.routes is None
    assert cpu_ns > 0
    rows = decisions.read(tmp_path)
    assert rows["cost"].to_list() == [0, 0.125, 0.25, 0.375]
    assert rows["tenant"].to_list() == ["acme", "", "", "zeta"]
    assert rows["team"].to_list() == ["payments"] * 4
    assert rows["trace_id"].to_list() == [""] * 4


def test_tenants_are_logged_as_they_are_alone_together_and_many(tmp_path: Path) -> None:
    log = InferenceLog(tmp_path, system="sums", features=["a", "b"])
    endpoint = InferEndpoint(Hosted("sums", runtime_of(), recorder=log))
    turns = [["acme"], ["acme"] * 3, ["acme", "zeta", "acme"], ["zeta"] * 100, [f"t{n}" for n in range(300)]]
    turns += [[f"t{n}"] * 2 for n in range(300)]
    for tenants in turns:
        endpoint.handle([request((1, 2), tenant=tenant) for tenant in tenants])
    log.close()
    assert decisions.read(tmp_path)["tenant"].to_list() == [tenant for tenants in turns for tenant in tenants]


def test_a_meter_without_a_log_and_for_tensors_of_any_kind() -> None:
    meter = Charges()
    endpoint = InferEndpoint(Hosted("sums", runtime_of(), meter=meter))
    assert sums_of(endpoint.handle([request((1, 2), tenant="a")])) == [[3.0]]
    runner = CallableRunner(
        lambda tensors: {"sum": tensors["x"] + tensors["y"]},
        [TensorSpec("x", "FP64", (-1,)), TensorSpec("y", "FP64", (-1,))],
        [TensorSpec("sum", "FP64", (-1,))],
    )
    body = {
        "inputs": [
            {"name": name, "shape": [2], "datatype": "FP64", "data": [1.0, value]}
            for name, value in (("x", 2), ("y", 3))
        ]
    }
    endpoint = InferEndpoint(Hosted("pairs", Runtime(runner, version="pairs/1"), meter=meter))
    replies = endpoint.handle([HotRequest(json.dumps(body).encode(), 0, [], tenant="b")])
    assert sums_of(replies) == [[2.0, 5.0]]
    assert [(batch.version, len(batch), batch.tenants) for batch, _ in meter.calls] == [
        ("sums/3", 1, ["a"]),
        ("pairs/1", 2, ["b", "b"]),
    ]


def test_rows_from_the_cache_cost_nothing(tmp_path: Path) -> None:
    log = InferenceLog(tmp_path, system="sums", features=["a", "b"])
    cache = ResponseCache(max_bytes=1 << 20, ttl="1m", measured=False)
    hosted = Hosted("sums", runtime_of(), recorder=log, cache=cache)
    endpoint = InferEndpoint(hosted)
    assert sums_of(endpoint.handle([request((1, 2)), request((3, 4))])) == [[3.0], [7.0]]
    assert sums_of(endpoint.handle([request((3, 4)), request((5, 6))])) == [[7.0], [11.0]]
    hosted.runtime = runtime_of("4")
    assert sums_of(endpoint.handle([request((3, 4))])) == [[7.0]]
    log.close()
    cost = decisions.read(tmp_path)["cost"].to_numpy()
    assert (cost > 0).tolist() == [True, True, False, True, True]
    assert cache.report.hits == 1


def test_a_meter_hears_which_rows_the_model_ran_on() -> None:
    meter = Charges()
    cache = ResponseCache(max_bytes=1 << 20, ttl="1m", measured=False)
    endpoint = InferEndpoint(Hosted("sums", runtime_of(), cache=cache, meter=meter))
    endpoint.handle([request((1, 2))])
    endpoint.handle([request((1, 2)), request((5, 6))])
    ran = [batch.ran for batch, _ in meter.calls]
    assert [None if item is None else item.tolist() for item in ran] == [[True], [False, True]]


def test_stages_add_up_to_the_whole() -> None:
    hosted = Hosted("sums", runtime_of())
    InferEndpoint(hosted).handle([request((1, 2)), request((3, 4))])
    counts = {name: found.count for name, found in hosted.stages.histograms.items()}
    assert counts == {"wait": 2, "read": 1, "model": 1, "log": 0, "write": 1, "total": 2}


@pytest.mark.parametrize("sampled", [True, False])
def test_the_log_has_the_trace_of_a_request(tmp_path: Path, sampled: bool) -> None:
    log = InferenceLog(tmp_path, system="sums", features=["a", "b"])
    endpoint = InferEndpoint(Hosted("sums", runtime_of(), recorder=log))
    parent = PARENT if sampled else PARENT[:-1] + b"0"
    endpoint.handle([request((1, 2), headers=[(b"traceparent", parent)]), request((3, 4))])
    log.close()
    assert decisions.read(tmp_path)["trace_id"].to_list() == [TRACE, ""]


def test_the_log_has_a_trace_that_begins_here(tmp_path: Path) -> None:
    memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
    spans = memory.InMemorySpanExporter()
    log = InferenceLog(tmp_path, system="sums", features=["a", "b"])
    with Tracing(spans, rate=1.0) as tracing:
        endpoint = InferEndpoint(Hosted("sums", runtime_of(), recorder=log, tracing=tracing))
        endpoint.handle([request((1, 2), (3, 4)), request((5, 6))])
    log.close()
    found = decisions.read(tmp_path)["trace_id"].to_list()
    roots = [f"{span.context.trace_id:032x}" for span in spans.get_finished_spans() if span.name.startswith("POST")]
    assert found == [roots[0], roots[0], roots[1]]


def test_a_slow_version_brings_its_queue_and_a_quick_one_goes_without() -> None:
    quick, slow = runtime_of("1"), runtime_of("2")
    slow.seconds_per_run = 2 * INLINE_SECONDS
    hosted, told, never = Hosted("sums", quick), Hosted("sums", quick, queue=True), Hosted("sums", quick, queue=False)
    seen = []
    for runtime in (slow, quick):
        for one in (hosted, told, never):
            one.replace(runtime)
            assert one.runtime is runtime
        seen.append((hosted.queueing, told.queueing, never.queueing))
    # What was asked for stays.
    assert seen == [(True, True, False), (False, True, False)]
