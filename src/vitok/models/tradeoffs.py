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
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitok import stats
from vitok.errors import InvalidInput
from vitok.models.comparison import Comparison, compare

Run = Callable[[], Any]
_FLOOR = 1e-15


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
    if not ((score >= 0) & (score <= 1)).all():
        fix = "Give the model its link: convert(..., link='sigmoid')"
        raise InvalidInput("score", [float(np.min(score)), float(np.max(score))], "be probabilities in [0, 1]", fix)
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
        log_loss_lower: Lower end of the interval of that share, by the differences of rows.
        calibration: How much the calibration error rose.
        comparison: Differences and flipped decisions.
    """

    auc: float
    log_loss: float
    log_loss_lower: float
    calibration: float
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
    lower = stats.mean_interval(rise, name="rise").lower if len(rise) > 1 else math.nan
    return Loss(
        auc=before.auc.value - after.auc.value,
        log_loss=float(rise.mean()) / base,
        log_loss_lower=lower / base,
        calibration=after.calibration.value - before.calibration.value,
        comparison=compare(full, cheap, thresholds=thresholds),
    )


def _losses(y: NDArray[Any], score: NDArray[np.float64]) -> NDArray[np.float64]:
    happened = np.where(np.asarray(y, dtype=bool), score, 1 - score)
    return np.asarray(-np.log(np.maximum(happened, _FLOOR)))


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What a cheaper form may lose, and must save.

    Attributes:
        auc: Largest fall of AUC.
        log_loss: Largest rise of log loss, as a share of the full model's.
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
