"""The Page-Hinkley test: a cumulative sum of deviations from the running mean."""

from typing import Any, Literal

import numpy as np

from vitok.errors import InvalidInput
from vitok.stats.arrays import positive_integer
from vitok.stats.detectors import Detector, not_negative

_MODES = {"both": 0.0, "up": 1.0, "down": -1.0}


class PageHinkley(Detector):
    """Finds a shift of a mean by a cumulative sum of deviations from the running mean.

    Args:
        min_instances: Observations before the first possible change, at least 1.
        delta: Shift that is tolerated, in the unit of the observations, at least 0.
        threshold: How far the sum may go from its extreme, above 0, in the unit of the observations.
        alpha: Weight of the sum so far, in (0, 1]; 1 forgets nothing.
        mode: Which shifts are looked for. Another than `worse` that only leaves out changes for the better would
            leave the detector in the past after one: prefer `"both"` and say what is worse.
        worse: Where worse is: a change the other way is no alarm. None: every change is.

    Each observation adds its deviation from the mean of all so far, that observation included, less `delta`. As in
    River, the sums are weighted by `alpha`, the mean is not.

    Source: Page, Continuous inspection schemes, Biometrika 1954; Hinkley, Biometrika 1971; River 0.26.1, at the same
    observations.

    Example:
        >>> detector = PageHinkley(threshold=5.0, worse="higher")
        >>> print(detector.update_many([0.0] * 100 + [1.0] * 100))
        1 changes in 200: 105 higher
    """

    threshold_name = "threshold"

    def __init__(
        self,
        *,
        min_instances: int = 30,
        delta: float = 0.005,
        threshold: float = 50.0,
        alpha: float = 1 - 0.0001,
        mode: Literal["both", "up", "down"] = "both",
        worse: Literal["higher", "lower"] | None = None,
    ) -> None:
        from vitok.stats import detectors_kernels as kernels

        if not 0.0 < alpha <= 1.0:
            raise InvalidInput("alpha", alpha, "be above 0 and at most 1")
        if mode not in _MODES:
            raise InvalidInput("mode", mode, "be 'both', 'up' or 'down'")
        if not_negative("threshold", threshold) == 0.0:
            raise InvalidInput("threshold", threshold, "be above 0")
        start = np.zeros(kernels.PH_SIZE)
        start[kernels.PH_LEAST], start[kernels.PH_MOST] = np.inf, -1.0
        start[kernels.PH_FIRST :] = (
            positive_integer("min_instances", min_instances),
            not_negative("delta", delta),
            threshold,
            alpha,
            _MODES[mode],
        )
        super().__init__(
            {
                "min_instances": min_instances,
                "delta": delta,
                "threshold": threshold,
                "alpha": alpha,
                "mode": mode,
                "worse": worse,
            },
            start,
        )

    def _kernels(self) -> tuple[Any, Any]:
        from vitok.stats.detectors_kernels import page_hinkley_many, page_hinkley_one

        return page_hinkley_one, page_hinkley_many
