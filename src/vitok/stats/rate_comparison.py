"""Two rates under concurrent traffic, compared block by block: what is proven so far, at the same cost every look."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vitok.errors import InvalidInput
from vitok.stats.arrays import Floats, open_unit
from vitok.stats.confidence_sequences import log_evidence_step
from vitok.stats.results import Estimate

_FIELDS = ("control_successes", "control_n", "treatment_successes", "treatment_n")
# Denser near 0, where the differences of interest are: error rates are small.
_GRID = np.sign(np.linspace(-1, 1, 161)) * np.linspace(-1, 1, 161) ** 2 * 0.999


class RateComparison:
    """The difference of two rates, treatment less control, with an interval that holds at every look.

    A block is what came since the look before in both arms, of any split. Each bound of a fixed grid, and each one
    given, has an e-process on either side; the interval is what they do not refute. Both rates may rise and fall
    together from block to block: an outage that hits both arms is no evidence. The intervals are those of
    `vitok.stats.rate_difference_sequence`, found on the grid; here a look costs the same however many came before,
    and the state is small enough to be kept.

    Args:
        bounds: Differences in (-1, 1) that will be asked for with `above` and `below`.
        confidence_level: Level over all looks and all bounds together, in (0, 1).

    Raises:
        InvalidInput: If a bound or the level is out of range.

    Source: Turner, Ly & Grünwald, Generic E-variables for exact sequential k-sample tests, 2024; inverted as in
    Turner & Grünwald, Exact anytime-valid confidence intervals for contingency tables, 2023.

    Example:
        >>> seen = RateComparison([0.01])
        >>> for _ in range(5):
        ...     seen.add(control_successes=18, control_n=900, treatment_successes=7, treatment_n=100)
        >>> seen.above(0.01)
        True
        >>> print(seen.estimate("failures"))
        failures 0.05 (95 % interval 0.01889 to 0.09756, n = 5,000)
    """

    def __init__(self, bounds: Sequence[float] = (), *, confidence_level: float = 0.95) -> None:
        self._level = open_unit("confidence_level", confidence_level)
        for bound in bounds:
            if not -1 < bound < 1:
                raise InvalidInput("bounds", bound, "be in (-1, 1)")
        self._asked = tuple(float(bound) for bound in bounds)
        self._bounds: Floats = np.unique(np.concatenate([_GRID, self._asked]))
        self._sums = np.zeros(4)
        # Of both sides: "at most the bound" and "at least the bound", now and at their largest.
        self._log_e = np.zeros((2, len(self._bounds)))
        self._largest = np.zeros((2, len(self._bounds)))

    def add(
        self, *, control_successes: float, control_n: float, treatment_successes: float, treatment_n: float
    ) -> None:
        """Takes a block; one without trials changes nothing.

        Raises:
            InvalidInput: If counts are impossible.
        """
        block = (control_successes, control_n, treatment_successes, treatment_n)
        for at in (0, 2):
            if not 0 <= block[at] <= block[at + 1] < math.inf:
                raise InvalidInput(_FIELDS[at], block[at], f"be between 0 and the {block[at + 1]:g} trials")
        c_s, c_n, t_s, t_n = (np.array([float(part)]) for part in block)
        was = [np.array([part]) for part in self._sums]
        self._log_e[0] += log_evidence_step(
            bounds=self._bounds,
            successes_a=c_s,
            n_a=c_n,
            successes_b=t_s,
            n_b=t_n,
            before=(was[0], was[1], was[2], was[3]),
        )[:, 0]
        self._log_e[1] += log_evidence_step(
            bounds=-self._bounds,
            successes_a=t_s,
            n_a=t_n,
            successes_b=c_s,
            n_b=c_n,
            before=(was[2], was[3], was[0], was[1]),
        )[:, 0]
        np.maximum(self._largest, self._log_e, out=self._largest)
        self._sums += block

    def above(self, bound: float) -> bool:
        """Says whether the difference is proven to exceed a bound that was named; once it is, it stays so."""
        return bool(self._largest[0, self._at(bound)] >= self._needed)

    def below(self, bound: float) -> bool:
        """Says whether the difference is proven to be below a bound that was named; once it is, it stays so."""
        return bool(self._largest[1, self._at(bound)] >= self._needed)

    def counts(self) -> tuple[int, int, int, int]:
        """Returns successes and trials of the control, then of the treatment, so far."""
        s_c, n_c, s_t, n_t = (int(part) for part in self._sums)
        return s_c, n_c, s_t, n_t

    def estimate(self, name: str = "rate_difference") -> Estimate:
        """Returns the pooled difference with its interval now.

        Args:
            name: Name of the estimate.

        Returns:
            Treatment less control, moved into the interval where it lies outside; NaN before both arms had trials.
        """
        s_c, n_c, s_t, n_t = self._sums
        refuted = self._largest >= self._needed
        # What is refuted from below is a prefix of the bounds, but for the rounding of single steps.
        low = int(np.argmin(refuted[0])) if not refuted[0].all() else len(self._bounds)
        high = int(np.argmin(refuted[1][::-1])) if not refuted[1].all() else len(self._bounds)
        lower = float(self._bounds[low - 1]) if low else -1.0
        upper = float(self._bounds[len(self._bounds) - high]) if high else 1.0
        value = min(max(s_t / n_t - s_c / n_c, lower), upper) if n_c and n_t else math.nan
        return Estimate(
            name=name,
            value=float(value),
            lower=lower,
            upper=upper,
            n_obs=int(n_c + n_t),
            confidence_level=self._level,
            definition="treatment rate less control rate, e-processes on a grid of bounds"
            if n_c and n_t
            else "an arm has no trials",
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns the state as a dict that `json.dumps` accepts."""
        return {
            "bounds": list(self._asked),
            "confidence_level": self._level,
            "sums": self._sums.tolist(),
            "log_e": self._log_e.tolist(),
            "largest": self._largest.tolist(),
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> "RateComparison":
        """Goes on from what `to_dict` gave.

        Raises:
            InvalidInput: If it is not such a state.
        """
        if set(state) != {"bounds", "confidence_level", "sums", "log_e", "largest"}:
            raise InvalidInput("state", sorted(state), "be what to_dict returned")
        found = cls(state["bounds"], confidence_level=state["confidence_level"])
        for name in ("sums", "log_e", "largest"):
            kept, given = getattr(found, f"_{name}"), np.asarray(state[name], dtype=np.float64)
            if given.shape != kept.shape or not np.isfinite(given).all():
                raise InvalidInput(f"state[{name!r}]", given.shape, f"be finite numbers of shape {kept.shape}")
            kept[...] = given
        return found

    @property
    def _needed(self) -> float:
        return math.log(2 / (1 - self._level))

    def _at(self, bound: float) -> int:
        if bound not in self._asked:
            raise InvalidInput("bound", bound, f"be one of those named at the beginning: {list(self._asked)}")
        return int(np.searchsorted(self._bounds, bound))
