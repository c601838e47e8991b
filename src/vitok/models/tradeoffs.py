"""What a cheaper form of a model costs in quality and saves in time: the measurements, and the verdict on them.

Quality is judged on held-out rows by more than the order of the scores. A form may keep its AUC to the fourth place
while its probabilities drift: then thresholds fitted on the old scores decide something else. So log loss, calibration
and the decisions themselves are held against bounds as well.

Times are taken in turns: each round runs every form once at every batch size, so that a machine that is busy for a
moment is busy for all of them, and what is compared is the ratio within a round.
"""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from vitok import stats
from vitok.errors import InvalidInput
from vitok.models.comparison import Comparison, compare

Run = Callable[[], Any]
_FLOOR = 1e-15
# What 32 bits round off at most, and what no rounding of theirs makes out of more.
_CERTAIN, _DOUBTED = 1e-9, 1e-7
_ROUNDED = 1e-6


@dataclass(frozen=True, kw_only=True)
class Quality:
    """How good scores are on held-out rows.

    Attributes:
        auc: Area under the ROC curve.
        log_loss: Logarithmic loss in nats.
        calibration: Debiased root mean squared calibration error.
    """

    auc: stats.Estimate
    log_loss: stats.Estimate
    calibration: stats.Estimate

    def to_dict(self) -> dict[str, Any]:
        """Returns what JSON can hold."""
        return {
            "auc": self.auc.to_dict(),
            "log_loss": self.log_loss.to_dict(),
            "calibration": self.calibration.to_dict(),
        }


def measure_quality(y: NDArray[Any], score: NDArray[np.float64]) -> Quality:
    """Measures scores on rows with known labels.

    Args:
        y: Labels of shape (n,), 0 or 1, both present.
        score: Probabilities of shape (n,).

    Raises:
        InvalidInput: If shapes differ, only one class is present, or a score is no probability.

    Example:
        >>> quality = measure_quality(np.array([0, 1, 1, 0]), np.array([0.1, 0.8, 0.6, 0.4]))
        >>> quality.auc.value
        1.0
    """
    if score.ndim != 1:
        raise InvalidInput("score", score.shape, "have shape (n,)", "Only models of two classes are measured")
    # ONNX Runtime's logistic function in 32 bits gives now and then 1 and a last place.
    if not ((score >= -_ROUNDED) & (score <= 1 + _ROUNDED)).all():
        fix = "Give the model its link: convert(..., link='sigmoid')"
        raise InvalidInput("score", [float(np.min(score)), float(np.max(score))], "be probabilities in [0, 1]", fix)
    score = np.clip(score, 0.0, 1.0)
    if len(np.unique(y)) < 2:
        raise InvalidInput("y", np.unique(y).tolist(), "hold both classes", "Take a longer held-out period")
    return Quality(
        auc=stats.roc_auc(y, score),
        log_loss=stats.log_loss(y, score),
        calibration=stats.calibration_error(y, score),
    )


@dataclass(frozen=True, kw_only=True)
class Loss:
    """What scores lost against those of the full model, on the same rows.

    Attributes:
        auc: How much AUC fell.
        log_loss: How much log loss rose, as a share of the full model's.
        log_loss_lower: Lower end of the 95 % interval of that share, by the differences of rows.
        log_loss_upper: Upper end.
        calibration: How much the calibration error rose.
        saturated: Rows of which the cheaper form is certain (0 or 1) and the full model is not.
        comparison: Differences and flipped decisions.
    """

    auc: float
    log_loss: float
    log_loss_lower: float
    log_loss_upper: float
    calibration: float
    saturated: int
    comparison: Comparison


def measure_loss(
    y: NDArray[Any],
    full: NDArray[np.float64],
    cheap: NDArray[np.float64],
    *,
    thresholds: Sequence[float] = (0.5,),
) -> Loss:
    """Measures what cheaper scores lost.

    Args:
        y: Labels of shape (n,), 0 or 1.
        full: Probabilities of the full model, shape (n,).
        cheap: Probabilities of the cheaper form, shape (n,).
        thresholds: Where decisions are made.

    Example:
        >>> y, full = np.array([0, 1, 1, 0]), np.array([0.1, 0.8, 0.6, 0.4])
        >>> loss = measure_loss(y, full, np.array([0.1, 0.8, 0.45, 0.4]))
        >>> round(loss.log_loss, 3), loss.comparison.flips[0].count
        (0.213, 1)
    """
    before, after = measure_quality(y, full), measure_quality(y, cheap)
    rise = _losses(y, cheap) - _losses(y, full)
    base = max(before.log_loss.value, _FLOOR)
    doubt, doubted = np.minimum(cheap, 1 - cheap), np.minimum(full, 1 - full)
    interval = stats.mean_interval(rise, name="rise") if len(rise) > 1 else None
    return Loss(
        auc=before.auc.value - after.auc.value,
        log_loss=float(rise.mean()) / base,
        log_loss_lower=math.nan if interval is None else interval.lower / base,
        log_loss_upper=math.nan if interval is None else interval.upper / base,
        calibration=after.calibration.value - before.calibration.value,
        saturated=int(((doubt < _CERTAIN) & (doubted >= _DOUBTED)).sum()),
        comparison=compare(full, cheap, thresholds=thresholds),
    )


def _losses(y: NDArray[Any], score: NDArray[np.float64]) -> NDArray[np.float64]:
    happened = np.where(np.asarray(y, dtype=bool), score, 1 - score)
    return np.asarray(-np.log(np.maximum(happened, _FLOOR)))


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What a cheaper form may lose, and must save.

    A form that says 0 or 1 where the full model does not is always refused. In 8 or 16 bits all that is nearly certain
    becomes certain, and costs nothing until one such row turns out otherwise; held-out rows need not hold one.

    Attributes:
        auc: Largest fall of AUC.
        log_loss: Largest rise of log loss, as a share of the full model's. The upper end of its interval must be within
            it: on other rows the rise is another, and what is only not known to be too much is not good enough.
        calibration: Largest rise of the calibration error.
        flips: Largest share of decisions that come out the other way, at any threshold.
        saving: Smallest share of the time that it must save, weighted by the batch sizes seen.
    """

    auc: float = 0.002
    log_loss: float = 0.01
    calibration: float = 0.01
    flips: float = 0.01
    saving: float = 0.05

    def __post_init__(self) -> None:
        for name in ("auc", "log_loss", "calibration", "flips"):
            if not getattr(self, name) >= 0:
                raise InvalidInput(name, getattr(self, name), "be at least 0")
        if not 0 <= self.saving < 1:
            raise InvalidInput("saving", self.saving, "be in [0, 1)")

    def broken_by(self, loss: Loss) -> tuple[str, ...]:
        """Returns what a loss breaks, in words; empty where it is within all bounds."""
        out = []
        if not loss.log_loss <= self.log_loss:
            out.append(f"log loss is {loss.log_loss:.1%} worse, allowed {self.log_loss:.1%}")
        elif not loss.log_loss_upper <= self.log_loss:
            told = f"log loss may be {loss.log_loss_upper:.1%} worse on other rows, allowed {self.log_loss:.1%}"
            out.append(f"{told}; more held-out rows may show that it is not")
        if loss.saturated:
            told = f"{loss.saturated:,} of {loss.comparison.n_rows:,} rows get 0 or 1 where the full model doubts"
            out.append(f"{told}: where one turns out otherwise, log loss knows no bound")
        if not loss.auc <= self.auc:
            out.append(f"AUC is {loss.auc:.4f} worse, allowed {self.auc:g}")
        if not loss.calibration <= self.calibration:
            out.append(f"calibration error is {loss.calibration:.4f} worse, allowed {self.calibration:g}")
        if not loss.comparison.flip_share <= self.flips:
            out.append(f"{loss.comparison.flip_share:.2%} of the decisions flip, allowed {self.flips:.2%}")
        return tuple(out)


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How long one form took at one batch size, against the full model in the same rounds.

    Attributes:
        batch_size: Rows of a run.
        microseconds: Median time of a run.
        ratio: Median over rounds of its time to the full model's.
        lower: Lower end of the interval of that median, from order statistics at about 95 %.
        upper: Upper end.
    """

    batch_size: int
    microseconds: float
    ratio: float
    lower: float
    upper: float

    @property
    def faster(self) -> bool:
        """Whether it is faster with some certainty."""
        return self.upper < 1.0

    def __str__(self) -> str:
        times = f"{self.microseconds:.4g} us at {self.batch_size:,}"
        return f"{times} ({self.ratio:.2f} x, {self.lower:.2f} to {self.upper:.2f})"


def check_batches(seen: Mapping[int, float]) -> dict[int, float]:
    """Returns batch sizes and their shares of the runs, which sum up to 1.

    Raises:
        InvalidInput: If there is none, a size is below 1, or a share is not above 0.

    Example:
        >>> check_batches({1: 300, 16: 100})
        {1: 0.75, 16: 0.25}
    """
    wrong = [size for size, share in seen.items() if size < 1 or not share > 0 or not math.isfinite(share)]
    if not seen or wrong:
        raise InvalidInput("batch_sizes", dict(seen), "map sizes of at least 1 to shares above 0")
    total = math.fsum(seen.values())
    return {int(size): share / total for size, share in sorted(seen.items())}


def time_in_turns(
    forms: Mapping[str, Callable[[int], Run]],
    sizes: Sequence[int],
    *,
    rounds: int = 21,
    round_ns: int = 1_000_000,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> dict[str, tuple[Timing, ...]]:
    """Times forms of one model in turns; the first one is the full model.

    Args:
        forms: Name to a function that takes a batch size and returns what runs the form on such a batch.
        sizes: Batch sizes.
        rounds: How often every form is timed at every size, at least 1.
        round_ns: How long each is run in one round, in nanoseconds of the first form; at least one run.
        clock: Nanoseconds.

    Returns:
        For each form its timing at every size.

    Raises:
        InvalidInput: If there is no form, no size or no round.

    Example:
        >>> ticks = iter(range(0, 10_000, 10))
        >>> found = time_in_turns({"full": lambda n: list}, [1], rounds=3, round_ns=10, clock=lambda: next(ticks))
        >>> found["full"][0].ratio
        1.0
    """
    if not forms or not sizes or rounds < 1:
        raise InvalidInput("forms, sizes and rounds", (list(forms), list(sizes), rounds), "hold at least one each")
    names = list(forms)
    spent: dict[tuple[str, int], list[float]] = {(name, size): [] for name in names for size in sizes}
    runs = {(name, size): forms[name](size) for name in names for size in sizes}
    repeats = {}
    for size in sizes:
        for name in names:
            runs[name, size]()
        started = clock()
        runs[names[0], size]()
        repeats[size] = max(1, min(1000, round_ns // max(1, clock() - started)))
    for turn in range(rounds):
        # Whoever comes first in one round comes later in the next: what the one before left in the cache evens out.
        order = names[turn % len(names) :] + names[: turn % len(names)]
        for size in sizes:
            for name in order:
                run = runs[name, size]
                started = clock()
                for _ in range(repeats[size]):
                    run()
                spent[name, size].append((clock() - started) / repeats[size] / 1000)
    return {name: tuple(_timing(size, spent[name, size], spent[names[0], size]) for size in sizes) for name in names}


def _timing(size: int, times: list[float], full: list[float]) -> Timing:
    ratios = sorted(a / max(b, 1e-3) for a, b in zip(times, full, strict=True))
    n = len(ratios)
    # Order statistics of the median: the normal approximation of the sign test's bounds.
    low = max(0, math.floor(n / 2 - 0.98 * math.sqrt(n)) - 1)
    return Timing(
        batch_size=size,
        microseconds=statistics.median(times),
        ratio=statistics.median(ratios),
        lower=ratios[low],
        upper=ratios[n - 1 - low],
    )


def weighted_ratio(timings: Sequence[Timing], full: Sequence[Timing], shares: Mapping[int, float]) -> float:
    """Returns the time of all runs to that of the full model, each batch size by its share of the runs.

    Example:
        >>> full = [Timing(batch_size=n, microseconds=n, ratio=1, lower=1, upper=1) for n in (1, 100)]
        >>> half = [Timing(batch_size=n, microseconds=m, ratio=m / n, lower=1, upper=1) for n, m in ((1, 2), (100, 50))]
        >>> weighted_ratio(half, full, {1: 0.99, 100: 0.01})
        1.246231
    """
    theirs = math.fsum(shares[item.batch_size] * item.microseconds for item in full)
    ours = math.fsum(
        shares[item.batch_size] * base.microseconds * item.ratio for item, base in zip(timings, full, strict=True)
    )
    return round(ours / theirs, 6) if theirs > 0 else math.nan


def judge(loss: Loss, timings: Sequence[Timing], time_ratio: float, bounds: Bounds) -> tuple[str, ...]:
    """Returns why a form is refused; empty where it is good enough and faster at the batch sizes seen.

    Args:
        loss: What it lost.
        timings: Its times.
        time_ratio: Its time to the full model's over all batches seen.
        bounds: What is allowed.
    """
    reasons = list(bounds.broken_by(loss))
    if not time_ratio <= 1 - bounds.saving:
        slower = [f"{item.ratio:.2f} x at {item.batch_size:,}" for item in timings]
        what = f"saves {1 - time_ratio:.0%} of the time" if time_ratio <= 1 else f"takes {time_ratio:.2f} x the time"
        reasons.append(f"{what} at the batch sizes seen ({', '.join(slower)}), must save {bounds.saving:.0%}")
    elif not any(item.faster for item in timings):
        reasons.append("is not certainly faster at any batch size seen")
    return tuple(reasons)


class Measured(TypedDict):
    """What `measure_form` finds, as `Form` names it."""

    quality: Quality
    loss: Loss | None
    timings: tuple[Timing, ...]
    time_ratio: float
    reasons: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Form:
    """One form of a model, measured.

    Attributes:
        name: What it is.
        quality: How good it is; None where it could not be made.
        loss: What it lost against the full model; None for that and where it could not be made.
        timings: Its times at the batch sizes seen.
        time_ratio: Its time to the full model's over all batches seen.
        reasons: Why it is refused; empty where it is not.
    """

    name: str
    quality: Quality | None = None
    loss: Loss | None = None
    timings: tuple[Timing, ...] = ()
    time_ratio: float = math.nan
    reasons: tuple[str, ...] = ()

    @property
    def accepted(self) -> bool:
        """Whether nothing speaks against it."""
        return not self.reasons


def measure_form(
    y: NDArray[Any],
    score: NDArray[np.float64],
    full: NDArray[np.float64] | None,
    *,
    timings: tuple[tuple[Timing, ...], tuple[Timing, ...]],
    shares: Mapping[int, float],
    thresholds: Sequence[float],
    bounds: Bounds,
) -> Measured:
    """Measures and judges one form on held-out rows.

    Args:
        y: Labels of shape (n,), 0 or 1.
        score: Its probabilities, shape (n,).
        full: Those of the full model; None where it is that.
        timings: Its times and the full model's.
        shares: Batch size to its share of the runs.
        thresholds: Where decisions are made.
        bounds: What it may lose and must save.
    """
    loss = None if full is None else measure_loss(y, full, score, thresholds=thresholds)
    ratio = weighted_ratio(*timings, shares)
    return {
        "quality": measure_quality(y, score),
        "loss": loss,
        "timings": timings[0],
        "time_ratio": ratio,
        "reasons": () if loss is None else judge(loss, timings[0], ratio, bounds),
    }
