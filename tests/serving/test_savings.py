"""What replay says could be saved, against traffic whose savings are known by hand."""

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.serving.test_cost_report import START, write

from vitok.clock import DAY, SECOND
from vitok.errors import InvalidInput, NotFound
from vitok.registry import ModelState
from vitok.registry.stages import Stage, Version
from vitok.serving import Runtime
from vitok.serving.runners import CallableRunner
from vitok.serving.savings import (
    ModelTime,
    batching,
    caching,
    cascading,
    measure_time,
    quantising,
    unused_models,
)
from vitok.serving.savings_traffic import Traffic, Use, read_traffic, used_versions
from vitok.serving.tensors import TensorSpec

MODEL = ModelTime(sizes=(1, 100), seconds=(100e-6, 1090e-6))  # 90 us, and 10 us a row


def still() -> int:
    return 0


def traffic(
    sizes: NDArray[np.int64],
    *,
    X: NDArray[np.float64] | None = None,
    cost: NDArray[np.float64] | None = None,
    gap_us: int = 1000,
    **more: object,
) -> Traffic:
    """Batches of some sizes, one every millisecond, whose rows cost 1 ms each where `cost` does not say of batches."""
    n = int(sizes.sum())
    of = np.repeat(np.arange(len(sizes)), sizes)
    times = START + of * gap_us
    fields: dict[str, object] = {
        "version": "m/1",
        "X": np.arange(n, dtype=np.float64).reshape(n, 1) if X is None else X,
        "cost": np.full(n, 1e-3) if cost is None else (cost / sizes)[of],
        "probability": np.full(n, 0.2),
        "shadow": np.full(n, math.nan),
        "event_time": times,
        "arrived": times,
        "starts": np.concatenate(([0], np.cumsum(sizes)[:-1])),
        "log": np.zeros(n, np.int64),
    }
    return Traffic(**(fields | more))  # type: ignore[arg-type]


def test_caching_by_hand() -> None:
    # Ten different rows, over and over: 10 of 1,000 runs are needed, and a run of one row takes 100 us of 1 ms.
    rows = np.tile(np.arange(10.0), 100).reshape(-1, 1)
    found = caching(traffic(np.ones(1000, np.int64), X=rows), MODEL, clock=still)
    assert found.details["rows that need no run"] == pytest.approx(0.99)
    assert found.share is not None
    assert found.share.value == pytest.approx(0.099)
    assert found.seconds == pytest.approx(990 * 100e-6)
    assert found.share.lower < 0.099 < found.share.upper
    assert "n = 1,000" in str(found)


def test_caching_pays_for_looking() -> None:
    # Nothing comes twice, and each look takes 50 us: it costs a twentieth.
    clock = itertools.count(0, 50_000)
    found = caching(traffic(np.ones(1000, np.int64)), MODEL, clock=lambda: next(clock))
    assert found.share is not None
    assert found.share.value == pytest.approx(-0.05)
    assert found.details["us of the cache a row"] == pytest.approx(50.0)


def test_caching_forgets_and_each_process_has_its_own() -> None:
    # The same row each second, good for ten seconds: one of ten or eleven needs a run.
    same = np.zeros((1000, 1))
    found = caching(traffic(np.ones(1000, np.int64), X=same, gap_us=SECOND), MODEL, ttl="10s", clock=still)
    assert found.details["rows that need no run"] == pytest.approx(0.9, abs=0.02)
    logs = np.repeat([0, 1, 2, 3], 250)
    split = caching(traffic(np.ones(1000, np.int64), X=same, log=logs), MODEL, clock=still)
    assert split.details["rows that need no run"] == pytest.approx(0.996)


def test_caching_that_cannot_be_said() -> None:
    some = traffic(np.ones(100, np.int64))
    unknown = caching(some, None, clock=still)
    assert unknown.share is None
    assert "name its package" in unknown.reason
    assert unknown.details["rows that need no run"] == 0
    assert "cannot be said" in str(unknown)
    json.dumps(unknown.to_dict())
    assert "no features" in caching(traffic(np.ones(9, np.int64), X=np.empty((9, 0))), MODEL).reason
    assert "fewer than" in caching(traffic(np.ones(9, np.int64)), MODEL, clock=still).reason
    free = traffic(np.ones(100, np.int64), cost=np.zeros(100))
    assert "cost nothing" in caching(free, MODEL, clock=still).reason


def test_batching_by_hand() -> None:
    # 200 us a batch and 50 us a row; one and two rows in turn each millisecond. Five milliseconds gather six batches.
    sizes = np.tile([1, 2], 600)
    found = batching(traffic(sizes, cost=200e-6 + 50e-6 * sizes), max_delay=0.005)
    assert found.details["us a batch"] == pytest.approx(200.0)
    assert found.details["us a row"] == pytest.approx(50.0)
    assert found.details["rows a batch then"] == pytest.approx(9.0)
    total = 1200 * 200e-6 + 1800 * 50e-6
    assert found.share is not None
    assert found.seconds == pytest.approx(1000 * 200e-6)
    assert found.share.value == pytest.approx(1000 * 200e-6 / total)
    assert found.share.lower <= found.share.value <= found.share.upper
    # The first waits the whole 5 ms, the last not at all.
    assert found.details["ms at P99"] == pytest.approx(5.0)


def test_batches_are_no_larger_than_they_may_be() -> None:
    sizes = np.tile([1, 2], 600)
    found = batching(traffic(sizes, cost=200e-6 + 50e-6 * sizes), max_delay=1.0, max_rows=3)
    assert found.details["rows a batch then"] == pytest.approx(3.0)
    assert isinstance(found.details["ms at P99"], float)
    assert found.details["ms at P99"] <= 2.0


def test_batching_that_cannot_be_said() -> None:
    assert "one size" in batching(traffic(np.ones(100, np.int64))).reason
    sizes = np.tile([1, 2], 100)
    # Costs that are by the row alone have no part that fewer batches would save.
    flat = batching(traffic(sizes, cost=1e-3 * sizes))
    assert flat.share is None or abs(flat.share.value) < 1e-9
    with pytest.raises(InvalidInput):
        batching(traffic(sizes), max_delay=0.0)


def cascade_traffic() -> Traffic:
    # Of ten rows eight are clear to the small model and right, one is unsure and right, one unsure and wrong.
    shadow = np.tile([0.05] * 8 + [0.45, 0.55], 100)
    return traffic(np.ones(1000, np.int64), shadow=shadow, probability=np.full(1000, 0.2))


def test_cascading_by_hand() -> None:
    found = cascading(cascade_traffic(), MODEL, 20e-6, max_loss=0.0)
    assert found.share is not None
    # 20 us always, 100 us for the fifth that is escalated (both at the confidence 0.55), instead of 100 us, of 1 ms.
    assert found.details["escalated"] == pytest.approx(0.2)
    assert found.share.value == pytest.approx((100 - 20 - 0.2 * 100) / 1000)
    assert str(found.details["decided otherwise"]).startswith("0 %")
    allowed = cascading(cascade_traffic(), MODEL, 20e-6, max_loss=0.1)
    assert allowed.share is not None
    assert allowed.share.value == pytest.approx((100 - 20) / 1000)
    assert str(allowed.details["decided otherwise"]).startswith("10 %")


def test_cascading_that_cannot_be_said() -> None:
    some = cascade_traffic()
    assert "log a shadow" in cascading(traffic(np.ones(1000, np.int64)), MODEL, 1e-6).reason
    assert "name its package" in cascading(some, None, 1e-6).reason
    assert "small model" in cascading(some, MODEL, None).reason
    assert "no probabilities" in cascading(some, MODEL, 1e-6, answers=np.full(1000, 7.0)).reason
    assert cascading(some, None, 1e-6, max_loss=0.0).details["escalated"] == pytest.approx(0.2)


def runtime(version: str, function: Callable[[NDArray[np.float64]], NDArray[np.float64]], width: int = 1) -> Runtime:
    runner = CallableRunner(
        lambda tensors: {"y": function(tensors["x"])},
        [TensorSpec("x", "FP64", (-1, width))],
        [TensorSpec("y", "FP64", (-1,))],
    )
    return Runtime(runner, version=version)


def test_quantising_against_the_clock() -> None:
    # Each look at this clock is 10 us later than the last; a run of the full form looks once.
    ticks = itertools.count(0, 10_000)

    def clock() -> int:
        return next(ticks)

    def full(X: NDArray[np.float64]) -> NDArray[np.float64]:
        clock()
        return (X[:, 0] % 10) / 10

    def cheap(X: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.minimum((X[:, 0] % 10) / 10, 0.4)

    found = quantising(
        traffic(np.ones(100, np.int64)), runtime("m/1", full), runtime("m/8bit", cheap), clock=clock, rounds=5
    )
    assert found.share is not None
    # Fifty runs in a row: 51 ticks for the full form, the one at the end among them, and that one for the cheap form.
    assert found.details["time against the full form"] == pytest.approx(1 / 51)
    # So a run of 10.2 us becomes one of 0.2, of a row that has cost 1 ms in all.
    assert found.share.value == pytest.approx(0.01)
    assert found.details["decisions that fall otherwise"] == pytest.approx(0.5)


def test_quantising_that_cannot_be_said() -> None:
    some = traffic(np.ones(100, np.int64))
    model = runtime("m/1", lambda X: X[:, 0])
    assert "name its package" in quantising(some, None, None).reason
    assert "no cheaper form" in quantising(some, model, None).reason
    with pytest.raises(InvalidInput, match="features"):
        quantising(some, runtime("m/1", lambda X: X[:, 0], 2), model)


def test_the_time_of_a_model() -> None:
    ticks = itertools.count(0, 1_000)
    found = measure_time(runtime("m/1", lambda X: X[:, 0]), traffic(np.tile([1, 5, 9], 20)), clock=lambda: next(ticks))
    assert found.sizes == (1, 5, 9)
    assert MODEL.of(np.array([0, 1, 100, 200])) == pytest.approx([0, 100e-6, 1090e-6, 2180e-6])


def version(number: int, stage: Stage, model: str = "m") -> Version:
    return Version(model=model, version=number, stage=stage, registered=START, digest="d", path="p")


def test_models_that_nobody_asks() -> None:
    states = [
        ModelState(
            model="m",
            production=2,
            canary=4,
            versions=(version(1, "Archived"), version(2, "Production"), version(3, "Staging"), version(4, "Staging")),
        ),
        ModelState(model="old", production=1, versions=(version(1, "Production", "old"),)),
    ]
    used = {"m/2": Use(decisions=5, shadows=0, last=START), "m/3": Use(decisions=0, shadows=7, last=START)}
    found = unused_models(states, used)
    assert [(item.version, item.stage, item.shadows) for item in found] == [
        ("m/3", "Staging", 7),
        ("m/4", "canary", 0),
        ("old/1", "Production", 0),
    ]
    assert "asked 7 times as a shadow" in str(found[0])


def test_traffic_from_logs(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"x": float(k), "time": START + k // 2, "cost": 1e-3, "shadow_version": "m/2", "shadow": 0.3, "version": "m/1"}
        for k in range(5)
    ]
    write(tmp_path / "m" / "worker-0", [*rows, {"version": "m/3", "time": START + DAY}], name="m")
    write(tmp_path / "m" / "worker-1", [{"x": 9.0, "version": "m/1", "cost": math.nan, "time": START + 2}], name="m")
    found = read_traffic(tmp_path)
    assert found.version == "m/1"
    assert found.X[:, 0].tolist() == [0, 1, 2, 3, 4, 9]
    assert found.sizes.tolist() == [2, 2, 1, 1]
    assert found.log.tolist() == [0, 0, 0, 0, 0, 1]
    assert found.cost.sum() == pytest.approx(5e-3)
    assert found.batch_cost == pytest.approx([2e-3, 2e-3, 1e-3, 0])
    assert (found.event_time - found.arrived == 10).all()
    assert found.shadow[0] == 0.3
    assert math.isnan(found.shadow[-1])
    assert read_traffic(tmp_path, max_rows=4).left_out == 3
    assert used_versions(tmp_path) == {
        "m/1": Use(decisions=6, shadows=0, last=START + 2),
        "m/2": Use(decisions=0, shadows=5, last=START + 2),
        "m/3": Use(decisions=1, shadows=0, last=START + DAY),
    }
    with pytest.raises(NotFound):
        read_traffic(tmp_path, "m/7")
    with pytest.raises(NotFound):
        read_traffic(tmp_path, since=START + 9 * DAY)
