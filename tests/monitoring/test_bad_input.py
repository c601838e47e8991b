"""What is no number is named as such by every measurement that takes arrays. Oracle: the field in the error."""

from collections.abc import Callable

import numpy as np
import polars as pl
import pytest

from vitok.errors import InvalidInput
from vitok.monitoring import (
    ConfidenceCounts,
    LossEstimator,
    MaturedLabels,
    MulticlassEstimator,
    PerformanceEstimator,
    ReferenceProfile,
    concept_drift,
    label_drift,
    performance,
    skew,
)

WORDS = ["high", "low"]
ROWS = pl.DataFrame({"label": WORDS, "probability": [0.1, 0.2], "action": "allow", "amount": 1.0})


def matured(y: object, probability: object) -> MaturedLabels:
    return MaturedLabels(y=y, probability=probability, groups={})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("measure", "field"),
    [
        (lambda: PerformanceEstimator.fit(WORDS, [0, 1]), "score"),
        (lambda: MulticlassEstimator.fit([WORDS, WORDS], [0, 1]), "score"),
        (lambda: LossEstimator.fit([WORDS] * 30, np.zeros(30), np.zeros(30)), "X"),
        (lambda: LossEstimator.fit(np.zeros((30, 2)), np.zeros(30), ["high"] * 30), "y"),
        (lambda: ConfidenceCounts.of(WORDS), "probability"),
        (lambda: ReferenceProfile.fit(["x"], [["high"]], [0.1], start=0, end=1), "X"),
        (lambda: ReferenceProfile.fit(["x"], [[1.0]], ["high"], start=0, end=1), "probability"),
        (lambda: skew([1], {"x": ["high"]}, {"x": [1.0]}), r"served\[x\]"),
        (lambda: label_drift(0, WORDS, base_rate=0.1, base_n=10), "arrived"),
        (lambda: concept_drift(matured(WORDS, np.zeros(2))), "current: y"),
        (lambda: concept_drift(matured(np.zeros(2), np.array(WORDS))), "current: probability"),
        (lambda: performance(ROWS), "decisions: label"),
        (lambda: performance(ROWS.with_columns(label=1.0, probability="label")), "decisions: probability"),
    ],
)
def test_words_are_no_numbers(measure: Callable[[], object], field: str) -> None:
    with pytest.raises(InvalidInput, match=f"^{field}: got .*number"):
        measure()
