"""Adaptive windowing: the longest window whose two parts, at whatever cut, may have the same mean."""

from typing import Any, Literal

import numpy as np

from vitok.errors import InvalidInput
from vitok.stats.arrays import open_unit, positive_integer
from vitok.stats.detectors import ConfidenceDetector, not_negative

AFTER_CHANGE = ("restart", "keep")


def after_a_change(value: str) -> bool:
    """Reads the parameter `after_change`; true where what is recent is kept.

    Raises:
        InvalidInput: If it is neither `"restart"` nor `"keep"`.

    Example:
        >>> after_a_change("keep")
        True
    """
    if value not in AFTER_CHANGE:
        raise InvalidInput("after_change", value, "be 'restart' or 'keep'")
    return value == "keep"


class ADWIN(ConfidenceDetector):
    """Finds a shift of a mean by comparing the two parts of a window at every cut.

    Args:
        delta: Error probability of the comparisons at one moment, in (0, 1).
        clock: Observations from one look to the next, at least 1.
        max_buckets: Buckets of one size before two are merged, at least 2: with more, there are more cuts.
        min_window_length: Observations that either part must have, at least 1.
        grace_period: Observations before the first look, at least 0.
        after_change: `"restart"` forgets all at a change, as River does. `"keep"` drops only the older part, as the
            paper and MOA do: the window then holds what is known of the new state.
        worse: Where worse is: a change the other way is no alarm. None: every change is.

    The direction is that from the mean of what was dropped to the mean of what was kept. Observations should have a
    spread of about 1: the bound has a term for numbers in [0, 1], which makes it slow for smaller and lax for larger
    ones. A look at every observation (`clock=1`) costs a few times one at every 32nd, and finds a change up to 31
    observations sooner; it also looks more often, so calibrate it by itself.

    Source: Bifet & Gavaldà, Learning from time-changing data with adaptive windowing, SDM 2007; River 0.26.1, at the
    same observations. As there, the bound has n - min_window_length + 1 in place of n, which widens it for short parts,
    and the logarithm of the width where the paper's proof has the width.

    Example:
        >>> detector = ADWIN(worse="higher")
        >>> print(detector.update_many([0, 1] * 200 + [1, 1, 1, 1, 0] * 40))
        1 changes in 600: 511 higher
    """

    threshold_name = "delta"

    def __init__(
        self,
        *,
        delta: float = 0.002,
        clock: int = 32,
        max_buckets: int = 5,
        min_window_length: int = 5,
        grace_period: int = 10,
        after_change: Literal["restart", "keep"] = "restart",
        worse: Literal["higher", "lower"] | None = None,
    ) -> None:
        from vitok.stats import detectors_adwin_kernels as kernels

        # River with one bucket a size loses count of its window.
        if positive_integer("max_buckets", max_buckets) < 2:
            raise InvalidInput("max_buckets", max_buckets, "be at least 2")
        start = np.zeros(kernels.size(max_buckets))
        whole = start.view(np.int64)
        start[kernels.DELTA] = open_unit("delta", delta)
        start[kernels.LEAST_PART] = positive_integer("min_window_length", min_window_length)
        start[kernels.GRACE] = not_negative("grace_period", grace_period)
        start[kernels.KEEPS] = after_a_change(after_change)
        whole[kernels.CLOCK] = positive_integer("clock", clock)
        whole[kernels.MOST] = max_buckets
        kernels.adwin_clear.py_func(start, whole)
        super().__init__(
            {
                "delta": delta,
                "clock": clock,
                "max_buckets": max_buckets,
                "min_window_length": min_window_length,
                "grace_period": grace_period,
                "after_change": after_change,
                "worse": worse,
            },
            start,
        )

    def _kernels(self) -> tuple[Any, Any]:
        from vitok.stats.detectors_adwin_kernels import adwin_many, adwin_one

        return adwin_one, adwin_many

    @property
    def width(self) -> int:
        """Observations in the window."""
        from vitok.stats.detectors_adwin_kernels import WIDTH

        return int(self._state[WIDTH])

    @property
    def mean(self) -> float:
        """Mean of the window; NaN where it is empty."""
        from vitok.stats.detectors_adwin_kernels import TOTAL

        return float(self._state[TOTAL] / self.width) if self.width else float("nan")
