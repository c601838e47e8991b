"""What each decision costs: processor and GPU seconds by measured service time, paid calls at their price.

A batch is charged what its thread has measured. What the process burns besides (reading from sockets, writing answers,
probing caches, background work) is measured as the difference to the processor time of the whole process, and added to
the rows that come right after, so that the costs in the log add up to what the process has taken. A row that a cache
answered costs nothing: those on which the model runs at the same time pay for it.
"""

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vitok.errors import InvalidInput
from vitok.serving.hosted import Answered
from vitok.serving.runners import Runner, Tensors
from vitok.serving.spending import Spending
from vitok.serving.targets import LocalModel, Target
from vitok.serving.tensors import TensorSpec

Nanoseconds = Callable[[], int]

_WINDOW = 100_000_000
_IDLE = 2_000_000_000
_PAY = 0.5  # of what is owed, by as many rows as the last window had: so a busier one does not overpay
_KEEP = 0.9
_HOUR = 3600.0


@dataclass(frozen=True, kw_only=True)
class Prices:
    """What seconds cost. The log keeps processor seconds; all else is told in them, so that one column adds up.

    Attributes:
        cpu_hour: Price of an hour of one core, above 0.
        gpu_hour: Price of an hour of a GPU; 0 where there is none.
        currency: Of both.

    Example:
        >>> prices = Prices(cpu_hour=0.036, gpu_hour=3.6, currency="EUR")
        >>> round(prices.money(100_000), 9), round(prices.seconds(0.002), 9), round(prices.gpu_second, 9)
        (1.0, 200.0, 100.0)
    """

    cpu_hour: float
    gpu_hour: float = 0.0
    currency: str = "EUR"

    def __post_init__(self) -> None:
        if not 0 < self.cpu_hour < math.inf:
            raise InvalidInput("cpu_hour", self.cpu_hour, "be a price above 0")
        if not 0 <= self.gpu_hour < math.inf:
            raise InvalidInput("gpu_hour", self.gpu_hour, "be a price of at least 0")
        if not self.currency.isprintable() or not self.currency.strip():
            raise InvalidInput("currency", self.currency, "be a name such as EUR")

    @property
    def gpu_second(self) -> float:
        """Processor seconds that cost as much as a GPU second."""
        return self.gpu_hour / self.cpu_hour

    def money(self, seconds: float) -> float:
        """Returns what processor seconds cost."""
        return seconds * self.cpu_hour / _HOUR

    def seconds(self, money: float) -> float:
        """Returns processor seconds that cost as much: the `cost` of a target whose calls are paid."""
        return money * _HOUR / self.cpu_hour


@dataclass(frozen=True, kw_only=True)
class Charged:
    """What was charged to one model version, tenant, team and route.

    Attributes:
        version: Such as `"fraud/3"`.
        tenant: Whose rows they were; empty where nobody has asked.
        team: Who pays.
        route: `"champion"`, or what a route chose.
        rows: How many there were.
        hits: How many of them a cache answered.
        seconds: Processor seconds, or what costs as much.
    """

    version: str
    tenant: str
    team: str
    route: str
    rows: int
    hits: int
    seconds: float

    def __str__(self) -> str:
        who = "/".join(part for part in (self.team, self.tenant) if part) or "anybody"
        each = 1e6 * self.seconds / self.rows if self.rows else 0.0
        return (
            f"{self.version} {self.route} for {who}: {self.rows:,} rows ({self.hits:,} from the cache), "
            f"{self.seconds:.4g} s, {each:.4g} us each"
        )


@dataclass(frozen=True, kw_only=True)
class MeterReport:
    """Where the processor time of the process went, in seconds since the meter was made.

    `direct + overhead + owed + cached + idle` is the processor time, up to the last tenth of a second.

    Attributes:
        charged: By model version, tenant, team and route.
        direct: Measured by the batches themselves.
        overhead: What was added to rows for the rest.
        owed: The rest that is not added yet.
        cached: Taken in tenths of a second in which a cache answered everything; no row pays for it.
        idle: Taken in stretches of two seconds and more without a batch; no row pays for it.
        paid: What costs no processor time of this process: GPU seconds and paid calls, in processor seconds.
        wall: How long the meter has run.
    """

    charged: tuple[Charged, ...]
    direct: float
    overhead: float
    owed: float
    cached: float
    idle: float
    paid: float
    wall: float

    def __str__(self) -> str:
        rows = sum(item.rows for item in self.charged)
        return (
            f"{rows:,} rows: {self.direct:.4g} s measured, {self.overhead:.4g} s of overhead, {self.paid:.4g} s paid "
            f"otherwise; {self.owed:.4g} s owed, {self.cached:.4g} s for the cache alone, {self.idle:.4g} s idle, "
            f"{self.wall:.4g} s in all"
        )


class CostMeter:
    """Charges each batch what it has cost: `Hosted(meter=CostMeter())`. One serves all models of a process.

    Overhead is shared by rows: a row of a cheap model pays as much of it as one of a dear model.

    Args:
        team_of: The team of a tenant, such as `vitok.serving.spending.teams_of` returns; by default the tenant's own
            name. Rows whose team is known already keep it.
        spending: Budgets that are charged too; None for none.
        prices: What GPU seconds cost, for models that run on one (see `GpuRunner`).
        cpu: Processor time of the process in nanoseconds.
        wall: Time in nanoseconds.

    Example:
        >>> meter = CostMeter(cpu=lambda: 0, wall=lambda: 0)
        >>> batch = Answered("fraud/1", np.zeros((4, 1)), np.zeros(4), [""] * 4, np.zeros(4), 0.0)
        >>> meter.charge(batch, 80_000)
        2e-05
        >>> print(meter.report().charged[0])
        fraud/1 champion for anybody: 4 rows (0 from the cache), 8e-05 s, 20 us each
    """

    def __init__(
        self,
        *,
        team_of: Callable[[str], str] = str,
        spending: Spending | None = None,
        prices: Prices | None = None,
        cpu: Nanoseconds = time.process_time_ns,
        wall: Nanoseconds = time.perf_counter_ns,
    ) -> None:
        self.spending = spending
        self._team_of = team_of
        self._gpu_second = 0.0 if prices is None else prices.gpu_second
        self._cpu, self._wall = cpu, wall
        self._lock = threading.Lock()
        self._began = self._opened = wall()
        self._before = cpu()
        # Of the window that is open: what batches have measured, rows on which models ran, all rows.
        self._window = [0, 0, 0]
        self._owed = self._rate = 0.0
        self._known = [0.0, 0.0]  # overhead and rows of busy windows, the older the less
        self._direct = self._overhead = self._cached = self._idle = self._paid = 0.0
        self._charged: dict[tuple[str, str, str, str], list[float]] = {}

    def charge(self, batch: Answered, cpu_ns: int) -> float | np.ndarray:
        """Takes the cost of a batch.

        Args:
            batch: The rows. Its teams are set where it has tenants and no teams. Where a route has chosen, its `cost`
                is what the targets' calls have cost a row, in processor seconds.
            cpu_ns: Processor nanoseconds that were measured for it.

        Returns:
            Processor seconds of each row; one number where the model ran on all.
        """
        n = len(batch)
        gpu = taken_gpu()
        if batch.teams is None and batch.tenants is not None:
            batch.teams = self._teams(batch.tenants)
        ran = n if batch.ran is None else int(batch.ran.sum())
        paid = self._gpu_second * gpu
        if batch.chosen is not None:
            # What local models of the route have measured is in both.
            paid += max(1e9 * float(np.sum(batch.cost)) * (n if np.ndim(batch.cost) == 0 else 1) - cpu_ns, 0.0)
        with self._lock:
            window = self._window
            window[1] += ran
            window[2] += n
            surcharge = 0.0
            if ran:
                window[0] += cpu_ns
                self._direct += cpu_ns
            now = self._wall()
            if now - self._opened >= _WINDOW:
                self._close(now)
            if ran:
                surcharge = max(min(self._owed, self._rate * ran), 0.0)
                self._owed -= surcharge
                self._overhead += surcharge
                self._paid += paid
            each = (cpu_ns + surcharge + paid) / ran if ran else 0.0
            teams = self._count(batch, n, each)
        if self.spending is not None and each:
            for team, ns in teams.items():
                self.spending.spend(team, round(ns))
        if batch.ran is None:
            return each / 1e9
        costs: np.ndarray = np.where(batch.ran, each / 1e9, 0.0)
        return costs

    def report(self) -> MeterReport:
        """Returns what was charged so far, and where the rest went."""
        with self._lock:
            charged = tuple(
                Charged(
                    version=key[0],
                    tenant=key[1],
                    team=key[2],
                    route=key[3],
                    rows=int(rows),
                    hits=int(rows - ran),
                    seconds=ns / 1e9,
                )
                for key, (rows, ran, ns) in sorted(self._charged.items())
            )
            return MeterReport(
                charged=charged,
                direct=self._direct / 1e9,
                overhead=self._overhead / 1e9,
                owed=self._owed / 1e9,
                cached=self._cached / 1e9,
                idle=self._idle / 1e9,
                paid=self._paid / 1e9,
                wall=(self._wall() - self._began) / 1e9,
            )

    def _close(self, now: int) -> None:
        # A window ends: what the process has taken beyond what its batches measured is owed by the next rows.
        spent = self._cpu()
        direct, ran, rows = self._window
        overhead, known = spent - self._before - direct, self._known
        owed = float(overhead)
        if now - self._opened > _IDLE:
            # Somewhere in it nothing was asked for long: rows owe what rows of busy windows do.
            each = known[0] / known[1] if known[1] else 0.0
            owed = min(max(each * rows, 0.0), max(overhead, 0))
            self._idle += overhead - owed
        elif not ran:
            # The next row on which the model runs must not pay for all that a cache has answered before it.
            owed = 0.0
            self._cached += overhead
        else:
            known[0] = _KEEP * known[0] + overhead
            known[1] = _KEEP * known[1] + rows
        self._owed += owed
        self._rate = _PAY * self._owed / max(ran, 1)
        self._before, self._opened = spent, now
        self._window = [0, 0, 0]

    def _teams(self, tenants: Sequence[str]) -> list[str]:
        first = tenants[0] if len(tenants) else ""
        if tenants.count(first) == len(tenants):
            return [self._team_of(first)] * len(tenants)
        known = {tenant: self._team_of(tenant) for tenant in set(tenants)}
        return [known[tenant] for tenant in tenants]

    def _count(self, batch: Answered, n: int, each: float) -> dict[str, float]:
        # Adds the rows to their accounts; returns what each team has spent.
        ran = batch.ran
        keys = _keys(batch, n)
        by_team: dict[str, float] = {}
        if len(keys) == 1:
            counts = [(keys[0], n, n if ran is None else int(ran.sum()))]
        else:
            every = Counter(keys)
            run = every if ran is None else Counter([key for key, yes in zip(keys, ran.tolist(), strict=True) if yes])
            counts = [(key, rows, run[key]) for key, rows in every.items()]
        for key, rows, runs in counts:
            account = self._charged.setdefault(key, [0.0, 0.0, 0.0])
            account[0] += rows
            account[1] += runs
            account[2] += each * runs
            by_team[key[2]] = by_team.get(key[2], 0.0) + each * runs
        return by_team


def _keys(batch: Answered, n: int) -> list[tuple[str, str, str, str]]:
    # One key where all rows have the same.
    tenants, teams, chosen = batch.tenants, batch.teams, batch.chosen
    if chosen is None and all(column is None or column.count(column[0]) == n for column in (tenants, teams)):
        return [(batch.version, tenants[0] if tenants else "", teams[0] if teams else "", "champion")] if n else []
    return list(
        zip(
            [batch.version] * n if chosen is None else chosen.versions,
            tenants or [""] * n,
            teams or [""] * n,
            ["champion"] * n if chosen is None else chosen.routes,
            strict=True,
        )
    )


class _Local(threading.local):
    gpu = 0
    charged = False  # a thread that never charged only loads and warms up, which no batch pays for


_taken = _Local()


class GpuRunner:
    """A runner whose runs are paid as GPU time: from the call until the answer is here.

    Runs of several models that share a GPU at the same time are each paid in full.

    Args:
        runner: What runs on the GPU.
        wall: Time in nanoseconds.
        on_gpu: Whether it runs there at present; one that has fallen back to the processor is paid as that.
    """

    def __init__(
        self, runner: Runner, *, wall: Nanoseconds = time.perf_counter_ns, on_gpu: Callable[[], bool] = lambda: True
    ) -> None:
        self.runner = runner
        self._on_gpu = on_gpu
        self.inputs: tuple[TensorSpec, ...] = tuple(runner.inputs)
        self.outputs: tuple[TensorSpec, ...] = tuple(runner.outputs)
        self.platform: str = runner.platform
        self._wall = wall

    def run(self, inputs: Tensors) -> dict[str, np.ndarray]:
        """Runs the model."""
        started = self._wall()
        try:
            return self.runner.run(inputs)
        finally:
            if _taken.charged and self._on_gpu():
                _taken.gpu += self._wall() - started


def taken_gpu() -> int:
    """Returns the nanoseconds of GPU that this thread has used since it was last asked; what was before is left out."""
    taken, _taken.gpu, _taken.charged = _taken.gpu, 0, True
    return taken


class RouteTime:
    """The processor time that the models of a route take in this process, where they have no price of their own.

    Args:
        target: The route.

    Example:
        >>> from vitok.serving.targets import Batch
        >>> model = LocalModel("sum", lambda rows: rows.sum(axis=1))
        >>> route = RouteTime(model)
        >>> _ = model.score(Batch(np.ones((2, 3))))
        >>> route.taken() > 0, route.taken()
        (True, 0)
    """

    def __init__(self, target: Target) -> None:
        # A model of the host is another one after a swap, and then counts from 0 again.
        self._models = _distinct(_models(target))
        self._seen = [(model(), _spent(model())) for model in self._models]

    def taken(self) -> int:
        """Returns nanoseconds since it was last asked."""
        taken = 0
        for at, (model, spent) in enumerate(self._seen):
            now = self._models[at]()
            total = _spent(now)
            taken += total - spent if now is model else total
            self._seen[at] = (now, total)
        return taken


def _spent(model: LocalModel) -> int:
    if model._cost is not None:  # noqa: SLF001 - what it measures is its cost only where it has no other
        return 0
    return model._measured[1]  # noqa: SLF001 - it tells only the mean


def _models(target: Any) -> list[Callable[[], LocalModel]]:
    if isinstance(target, LocalModel):
        return [lambda: target]
    if hasattr(target, "now"):
        return [target.now]
    inner = list(getattr(target, "targets", ()))
    inner += [getattr(target, name) for name in ("main", "small", "large") if hasattr(target, name)]
    return [model for item in inner for model in _models(item)]


def _distinct(models: list[Callable[[], LocalModel]]) -> list[Callable[[], LocalModel]]:
    # One that stands in a route twice is counted once.
    return list({id(model()): model for model in models}.values())
