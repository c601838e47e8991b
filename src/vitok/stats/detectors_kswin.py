"""Kolmogorov-Smirnov windowing: the newest observations against a sample of those before."""

import math
import random
import warnings
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from vitok.errors import InvalidInput
from vitok.stats.arrays import open_unit, positive_integer
from vitok.stats.detectors import ConfidenceDetector
from vitok.stats.detectors_adwin import after_a_change

_SMALLEST_GAP = 0.1


@lru_cache(maxsize=256)
def critical_count(stat_size: int, alpha: float) -> int:
    """Returns the smallest gap, in observations, with a p-value of at most alpha and a statistic above 0.1.

    Args:
        stat_size: Size of both samples, at least 1.
        alpha: Level of the two-sided Kolmogorov-Smirnov test, in (0, 1).

    Returns:
        From 1 to `stat_size`, or one more where no gap is large enough.

    Source: the p-values are those of scipy.stats.ks_2samp, as River asks for them: exact up to 10,000.

    Example:
        >>> critical_count(30, 0.005)
        14
    """
    from scipy.stats import ks_2samp

    low, high = 1, stat_size + 1
    ranks = np.arange(stat_size, dtype=np.float64)
    while low < high:
        middle = (low + high) // 2
        with warnings.catch_warnings():
            # Where the exact law overflows, scipy takes the asymptotic one and says so.
            warnings.simplefilter("ignore", RuntimeWarning)
            found = ks_2samp(ranks, ranks + middle - 0.5)
        if found.pvalue <= alpha and found.statistic > _SMALLEST_GAP:
            high = middle
        else:
            low = middle + 1
    return low


class KSWIN(ConfidenceDetector):
    """Finds any change of a distribution: the newest observations against as many drawn from those before.

    Args:
        alpha: Level of one two-sided Kolmogorov-Smirnov test, in (0, 1). There is one at every observation.
        window_size: Observations in the window, at least twice `stat_size`.
        stat_size: Newest observations that are tested, at least 1.
        seed: Of the draws, at least 0; River's `seed`.
        after_change: `"restart"` empties the window at a change, as River does with its next observation. `"keep"`
            keeps the newest ones, as the paper says, so that the next test comes sooner.
        worse: Where worse is: a change the other way is no alarm. None: every change is.

    The draws are those of Python's `random.Random(seed).sample`, which River uses, so that for the same seed the same
    tests are made. The direction is that of the larger one-sided gap; where both are equal, the shape has changed
    and not the place, the direction is unclear, and that is an alarm whatever is worse. The seed is drawn from anew
    at every restart.

    Source: Raab, Heusinger & Schleif, Reactive soft prototype computing for concept drift streams, Neurocomputing
    2020; River 0.26.1, at the same observations. The paper's bound is an approximation; River takes scipy's p-value
    and a statistic above 0.1.

    Example:
        >>> detector = KSWIN(alpha=0.0001)
        >>> wave = np.sin(np.arange(400.0))
        >>> print(detector.update_many(np.concatenate((wave, wave + 3))))
        1 changes in 800: 415 higher
    """

    threshold_name = "alpha"

    def __init__(
        self,
        *,
        alpha: float = 0.005,
        window_size: int = 100,
        stat_size: int = 30,
        seed: int = 0,
        after_change: Literal["restart", "keep"] = "restart",
        worse: Literal["higher", "lower"] | None = None,
    ) -> None:
        from vitok.stats import detectors_kswin_kernels as kernels

        if positive_integer("window_size", window_size) < 2 * positive_integer("stat_size", stat_size):
            rule = f"be at least twice stat_size {stat_size}"
            raise InvalidInput("window_size", window_size, rule, "The sample comes from what is older")
        if seed != int(seed) or seed < 0:
            raise InvalidInput("seed", seed, "be a whole number of at least 0")
        older = window_size - stat_size
        # What random.sample does: a list of all where a set of the drawn would be larger.
        set_size = 21 + (4 ** math.ceil(math.log(stat_size * 3, 4)) if stat_size > 5 else 0)
        start = np.zeros(kernels.size(window_size))
        start[kernels.HELD : kernels.TWISTER] = (
            0,
            0,
            624,
            window_size,
            stat_size,
            critical_count(stat_size, open_unit("alpha", alpha)),
            older <= set_size,
            after_a_change(after_change),
        )
        words = np.array(random.Random(seed).getstate()[1][:-1], dtype=np.uint64)  # noqa: S311 - not for secrets
        start.view(np.uint64)[kernels.TWISTER : kernels.SEEDED] = words
        start.view(np.uint64)[kernels.SEEDED : kernels.WINDOW] = words
        super().__init__(
            {
                "alpha": alpha,
                "window_size": window_size,
                "stat_size": stat_size,
                "seed": seed,
                "after_change": after_change,
                "worse": worse,
            },
            start,
        )

    def _kernels(self) -> tuple[Any, Any]:
        from vitok.stats.detectors_kswin_kernels import kswin_many, kswin_one

        return kswin_one, kswin_many
