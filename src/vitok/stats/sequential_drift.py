"""A drift test that may be looked at after every observation, against a frozen reference, with a promise kept.

Each observation gets a conformal p-value: its rank among the reference and all observations so far, ties broken at
random. As long as nothing changes, these are independent and uniform, whatever the law; a bet on them gains nothing
on average, and a capital that has grown is evidence, whenever one looks.
"""

import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from vitok.errors import InvalidInput
from vitok.stats.arrays import Floats, open_unit, vector
from vitok.stats.detectors import Detector
from vitok.stats.histograms import FrozenEdges


class ConformalDrift(Detector):
    """Tests without end whether a stream still has the law of a reference, of which only a histogram is kept.

    Args:
        reference: Counts of the reference, shape (b,), whole numbers of at least 0, some above 0.
        edges: Bins of numbers, b of them; None for categories, which come as their number from 0 to b - 1, the
            missing and the unseen with numbers of their own.
        arl0: Promise of a mean run length: the expected number of observations to a false alarm is at least this.
            Give either this or `alpha`.
        alpha: Promise of a probability, in (0, 1): the chance of a false alarm, ever, is at most this.
        learns: True counts each observation into the reference, which makes the promise exact for any length. False
            leaves the reference as it is, takes it for the truth, and sees slow drift better: the promise then holds
            while there are far fewer observations than rows in the reference.
        worse: Where worse is, for numbers: a change the other way is no alarm. A change that is not one of place
            (wider, narrower, another shape) has no direction, and is an alarm.
        seed: Of the random ranks among ties, at least 0.

    The bets are a mixture of ten: none, three each on larger and on smaller values, one each on a wider and a
    narrower law, and one on the p-values of late; a small share of the capital is dealt anew each time, so that the
    mixture follows a change at any time (a fixed share, as in the simple jumper). With `arl0` the evidence is the
    Shiryaev-Roberts sum, an e-detector: R <- (R + 1) times the gain, alarm at R >= arl0; with `alpha` it is the
    capital itself, alarm at 1/alpha (Ville's inequality). Null, which is NaN, has a bin of its own, below all others.

    The promise needs observations that are exchangeable with the reference where nothing has changed: no seasons, no
    dependence of one on the next. It is exact to the first alarm; after an alarm the test begins anew from the
    reference, whose sampling error it has then in common with before. Edges laid at quantiles of the very rows that
    are counted make them a little too even: count other rows where the promise must be exact.

    Source: Vovk, Petej, Nouretdinov, Ahlberg, Carlsson & Gammerman, Retrain or not retrain: conformal test
    martingales for change-point detection, COPA 2021; Shin, Ramdas & Rinaldo, E-detectors: a nonparametric framework
    for sequential change detection, NEJSDS 2023.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> rows = rng.normal(size=4_000)
        >>> edges = FrozenEdges.from_values(rows[:2_000])
        >>> test = ConformalDrift(edges.count(rows[2_000:]), edges=edges, arl0=10_000)
        >>> test.update_many(rng.normal(size=2_000)).alarms
        ()
        >>> found = test.update_many(rng.normal(0.7, 1, size=300))
        >>> found.alarms[0] < 100, found.directions[0]
        (True, 'higher')
    """

    threshold_name = "arl0"
    needs = "be a number, or NaN for null"

    def __init__(
        self,
        reference: ArrayLike,
        *,
        edges: FrozenEdges | Mapping[str, Any] | None = None,
        arl0: float | None = None,
        alpha: float | None = None,
        learns: bool = True,
        worse: Literal["higher", "lower"] | None = None,
        seed: int = 0,
    ) -> None:
        from vitok.stats import sequential_drift_kernels as kernels

        counts = vector("reference", reference, finite=True)
        if (counts < 0).any() or (counts != np.floor(counts)).any():
            at = int(np.argmax((counts < 0) | (counts != np.floor(counts))))
            raise InvalidInput(f"reference[{at}]", float(counts[at]), "be a count: a whole number of at least 0")
        if not counts.sum():
            raise InvalidInput("reference", float(counts.sum()), "count at least one row")
        frozen = FrozenEdges.from_dict(edges) if isinstance(edges, Mapping) else edges
        if frozen is not None and frozen.n_bins != len(counts):
            raise InvalidInput("reference", len(counts), f"have {frozen.n_bins} counts for these edges")
        if frozen is None and worse is not None:
            raise InvalidInput("worse", worse, "be None for categories", "They have no direction")
        if (arl0 is None) == (alpha is None):
            raise InvalidInput("arl0", arl0, "be given, or alpha, and not both", "Choose one promise")
        if arl0 is not None and not 1 <= arl0 < math.inf:
            raise InvalidInput("arl0", arl0, "be finite and at least 1")
        if seed != int(seed) or not 0 <= seed < 2**63:
            raise InvalidInput("seed", seed, "be a whole number of at least 0, below 2 to the 63rd")
        cuts = () if frozen is None else frozen.edges
        start = np.zeros(kernels.HEAD + 2 * len(counts) + len(cuts))
        start[kernels.BOUND] = arl0 if alpha is None else 1 / open_unit("alpha", alpha)
        start[kernels.RESTARTS] = alpha is None
        start[kernels.LEARNS] = learns
        start[kernels.BINS] = len(counts)
        start[kernels.EDGES] = kernels.CATEGORIES if frozen is None else len(cuts)
        start[kernels.N_REFERENCE] = counts.sum()
        start[kernels.HEAD : kernels.HEAD + len(counts)] = counts
        start[kernels.HEAD + 2 * len(counts) :] = cuts
        start.view(np.uint64)[kernels.RANDOM] = seed
        kernels.drift_clear(start)
        if frozen is None:
            self.needs = f"be the number of a category, 0 to {len(counts) - 1}"
        super().__init__(
            {
                "reference": counts.astype(np.int64).tolist(),
                "edges": None if frozen is None else frozen.to_dict(),
                "arl0": arl0,
                "alpha": alpha,
                "learns": learns,
                "worse": worse,
                "seed": seed,
            },
            start,
        )

    def _kernels(self) -> tuple[Any, Any]:
        from vitok.stats.sequential_drift_kernels import drift_many, drift_one

        return drift_one, drift_many

    def _read(self, xs: ArrayLike) -> Floats:
        if self.parameters["edges"] is None:
            batch = vector("xs", xs, finite=True)
            bad = (batch < 0) | (batch >= len(self.parameters["reference"])) | (batch != np.floor(batch))
            if bad.any():
                at = int(np.argmax(bad))
                raise InvalidInput(f"xs[{at}]", float(batch[at]), self.needs)
            return batch
        try:
            batch = np.asarray(xs, dtype=np.float64)
        except (TypeError, ValueError):
            raise InvalidInput("xs", xs, "be an array of numbers") from None
        if batch.ndim != 1:
            raise InvalidInput("xs", batch.shape, "have one dimension", "Pass an array of shape (n,)")
        return batch

    @property
    def threshold(self) -> float:
        """The promised run length.

        Raises:
            InvalidInput: If a probability was promised: there is no run length then.
        """
        if self.parameters["arl0"] is None:
            raise InvalidInput("arl0", None, "be given where a run length is asked for")
        return super().threshold

    @property
    def evidence(self) -> float:
        """What has gathered against "nothing has changed": compare with arl0, or with 1/alpha."""
        from vitok.stats.sequential_drift_kernels import CAPITAL

        return float(self._state[CAPITAL])

    @property
    def n_obs(self) -> int:
        """Observations since the start or the last alarm."""
        from vitok.stats.sequential_drift_kernels import N

        return int(self._state[N])

    def p_values(self, xs: ArrayLike) -> Floats:
        """Returns the conformal p-values that the next observations would get; the test itself does not move.

        Args:
            xs: Observations of shape (n,).

        Returns:
            Shape (n,), in (0, 1): about 1 for values larger than the reference.

        Raises:
            InvalidInput: As `update_many` raises it.

        Example:
            >>> test = ConformalDrift([50, 50], alpha=0.01)
            >>> low, high = test.p_values([0, 1]).tolist()
            >>> 0 < low < 0.51 and 0.49 < high < 1
            True
        """
        from vitok.stats.sequential_drift_kernels import p_values

        batch = np.ascontiguousarray(self._read(xs))
        out = np.empty(len(batch))
        p_values(self._state.copy(), batch, out)
        return out

    def __repr__(self) -> str:
        promise = "arl0" if self.parameters["alpha"] is None else "alpha"
        of = "categories" if self.parameters["edges"] is None else "bins"
        return (
            f"ConformalDrift({len(self.parameters['reference'])} {of}, {sum(self.parameters['reference']):,} rows, "
            f"{promise}={self.parameters[promise]!r}, learns={self.parameters['learns']!r}, "
            f"worse={self.parameters['worse']!r}, seed={self.parameters['seed']!r})"
        )
