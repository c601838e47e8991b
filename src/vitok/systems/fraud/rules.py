"""The rules a bank starts with: the yardstick of every model, and the answer when no model answers in time."""

from collections.abc import Mapping, Sequence

import numpy as np

from vitok.policies import ALLOW, BLOCK, REVIEW
from vitok.serving import Rules

VERSION = "rules"
_REVIEWED = 0.3
_BLOCKED = 0.95


def rule_score(columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """Scores rows by hand-written rules.

    Args:
        columns: `amount`, `customer_count_1h`, `amount_to_mean` and `terminal_labels_risk_7d`, each of shape (n,).

    Returns:
        Shape (n,), in [0, 1]: 1 for a large amount, then a terminal with known frauds, an amount far above the
        customer's habit, and many payments within an hour.
    """
    amount = columns["amount"]
    score = np.zeros(len(amount))
    score = np.maximum(score, np.where(amount > 220.0, 1.0, 0.0))
    score = np.maximum(score, 0.9 * np.nan_to_num(columns["terminal_labels_risk_7d"]))
    unusual = np.nan_to_num(columns["amount_to_mean"])
    score = np.maximum(score, np.where(unusual > 4.0, 0.5, np.where(unusual > 3.0, 0.3, 0.0)))
    return np.maximum(score, np.where(columns["customer_count_1h"] >= 4, 0.4, 0.0))


def rule_actions(score: np.ndarray) -> list[str]:
    """Blocks from 0.95, reviews from 0.3, allows the rest."""
    return np.where(score >= _BLOCKED, BLOCK, np.where(score >= _REVIEWED, REVIEW, ALLOW)).tolist()


def as_target(names: Sequence[str]) -> Rules:
    """Returns the rules as the end of a chain of fallbacks; should they fail themselves, people look at it.

    Args:
        names: The features, in the order of the columns of a batch.

    Example:
        >>> from vitok.serving import Batch
        >>> names = ["amount", "customer_count_1h", "amount_to_mean", "terminal_labels_risk_7d"]
        >>> as_target(names).score(Batch(np.array([[950.0, 1, 2, 0], [9.0, 1, np.nan, np.nan]]))).values
        array([1., 0.])
    """
    return Rules(
        lambda batch: rule_score({name: batch.rows[:, i] for i, name in enumerate(names)}),
        otherwise=_REVIEWED,
        version=VERSION,
    )
