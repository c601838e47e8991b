"""Labels that only some decisions can have: a blocked payment has no outcome, and what passed is not like it.

A small random share of what would be blocked passes, and the log has its probability. Each row that could be seen
then stands for one over that probability, and an estimate over the weighted rows is one over all of them.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from vitok.errors import InvalidInput

if TYPE_CHECKING:
    import polars as pl

HIDING = ("block",)
"""Actions after which no outcome can be seen."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelWeights:
    """What each decision counts for in an estimate over all decisions.

    Attributes:
        weight: Shape (n,): one over the probability that its outcome could be seen; 0 where it could not.
        n_obs: Decisions whose outcome could be seen.
        n_hidden: Decisions whose outcome could not.
        n_unsupported: Of those, decisions taken without any chance of passing: nobody stands for them.
        n_eff: How many decisions of equal weight would be as good, (sum of weights)^2 / (sum of their squares).
    """

    weight: npt.NDArray[np.float64]
    n_obs: int
    n_hidden: int
    n_unsupported: int
    n_eff: float

    def __str__(self) -> str:
        """Says it in one line."""
        told = f"{self.n_obs:,} decisions can have a label, worth {self.n_eff:,.1f}; {self.n_hidden:,} cannot"
        return told + (f", of which {self.n_unsupported:,} had no chance to" if self.n_unsupported else "")


def label_weights(decisions: "pl.DataFrame", *, hiding: Collection[str] = HIDING) -> LabelWeights:
    """Weighs decisions by one over the probability that their outcome could be seen.

    Args:
        decisions: Frame with `action` and `propensity`, such as `read` gives. The propensity is that of the action
            taken; where an action shows its outcome it is taken as the probability of seeing it.
        hiding: Actions after which no outcome can be seen.

    Raises:
        InvalidInput: If a propensity is not in (0, 1].

    Example:
        >>> import polars as pl
        >>> rows = pl.DataFrame({"action": ["allow", "allow", "block"], "propensity": [1.0, 0.05, 0.95]})
        >>> found = label_weights(rows)
        >>> found.weight
        array([ 1., 20.,  0.])
        >>> print(found)
        2 decisions can have a label, worth 1.1; 1 cannot
    """
    from vitok.stats.weighted_means import effective_sample_size

    propensity = decisions["propensity"].to_numpy()
    wrong = ~((propensity > 0) & (propensity <= 1))
    if wrong.any():
        raise InvalidInput("propensity", float(propensity[wrong][0]), "be in (0, 1]")
    hidden = decisions["action"].is_in(list(hiding)).to_numpy()
    weight = np.where(hidden, 0.0, 1.0 / propensity)
    return LabelWeights(
        weight=weight,
        n_obs=int((~hidden).sum()),
        n_hidden=int(hidden.sum()),
        n_unsupported=int((hidden & (propensity >= 1)).sum()),
        n_eff=effective_sample_size(weight),
    )
