"""The gate of a version: what is asked before it may answer. How each question is answered is the registry's.

Data, quality over all rows and by slice, calibration, cost and latency are asked here, of rows that nothing was fitted
on; skew is asked when the release begins, against what is logged then, and held labels when it is registered.
"""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Self

import numpy as np

from vitok import contracts
from vitok.errors import ContractBroken
from vitok.registry import (
    Check,
    Verdict,
    all_of,
    at_least,
    calibrated,
    calibrated_in_the_large,
    contract_kept,
    evaluate,
    fast_enough,
    no_dearer,
    no_worse_by_slice,
)
from vitok.systems.fraud.intake import CONTRACT

if TYPE_CHECKING:
    from vitok.stats import Estimate
    from vitok.systems.fraud.training import Sample

LEAST_ROWS = 500
TIMES_CHANCE = 5.0
"""So much better than chance the average precision is, at the lower end of its interval."""
MAX_RISE = 0.1
"""Share by which the Brier score may rise, over all rows; a slice is refused where it shows more."""
MAX_DEARER = 0.05
MAX_CALIBRATION_ERROR = 0.05
MAX_TIMES_OFF = 1.5
"""Expected to happened frauds: a watch raises `calibration` from there on."""
FEW_FRAUDS = 10
MODEL_US = 5_000.0
"""P99 of one row in the model, microseconds: a tenth of the 50 ms after which rules answer."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Incumbent:
    """What a version is held against, on the same rows.

    Attributes:
        name: Such as `"fraud/2"`.
        probability: What it says of each row, shape (n,).
        cost: What its actions cost on each, shape (n,).
    """

    name: str
    probability: np.ndarray
    cost: np.ndarray

    def where(self, mask: np.ndarray) -> Self:
        """Returns the rows of a mask of shape (n,)."""
        return dataclasses.replace(self, probability=self.probability[mask], cost=self.cost[mask])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a gate looks at.

    Attributes:
        train: The rows that were learned from, with labels.
        held_out: Rows that nothing was fitted on, with labels.
        probability: What the version says of the held-out rows, shape (n,).
        cost: What its actions cost on each, shape (n,).
        rules_cost: What the rules' actions cost on each, shape (n,).
        average_precision: Of the version on the held-out rows.
        slices: Column name to the slice of each held-out row.
        latency_us: How long the model took for one row, in microseconds, shape (m,).
        incumbent: The version in force on the held-out rows; None where there is none.
        changed: When the world changed, microseconds: earlier rows say nothing of who is better now.
    """

    train: "Sample"
    held_out: "Sample"
    probability: np.ndarray
    cost: np.ndarray
    rules_cost: np.ndarray
    average_precision: "Estimate"
    slices: Mapping[str, np.ndarray]
    latency_us: np.ndarray
    incumbent: Incumbent | None = None
    changed: int | None = None


def judge(evidence: Evidence) -> Verdict:
    """Asks all questions of a version.

    Where no version is in force, quality is held against one that gives every row the share of frauds in training. A
    slice in which too few frauds are known says so and refuses nothing. A few days of frauds seldom show that a version
    is no worse than an equal one: against the version in force the values decide where the intervals do not, since the
    canary has to show it before anything is promoted.

    Args:
        evidence: What is known of the version.
    """
    y = evidence.held_out.is_fraud
    chance = float(y.mean()) if len(y) else 0.0
    return evaluate(
        all_of(
            data_checks(evidence.train),
            at_least("average precision", evidence.average_precision, TIMES_CHANCE * chance),
            quality_checks(evidence),
            calibrated(y, evidence.probability, max_error=MAX_CALIBRATION_ERROR, least_positives=FEW_FRAUDS),
            calibrated_in_the_large(y, evidence.probability, max_ratio=MAX_TIMES_OFF),
            no_dearer(evidence.cost, evidence.rules_cost, margin=MAX_DEARER, name="cost against rules"),
            _cost_against(evidence),
            fast_enough(evidence.latency_us, bound_us=MODEL_US, name="latency of a row"),
        )
    )


def data_checks(train: "Sample") -> tuple[Check, ...]:
    """Asks whether the rows that a version learned from keep the contract.

    Args:
        train: The rows.
    """
    import polars as pl

    rows = pl.DataFrame(
        {
            "event_time": pl.Series(train.event_time).cast(pl.Datetime("us", "UTC")),
            "amount": train.amount,
            "is_fraud": pl.Series(train.is_fraud).fill_nan(None),
        }
    )
    try:
        report = contracts.load(CONTRACT).check(rows, schema="training")
    except ContractBroken as broken:
        told = [" ".join(line.split()) for line in str(broken).splitlines()]
        # Behind what to do about it and the heading stands what is broken.
        reason = "; ".join(told[2:] or told)
        kept: tuple[Check, ...] = (Check(name="data: contract", passed=False, value=None, bound=None, reason=reason),)
    else:
        kept = contract_kept(report, least=LEAST_ROWS)
    return all_of(kept, at_least("data: frauds", float(np.nansum(train.is_fraud)), FEW_FRAUDS))


def quality_checks(evidence: Evidence) -> tuple[Check, ...]:
    """Asks whether the Brier score has risen, over all held-out rows and by slice.

    Args:
        evidence: What is known of the version.
    """
    rows, y = _compared(evidence), evidence.held_out.is_fraud
    known = evidence.incumbent
    theirs = np.full(len(y), evidence.train.is_fraud.mean()) if known is None else known.probability
    return no_worse_by_slice(
        f"Brier against {'the base rate' if known is None else known.name}",
        candidate=(evidence.probability - y)[rows] ** 2,
        incumbent=(theirs - y)[rows] ** 2,
        slices={name: values[rows].tolist() for name, values in evidence.slices.items()},
        margin=MAX_RISE,
        relative=True,
        positive=y[rows],
        few="pass",
        unclear="pass",
        whole="wait" if known is None else "value",
    )


def _cost_against(evidence: Evidence) -> tuple[Check, ...]:
    known, rows = evidence.incumbent, _compared(evidence)
    if known is None:
        return ()
    name = f"cost against {known.name}"
    return (no_dearer(evidence.cost[rows], known.cost[rows], margin=MAX_DEARER, name=name, unclear="value"),)


def _compared(evidence: Evidence) -> np.ndarray:
    times = evidence.held_out.event_time
    if evidence.incumbent is None or evidence.changed is None:
        return np.ones(len(times), dtype=bool)
    return times >= evidence.changed
