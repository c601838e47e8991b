"""Which slice explains a drift: did the mix of slices change, or what happens within one of them?

The distance of the joint distribution of slice and value splits exactly: a part for the shares of the slices, and one
for each slice's own distribution, weighted by how large the slice is.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitok.errors import Conflict, NotFound
from vitok.monitoring.profile import ReferenceProfile
from vitok.monitoring.sketches import SliceCounts
from vitok.stats import benjamini_hochberg, chi_square
from vitok.stats.results import Result


@dataclass(frozen=True, kw_only=True)
class SliceDrift(Result):
    """What one slice adds to the drift of one column.

    Attributes:
        value: The slice, a value of the slice column.
        n_reference: Rows of the reference in it.
        n_current: Rows of the window in it.
        mixture: What the change of its share adds.
        conditional: What the change within it adds.
        null_mean: What `conditional` would be on average where nothing changed within it.
        p_value: Chance of such a change within it where nothing changed (chi-square).
        adjusted_p_value: The same after Benjamini-Hochberg over the slices that were compared.
    """

    value: str
    n_reference: int
    n_current: int
    mixture: float
    conditional: float
    null_mean: float
    p_value: float
    adjusted_p_value: float

    @property
    def contribution(self) -> float:
        """Both parts together; over the slices of a column they add up to `SliceReport.total`."""
        return self.mixture + self.conditional

    @property
    def effect(self) -> float:
        """What it adds beyond what sampling alone would."""
        return self.mixture + max(0.0, self.conditional - self.null_mean)

    def __str__(self) -> str:
        return (
            f"{self.value} {self.contribution:.4f} (mix {self.mixture:.4f}, within {self.conditional:.4f},"
            f" adjusted p {self.adjusted_p_value:.3g})"
        )


@dataclass(frozen=True, kw_only=True)
class SliceReport(Result):
    """How the drift of one column splits over the slices of a slice column.

    Attributes:
        column: The feature, or `"probability"`.
        by: The slice column.
        total: Jeffreys divergence (a PSI) of slice and value together.
        mixture: The part of the shares of the slices.
        conditional: The part of what happens within them.
        slices: The slices by `effect`, largest first.
    """

    column: str
    by: str
    total: float
    mixture: float
    conditional: float
    slices: tuple[SliceDrift, ...]

    @property
    def explaining(self) -> SliceDrift | None:
        """The slice that explains most, if its change is no accident; None where no slice stands out.

        It stands out where its effect is at least half of all effects and twice its share of the rows.
        """
        effects = sum(one.effect for one in self.slices)
        rows = sum(one.n_current + one.n_reference for one in self.slices)
        if not self.slices or effects <= 0:
            return None
        first = self.slices[0]
        share = first.effect / effects
        size = (first.n_current + first.n_reference) / rows
        if first.adjusted_p_value > 0.01 and first.conditional >= first.mixture:
            return None
        return first if share >= 0.5 and share >= min(2 * size, 0.95) else None

    def __str__(self) -> str:
        head = f"{self.column} by {self.by}: {self.total:.4f} = {self.mixture:.4f} mix + {self.conditional:.4f} within"
        return "\n".join([head, *(f"  {one}" for one in self.slices[:8])])


def explain(profile: ReferenceProfile, slices: Sequence[SliceCounts], *, column: str, by: str) -> SliceReport:
    """Splits the drift of a column over the slices of a slice column.

    Args:
        profile: The version's reference profile, which has slices of `by`.
        slices: What `Sketches.slices` gave for the window.
        column: The feature, or `"probability"`.
        by: The slice column.

    Returns:
        The parts, which add up exactly. Each cell that either side uses holds half an observation more, so that all
        logarithms are finite and shares and distributions belong to one joint distribution.

    Raises:
        NotFound: If the profile has no such column or slice column.
        Conflict: If the slices were counted over other bins.

    Source: the chain rule of the Kullback-Leibler divergence, Cover & Thomas, Elements of Information Theory, 2.5,
    in both directions.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> countries = ("AT", "CH", "DE")
        >>> x, p, country = rng.normal(size=9_000), rng.random(9_000), np.repeat(countries, 3_000)
        >>> profile = ReferenceProfile.fit(["x"], x[:, None], p, start=0, end=1, slices={"country": country})
        >>> moved = np.where(country == "CH", x + 2, x)
        >>> window = [SliceCounts(column="country", value=value, n=3_000,
        ...     counts=profile.layout.count(np.column_stack([moved, p])[country == value])) for value in countries]
        >>> report = explain(profile, window, column="x", by="country")
        >>> report.explaining.value, math.isclose(report.total, sum(one.contribution for one in report.slices))
        ('CH', True)
    """
    if column not in profile.columns:
        raise NotFound("column", column, profile.columns)
    if by not in profile.slices:
        raise NotFound("slice column of the profile", by, profile.slices)
    at = profile.columns.index(column)
    first, last = profile.layout.offsets[at], profile.layout.offsets[at + 1]
    now = {one.value: one.counts for one in slices if one.column == by}
    names = list(profile.slices[by])
    for value, counts in now.items():
        if value not in names or len(counts) != profile.layout.n_bins:
            raise Conflict(f"slice {by}={value} was counted with another profile: load the profile of that version")
    reference = np.array([profile.slices[by][name][first:last] for name in names], dtype=np.float64)
    empty = np.zeros(profile.layout.n_bins, dtype=np.int64)
    current = np.array([now.get(name, empty)[first:last] for name in names], dtype=np.float64)
    return _split(names, reference, current, column, by)


def _split(
    names: Sequence[str], reference: NDArray[np.float64], current: NDArray[np.float64], column: str, by: str
) -> SliceReport:
    used = (reference > 0) | (current > 0)
    p = np.where(used, reference + 0.5, 0.0)
    q = np.where(used, current + 0.5, 0.0)
    p, q = p / max(p.sum(), 1e-300), q / max(q.sum(), 1e-300)
    of_p, of_q = p.sum(axis=1), q.sum(axis=1)
    there = of_p > 0
    found = []
    tests = [chi_square(r, c).p_value for r, c in zip(reference[there], current[there], strict=True)]
    adjusted = dict(zip(np.flatnonzero(there).tolist(), benjamini_hochberg(tests).adjusted, strict=True))
    plain = dict(zip(np.flatnonzero(there).tolist(), tests, strict=True))
    for at in np.flatnonzero(there).tolist():
        cells = used[at]
        within_p, within_q = p[at][cells] / of_p[at], q[at][cells] / of_q[at]
        log = np.log(within_q / within_p)
        n, m = reference[at].sum(), current[at].sum()
        rate = 1 / max(n, 0.5) + 1 / max(m, 0.5)
        found.append(
            SliceDrift(
                value=names[at],
                n_reference=int(n),
                n_current=int(m),
                mixture=float((of_q[at] - of_p[at]) * math.log(of_q[at] / of_p[at])),
                conditional=float(of_q[at] * (within_q @ log) - of_p[at] * (within_p @ log)),
                null_mean=float((of_p[at] + of_q[at]) / 2 * rate * (cells.sum() - 1)),
                p_value=plain[at],
                adjusted_p_value=adjusted[at],
            )
        )
    found.sort(key=lambda one: (-one.effect, one.value))
    mixture, conditional = sum(one.mixture for one in found), sum(one.conditional for one in found)
    return SliceReport(
        column=column,
        by=by,
        total=mixture + conditional,
        mixture=mixture,
        conditional=conditional,
        slices=tuple(found),
    )


@dataclass(frozen=True, kw_only=True)
class SliceFinding(Result):
    """A column that moved within one slice of a window.

    Attributes:
        by: The slice column.
        value: The slice.
        column: The feature, or `"probability"`.
        effect: PSI of the column within the slice, less its null mean.
        n_current: Rows of the window in the slice.
        adjusted_p_value: After Benjamini-Hochberg over all columns of all slices.
    """

    by: str
    value: str
    column: str
    effect: float
    n_current: int
    adjusted_p_value: float

    def __str__(self) -> str:
        return (
            f"{self.column} where {self.by} is {self.value}: effect {self.effect:.3f}"
            f" (n = {self.n_current:,}, adjusted p {self.adjusted_p_value:.3g})"
        )


def moved_slices(
    profile: ReferenceProfile,
    slices: Sequence[SliceCounts],
    *,
    min_n: int = 100,
    min_effect: float = 0.25,
    false_discovery_rate: float = 0.001,
) -> tuple[SliceFinding, ...]:
    """Looks for columns that moved within a slice, also where the whole hardly moved.

    Args:
        profile: The version's reference profile.
        slices: What `Sketches.slices` gave for the window.
        min_n: Fewest rows of a slice, on both sides, for it to be judged.
        min_effect: Least effect within the slice.
        false_discovery_rate: Level over all columns of all slices.

    Returns:
        What moved, by effect times the slice's share of the rows, largest first.
    """
    from vitok.stats import psi

    found, p_values = [], []
    total = sum(one.n for one in slices) or 1
    watched = [at for at, name in enumerate(profile.columns) if name not in profile.ignored]
    for one in slices:
        reference = profile.slices.get(one.column, {}).get(one.value)
        if reference is None or one.n < min_n:
            continue
        before, now = profile.layout.split(reference), profile.layout.split(one.counts)
        if before[0].sum() < min_n:
            continue
        index, null_mean, tail = _indices(profile, reference, one.counts)
        for at in watched:
            # The exact law costs a draw where bins hold few; what is no larger than chance makes it needs none.
            if index[at] - null_mean[at] / 2 < min_effect:
                p_values.append(float(tail[at]))
                continue
            exact = psi(before[at], now[at])
            p_values.append(exact.p_value)
            found.append((one, profile.columns[at], exact, len(p_values) - 1))
    adjusted = benjamini_hochberg(p_values).adjusted
    moved = [
        SliceFinding(
            by=one.column,
            value=one.value,
            column=name,
            effect=index.excess,
            n_current=one.n,
            adjusted_p_value=adjusted[place],
        )
        for one, name, index, place in found
        if index.excess >= min_effect and adjusted[place] <= false_discovery_rate
    ]
    return tuple(sorted(moved, key=lambda each: (-each.effect * each.n_current / total, each.value, each.column)))


def _indices(
    profile: ReferenceProfile, reference: NDArray[np.int64], current: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Returns PSI, its null mean and its p-value by the chi-square law for all columns at once, shape (f,) each."""
    from scipy.special import chdtrc

    heads = profile.layout.offsets[:-1]
    n, m = float(reference[: heads[1]].sum()), float(current[: heads[1]].sum())
    used = (reference > 0) | (current > 0)
    p, q = np.where(reference > 0, reference, 0.5) / n, np.where(current > 0, current, 0.5) / m
    index = np.add.reduceat(np.where(used, (q - p) * np.log(q / p), 0.0), heads)
    freedom = np.add.reduceat(used.astype(np.float64), heads) - 1
    rate = 1 / n + 1 / m
    return index, rate * freedom, np.where(freedom > 0, chdtrc(np.maximum(freedom, 1.0), index / rate), 1.0)
