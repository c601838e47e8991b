"""How a probability becomes an action: tiers on cost under a capacity, with the propensity of what was chosen.

A policy is a plain object with a version and `decide`; the same object serves live traffic, replay and simulation.
Where probabilities come from (`models`) and what is recorded (`decisions`) is decided elsewhere.
"""

from vitok.policies.tier_evidence import (
    block_evidence,
    daily_prices,
    label_weights,
    precise_threshold,
    tier_uncertainty,
)
from vitok.policies.tiers import ALLOW, BLOCK, REVIEW, Costs, TierPolicy, Tiers

__all__ = [
    "ALLOW",
    "BLOCK",
    "REVIEW",
    "Costs",
    "TierPolicy",
    "Tiers",
    "block_evidence",
    "daily_prices",
    "label_weights",
    "precise_threshold",
    "tier_uncertainty",
]
