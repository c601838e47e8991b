"""Leaving out most negatives, and weighting those that are kept, so that the expected gradient stays the same.

Source: McMahan et al., KDD 2013, section 4.6.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vitok.errors import InvalidInput
from vitok.features.fingerprints import fingerprint_texts


@dataclass(frozen=True)
class NegativeSampling:
    """Keeps every positive with weight 1, and a share r of the negatives with weight 1 / r.

    Which negatives are kept follows from their ids: the same rows are kept in a replay and in every process. Weighted
    sums over what is kept estimate sums over all rows without bias; a model that is learned without the weights says
    too much, by a factor of about 1 / r in the odds.

    Attributes:
        rate: Share r of the negatives that is kept, in (0, 1].

    Example:
        >>> kept, weights = NegativeSampling(0.25).keep([f"t{i}" for i in range(10_000)], np.zeros(10_000))
        >>> int(kept.sum()), float(weights[kept].sum())
        (2415, 9660.0)
    """

    rate: float

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1:
            raise InvalidInput("rate", self.rate, "be in (0, 1]")

    def keep(self, ids: Sequence[str], labels: ArrayLike) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
        """Says which rows are kept and with which weight.

        Args:
            ids: n texts, such as request ids; equal ids are kept or left out together.
            labels: Shape (n,), 0 or 1.

        Returns:
            Whether a row is kept, and its weight: 0 where it is not; both of shape (n,).

        Raises:
            InvalidInput: If the lengths differ.
        """
        positive = np.asarray(labels) == 1
        if positive.shape != (len(ids),):
            raise InvalidInput("labels", positive.shape, f"have the shape ({len(ids)},)")
        if self.rate == 1:
            return np.ones(len(ids), np.bool_), np.ones(len(ids))
        # The second half of the fingerprint: the first decides about slots.
        share = fingerprint_texts(ids)[:, 1] / 2.0**64 if len(ids) else np.empty(0)
        kept = positive | (share < self.rate)
        return kept, np.where(positive, 1.0, kept / self.rate)
