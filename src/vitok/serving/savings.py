"""What could be saved, by replay of the logged traffic: caching, batching, cascading, quantising, models nobody asks.

The cost of a decision in the log is more than the model: reading, checking and writing are in it, and they stay. So
what a cheaper way saves is the time of the model itself, measured here on the logged rows at the logged batch sizes,
and told as a share of what the log says the traffic has cost. Where a replay cannot say something, the reason stands
in place of the number. Savings of several ways overlap and must not be added up.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitok import stats
from vitok.clock import EventClock, isoformat
from vitok.errors import InvalidInput
from vitok.models.comparison import compare
from vitok.models.tradeoffs import Timing, time_in_turns
from vitok.registry import ModelState
from vitok.serving.response_cache import ResponseCache
from vitok.serving.runtime import Runtime
from vitok.serving.savings_traffic import Traffic, Use
from vitok.serving.thresholds import confidence_of, frontier
from vitok.stats import Estimate

_Floats = NDArray[np.float64]
_BLOCKS = 20
_FEWEST_BATCHES = 40
_MOST_SIZES = 6
_TIMED_ROWS = 4096
_FEWEST_ROWS = 200
_NO_MODEL = "the time of the model itself is not in the log; name its package to have it measured"


@dataclass(frozen=True, kw_only=True)
class Saving:
    """What one way would save.

    Attributes:
        way: `"caching"`, `"batching"`, `"cascading"` or `"quantising"`.
        share: Share of the logged processor seconds that it saves, below 0 where it costs more; None where that
            cannot be said.
        seconds: The same in processor seconds of the traffic that was replayed.
        reason: Why it cannot be said; empty where it can.
        assumption: Under which assumption it holds.
        n_obs: Rows that were replayed.
        details: What else the replay has shown.
    """

    way: str
    share: Estimate | None = None
    seconds: float | None = None
    reason: str = ""
    assumption: str = ""
    n_obs: int = 0
    details: Mapping[str, float | str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Returns what JSON can hold."""
        return {
            "way": self.way,
            "share": None if self.share is None else self.share.to_dict(),
            "cpu_seconds": self.seconds,
            "reason": self.reason,
            "assumption": self.assumption,
            "n": self.n_obs,
            "details": dict(self.details),
        }

    def __str__(self) -> str:
        if self.share is None:
            told = f"{self.way}: cannot be said (n = {self.n_obs:,}): {self.reason}"
        else:
            ends = f"{100 * self.share.lower:.3g} to {100 * self.share.upper:.3g}"
            level = f"{100 * self.share.confidence_level:g} % interval {ends}"
            told = f"{self.way}: {100 * self.share.value:.3g} % of the processor seconds ({level}, n = {self.n_obs:,})"
        more = [f"{name} {_short(value)}" for name, value in self.details.items()]
        lines = [told, *(["  " + ", ".join(more)] if more else [])]
        return "\n".join([*lines, *([f"  if {self.assumption}"] if self.assumption else [])])


@dataclass(frozen=True, kw_only=True)
class Unused:
    """A version that has a stage and has answered nothing in the span.

    Attributes:
        version: Such as `"fraud/2"`.
        stage: Its stage.
        registered: When it was registered, in microseconds.
        shadows: How often it was asked as a shadow.
    """

    version: str
    stage: str
    registered: int
    shadows: int

    def __str__(self) -> str:
        beside = f"; asked {self.shadows:,} times as a shadow" if self.shadows else ""
        return f"{self.version} in {self.stage} since {isoformat(self.registered)} at the earliest: no decision{beside}"


def unused_models(states: Sequence[ModelState], used: Mapping[str, Use]) -> list[Unused]:
    """Returns the versions in Production, in Staging or in a canary that have answered nothing.

    Args:
        states: Where the models of a registry stand.
        used: How often each version was used, from `used_versions`.
    """
    found = []
    for state in states:
        for version in state.versions:
            stage = "canary" if version.version == state.canary else version.stage
            use = used.get(version.name, Use(decisions=0, shadows=0, last=0))
            if stage in ("Production", "Staging", "canary") and not use.decisions:
                found.append(
                    Unused(version=version.name, stage=stage, registered=version.registered, shadows=use.shadows)
                )
    return found


@dataclass(frozen=True, kw_only=True)
class ModelTime:
    """How long a model takes, measured here on rows of the log, by rows of a run.

    Attributes:
        sizes: Rows of a run, ascending.
        seconds: Processor seconds of a run of each size.
    """

    sizes: tuple[int, ...]
    seconds: tuple[float, ...]

    def of(self, rows: NDArray[np.int64]) -> _Floats:
        """Returns seconds for runs of so many rows: between sizes by a straight line, beyond them in proportion.

        Example:
            >>> ModelTime(sizes=(1, 11), seconds=(1.0, 3.0)).of(np.array([0, 1, 6, 22])).tolist()
            [0.0, 1.0, 2.0, 6.0]
        """
        n = np.asarray(rows, np.float64)
        inside = np.interp(n, (0.0, *self.sizes), (0.0, *self.seconds))
        beyond = self.seconds[-1] * n / self.sizes[-1]
        return np.where(n > self.sizes[-1], beyond, inside)


def measure_time(
    runtime: Runtime, traffic: Traffic, *, rounds: int = 9, clock: Callable[[], int] = time.thread_time_ns
) -> ModelTime:
    """Measures a model on logged rows at the batch sizes of the log, in processor time of this thread.

    Raises:
        InvalidInput: If the model does not take the columns of the log.
    """
    sizes = _sizes(traffic)
    timings = time_in_turns({"model": _form(runtime, traffic)}, sizes, rounds=rounds, clock=clock)["model"]
    return ModelTime(sizes=tuple(sizes), seconds=tuple(timing.microseconds / 1e6 for timing in timings))


def caching(
    traffic: Traffic,
    model: ModelTime | None,
    *,
    max_bytes: int = 64 << 20,
    ttl: str | int = "10m",
    clock: Callable[[], int] = time.thread_time_ns,
) -> Saving:
    """Replays the rows through a response cache, one for each log, with the times of the log.

    Args:
        traffic: What was asked.
        model: How long the model takes; None where that is not known.
        max_bytes: Memory of each cache.
        ttl: How long an answer is good.
        clock: Nanoseconds, for the cost of looking up and keeping.
    """
    if not traffic.X.shape[1]:
        return Saving(way="caching", reason="the log has no features", n_obs=len(traffic))
    asked = np.zeros(len(traffic.starts), np.int64)
    spent = np.zeros(len(traffic.starts), np.float64)
    answer = {"score": np.zeros(int(traffic.sizes.max(initial=0)))}
    # The first use of the cache loads its compiled part, which is not what a probe costs.
    _warm(traffic)
    cache, log, now = ResponseCache(max_bytes=max_bytes, ttl=ttl, measured=False), -1, EventClock()
    for place, rows in enumerate(traffic.batches()):
        if traffic.log[rows.start] != log:
            log, now = int(traffic.log[rows.start]), EventClock()
            cache = ResponseCache(max_bytes=max_bytes, ttl=ttl, measured=False, clock=now)
        now.advance(int(traffic.event_time[rows.start]))
        ran: list[int] = []

        def run(X: np.ndarray, ran: list[int] = ran) -> dict[str, np.ndarray]:
            ran.append(len(X))
            return {"score": answer["score"][: len(X)]}

        started = clock()
        cache.answer(traffic.version, traffic.X[rows], run)
        spent[place] = (clock() - started) / 1e9
        asked[place] = sum(ran)
    hits = 1 - asked.sum() / len(traffic)
    details: dict[str, float | str] = {
        "rows that need no run": float(hits),
        "us of the cache a row": 1e6 * float(spent.sum()) / len(traffic),
    }
    assumption = (
        f"each process keeps a cache of {max_bytes:,} bytes, an answer is good for {ttl}, and a hit saves the run of "
        "the model but neither reading nor writing"
    )
    if model is None:
        return Saving(way="caching", reason=_NO_MODEL, assumption=assumption, n_obs=len(traffic), details=details)
    details["us of the model alone for a row"] = 1e6 * float(model.of(np.array([1]))[0])
    saved = model.of(traffic.sizes) - model.of(asked) - spent
    return _saving("caching", traffic, saved, assumption, details)


def batching(traffic: Traffic, *, max_delay: float = 0.005, max_rows: int = 256) -> Saving:
    """Replays the arrivals with batches that wait for company.

    What a batch costs whatever its size is read from the log: the level of the line through costs and rows of its
    batches, by least squares.

    Args:
        traffic: What was asked.
        max_delay: Seconds that the first request of a batch waits.
        max_rows: Most rows of a batch.
    """
    if not max_delay > 0 or max_rows < 1:
        raise InvalidInput("max_delay, max_rows", (max_delay, max_rows), "be above 0")
    sizes, cost = traffic.sizes.astype(np.float64), traffic.batch_cost
    assumption = (
        f"requests wait up to {1e3 * max_delay:g} ms for others, as they came, and a batch costs a fixed part and so "
        "much a row, as in the log"
    )
    paid = cost > 0
    if len(np.unique(sizes[paid])) < 2:
        reason = "all batches of the log have one size, so that the fixed part cannot be told from the rows"
        return Saving(way="batching", reason=reason, assumption=assumption, n_obs=len(traffic))
    fixed, each = _line(sizes[paid], cost[paid])
    opened, wait = _gathered(traffic, round(1e6 * max_delay), max_rows)
    # Of each logged batch: itself, less the batches that would have begun within it.
    fewer = 1.0 - np.add.reduceat(opened.astype(np.float64), traffic.starts)
    saved = fewer * fixed
    details: dict[str, float | str] = {
        "rows a batch in the log": float(sizes.mean()),
        "rows a batch then": len(traffic) / int(opened.sum()),
        "us a batch": 1e6 * fixed,
        "us a row": 1e6 * each,
        "ms that a row waits at the median": float(np.median(wait)) / 1e3,
        "ms at P99": float(np.quantile(wait, 0.99)) / 1e3,
    }
    found = _saving("batching", traffic, saved, assumption, details)
    if found.share is None:
        return found
    # The fixed part is an estimate too: its own interval goes into the share's.
    low, high = _line_interval(sizes[paid], cost[paid])
    if fixed <= 0 or not math.isfinite(low):
        return Saving(
            way="batching",
            reason="no fixed part of a batch can be seen in the log",
            assumption=assumption,
            n_obs=len(traffic),
            details=details,
        )
    ends = sorted(bound * factor / fixed for bound in (found.share.lower, found.share.upper) for factor in (low, high))
    value = found.share.value
    share = Estimate(**{**_fields(found.share), "lower": min(ends[0], value), "upper": max(ends[-1], value)})
    return Saving(**{**_fields(found), "share": share})


def cascading(
    traffic: Traffic,
    model: ModelTime | None,
    small: ModelTime | float | None,
    *,
    answers: NDArray[np.float64] | None = None,
    threshold: float = 0.5,
    max_loss: float = 0.01,
) -> Saving:
    """Replays a cascade: the small model first, the logged one where the small one is unsure.

    How sure it has to be is chosen on the earlier half of the rows, and judged on the later half.

    Args:
        traffic: What was asked.
        model: How long the logged model takes.
        small: How long the small one takes, or processor seconds a row; None where that is not known.
        answers: Probabilities of the small model, shape (n,); by default those of the logged shadow.
        threshold: Probability from which on something is decided.
        max_loss: Largest share of rows that may be decided otherwise than by the logged model.
    """
    shadow = traffic.shadow if answers is None else np.asarray(answers, np.float64)
    known = np.isfinite(shadow) & np.isfinite(traffic.probability)
    n = int(known.sum())
    assumption = (
        f"the logged model is right, decisions fall at {threshold:g}, and at most {100 * max_loss:g} % of them may "
        "fall otherwise"
    )

    def cannot(reason: str, **details: float | str) -> Saving:
        return Saving(way="cascading", reason=reason, assumption=assumption, n_obs=n, details=details)

    if n < _FEWEST_ROWS:
        return cannot(f"{n} rows have the answer of a second model, and {_FEWEST_ROWS} are needed; log a shadow")
    sure, large = shadow[known], traffic.probability[known]
    if not (((sure >= 0) & (sure <= 1)).all() and ((large >= 0) & (large <= 1)).all()):
        return cannot("the answers are no probabilities")
    otherwise = ((sure >= threshold) != (large >= threshold)).astype(np.float64)
    half = n // 2
    rows = np.array([max(len(traffic) // max(len(traffic.starts), 1), 1)])
    cost_large = None if model is None else float(model.of(rows)[0]) / int(rows[0])
    cost_small = float(small.of(rows)[0]) / int(rows[0]) if isinstance(small, ModelTime) else small
    confidence = confidence_of(sure)
    curve = frontier(
        confidence[:half],
        otherwise[:half],
        np.zeros(half),
        cost_small=cost_small or 0.0,
        cost_large=cost_large or 1.0,
    )
    point = curve.reaching(max_loss)
    up = ~(confidence[half:] >= point.threshold)
    wrong = stats.wilson(float((otherwise[half:] * ~up).sum()), n - half)
    details: dict[str, float | str] = {
        "threshold": point.threshold,
        "escalated": float(up.mean()),
        "decided otherwise": f"{100 * wrong.value:.3g} % ({100 * wrong.lower:.3g} to {100 * wrong.upper:.3g})",
    }
    if cost_large is None:
        return cannot(_NO_MODEL, **details)
    if cost_small is None:
        return cannot("how long the small model takes is not known; name its package", **details)
    logged = float(traffic.cost.mean())
    if not logged > 0:
        return cannot("the traffic has cost nothing", **details)
    each = np.asarray((cost_large - cost_small - up * cost_large) / logged, np.float64)
    share = _interval(each, np.ones(len(each)), "share saved by cascading", n - half)
    if share is None:
        return cannot("too few rows", **details)
    return Saving(
        way="cascading",
        share=share,
        seconds=share.value * float(traffic.cost.sum()),
        assumption=assumption,
        n_obs=n,
        details=details,
    )


def quantising(
    traffic: Traffic,
    full: Runtime | None,
    cheap: Runtime | None,
    *,
    threshold: float = 0.5,
    rounds: int = 21,
    clock: Callable[[], int] = time.thread_time_ns,
) -> Saving:
    """Times a model and its cheaper form in turns, on logged rows at the logged batch sizes, and compares the answers.

    Args:
        traffic: What was asked.
        full: The model.
        cheap: Its cheaper form, such as `vitok.models.quantise` makes.
        threshold: Probability from which on something is decided.
        rounds: How often each is timed at each size.
        clock: Nanoseconds.
    """
    n = len(traffic)
    assumption = "the forms are as fast where they serve as they are here, against each other"
    if full is None:
        return Saving(way="quantising", reason=_NO_MODEL, assumption=assumption, n_obs=n)
    if cheap is None:
        reason = "there is no cheaper form to time; make one with vitok.models.quantise and name its package"
        return Saving(way="quantising", reason=reason, assumption=assumption, n_obs=n)
    sizes = _sizes(traffic)
    forms = {"full": _form(full, traffic), "cheap": _form(cheap, traffic)}
    timings = time_in_turns(forms, sizes, rounds=rounds, clock=clock)
    seconds = tuple(timing.microseconds / 1e6 for timing in timings["full"])
    whole = float(ModelTime(sizes=tuple(sizes), seconds=seconds).of(traffic.sizes).sum())
    total = float(traffic.cost.sum())
    X = traffic.X[-_TIMED_ROWS:]
    compared = compare(full.score(X.astype(full.dtype)), cheap.score(X.astype(cheap.dtype)), thresholds=(threshold,))
    ratio, low, high = (_weighted(timings["cheap"], seconds, traffic, which) for which in ("ratio", "lower", "upper"))
    details: dict[str, float | str] = {
        "time against the full form": ratio,
        "decisions that fall otherwise": compared.flip_share,
        "largest difference": compared.max_difference,
    }
    if not total > 0:
        return Saving(way="quantising", reason="the traffic has cost nothing", n_obs=n, details=details)
    part = whole / total
    share = Estimate(
        name="share saved by quantising",
        value=(1 - ratio) * part,
        lower=(1 - high) * part,
        upper=(1 - low) * part,
        n_obs=rounds,
        definition="time of the cheaper form against the full one within a round, median and its order statistics, "
        "times the share of the model in the logged cost",
    )
    return Saving(
        way="quantising",
        share=share,
        seconds=share.value * total,
        assumption=assumption,
        n_obs=n,
        details=details,
    )


def _weighted(timings: Sequence[Timing], full: Sequence[float], traffic: Traffic, which: str) -> float:
    # Each size by the time that the full form spends at it.
    sizes = np.array([timing.batch_size for timing in timings])
    nearest = np.abs(traffic.sizes[:, None] - sizes[None, :]).argmin(axis=1)
    weights = np.bincount(nearest, minlength=len(sizes)) * np.array(full)
    return float(np.average([getattr(timing, which) for timing in timings], weights=weights))


def _saving(way: str, traffic: Traffic, saved: _Floats, assumption: str, details: Mapping[str, float | str]) -> Saving:
    cost = traffic.batch_cost
    given = {"way": way, "assumption": assumption, "n_obs": len(traffic), "details": details}
    if not cost.sum() > 0:
        return Saving(reason="the traffic has cost nothing", **given)  # type: ignore[arg-type]
    share = _interval(saved, cost, f"share saved by {way}", len(traffic))
    if share is None:
        return Saving(reason=f"fewer than {_FEWEST_BATCHES} batches were logged", **given)  # type: ignore[arg-type]
    return Saving(share=share, seconds=float(saved.sum()), **given)  # type: ignore[arg-type]


def _interval(saved: _Floats, cost: _Floats, name: str, n: int) -> Estimate | None:
    # Neighbours are alike, so that what counts are stretches of the traffic, not batches.
    if len(saved) < _FEWEST_BATCHES:
        return None
    shares = [
        float(part.sum() / max(spent.sum(), 1e-12))
        for part, spent in zip(np.array_split(saved, _BLOCKS), np.array_split(cost, _BLOCKS), strict=True)
        if spent.sum() > 0
    ]
    found = stats.mean_interval(shares, name=name)
    value = float(saved.sum() / cost.sum())
    return Estimate(
        name=name,
        value=value,
        lower=min(found.lower, value),
        upper=max(found.upper, value),
        n_obs=n,
        definition=f"saved to logged processor seconds; Student's t over {len(shares)} consecutive stretches of it",
    )


def _line(x: _Floats, y: _Floats) -> tuple[float, float]:
    slope = float(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum())
    return float(y.mean() - slope * x.mean()), slope


def _line_interval(x: _Floats, y: _Floats) -> tuple[float, float]:
    # The level's own interval, by the levels of consecutive parts.
    levels = [
        _line(a, b)[0]
        for a, b in zip(np.array_split(x, _BLOCKS), np.array_split(y, _BLOCKS), strict=True)
        if len(np.unique(a)) > 1
    ]
    found = stats.mean_interval(levels) if len(levels) > 1 else None
    return (-math.inf, math.inf) if found is None else (found.lower, found.upper)


def _gathered(traffic: Traffic, delay: int, max_rows: int) -> tuple[NDArray[np.bool_], _Floats]:
    # Which rows would open a batch, and how many microseconds each row would wait.
    opened = np.zeros(len(traffic), np.bool_)
    wait = np.zeros(len(traffic))
    for log in np.unique(traffic.log):
        own = np.flatnonzero(traffic.log == log)
        order = own[np.argsort(traffic.arrived[own], kind="stable")]
        times = traffic.arrived[order]
        at = 0
        while at < len(times):
            end = min(int(np.searchsorted(times, times[at] + delay, side="right")), at + max_rows)
            # A full batch does not wait any longer.
            close = times[end - 1] if end - at == max_rows else times[at] + delay
            opened[order[at]] = True
            wait[order[at:end]] = close - times[at:end]
            at = end
    return opened, wait


def _sizes(traffic: Traffic) -> list[int]:
    # Sizes that stand for all: few, and the largest and the smallest among them.
    sizes = np.minimum(traffic.sizes, _TIMED_ROWS)
    return sorted({int(size) for size in np.quantile(sizes, np.linspace(0, 1, _MOST_SIZES), method="nearest")})


def _form(runtime: Runtime, traffic: Traffic) -> Callable[[int], Callable[[], object]]:
    X = traffic.X[-_TIMED_ROWS:].astype(runtime.dtype)
    if runtime.n_features != X.shape[1]:
        raise InvalidInput("model", f"{runtime.n_features} features", f"take the {X.shape[1]} of the log")

    def form(n: int) -> Callable[[], object]:
        rows = np.ascontiguousarray(np.resize(X, (n, X.shape[1])))
        return lambda: runtime.score(rows)

    return form


def _warm(traffic: Traffic) -> None:
    cache = ResponseCache(max_bytes=1 << 20, ttl="1h", measured=False)
    for _ in range(2):
        cache.answer("warm", traffic.X[:1], lambda X: {"score": np.zeros(len(X))})


def _fields(item: Any) -> dict[str, Any]:
    return {name: getattr(item, name) for name in item.__dataclass_fields__}


def _short(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"
