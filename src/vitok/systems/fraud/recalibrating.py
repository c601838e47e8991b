"""A version of the champion's trees and a new calibrator, where probabilities went off and the ranking did not.

It is fitted to decisions that the trees were not, whose labels are mature and believed, and judged on those that came
after. What a calibrator cannot mend, such as a ranking that fell, its gate refuses; that is for a retraining.
"""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from vitok import __version__, monitoring, stats
from vitok.clock import DAY, isoformat
from vitok.decisions import label_weights
from vitok.decisions.selection import HIDING
from vitok.errors import InvalidInput
from vitok.models import RefitVerdict, refit_calibrator
from vitok.models.calibrators import IsotonicCalibrator, PlattCalibrator
from vitok.monitoring import PerformanceEstimator, ReferenceProfile
from vitok.policies import Costs, TierPolicy
from vitok.registry import Check, Package, Verdict, all_of, at_least, at_most, evaluate, no_worse_by_slice
from vitok.stats.weighted_means import weighted_mean_interval
from vitok.systems.fraud import gate, training
from vitok.systems.fraud.features import CALENDAR, FEATURES
from vitok.systems.fraud.model import LoadedModel
from vitok.systems.fraud.rehearsal import logged_values
from vitok.systems.fraud.sketching import SLICES, with_slices
from vitok.systems.fraud.training import Sample

if TYPE_CHECKING:
    import polars as pl

LONGEST = 28 * DAY
"""No older decisions are looked at: they tell of another time."""
FEWEST, ENOUGH = 50, 200
"""Frauds of which a calibrator is refitted at least; and from which on older days are left out."""
LEAST_DAYS = 2
"""However many frauds a day has: fitted to the morning and judged on the evening, it would learn the time of day."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recalibrated:
    """A version before it is registered, of which only what follows from the calibrator is new.

    Attributes:
        refit: Calibrator, and how it does on the later rows beside the one in force.
        verdict: What the gate says.
        metrics: Measured on the later rows.
        parameters: What it is made of.
        changed: The files of its package that differ from the champion's.
        slices: Fraud rate, Brier score and cost on the later rows, by slice.
    """

    refit: RefitVerdict
    verdict: Verdict
    metrics: Mapping[str, stats.Estimate]
    parameters: Mapping[str, Any]
    changed: Mapping[str, Any]
    slices: Mapping[str, Mapping[str, stats.Estimate]]

    def files(self, package: Package) -> dict[str, Any]:
        """Returns the files of its package, those that it shares with the champion's byte for byte."""
        return {name: package.bytes(name) for name in package.files if name not in self.changed} | dict(self.changed)


def recalibrated(
    decided: "pl.DataFrame",
    reference: Sample,
    champion: LoadedModel,
    profile: ReferenceProfile,
    *,
    costs: Costs,
    unwatched: tuple[str, ...] = (),
) -> Recalibrated:
    """Refits the calibrator of a version to the earlier of the latest decisions, and judges it on the later ones.

    Blocks have no outcome, so that those which passed at random stand for them (`vitok.decisions.label_weights`).
    Tiers, estimator, conformal sets and reference profile follow from the new probabilities. Of these, tiers are
    fitted to the later rows without their labels. Estimator and sets take the labels of the later rows, since the
    calibrator has seen those of the others; no check asks about either, and what they say is held against later days.

    Average precision, calibration error and cost are judged by their values, not by their intervals, which the few
    that stand for blocks make wide: a canary follows.

    Args:
        decided: Decisions that the trees have not learned from and whose labels are mature, with `label`, as
            `Workshop.decided` gives them; at least those of the latest days.
        reference: The most recent rows, labels not needed: their distributions become the reference profile.
        champion: The version in force.
        profile: Its reference profile, whose baseline says how well it ranked when it was made.
        costs: What actions cost.
        unwatched: Features in which no drift is looked for, besides the calendar's.

    Raises:
        InvalidInput: If there are too few frauds, or none in the earlier or in the later rows.
        ServiceError: If the version cannot score the rows.
    """
    import polars as pl

    rows = _latest(decided.sort("event_time", maintain_order=True))
    score, before = champion.answer(logged_values(rows)) if len(rows) else (np.empty(0), np.empty(0))
    weight, label = label_weights(rows).weight, _labels(rows)
    seen = (weight > 0) & np.isfinite(label)
    n_frauds = int(label[seen].sum())
    if n_frauds < FEWEST:
        rule, fix = f"be at least {FEWEST}", "Wait for more labels of decisions that this version's trees have not seen"
        raise InvalidInput("frauds with mature labels", n_frauds, rule, fix)
    time = rows["event_time"].to_physical().to_numpy()
    # With few frauds the top step of an isotonic fit stands on a handful of rows and promises certainty.
    many = n_frauds >= training.ENOUGH_FOR_STEPS
    refit = refit_calibrator(
        score[seen],
        label[seen],
        time[seen],
        incumbent=champion.calibrator,
        weight=weight[seen],
        kinds=(PlattCalibrator, IsotonicCalibrator) if many else (PlattCalibrator,),
    )
    late = time >= np.sort(time[seen])[refit.n_fitted]
    known = late & seen
    later, amount = rows.filter(pl.Series(late)), rows["amount"].to_numpy().astype(np.float64)
    probability = refit.candidate(score)
    found = monitoring.performance(
        later.with_columns(probability=pl.Series(probability[late])), card="customer_id", hiding=HIDING
    )
    n_days = max(1, len(np.unique(time[late] // DAY)))
    policy = dataclasses.replace(
        TierPolicy.fit(
            probability[late],
            amount[late],
            days=n_days,
            reviews_per_day=max(1.0, training.REVIEW_SHARE * int(late.sum()) / n_days),
            costs=costs,
            pass_through=champion.policy.pass_through,
        ),
        salt=champion.policy.salt,
    )
    # What actions cost now, whatever it was when the champion was made.
    ours, theirs = (
        _cost(each, p[known], amount[known], label[known], costs)
        for each, p in ((policy, probability), (champion.policy, before))
    )
    slices = _slices(rows, known)
    metrics = {
        "auc": found.auc,
        "average_precision": found.average_precision,
        "card_precision_100": found.card_precision,
        "calibration_error": found.calibration_error,
        "brier": found.brier,
        "cost_per_decision": weighted_mean_interval(ours, weight[known], name="cost_per_decision"),
        "fraud_rate": found.fraud_rate,
    }
    new = ReferenceProfile.fit(
        list(FEATURES.names),
        reference.values,
        refit.candidate(champion.answer(reference.values)[0]),
        start=int(reference.event_time.min()),
        end=int(reference.event_time.max()) + 1,
        event_time=reference.event_time,
        baseline={name: estimate.to_dict() for name, estimate in metrics.items()},
        ignored=(*CALENDAR, *unwatched),
        slices=training.slices_of(reference, FEATURES),
        n_random_features=training.N_RANDOM_FEATURES,
    )
    sets = stats.ConformalSets.fit(
        np.column_stack([1 - probability[known], probability[known]]),
        label[known].astype(np.intp),
        coverage=training.COVERAGE,
    )
    estimator = PerformanceEstimator.fit(probability[known], label[known], weight=weight[known])
    dearer, margin = (
        float(np.average(each, weights=weight[known])) for each in (ours - theirs, gate.MAX_DEARER * theirs)
    )
    # That all rows together gain is asked of the log loss.
    _, *by_slice = no_worse_by_slice(
        f"Brier against {champion.version}",
        candidate=(probability - label)[known] ** 2,
        incumbent=(before - label)[known] ** 2,
        slices={name: values.tolist() for name, values in slices.items()},
        weight=weight[known],
        margin=gate.MAX_RISE,
        relative=True,
        positive=label[known],
        few="pass",
        unclear="pass",
    )
    checks = all_of(
        Check(
            name="calibrator",
            passed=refit.taken,
            value=refit.difference.value,
            bound=0.0,
            reason=str(refit),
        ),
        by_slice,
        _ranks_as_before(found.auc, profile.baseline_of("auc")),
        at_least("average precision", found.average_precision.value, gate.TIMES_CHANCE * found.fraud_rate.value),
        at_most("calibration error", found.calibration_error.value, gate.MAX_CALIBRATION_ERROR),
        at_most(f"cost above {champion.version}", dearer, margin),
    )
    first = int(np.argmax(late))
    return Recalibrated(
        refit=refit,
        verdict=evaluate(checks),
        metrics=metrics,
        parameters={
            "trees_of": champion.version,
            "calibrator": refit.candidate.kind,
            "train_rows": refit.n_fitted,
            "train_frauds": int(label[seen & ~late].sum()),
            "train_start": isoformat(int(time[0])),
            "train_end": isoformat(int(time[first - 1])),
            "validation_rows": refit.n_judged,
            "validation_start": isoformat(int(time[first])),
            "validation_end": isoformat(int(time[-1])),
            "features": FEATURES.version,
            "policy": policy.version,
            "review_price": policy.review_price,
            "vitok": __version__,
        },
        changed={
            "calibrator.json": refit.candidate.to_dict(),
            "policy.json": policy.describe(),
            "profile.json": new.to_dict(),
            "metrics.json": {name: estimate.to_dict() for name, estimate in metrics.items()},
            "estimator.json": estimator.to_dict(),
            "conformal.json": sets.to_dict(),
        },
        slices=_by_slice(slices, weight[known], label[known], probability[known], ours),
    )


def _latest(decided: "pl.DataFrame") -> "pl.DataFrame":
    """Returns the latest whole days that hold frauds enough; all where there are too few."""
    import polars as pl

    if decided.is_empty():
        return decided
    day = decided["event_time"].to_physical().to_numpy() // DAY
    fraud = (label_weights(decided).weight > 0) & (_labels(decided) == 1)
    days, place = np.unique(day, return_inverse=True)
    behind = np.cumsum(np.bincount(place, weights=fraud, minlength=len(days))[::-1])[::-1]
    enough = np.flatnonzero(behind >= ENOUGH)
    first = min(enough[-1], max(0, len(days) - LEAST_DAYS)) if len(enough) else 0
    return decided.filter(pl.Series(day >= days[first]))


def _labels(rows: "pl.DataFrame") -> np.ndarray:
    import polars as pl

    return rows["label"].cast(pl.Float64).fill_null(float("nan")).to_numpy()


def _cost(
    policy: TierPolicy, probability: np.ndarray, amount: np.ndarray, label: np.ndarray, costs: Costs
) -> np.ndarray:
    acting = dataclasses.replace(policy, pass_through=0.0)
    actions = acting.decide(probability, amount, [""] * len(probability)).actions
    return costs.realised(np.array(actions), amount, label)


def _slices(rows: "pl.DataFrame", known: np.ndarray) -> dict[str, np.ndarray]:
    import polars as pl

    sliced = with_slices(rows.filter(pl.Series(known)).with_columns(f_amount=pl.col("amount")))
    return {name: sliced[name].to_numpy().astype(str) for name in SLICES}


def _by_slice(
    slices: Mapping[str, np.ndarray],
    weight: np.ndarray,
    label: np.ndarray,
    probability: np.ndarray,
    cost: np.ndarray,
) -> dict[str, dict[str, stats.Estimate]]:
    values = {"fraud_rate": label, "brier": (probability - label) ** 2, "cost_per_decision": cost}
    return {
        f"{column} {name}": {
            metric: _at_least_0(weighted_mean_interval(each[rows], weight[rows], name=metric))
            for metric, each in values.items()
        }
        for column, names in slices.items()
        for name in np.unique(names)
        if (rows := names == name).any()
    }


def _ranks_as_before(found: stats.Estimate, baseline: stats.Estimate | None) -> Check:
    # The area does not depend on how frequent fraud is, which average precision does.
    if baseline is None:
        return Check(name="ranking", passed=False, value=found.value, bound=None, reason="no baseline to compare with")
    passed = found.upper >= baseline.lower
    then = f"{baseline.value:.4g} ({baseline.lower:.4g} to {baseline.upper:.4g})"
    reason = f"{found} ranks {'as' if passed else 'worse than'} when it was made, {then}"
    return Check(name="ranking", passed=passed, value=found.value, bound=baseline.lower, reason=reason)


def _at_least_0(found: stats.Estimate) -> stats.Estimate:
    return dataclasses.replace(found, lower=max(0.0, found.lower))
