"""Windows of several lengths from the same hours, and many short windows judged in one sweep of arrays."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitok.clock import DAY, HOUR
from vitok.errors import Conflict
from vitok.monitoring.baselines import Baseline
from vitok.monitoring.hours import HourlyCounts
from vitok.monitoring.profile import ReferenceProfile
from vitok.monitoring.sketches import Sketches, WindowCounts

LENGTHS = {"1h": HOUR, "1d": DAY, "7d": 7 * DAY, "30d": 30 * DAY}


def windows(
    sketches: Sketches, model_version: str, now: int, *, lengths: Mapping[str, int] = LENGTHS
) -> dict[str, WindowCounts | None]:
    """Returns the windows of several lengths that end with the last full hour.

    Args:
        sketches: Hourly counts.
        model_version: Which version.
        now: The present, in microseconds.
        lengths: Name to length, whole hours in microseconds.

    Returns:
        Name to window, None where there are no decisions in it.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     sketches = Sketches(Path(folder) / "sketches.sqlite")
        ...     print(windows(sketches, "fraud/1", 90 * DAY))
        ...     sketches.close()
        {'1h': None, '1d': None, '7d': None, '30d': None}
    """
    end = now // HOUR * HOUR
    return {name: sketches.window(model_version, end - length, end) for name, length in lengths.items()}


@dataclass(frozen=True, kw_only=True, eq=False)
class DriftSeries:
    """Distances of many windows at once: h windows, f columns, the probability last.

    Attributes:
        columns: Names of the columns.
        starts: Shape (h,), when each window begins, in microseconds.
        n: Shape (h,), decisions.
        psi: Shape (h, f).
        null_mean: Shape (h, f), mean of the PSI where nothing has changed: chi-square with one degree less than bins.
        p_value: Shape (h, f), by the same law; windows of few decisions want `drift`, which draws the law.
        ks: Shape (h, f), largest gap of the cumulated shares.
        shift: Shape (h, f), Wasserstein-1 in the profile's units, less its null mean, at least 0.
    """

    columns: tuple[str, ...]
    starts: NDArray[np.int64]
    n: NDArray[np.int64]
    psi: NDArray[np.float64]
    null_mean: NDArray[np.float64]
    p_value: NDArray[np.float64]
    ks: NDArray[np.float64]
    shift: NDArray[np.float64]

    @property
    def effect(self) -> NDArray[np.float64]:
        """PSI less its null mean, at least 0, shape (h, f)."""
        return np.asarray(np.maximum(self.psi - self.null_mean, 0.0))


def drift_series(
    profile: ReferenceProfile, hours: HourlyCounts, *, baseline: Baseline | None = None, every: int = HOUR
) -> DriftSeries:
    """Measures every hour, or every stretch of hours, of a version against a baseline, in array operations.

    Args:
        profile: The version's reference profile.
        hours: Its hours, as `Sketches.series` or `merge` of sealed counts gives them.
        baseline: What to hold them against; None for training.
        every: Length of a window, whole hours in microseconds; windows begin at multiples of it.

    Raises:
        Conflict: If the hours or the baseline were counted over other bins.

    Source: as `vitok.stats.psi`, `ks` and `wasserstein`; the null mean of the shift is that of the baseline's shares.

    Example:
        >>> from vitok.stats import count_matrix
        >>> rng = np.random.default_rng(0)
        >>> X, p = rng.normal(size=(5_000, 1)), rng.random(5_000)
        >>> profile = ReferenceProfile.fit(["x"], X, p, start=0, end=DAY)
        >>> moved = [np.concatenate(count_matrix(profile.edges, np.column_stack([X + by, p]))) for by in (0, 1)]
        >>> none = np.zeros(0, dtype=np.int64)
        >>> hours = HourlyCounts(version="m/1", digest=profile.digest, hours=np.array([0, 1]), n=np.array([5_000] * 2),
        ...     counts=np.array(moved), numbers=("{}", "{}"), slices=(), slice_at=none.reshape(0, 2), slice_n=none,
        ...     slice_counts=none.reshape(0, profile.layout.n_bins), joint=np.zeros((2, 0)))
        >>> drift_series(profile, hours).shift[:, 0].round(1).tolist()
        [0.0, 0.7]
    """
    from scipy.special import chdtrc

    given = baseline or Baseline.training(profile)
    for what, digest in ((hours.version, hours.digest), (given.name, given.digest)):
        if digest != profile.digest:
            raise Conflict(
                f"{what} was counted over bins {digest or 'of no profile'}, the profile has {profile.digest}"
            )
    starts, first = np.unique(hours.hours * HOUR // every * every, return_index=True)
    current = np.add.reduceat(hours.counts, first, axis=0).astype(np.float64)
    m = np.add.reduceat(hours.n, first).astype(np.int64)
    reference, n = given.counts.astype(np.float64), float(given.n)
    offsets = profile.layout.offsets
    heads = offsets[:-1]
    rate = (1 / n + 1 / m)[:, None]

    used = (reference > 0) | (current > 0)
    p = np.where(reference > 0, reference, 0.5) / n
    q = np.where(current > 0, current, 0.5) / m[:, None]
    psi = np.add.reduceat(np.where(used, (q - p) * np.log(q / p), 0.0), heads, axis=1)
    freedom = np.add.reduceat(used.astype(np.float64), heads, axis=1) - 1
    null_mean = rate * freedom
    p_value = np.where(freedom > 0, chdtrc(np.maximum(freedom, 1.0), psi / rate), 1.0)

    below = np.cumsum(reference / n), np.cumsum(current / m[:, None], axis=1)
    size = np.diff(offsets)
    # The sums run over all columns: what stands before a column, one for each, is taken off.
    gap = np.abs(below[0] - below[1])
    ks = np.maximum.reduceat(gap, heads, axis=1)

    widths, spread = _axis(profile, reference)
    unplaced_p, unplaced_q = _unplaced(reference / n, offsets), _unplaced(current / m[:, None], offsets)
    scale_p, scale_q = 1 / np.maximum(1 - unplaced_p, 1e-300), 1 / np.maximum(1 - unplaced_q, 1e-300)
    # Null and -inf come first in a column, so that what lies below a cell among the placed is less these.
    head_p = np.add.reduceat(reference / n, np.column_stack([heads, heads + 2]).ravel())[::2]
    head_q = np.add.reduceat(current / m[:, None], np.column_stack([heads, heads + 2]).ravel(), axis=1)[:, ::2]
    column = np.repeat(np.arange(len(size)), size)
    placed_p = (below[0] - column - head_p[column]) * scale_p[column]
    placed_q = (below[1] - column - head_q[:, column]) * scale_q[:, column]
    moved = np.add.reduceat(np.abs(placed_p - placed_q) * widths, heads, axis=1)
    shift = moved - math.sqrt(2 / math.pi) * np.sqrt(rate) * spread
    shift = np.where((unplaced_q < 1) & (unplaced_p < 1), np.maximum(shift, 0.0), 0.0)
    return DriftSeries(
        columns=profile.columns,
        starts=starts,
        n=m,
        psi=psi,
        null_mean=null_mean,
        p_value=p_value,
        ks=ks,
        shift=shift,
    )


def _axis(profile: ReferenceProfile, reference: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns the way from each bin to the next in units of shift, and the null mean of the shift over the rate."""
    widths = np.zeros(len(reference))
    spread = np.zeros(len(profile.edges))
    for at, (frozen, unit, first) in enumerate(zip(profile.edges, profile.units, profile.layout.offsets, strict=False)):
        centers = np.array(frozen.centers[2:-1])
        steps = np.diff(centers) / unit
        widths[first + 2 : first + 2 + len(steps)] = steps
        placed = reference[first + 2 : first + 2 + len(centers)]
        share = np.cumsum(placed)[:-1] / max(placed.sum(), 1.0)
        spread[at] = float(np.abs(steps) @ np.sqrt(np.maximum(share * (1 - share), 0.0)))
    return np.abs(widths), spread


def _unplaced(shares: NDArray[np.float64], offsets: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns for each column the share of null and the infinities."""
    return np.asarray(shares[..., offsets[:-1]] + shares[..., offsets[:-1] + 1] + shares[..., offsets[1:] - 1])
