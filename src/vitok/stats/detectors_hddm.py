"""Detectors by Hoeffding's and McDiarmid's bounds, for observations in [0, 1] of any law: HDDM_A and HDDM_W."""

import math
from typing import Any, Literal

import numpy as np

from vitok.errors import InvalidInput
from vitok.stats.arrays import open_unit
from vitok.stats.detectors import ConfidenceDetector


class _Hoeffding(ConfidenceDetector):
    threshold_name = "drift_confidence"
    needs = "be in [0, 1]"
    _lowest, _highest = 0.0, 1.0

    def _warning_at(self, threshold: float) -> dict[str, float]:
        share = math.log(self.parameters["warning_confidence"]) / math.log(self.threshold)
        return {"warning_confidence": threshold**share}


def _confidences(drift: float, warning: float) -> None:
    if open_unit("drift_confidence", drift) > open_unit("warning_confidence", warning):
        raise InvalidInput("warning_confidence", warning, f"be at least drift_confidence {drift}")


class HDDMA(_Hoeffding):
    """Finds a shift of a mean by Hoeffding's bounds on averages: made for abrupt changes.

    Args:
        drift_confidence: Error probability of one comparison for a change, in (0, 1).
        warning_confidence: The same for a warning, at least `drift_confidence`.
        two_sided: True looks for decreases as well.
        worse: Where worse is: a change the other way is no alarm. None: every change is.

    The average up to the point where its upper bound was smallest is compared with the average of all. The
    probabilities are those of one comparison at one moment; over a stream the run length counts: see `calibrate`.

    Source: Frías-Blanco et al., Online and non-parametric drift detection methods based on Hoeffding's bounds, IEEE
    TKDE 2015; River 0.26.1, at the same observations. As there, the cut is found with the confidence of a change
    even for warnings, and a bound of warnings on decreases may stand beside a change of increases.

    Example:
        >>> detector = HDDMA(two_sided=True, worse="higher")
        >>> print(detector.update_many([0, 0, 0, 1] * 100 + [0, 1] * 100 + [0] * 40).directions)
        ('higher', 'lower')
    """

    def __init__(
        self,
        *,
        drift_confidence: float = 0.001,
        warning_confidence: float = 0.005,
        two_sided: bool = False,
        worse: Literal["higher", "lower"] | None = None,
    ) -> None:
        from vitok.stats import detectors_kernels as kernels

        _confidences(drift_confidence, warning_confidence)
        start = np.zeros(kernels.HA_SIZE)
        start[kernels.HA_BOUND :] = (
            math.log(1.0 / drift_confidence),
            math.log(2.0 / drift_confidence),
            math.log(2.0 / warning_confidence),
            two_sided,
        )
        super().__init__(
            {
                "drift_confidence": drift_confidence,
                "warning_confidence": warning_confidence,
                "two_sided": two_sided,
                "worse": worse,
            },
            start,
        )

    def _kernels(self) -> tuple[Any, Any]:
        from vitok.stats.detectors_kernels import hddm_a_many, hddm_a_one

        return hddm_a_one, hddm_a_many


class HDDMW(_Hoeffding):
    """Finds a shift of a mean by McDiarmid's bounds on weighted averages: made for gradual changes.

    Args:
        drift_confidence: Error probability of one comparison for a change, in (0, 1).
        warning_confidence: The same for a warning, at least `drift_confidence`.
        weight: Of a new observation in the averages, in (0, 1]; River's `lambda_val`.
        two_sided: True looks for decreases as well.
        worse: Where worse is: a change the other way is no alarm. None: every change is.

    The weighted average at the moment when its upper bound was smallest is compared with a fresh one since then.

    Source: Frías-Blanco et al., Online and non-parametric drift detection methods based on Hoeffding's bounds, IEEE
    TKDE 2015; River 0.26.1, at the same observations. As there (and in MOA), the share of independence decays with
    the first observation already, though the average is then that observation alone: the first bounds are a little
    narrower than McDiarmid's.

    Example:
        >>> detector = HDDMW()
        >>> print(detector.update_many([0, 0, 0, 1] * 100 + [1] * 40))
        1 changes in 440: 414 higher
    """

    def __init__(
        self,
        *,
        drift_confidence: float = 0.001,
        warning_confidence: float = 0.005,
        weight: float = 0.05,
        two_sided: bool = False,
        worse: Literal["higher", "lower"] | None = None,
    ) -> None:
        from vitok.stats import detectors_kernels as kernels

        _confidences(drift_confidence, warning_confidence)
        if not 0.0 < weight <= 1.0:
            raise InvalidInput("weight", weight, "be above 0 and at most 1")
        start = np.zeros(kernels.HW_SIZE)
        kernels.hddm_w_clear.py_func(start)
        start[kernels.HW_DRIFT :] = (
            math.log(1.0 / drift_confidence),
            math.log(1.0 / warning_confidence),
            weight,
            weight * weight,
            (1.0 - weight) ** 2,
            two_sided,
        )
        super().__init__(
            {
                "drift_confidence": drift_confidence,
                "warning_confidence": warning_confidence,
                "weight": weight,
                "two_sided": two_sided,
                "worse": worse,
            },
            start,
        )

    def _kernels(self) -> tuple[Any, Any]:
        from vitok.stats.detectors_kernels import hddm_w_many, hddm_w_one

        return hddm_w_one, hddm_w_many
