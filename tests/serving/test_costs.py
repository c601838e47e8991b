"""The cost meter: what a batch pays, that the sum is the processor time, and who is charged."""

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from vitok import decisions
from vitok.errors import InvalidInput
from vitok.serving import Hosted, HotRequest, InferenceLog, InferEndpoint, LocalModel, Runtime
from vitok.serving.budgets import NS, BudgetBook, SpendingBudget
from vitok.serving.chains import Fallback
from vitok.serving.costs import CostMeter, GpuRunner, Prices, RouteTime, taken_gpu
from vitok.serving.hosted import Answered, Chosen
from vitok.serving.queued import QueuedModel
from vitok.serving.response_cache import ResponseCache
from vitok.serving.route_building import HostedModel, QuickModel
from vitok.serving.runners import CallableRunner
from vitok.serving.spending import Spending, teams_of
from vitok.serving.targets import Batch, Constant
from vitok.serving.tensors import TensorSpec

MS = 1_000_000
BODY = b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP64","data":[1,2]}]}'


class Machine:
    """Processor time and wall time that tests move."""

    def __init__(self) -> None:
        self.cpu = self.wall = 0

    def run(self, cpu: int, wall: int) -> None:
        self.cpu += cpu
        self.wall += wall

    def meter(self, **options: object) -> CostMeter:
        return CostMeter(cpu=lambda: self.cpu, wall=lambda: self.wall, **options)  # type: ignore[arg-type]


def batch(n: int = 1, *, version: str = "m/1", **more: object) -> Answered:
    return Answered(version, np.zeros((n, 1)), np.zeros(n), [""] * n, np.zeros(n), 0.0, **more)  # type: ignore[arg-type]


def summed(costs: float | np.ndarray, n: int) -> float:
    return float(costs) * n if isinstance(costs, float) else float(costs.sum())


def test_a_batch_pays_what_it_measured_by_rows() -> None:
    meter = Machine().meter()
    assert meter.charge(batch(4), 80_000) == pytest.approx(20e-6)


def test_the_sum_is_the_processor_time_within_what_is_owed() -> None:
    # Each batch of 8 rows measures 1 ms and takes 3 ms; the meter sees the other 2 ms only a window later.
    machine = Machine()
    meter = machine.meter()
    logged = 0.0
    for _ in range(2000):
        machine.run(3 * MS, 4 * MS)
        logged += 8 * float(meter.charge(batch(8), MS))
    report = meter.report()
    assert logged == pytest.approx(report.direct + report.overhead)
    assert report.direct + report.overhead + report.owed == pytest.approx(2000 * 3e-3, abs=0.101)
    assert 6.0 - 0.2 < logged <= 6.0
    assert report.idle == report.cached == report.paid == 0


def test_rows_do_not_pay_more_than_was_taken_when_they_become_many() -> None:
    machine = Machine()
    meter = machine.meter()
    logged = 0.0
    for n in [1] * 100 + [10_000] * 100:
        machine.run(2 * MS, 50 * MS)
        logged += n * float(meter.charge(batch(n), MS))
        assert logged <= machine.cpu / 1e9
    assert logged == pytest.approx(machine.cpu / 1e9, rel=0.05)


def test_a_quiet_minute_is_idle_and_no_row_pays_for_it() -> None:
    machine = Machine()
    meter = machine.meter()
    for _ in range(100):
        machine.run(3 * MS, 10 * MS)
        meter.charge(batch(), MS)
    machine.run(500 * MS, 60_000 * MS)
    before = meter.report()
    cost = float(meter.charge(batch(), MS))
    after = meter.report()
    assert after.idle - before.idle == pytest.approx(0.5, abs=0.01)
    assert cost < 0.05
    # The first request of all is not charged for what was before it.
    fresh = Machine()
    first = fresh.meter()
    fresh.run(3_000 * MS, 30_000 * MS)
    assert first.charge(batch(), MS) == pytest.approx(1e-3)


def test_hits_cost_nothing_and_the_rows_that_ran_pay_for_the_probe() -> None:
    machine = Machine()
    meter = machine.meter()
    ran = np.array([False, True, False, True])
    logged = 0.0
    for _ in range(1000):
        machine.run(2 * MS, 5 * MS)
        costs = meter.charge(batch(4, ran=ran), MS)
        assert isinstance(costs, np.ndarray)
        assert (costs[~ran] == 0).all()
        assert (costs[ran] > 0).all()
        logged += summed(costs, 4)
    assert logged == pytest.approx(2.0, rel=0.05)
    (line,) = meter.report().charged
    assert (line.rows, line.hits) == (4000, 2000)


def test_what_a_cache_answers_alone_is_told_apart_and_not_owed() -> None:
    machine = Machine()
    meter = machine.meter()
    for _ in range(1000):
        machine.run(2 * MS, 5 * MS)
        assert summed(meter.charge(batch(3, ran=np.zeros(3, bool)), MS), 3) == 0
    assert meter.report().cached == pytest.approx(2.0, rel=0.06)
    machine.run(2 * MS, 5 * MS)
    assert float(meter.charge(batch(), MS)) < 0.05


def test_who_is_charged() -> None:
    meter = Machine().meter(team_of=teams_of([], {"web": "checkout", "app": "checkout"}))
    some = batch(4, tenants=["web", "app", "web", "app"])
    meter.charge(some, 8_000)
    assert some.teams == ["checkout"] * 4
    meter.charge(batch(2, tenants=["web", "web"], teams=["risk", "risk"]), 2_000)
    chosen = Chosen(["m/1", "m/2"], ["champion", "canary"], ["", ""], [1.0, 1.0])
    meter.charge(batch(2, chosen=chosen), 4_000)
    found = {(c.version, c.tenant, c.team, c.route): (c.rows, round(1e9 * c.seconds)) for c in meter.report().charged}
    assert found == {
        ("m/1", "web", "checkout", "champion"): (2, 4_000),
        ("m/1", "app", "checkout", "champion"): (2, 4_000),
        ("m/1", "web", "risk", "champion"): (2, 2_000),
        ("m/1", "", "", "champion"): (1, 2_000),
        ("m/2", "", "", "canary"): (1, 2_000),
    }


def test_a_route_pays_its_calls_beside_its_processor_time() -> None:
    meter = Machine().meter()
    chosen = Chosen(["m/1"] * 2, ["champion"] * 2, [""] * 2, [1.0] * 2)
    some = batch(2, chosen=chosen)
    some.cost = 0.5  # seconds a row, of which 1 ms in all was measured here
    assert meter.charge(some, MS) == pytest.approx(0.5)
    report = meter.report()
    assert (report.direct, report.paid) == (pytest.approx(1e-3), pytest.approx(0.999))


def test_local_models_of_a_route_are_counted_once() -> None:
    model = LocalModel("a", lambda rows: rows.sum(axis=1))
    priced = LocalModel("b", lambda rows: rows.sum(axis=1), cost=1.0)
    route = RouteTime(Fallback([model, priced, Fallback([model, Constant(0.5)]), Constant(0.5)]))
    model.score(Batch(np.ones((2, 3))))
    priced.score(Batch(np.ones((2, 3))))
    assert route.taken() == model._measured[1] > 0
    assert route.taken() == 0


def test_a_model_of_the_host_is_counted_through_a_swap() -> None:
    def version(number: str) -> Runtime:
        return Runtime(adder(), version=f"adder/{number}")

    hosted = Hosted("adder", version("1"))
    quick, slow = QuickModel("quick", hosted), HostedModel("slow", hosted)
    route = RouteTime(Fallback([quick, QueuedModel(slow.now), Constant(0.5)]))
    quick.score(Batch(np.ones((2, 2))))
    assert route.taken() == quick.now()._measured[1] > 0
    slow.now().score(Batch(np.ones((2, 2))))
    assert route.taken() == slow.now()._measured[1] > 0
    hosted.replace(version("2"))
    quick.score(Batch(np.ones((2, 2))))
    assert quick.now().version == "adder/2"
    assert route.taken() == quick.now()._measured[1] > 0
    assert route.taken() == 0


def test_a_runner_that_has_left_the_gpu_is_paid_as_processor_time() -> None:
    there = [True]

    def asked() -> list[int]:
        taken_gpu()
        runner = GpuRunner(adder(), wall=iter(range(0, 100, 5)).__next__, on_gpu=lambda: there[0])
        runner.run({"x": np.ones((2, 2))})
        found = [taken_gpu()]
        there[0] = False
        runner.run({"x": np.ones((2, 2))})
        return [*found, taken_gpu()]

    with ThreadPoolExecutor(1) as fresh:
        assert fresh.submit(asked).result() == [5, 0]


def test_gpu_time_is_paid_at_its_price() -> None:
    def asked() -> list[float]:
        ticks = iter([0, 0, 5 * MS])
        runner = GpuRunner(adder(), wall=lambda: next(ticks))
        meter = Machine().meter(prices=Prices(cpu_hour=0.04, gpu_hour=2.0))
        # The warm-up, before the thread has answered anything, is nobody's.
        runner.run({"x": np.ones((2, 2))})
        costs = [meter.charge(batch(2), MS)]
        runner.run({"x": np.ones((2, 2))})
        costs += [meter.charge(batch(2), MS), taken_gpu(), meter.charge(batch(2), MS)]
        return [float(cost) for cost in costs]

    with ThreadPoolExecutor(1) as fresh:
        found = fresh.submit(asked).result()
    # 5 ms at fifty times the price of a core, and 1 ms of the core itself.
    assert found == pytest.approx([1e-3 / 2, (50 * 5e-3 + 1e-3) / 2, 0, 1e-3 / 2])


def test_prices() -> None:
    prices = Prices(cpu_hour=0.036, gpu_hour=0.9)
    assert prices.money(3600) == pytest.approx(0.036)
    assert prices.money(prices.seconds(1.25)) == pytest.approx(1.25)
    for wrong in ({"cpu_hour": 0.0}, {"cpu_hour": float("nan")}, {"cpu_hour": 1, "gpu_hour": -1.0}):
        with pytest.raises(InvalidInput):
            Prices(**wrong)
    with pytest.raises(InvalidInput):
        Prices(cpu_hour=1, currency=" ")


def adder() -> CallableRunner:
    inputs, outputs = [TensorSpec("x", "FP64", (-1, 2))], [TensorSpec("y", "FP64", (-1,))]
    return CallableRunner(lambda tensors: {"y": tensors["x"].sum(axis=1)}, inputs, outputs)


def ask(endpoint: InferEndpoint, tenants: Sequence[str]) -> None:
    now = time.perf_counter_ns()
    replies = endpoint.handle([HotRequest(BODY, now, [], "", tenant) for tenant in tenants])
    assert all(getattr(reply, "status", 0) == 200 for reply in replies)


def test_in_the_log_of_a_model(tmp_path: Path) -> None:
    meter = CostMeter(team_of=teams_of([], {"web": "checkout"}))
    cache = ResponseCache(max_bytes=1 << 16, ttl="1h", measured=False)
    with InferenceLog(tmp_path / "decisions", system="m", features=["a", "b"]) as log:
        hosted = Hosted("m", Runtime(adder(), version="m/1"), meter=meter, recorder=log, cache=cache, queue=False)
        endpoint = InferEndpoint(hosted)
        ask(endpoint, ["web"])
        ask(endpoint, ["web", "web"])
    rows = decisions.query(tmp_path, "SELECT tenant, team, cost > 0 AS paid FROM decisions ORDER BY decision_id").rows()
    assert rows == [("web", "checkout", True), ("web", "checkout", False), ("web", "checkout", False)]
    (line,) = meter.report().charged
    logged = decisions.query(tmp_path, "SELECT sum(cost) FROM decisions").item()
    assert line.seconds == pytest.approx(logged)


def test_budgets_are_charged(tmp_path: Path) -> None:
    book = BudgetBook(tmp_path / "budgets.sqlite")
    book.set(SpendingBudget(team="checkout", amount=1.0, period="month"), actor="ann", now=0)
    spending = Spending(book)
    meter = Machine().meter(spending=spending, team_of=teams_of([], {"web": "checkout"}))
    meter.charge(batch(4, tenants=["web", "web", "web", "other"]), 4 * MS)
    assert spending.spent("checkout") == 3 * MS
    assert spending.spent("other") == 0
    spending.close()
    assert book.state("checkout", now=time.time_ns() // 1000).spent == pytest.approx(3 * MS / NS)
    book.close()


def test_threads_charge_at_the_same_time() -> None:
    machine = Machine()
    meter = machine.meter()

    def run() -> None:
        for _ in range(500):
            meter.charge(batch(2), 1000)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (line,) = meter.report().charged
    assert line.rows == 4000
    assert line.seconds == pytest.approx(2000 * 1000 / 1e9)
    assert "4,000 rows" in str(meter.report())
    assert "m/1 champion for anybody" in str(line)
