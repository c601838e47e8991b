"""The watch for model extraction: whose queries are many, and do not look like traffic.

Who copies a model needs many different rows, and mostly makes them up. So two things are looked at over the decision
log, for each key and for what several keys have in common (tenant, network, or queries that are alike):

- how many *different* rows were asked, against a budget;
- whether the rows look like those of ordinary keys: windows of the queries are embedded by random features of a
  kernel, as for the maximum mean discrepancy, and their distance to ordinary windows is measured by how these scatter
  (`vitok.guard.discrepancy`), against a threshold calibrated on ordinary keys, benign against benign.

What is ordinary is learned from some keys, and the threshold from others (split conformal prediction; Vovk, Gammerman
and Shafer, Algorithmic Learning in a Random World, 2005; Lei et al., JASA 113, 2018). A key counts once, by the largest
distance of its periods, since the queries and periods of one key are like each other and only keys are exchangeable.
Then a new ordinary key is as likely to be in any place among the n calibrated ones, and is over the k-th largest of
them with a chance of at most k / (n + 1), whatever the distribution. That is a mean over the keys that there happen to
be. The rate of one watch scatters about it, as beta(k, n + 1 - k): calibrated on 200 keys at 1 %, one watch in ten
accuses more than 1.9 % of all ordinary keys for ever. So by default the threshold keeps the rate with a confidence,
which takes more keys.

PRADA (Juuti et al., arXiv 1805.02628) tests whether the distances between a client's queries are normal. It is not
used: counts, flags, nulls and long tails make distances that are not normal, so that it accuses every ordinary key of
bench/serving/guard_watch.py, and it passes rows drawn evenly from the range of each feature. A test against the traffic
that there is asks nothing about its law. What it cannot see: somebody who asks about rows drawn from real traffic,
within the budget; a copy made that way costs as many real rows as labelling them otherwise would.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vitok.clock import DAY, duration
from vitok.errors import InvalidInput
from vitok.guard.discrepancy import Embedded, Habits, KernelMap, mmd2

Floats = NDArray[np.float64]
Verdict = Literal["extraction", "suspect", "over budget", "ordinary", "too few"]
Action = Literal["block", "review", "throttle", "none"]

KEY, ALIKE = "key", "alike"
_ACTIONS: dict[Verdict, Action] = {
    "extraction": "block",
    "suspect": "review",
    "over budget": "throttle",
    "ordinary": "none",
    "too few": "none",
}
_MOST_WINDOWS = 4
_LEAST_LEARNED = 2
_MOST_ALIKE = 500
_LEAST_ALIKE = 30


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What was found about one key, or about keys that have something in common.

    Attributes:
        kind: `"key"`, the name of a grouping such as `"tenant"`, or `"alike"`.
        name: Which one.
        keys: The keys in it.
        n_queries: Rows they asked about.
        n_distinct: Different rows among them.
        budget: Different rows they may ask about in a period, or None.
        distance: The largest distance of a window to ordinary ones; NaN with fewer different rows than a window.
        threshold: What it exceeds for the stated share of ordinary keys.
        discrepancy: The plain unbiased squared maximum mean discrepancy of the windows to ordinary traffic.
        p_value: (1 + ordinary keys that are as far away) / (1 + ordinary keys); of an ordinary key it is at most a
            with a chance of at most a.
        features: The columns whose mean rank moved most, first the largest.
        verdict: `"extraction"` (over budget and unlike traffic), `"suspect"` (unlike traffic), `"over budget"`,
            `"ordinary"` or `"too few"` rows for a test.
        action: What to do: `"block"` the keys until their owner has been asked, `"review"`, `"throttle"` to the
            budget, or `"none"`.
    """

    kind: str
    name: str
    keys: tuple[str, ...]
    n_queries: int
    n_distinct: int
    budget: int | None
    distance: float
    threshold: float
    discrepancy: float
    p_value: float
    features: tuple[int, ...]
    verdict: Verdict
    action: Action

    def __str__(self) -> str:
        allowed = "" if self.budget is None else f" of {self.budget:,} allowed"
        parts = [f"{self.kind} {self.name}: {self.verdict}", f"{self.n_distinct:,} different rows{allowed}"]
        if not math.isnan(self.distance):
            parts.append(f"distance {self.distance:.4g} (threshold {self.threshold:.4g}, p {self.p_value:.3g})")
        if self.verdict in ("extraction", "suspect"):
            parts.append("most in columns " + ", ".join(map(str, self.features)))
        if len(self.keys) > 1:
            parts.append(f"{len(self.keys)} keys")
        return ", ".join(parts) + ("" if self.action == "none" else f": {self.action}")


@dataclass(frozen=True, kw_only=True)
class ExtractionReport:
    """What the watch found in a period.

    Attributes:
        findings: One for each key and group, the worst first.
        n_queries: Rows in the period.
        false_positive_rate: Share of ordinary keys whose distance is over the threshold.
    """

    findings: tuple[Finding, ...]
    n_queries: int
    false_positive_rate: float

    @property
    def flagged(self) -> tuple[Finding, ...]:
        """The findings that ask for an action."""
        return tuple(finding for finding in self.findings if finding.action != "none")

    def __str__(self) -> str:
        head = (
            f"{len(self.flagged)} of {len(self.findings)} flagged in {self.n_queries:,} queries"
            f" ({self.false_positive_rate:.2%} of ordinary keys would be by their distance)"
        )
        return "\n".join((head, *(f"  {finding}" for finding in self.flagged)))


class ExtractionWatch:
    """Judges the queries of a period by how ordinary keys ask; made by `fit`, off the request path.

    Attributes:
        threshold: The distance over which a key is unlike ordinary ones.
        window: Different rows that are tested together, at least.
        period: Length of a period, in microseconds.
        false_positive_rate: Share of ordinary keys that may be over the threshold.
        confidence_level: How sure that is of this watch; None where it holds on average over watches.
        n_calibrated: Ordinary keys that the threshold comes from.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> X = rng.normal(size=(40_000, 3)).cumsum(axis=1)
        >>> key = np.repeat([f"key{i}" for i in range(80)], 500)
        >>> watch = ExtractionWatch.fit(X, key, np.tile(np.arange(500), 80), false_positive_rate=0.05)
        >>> asked = np.concatenate((rng.normal(size=(1_000, 3)).cumsum(axis=1), rng.uniform(-3, 3, size=(3_000, 3))))
        >>> who = np.repeat(["shop", "thief"], [1_000, 3_000])
        >>> report = watch.judge(asked, who, np.arange(4_000), budget=2_000)
        >>> [(finding.name, finding.verdict, finding.action) for finding in report.findings]
        [('thief', 'extraction', 'block'), ('shop', 'ordinary', 'none')]
    """

    def __init__(
        self,
        kernel: KernelMap,
        reference: Embedded,
        habits: Habits,
        benign: Floats,
        *,
        window: int,
        period: int,
        false_positive_rate: float,
        confidence_level: float | None = None,
    ) -> None:
        self._kernel, self._reference, self._habits, self._benign = kernel, reference, habits, np.sort(benign)
        self.window, self.period, self.false_positive_rate = window, period, false_positive_rate
        self.confidence_level, self.n_calibrated = confidence_level, len(benign)
        self.threshold = float(self._benign[-_place(len(benign), false_positive_rate, confidence_level)])

    def rate_at_most(self, confidence_level: float = 0.95) -> float:
        """Returns what share of ordinary keys this watch accuses at most, with a confidence, without ties exactly.

        The stated rate is a mean over the ordinary keys that a watch may happen to be calibrated on. The rate of one
        watch scatters about it by a beta distribution (Vovk, Conditional validity of inductive conformal predictors,
        2013), much where the keys are few.

        Args:
            confidence_level: In (0, 1).
        """
        from scipy.stats import beta

        over = int((self._benign > self.threshold).sum())
        return float(beta.ppf(confidence_level, over + 1, self.n_calibrated - over))

    @classmethod
    def fit(
        cls,
        X: ArrayLike,
        key: ArrayLike,
        event_time: ArrayLike,
        *,
        false_positive_rate: float = 0.01,
        confidence_level: float | None = 0.95,
        window: int = 200,
        period: str | int = 30 * DAY,
        n_features: int = 256,
        seed: int = 0,
    ) -> "ExtractionWatch":
        """Learns how ordinary keys ask.

        One part of the keys, drawn at random, shows what is ordinary, and the threshold is a quantile of how far away
        the others are, each counting once with its largest period. The rate holds for keys like these, with as many
        periods or fewer.

        Args:
            X: Shape (n, f), the features of queries that are taken to be ordinary.
            key: Shape (n,), which key asked.
            event_time: Shape (n,), when, in microseconds.
            false_positive_rate: Share of ordinary keys that may be over the threshold, in (0, 1).
            confidence_level: How sure it is that the rate of this watch is at most the stated one, in (0, 1). With
                None the stated rate is a mean over the keys that it may happen to be calibrated on, which takes fewer
                of them; `rate_at_most` says then how large that of this one may be.
            window: Different rows that are tested together, at least; an attack shows within about so many.
            period: Length of a period, such as `"30d"`.
            n_features: Random features of the kernel.
            seed: Seed of the random features, and of which keys are for what.

        Raises:
            InvalidInput: If shapes do not fit, or there are too few keys with a window of different rows: two to learn
                from, and 1 / rate - 1 to calibrate on, or log(1 - confidence) / log(1 - rate).
        """
        matrix, keys, times = _read(X, key, event_time)
        if not 0 < false_positive_rate < 1:
            raise InvalidInput("false_positive_rate", false_positive_rate, "be strictly between 0 and 1")
        if confidence_level is not None and not 0 < confidence_level < 1:
            raise InvalidInput("confidence_level", confidence_level, "be strictly between 0 and 1")
        if window < 20:
            raise InvalidInput("window", window, "be at least 20")
        length = duration(period)
        periods = np.char.add(keys, np.char.mod(" %d", times // length))
        first = _first(periods, _hashes(matrix))
        matrix, keys, times, periods = matrix[first], keys[first], times[first], periods[first]
        cells = [rows for rows in _split(np.unique(periods, return_inverse=True)[1], times) if len(rows) >= window]
        names, owner = np.unique(keys, return_inverse=True)
        whole, whose = np.unique([owner[rows[0]] for rows in cells], return_inverse=True)
        needed = _needed(false_positive_rate, confidence_level)
        if len(whole) < needed + _LEAST_LEARNED:
            fix = "Give more keys, or take a larger rate" + (" or confidence_level=None" if confidence_level else "")
            raise InvalidInput("keys with a window of different rows", len(whole), _rule(needed), fix)
        # Which are for what must not depend on what they asked.
        calibrated = np.zeros(len(whole), dtype=bool)
        calibrated[np.random.default_rng(seed).permutation(len(whole))[: max(needed, len(whole) // 2)]] = True
        taught = np.ones(len(names), dtype=bool)
        taught[whole[calibrated]] = False
        kernel = KernelMap(matrix[taught[owner]], n_features=n_features, seed=seed)
        means = [_windows(kernel, matrix, rows, window)[0] for rows in cells]
        habits = Habits(np.concatenate([part for part, of in zip(means, whose, strict=True) if not calibrated[of]]))
        farthest = np.full(len(whole), -np.inf)
        np.maximum.at(farthest, whose, [habits.distance(part).max() for part in means])
        return cls(
            kernel,
            kernel.embed(matrix),
            habits,
            farthest[calibrated],
            window=window,
            period=length,
            false_positive_rate=false_positive_rate,
            confidence_level=confidence_level,
        )

    def judge(
        self,
        X: ArrayLike,
        key: ArrayLike,
        event_time: ArrayLike,
        *,
        budget: int | None = None,
        groups: Mapping[str, ArrayLike] | None = None,
        group_budget: int | None = None,
    ) -> ExtractionReport:
        """Judges the queries of one period.

        The stated rate of false positives holds for each key, and for a group as far as it asks as one key does. Keys
        that are `"alike"` were put together *because* their queries are, so no rate holds for them: they are shown for
        a person to look at, and never blocked by themselves.

        Args:
            X: Shape (n, f), the features of the queries.
            key: Shape (n,), which key asked.
            event_time: Shape (n,), when, in microseconds; within one period.
            budget: Different rows that a key may ask about in a period.
            groups: Name of a grouping, such as `"tenant"` or `"network"`, to the group of each row, shape (n,);
                rows with "" are in none.
            group_budget: Different rows that a group may ask about; `budget` by default.

        Raises:
            InvalidInput: If shapes do not fit, or the rows span more than a period.
        """
        matrix, keys, times = _read(X, key, event_time)
        if len(times) and int(times.max() - times.min()) >= self.period:
            raise InvalidInput("event_time", (int(times.min()), int(times.max())), "lie within one period")
        hashes = _hashes(matrix)
        subjects: list[tuple[str, str, NDArray[np.int64]]] = []
        for kind, members in {KEY: keys, **(groups or {})}.items():
            named = np.asarray(members).astype(str)
            if named.shape != keys.shape:
                raise InvalidInput(f"groups[{kind}]", named.shape, f"have the shape {keys.shape}")
            names, owner = np.unique(named, return_inverse=True)
            for at, rows in enumerate(_split(owner, times)):
                # A group of one key is that key.
                if names[at] and (kind == KEY or len(np.unique(keys[rows])) > 1):
                    subjects.append((kind, str(names[at]), rows))
        subjects += self._alike(matrix, keys, times, hashes)
        wide = budget if group_budget is None else group_budget
        found = [
            self._finding(kind, name, rows, matrix, keys, hashes, budget if kind == KEY else wide)
            for kind, name, rows in subjects
        ]
        order = {verdict: at for at, verdict in enumerate(_ACTIONS)}
        found.sort(key=lambda one: (order[one.verdict], one.p_value, -one.n_distinct, one.kind, one.name))
        return ExtractionReport(
            findings=tuple(found), n_queries=len(matrix), false_positive_rate=self.false_positive_rate
        )

    def _finding(
        self,
        kind: str,
        name: str,
        rows: NDArray[np.int64],
        matrix: Floats,
        keys: NDArray[np.str_],
        hashes: NDArray[np.uint64],
        budget: int | None,
    ) -> Finding:
        # Asking again teaches nothing, and equal rows among each other would look far from everybody's.
        distinct = rows[np.sort(np.unique(hashes[rows], return_index=True)[1])]
        n_distinct = len(distinct)
        far, plain, p_value, features = math.nan, math.nan, 1.0, tuple[int, ...]()
        if n_distinct >= self.window:
            means, all_of_it = _windows(self._kernel, matrix, distinct, self.window)
            far, plain = float(self._habits.distance(means).max()), mmd2(all_of_it, self._reference)
            p_value = (1 + int((self._benign >= far).sum())) / (len(self._benign) + 1)
            moved = np.abs(self._kernel.ranks(matrix[distinct]).mean(axis=0) - 0.5)
            features = tuple(int(at) for at in np.argsort(-moved, kind="stable")[:3])
        unlike, spent = far > self.threshold, budget is not None and n_distinct > budget
        verdict: Verdict
        if unlike:
            verdict = "extraction" if spent and kind != ALIKE else "suspect"
        elif spent:
            verdict = "over budget"
        else:
            verdict = "too few" if math.isnan(far) else "ordinary"
        action = _ACTIONS[verdict]
        if kind == ALIKE and action == "throttle":
            action = "review"
        return Finding(
            kind=kind,
            name=name,
            keys=tuple(np.unique(keys[rows]).tolist()),
            n_queries=len(rows),
            n_distinct=n_distinct,
            budget=budget,
            distance=far,
            threshold=self.threshold,
            discrepancy=plain,
            p_value=p_value,
            features=features,
            verdict=verdict,
            action=action,
        )

    def _alike(
        self, matrix: Floats, keys: NDArray[np.str_], times: NDArray[np.int64], hashes: NDArray[np.uint64]
    ) -> list[tuple[str, str, NDArray[np.int64]]]:
        """Puts keys together that are much closer to each other than to ordinary traffic."""
        first = _first(keys, hashes)
        names, owner = np.unique(keys, return_inverse=True)
        counts = np.bincount(owner[first], minlength=len(names))
        large = np.flatnonzero(counts >= _LEAST_ALIKE)
        large = large[np.argsort(-counts[large], kind="stable")[:_MOST_ALIKE]]
        if len(large) < 2:
            return []
        place = np.full(len(names), -1)
        place[large] = np.arange(len(large))
        sums, n = self._kernel.embed_groups(matrix[first], place[owner[first]], len(large))
        reference = self._reference
        within = (np.einsum("ij,ij->i", sums, sums) - n) / (n * (n - 1))
        base = (float(reference.total @ reference.total) - reference.n) / (reference.n * (reference.n - 1))
        away = within + base - 2 * sums @ reference.total / (n * reference.n)
        apart = within[:, None] + within[None, :] - 2 * (sums @ sums.T) / np.outer(n, n)
        # A discrepancy of n rows is known to about 1 / n: what is not clearly away is ordinary.
        clear = away > 4.0 / n
        linked = clear[:, None] & clear[None, :] & (apart < 0.5 * np.minimum(away[:, None], away[None, :]))
        found, left = [], set(np.flatnonzero(clear).tolist())
        while left:
            group, open_ = set[int](), {left.pop()}
            while open_:
                group |= open_
                open_ = {int(at) for one in open_ for at in np.flatnonzero(linked[one])} & left
                left -= open_
            if len(group) > 1:
                rows = np.flatnonzero(np.isin(place[owner], sorted(group)))
                rows = rows[np.argsort(times[rows], kind="stable")]
                found.append((ALIKE, f"{len(group)} keys like {names[large[min(group)]]}", rows))
        return found

    def __repr__(self) -> str:
        return (
            f"ExtractionWatch(threshold {self.threshold:.3g} from {self.n_calibrated:,} ordinary keys, "
            f"window {self.window}, {self.false_positive_rate:.3g} false positives)"
        )


def _place(n: int, rate: float, confidence_level: float | None) -> int:
    """Returns which of n distances, 1 the largest, is exceeded by no more than the rate; 0 where none is."""
    if confidence_level is None:
        return math.floor((n + 1) * rate + 1e-9)
    # The share of ordinary keys over the k-th largest has the distribution beta(k, n + 1 - k).
    from scipy.stats import beta

    places = np.arange(1, math.ceil(n * rate) + 2)
    return int((beta.ppf(confidence_level, places, n + 1 - places) <= rate).sum())


def _needed(rate: float, confidence_level: float | None) -> int:
    if confidence_level is None:
        return math.ceil(1 / rate - 1e-9) - 1
    return math.ceil(math.log(1 - confidence_level) / math.log(1 - rate) - 1e-9)


def _rule(needed: int) -> str:
    return f"be at least {needed + _LEAST_LEARNED}: {needed} for the rate, and {_LEAST_LEARNED} to learn from"


def _read(X: ArrayLike, key: ArrayLike, event_time: ArrayLike) -> tuple[Floats, NDArray[np.str_], NDArray[np.int64]]:
    matrix = np.ascontiguousarray(X, dtype=np.float64)
    keys, times = np.asarray(key).astype(str), np.asarray(event_time, dtype=np.int64)
    if matrix.ndim != 2:
        raise InvalidInput("X", matrix.shape, "have the shape (n, f)")
    if keys.shape != matrix.shape[:1] or times.shape != matrix.shape[:1]:
        raise InvalidInput("key, event_time", (keys.shape, times.shape), f"have the shape ({len(matrix)},)")
    return matrix, keys, times


def _first(keys: NDArray[np.str_], hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Returns the places at which each key, or key and period, asks about a row for the first time."""
    pairs = np.stack((np.unique(keys, return_inverse=True)[1].astype(np.uint64), hashes))
    return np.sort(np.unique(pairs, axis=1, return_index=True)[1])


def _split(owner: NDArray[np.int64], times: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Returns the rows of each owner, in the order of time."""
    if not len(owner):
        return []
    order = np.lexsort((times, owner))
    _, first = np.unique(owner[order], return_index=True)
    return np.split(order, first[1:])


def _windows(kernel: KernelMap, matrix: Floats, rows: NDArray[np.int64], window: int) -> tuple[Floats, Embedded]:
    """Returns the mean features of windows one after another, and all rows embedded.

    At most four windows: of a busier key they are longer, so that it is not accused for having more chances.
    """
    n_windows = min(len(rows) // window, _MOST_WINDOWS)
    place = np.arange(len(rows)) * n_windows // len(rows)
    sums, counts = kernel.embed_groups(matrix[rows], place, n_windows)
    return sums / counts[:, None], Embedded(len(rows), sums.sum(axis=0))


def _hashes(matrix: Floats) -> NDArray[np.uint64]:
    """Returns 64 bits for each row, equal for equal rows."""
    plain = matrix + 0.0
    plain[np.isnan(plain)] = np.nan
    bits = plain.view(np.uint64)
    factors = np.random.default_rng(0).integers(1, 2**63, size=bits.shape[1], dtype=np.uint64) * np.uint64(
        2
    ) + np.uint64(1)
    mixed = (bits ^ (bits >> np.uint64(29))) * factors
    mixed ^= mixed >> np.uint64(32)
    return (mixed * np.uint64(0x9E3779B97F4A7C15)).sum(axis=1, dtype=np.uint64)
