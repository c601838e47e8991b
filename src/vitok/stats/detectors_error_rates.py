"""Detectors for a stream of errors that assume the normal law: DDM and EDDM."""

import math
from typing import Any, Literal

import numpy as np

from vitok.errors import InvalidInput
from vitok.stats.arrays import Floats, open_unit, positive_integer, vector
from vitok.stats.detectors import Detector, not_negative


class DDM(Detector):
    """Finds a rise of an error rate above its best so far, by standard deviations.

    Args:
        warm_start: Observations before anything is compared, at least 1.
        warning_threshold: Standard deviations above the best rate for a warning, at least 0.
        drift_threshold: The same for a change, above 0 and at least `warning_threshold`.
        worse: A rise is all that it sees, so `"higher"` or None.

    It compares rate plus deviation with their smallest sum so far. A few lucky observations at the start make that
    small, and false alarms follow: set the threshold with `calibrate`. An improvement is never seen.

    Source: Gama, Medas, Castillo & Rodrigues, Learning with drift detection, SBIA 2004; River 0.26.1, at the same
    observations. The paper's comparison is "at least", River's is "above"; the paper has the warm start of 30.

    Example:
        >>> detector = DDM()
        >>> print(detector.update_many([0, 0, 0, 1] * 100 + [0, 1] * 100))
        1 changes in 600: 481 higher
    """

    threshold_name = "drift_threshold"
    needs = "be in [0, 1]: 1 is an error, 0 is none"
    _lowest, _highest, _directions = 0.0, 1.0, (None, "higher")

    def __init__(
        self,
        *,
        warm_start: int = 30,
        warning_threshold: float = 2.0,
        drift_threshold: float = 3.0,
        worse: Literal["higher"] | None = None,
    ) -> None:
        from vitok.stats import detectors_kernels as kernels

        if not_negative("drift_threshold", drift_threshold) < not_negative("warning_threshold", warning_threshold):
            raise InvalidInput("drift_threshold", drift_threshold, f"be at least warning_threshold {warning_threshold}")
        if drift_threshold == 0:
            raise InvalidInput("drift_threshold", drift_threshold, "be above 0")
        start = np.zeros(kernels.DDM_SIZE)
        start[kernels.DDM_SUM] = np.inf
        start[kernels.DDM_FIRST :] = positive_integer("warm_start", warm_start), warning_threshold, drift_threshold
        super().__init__(
            {
                "warm_start": warm_start,
                "warning_threshold": warning_threshold,
                "drift_threshold": drift_threshold,
                "worse": worse,
            },
            start,
        )

    def _warning_at(self, threshold: float) -> dict[str, float]:
        return {"warning_threshold": self.parameters["warning_threshold"] * threshold / self.threshold}

    def _kernels(self) -> tuple[Any, Any]:
        from vitok.stats.detectors_kernels import ddm_many, ddm_one

        return ddm_one, ddm_many


class EDDM(Detector):
    """Finds errors that come closer together than they once were; made for slow changes and few errors.

    Args:
        warm_start: Errors before anything is compared, at least 1.
        alpha: Share of the largest distance below which it warns, in (0, 1), at least `beta`.
        beta: Share of the largest distance below which it sees a change, in (0, 1).
        worse: Closer errors are all that it sees, so `"higher"` or None.

    The distance is mean plus two standard deviations of the observations from one error to the next. It is looked at
    when an error comes; a warning stands until the next one, and while a new largest distance is taken. The defaults,
    the paper's, make many false alarms: set `beta` with `calibrate`.

    Source: Baena-García et al., Early drift detection method, 2006; River 0.26.1, at the same observations: as there
    the first distance counts from the start, and largest distances count from `warm_start` observations on,
    comparisons from `warm_start` errors on.

    Example:
        >>> detector = EDDM()
        >>> print(detector.update_many([0, 0, 0, 0, 1, 0, 1] * 60 + [0, 1] * 100))
        1 changes in 620: 481 higher
    """

    threshold_name = "beta"
    needs = "be 0 or 1: 1 is an error, 0 is none"
    _lowest, _highest, _directions = 0.0, 1.0, (None, "higher")

    def __init__(
        self,
        *,
        warm_start: int = 30,
        alpha: float = 0.95,
        beta: float = 0.9,
        worse: Literal["higher"] | None = None,
    ) -> None:
        from vitok.stats import detectors_kernels as kernels

        if open_unit("alpha", alpha) < open_unit("beta", beta):
            raise InvalidInput("alpha", alpha, f"be at least beta {beta}")
        start = np.zeros(kernels.EDDM_SIZE)
        start[kernels.EDDM_MOST] = -1.0
        start[kernels.EDDM_FIRST :] = positive_integer("warm_start", warm_start), alpha, beta
        super().__init__({"warm_start": warm_start, "alpha": alpha, "beta": beta, "worse": worse}, start)

    def _read(self, xs: Any) -> Floats:
        batch = vector("xs", xs, finite=True)
        bad = (batch != 0.0) & (batch != 1.0)
        if bad.any():
            at = int(np.argmax(bad))
            raise InvalidInput(f"xs[{at}]", float(batch[at]), self.needs)
        return batch

    @classmethod
    def strictness(cls, threshold: float) -> float:
        """Returns minus the logarithm."""
        return -math.log(threshold)

    @classmethod
    def from_strictness(cls, strictness: float) -> float:
        """Returns the share."""
        return math.exp(-strictness)

    def _warning_at(self, threshold: float) -> dict[str, float]:
        return {"alpha": threshold ** (math.log(self.parameters["alpha"]) / math.log(self.threshold))}

    def _kernels(self) -> tuple[Any, Any]:
        from vitok.stats.detectors_kernels import eddm_many, eddm_one

        return eddm_one, eddm_many
