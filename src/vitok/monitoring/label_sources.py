"""Whether one of the sources of labels has gone wrong: each is held against the others, not against the past alone.

Where the world changes, all sources report more of it, or less; where only one does, it is the source. A model learns
what labels say, and so does every estimate that is made of them, the gate's too: nothing behind this place sees it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vitok.clock import DAY
from vitok.errors import InvalidInput
from vitok.stats.results import Result

if TYPE_CHECKING:
    import polars as pl

Counts = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class SourceRules:
    """When a source of labels is said to have gone wrong.

    Attributes:
        level: Chance of a false alarm about a source in a window, in (0, 1).
        min_expected: Fewest positives that must have been expected, or have come, of a source that is judged.
        min_ratio: A source is at fault only where it reports so many times as much as is expected, or as few, above 1.
        reference: Days before the window that tell how a source compares with the others.
        min_positives: Fewest positives of a source, and of all others together, in the reference.
    """

    level: float = 1e-4
    min_expected: float = 5.0
    min_ratio: float = 2.0
    reference: int = 28
    min_positives: int = 20

    def __post_init__(self) -> None:
        if not 0 < self.level < 1:
            raise InvalidInput("source rules: level", self.level, "be strictly between 0 and 1")
        if not 1 < self.min_ratio < math.inf:
            raise InvalidInput("source rules: min_ratio", self.min_ratio, "be above 1 and finite")
        for name in ("min_expected", "reference", "min_positives"):
            if not getattr(self, name) >= 1:
                raise InvalidInput(f"source rules: {name}", getattr(self, name), "be at least 1")


@dataclass(frozen=True, kw_only=True, eq=False)
class SourceCounts:
    """What each source reported on each day on which labels came.

    Attributes:
        sources: Their names, s of them.
        days: Whole days since 1970, without gaps, d of them.
        n: Labels, shape (d, s).
        positive: Positive ones among them, shape (d, s).
    """

    sources: tuple[str, ...]
    days: NDArray[np.int64]
    n: Counts
    positive: Counts

    @classmethod
    def of(cls, labels: "pl.DataFrame", *, arrived: str = "label_ingest_time") -> "SourceCounts":
        """Counts a label view as `vitok.decisions.labels` makes it.

        Args:
            labels: With columns `source`, `label` of 0 or 1, and when it came.
            arrived: Column of that time.

        Example:
            >>> import polars as pl
            >>> times = pl.Series([0, 1, DAY], dtype=pl.Datetime("us", "UTC"))
            >>> frame = pl.DataFrame({"source": ["a", "b", "a"], "label": [1.0, 0.0, 0.0], "label_ingest_time": times})
            >>> found = SourceCounts.of(frame)
            >>> found.sources, found.n.tolist(), found.positive.tolist()
            (('a', 'b'), [[1.0, 1.0], [1.0, 0.0]], [[1.0, 0.0], [0.0, 0.0]])
        """
        sources = tuple(sorted(labels["source"].unique().to_list()))
        if not sources:
            return cls(sources=(), days=np.zeros(0, np.int64), n=np.zeros((0, 0)), positive=np.zeros((0, 0)))
        day = labels[arrived].to_physical().to_numpy() // DAY
        at = np.searchsorted(np.array(sources, dtype=object), labels["source"].to_numpy().astype(object))
        days = np.arange(day.min(), day.max() + 1)
        shape = (len(days), len(sources))
        place = (day - days[0]) * len(sources) + at
        n = np.bincount(place, minlength=shape[0] * shape[1])
        positive = np.bincount(place, weights=labels["label"].to_numpy(), minlength=shape[0] * shape[1])
        return cls(
            sources=sources, days=days, n=n.reshape(shape).astype(float), positive=positive.reshape(shape).astype(float)
        )


@dataclass(frozen=True, kw_only=True)
class SourceFinding(Result):
    """What one source reported in a window, and what the others let expect of it.

    Attributes:
        source: Which.
        start: Beginning of the window, by the arrival of the labels, microseconds.
        end: Its end, not included.
        n: Labels of the source.
        positive: Positive ones.
        expected: Positive ones that are expected, given how many the others reported and how the source compared with
            them before; NaN where that cannot be said.
        ratio: Positive to expected.
        p_value: Two-sided chance of such a distance where nothing is wrong with it; 1 where it cannot be said.
        firing: Whether it has gone wrong by the rules.
        reason: Why, in words.
    """

    source: str
    start: int
    end: int
    n: int
    positive: int
    expected: float
    ratio: float
    p_value: float
    firing: bool
    reason: str

    def __str__(self) -> str:
        return f"{self.source}: {'AT FAULT' if self.firing else 'quiet'}, {self.reason}"


def judge_sources(
    counts: SourceCounts, day: int, *, window: int = 1, rules: SourceRules | None = None, left_out: Counts | None = None
) -> tuple[SourceFinding, ...]:
    """Holds each source's positives of a window against those of the others.

    Given how many positives all sources report together, those of one are binomial, with a chance that follows from
    its labels and from how its rate compared with that of the others in the reference: a change of the world that
    all see cancels out. Days of the reference tell by how much more than that the numbers vary, since frauds come in
    bursts. The source that stands out most is left out of the others before these are judged, so that a flood from
    one does not make the rest look silent.

    Args:
        counts: Labels by day of arrival and source.
        day: The last day of the window, whole days since 1970.
        window: Its length in days.
        rules: When a source has gone wrong.
        left_out: Shape (d, s), 1 where what a source reported on a day is not to be trusted as a reference.

    Returns:
        One finding for each source that reported in the window, in the order of their names. A single source has
        nobody to be compared with, and a new one no past: they cannot be judged here, and the reason says so.

    Raises:
        InvalidInput: If the window is shorter than a day, or `left_out` has another shape.

    Source: the conditional test of Przyborowski & Wilenski, Biometrika 1940; effective counts for overdispersion as in
    Rao & Scott, Biometrics 1992.

    Example:
        >>> days = np.arange(30)
        >>> n, positive = np.full((30, 3), 1000.0), np.full((30, 3), 8.0)
        >>> positive[-1] = [16, 17, 110]  # the world doubled; the third source reports far more
        >>> for found in judge_sources(SourceCounts(sources=("a", "b", "c"), days=days, n=n, positive=positive), 29):
        ...     print(found.source, found.firing, round(found.expected, 1))
        a False 17.0
        b False 16.0
        c True 16.5
    """
    rules = rules or SourceRules()
    if window < 1:
        raise InvalidInput("window", window, "be at least 1 day")
    trusted = np.ones_like(counts.n) if left_out is None else 1 - np.asarray(left_out, dtype=np.float64)
    if trusted.shape != counts.n.shape:
        raise InvalidInput("left_out", trusted.shape, f"have the shape of the counts, {counts.n.shape}")
    first = day - window + 1
    now = (counts.days >= first) & (counts.days <= day)
    past = (counts.days >= first - rules.reference) & (counts.days < first)
    present = [place for place in range(len(counts.sources)) if counts.n[now, place].sum() > 0]
    found: dict[int, SourceFinding] = {}
    others = list(present)
    while True:
        judged = {
            place: _judge(counts, place, [other for other in others if other != place], now, past, trusted, rules)
            for place in others
        }
        at_fault = [place for place, one in judged.items() if one.firing]
        if not at_fault or len(others) < 2:
            found.update(judged)
            break
        # Two sources stand out from each other alike; then the one that left its own past farther behind is at fault.
        size = {place: round(math.log10(max(judged[place].p_value, 1e-300))) for place in at_fault}
        worst = min(at_fault, key=lambda place: (size[place], -_moved(counts, place, now, past, trusted)))
        found[worst] = judged[worst]
        others.remove(worst)
    return tuple(found[place] for place in present)


def _judge(
    counts: SourceCounts,
    place: int,
    others: Sequence[int],
    now: NDArray[np.bool_],
    past: NDArray[np.bool_],
    trusted: Counts,
    rules: SourceRules,
) -> SourceFinding:
    n, positive = counts.n[now, place].sum(), counts.positive[now, place].sum()
    rest = list(others)
    n_rest, positive_rest = counts.n[now][:, rest].sum(), counts.positive[now][:, rest].sum()
    n_past, positive_past = (part[past, place] * trusted[past, place] for part in (counts.n, counts.positive))
    # A day counts for the others only where the source itself was trusted, so that both speak of the same days.
    same = trusted[past][:, rest] * trusted[past, place][:, None]
    n_others, positive_others = ((part[past][:, rest] * same).sum(axis=1) for part in (counts.n, counts.positive))

    def told(expected: float, p_value: float, reason: str) -> SourceFinding:
        ratio = positive / expected if expected > 0 else math.nan
        if expected == 0:
            ratio = math.inf if positive else 1.0
        far = not math.isnan(ratio) and not 1 / rules.min_ratio < ratio < rules.min_ratio
        return SourceFinding(
            source=counts.sources[place],
            start=int(counts.days[now][0]) * DAY,
            end=(int(counts.days[now][-1]) + 1) * DAY,
            n=int(n),
            positive=int(positive),
            expected=expected,
            ratio=ratio,
            p_value=p_value,
            firing=far and p_value <= rules.level,
            reason=reason,
        )

    if not rest:
        return told(math.nan, 1.0, "there is no other source to compare it with")
    if min(positive_past.sum(), positive_others.sum()) < rules.min_positives:
        return told(math.nan, 1.0, f"{int(positive_past.sum())} positives before the window are too few to know it by")
    odds = (positive_past.sum() / n_past.sum()) / (positive_others.sum() / n_others.sum())
    share, total = n * odds / (n * odds + n_rest), positive + positive_rest
    expected = n * odds * positive_rest / n_rest
    reason = f"{int(positive):,} of {int(n):,} labels are positive where {expected:,.1f} are expected"
    if max(expected, positive) < rules.min_expected:
        return told(expected, 1.0, f"{reason}: too few to judge it by")
    variance = total * share * (1 - share)
    certain = 1 / positive_past.sum() + 1 / positive_others.sum()
    inflation = _dispersion(n_past, positive_past, n_others, positive_others, odds) + variance * certain
    p_value = _two_sided(positive / inflation, total / inflation, share)
    return told(expected, p_value, f"{reason} (p = {p_value:.2g})")


def _moved(counts: SourceCounts, place: int, now: NDArray[np.bool_], past: NDArray[np.bool_], trusted: Counts) -> float:
    """Returns how far the rate of a source is from its own in the reference, as a ratio's absolute logarithm."""
    kept = trusted[past, place]
    before = (counts.positive[past, place] * kept).sum() / (counts.n[past, place] * kept).sum()
    present = (counts.positive[now, place].sum() + 0.5) / (counts.n[now, place].sum() + 1)
    return abs(math.log(present / before))


def _dispersion(n: Counts, positive: Counts, n_others: Counts, positive_others: Counts, odds: float) -> float:
    """Returns by how much positives of days vary more than binomial ones, at least 1."""
    share, total = n * odds / np.maximum(n * odds + n_others, 1e-12), positive + positive_others
    variance = total * share * (1 - share)
    kept = variance > 0
    if kept.sum() < 2:
        return 1.0
    gap = positive[kept] - total[kept] * share[kept]
    return max(1.0, float((gap**2 / variance[kept]).sum()) / (int(kept.sum()) - 1))


def _two_sided(positive: float, total: float, share: float) -> float:
    """Returns twice the smaller tail of a binomial law whose counts need not be whole."""
    from scipy.special import betainc

    at_least = 1.0 if positive <= 0 else float(betainc(positive, total - positive + 1, share))
    at_most = 1.0 if positive >= total else float(betainc(total - positive, positive + 1, 1 - share))
    return min(1.0, 2 * min(at_least, at_most))
