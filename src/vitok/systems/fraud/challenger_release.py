"""A challenger that proves better becomes a version: a package, a gate, a card, and then a canary as for any other.

What is released is what was compared: the model as it is, with no calibrator of its own, and the champion's policy.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from vitok import __version__, stats
from vitok.clock import DAY, isoformat
from vitok.decisions.schema import FEATURE_PREFIX
from vitok.errors import Conflict, InvalidInput
from vitok.features import Catalogue
from vitok.models.calibrators import BetaCalibrator
from vitok.models.online_matrix import MatrixScorer
from vitok.models.online_scoring import package_files
from vitok.monitoring import ReferenceProfile
from vitok.registry import (
    DataSnapshot,
    Registry,
    Tracker,
    Verdict,
    at_least,
    at_most,
    calibrated,
    evaluate,
    model_card,
    not_worse,
)
from vitok.stats import Estimate
from vitok.systems.fraud.challenger import Challenger
from vitok.systems.fraud.challenger_standing import standing
from vitok.systems.fraud.features import CALENDAR
from vitok.systems.fraud.gate import FEW_FRAUDS, MAX_CALIBRATION_ERROR
from vitok.systems.fraud.messages import CHALLENGER, SYSTEM
from vitok.systems.fraud.releases import EXPERIMENT, Made
from vitok.systems.fraud.training import N_RANDOM_FEATURES

_REFERENCE_DAYS = 7
_IDENTITY = BetaCalibrator(a=1.0, b=1.0, c=0.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnlineCandidate:
    """A challenger as it was at one moment, before it is registered.

    Attributes:
        files: Of its package; they do not change where the challenger goes on learning.
        metrics: Measured on matured decisions, from what was said at the time.
        verdict: What the gate says.
        parameters: What it is made of.
    """

    files: Mapping[str, Any]
    metrics: Mapping[str, Estimate]
    verdict: Verdict
    parameters: Mapping[str, Any]


def online_candidate(challenger: Challenger, now: int) -> OnlineCandidate:
    """Makes a package of a challenger, and judges it on the latest decisions whose labels are known.

    What it said of a decision in the shadow was said before it could have learned it, so that all of it is held out.

    Args:
        challenger: The challenger.
        now: The present, in microseconds.

    Raises:
        Conflict: If the challenger has not begun, or nothing is in Production.
        InvalidInput: If no decision was scored by both and has a label.
        NotFound: If there are no decisions.
    """
    model, policy = challenger.snapshot(), challenger.policy()
    if model is None or policy is None:
        raise Conflict("there is no challenger to release; it begins with the first version in Production")
    features, costs = challenger.features, challenger.costs
    until = challenger.matured(now)
    since = until - challenger.rules.trailing
    rows = challenger.labelled(since, until, now)
    found = standing(rows, policy=policy, costs=costs, since=since, until=until)
    if found is None:
        raise InvalidInput("decisions", rows.height, "have some that both scored and whose labels are known")
    told = rows.filter(rows["shadow_version"].str.starts_with(f"{CHALLENGER}/")).drop_nulls(("label", "probability"))
    label, said = told["label"].to_numpy(), told["shadow_probability"].to_numpy()
    metrics = {
        "auc": found.challenger.roc_auc,
        "average_precision": found.challenger.average_precision,
        "log_loss": found.challenger.log_loss,
        "cost_per_decision": found.challenger.cost,
        "champion_cost_per_decision": found.champion.cost,
        "calibration_error": stats.calibration_error(label, said),
        "brier": stats.brier(label, said),
    }
    columns = ("event_time", *(FEATURE_PREFIX + name for name in features.names))
    recent = challenger.labelled(now - _REFERENCE_DAYS * DAY, now, now, ("request_id", *columns))
    times = recent["event_time"].to_physical().to_numpy()
    # Rows come to a version in 32 bits.
    values = recent.select(columns[1:]).to_numpy().astype(np.float32).astype(np.float64)
    profile = ReferenceProfile.fit(
        list(features.names),
        values,
        _IDENTITY(MatrixScorer(model, features.names)(values)),
        start=int(times.min()),
        end=int(times.max()) + 1,
        event_time=times,
        baseline={name: estimate.to_dict() for name, estimate in metrics.items()},
        ignored=CALENDAR,
        n_random_features=N_RANDOM_FEATURES,
    )
    champion = found.champion.cost.value
    checks = [
        at_least("frauds", float(found.n_positives), float(challenger.rules.min_positives)),
        at_least("average precision", found.challenger.average_precision.value, 5 * found.n_positives / found.n_obs),
        not_worse(
            "cost against the champion",
            candidate=found.challenger.cost.value,
            incumbent=champion,
            difference=found.cost_difference,
            margin=0.05 * champion,
            better="lower",
        ),
        at_most("cost difference over all looks", challenger.cost_difference().difference(), 0.0),
        calibrated(label, said, max_error=MAX_CALIBRATION_ERROR, least_positives=FEW_FRAUDS),
    ]
    return OnlineCandidate(
        files={
            **package_files(model, values, names=features.names),
            "features.json": {"version": features.version, **features.describe()},
            "calibrator.json": _IDENTITY.to_dict(),
            "policy.json": policy.describe(),
            "profile.json": profile.to_dict(),
            "metrics.json": {name: estimate.to_dict() for name, estimate in metrics.items()},
        },
        metrics=metrics,
        verdict=evaluate(checks),
        parameters={
            "model": "OnlineModel",
            "learned": model.ftrl.n_learned,
            "snapshot": challenger.version or "",
            "compared_since": isoformat(max(since, 0)),
            "compared_until": isoformat(until),
            "compared": found.n_obs,
            "frauds": found.n_positives,
            "features": features.version,
            "policy": policy.version,
            "vitok": __version__,
        },
    )


def register_online(
    challenger: Challenger,
    registry: Registry,
    tracker: Tracker,
    *,
    now: int,
    actor: str,
    reason: str,
    key: str,
) -> Made:
    """Makes a version of a challenger: tracks the run, registers the package, records the gate, writes the card.

    A canary is begun as for any other version, by whoever asks for it and where the gate has accepted it. The same
    key again makes nothing new.

    Args:
        challenger: The challenger; it goes on learning, and the version stays as it is.
        registry: Where versions stand.
        tracker: Where runs are kept.
        now: The present, in microseconds.
        actor: Who registers it.
        reason: Why, in words.
        key: Idempotency key.

    Raises:
        Conflict: If the challenger has not begun, or nothing is in Production.
        InvalidInput: If no decision was scored by both and has a label.
        NotFound: If there are no decisions.
    """
    before = registry.ledger.entry(SYSTEM, f"{key}/gate")
    if before is not None and before.version is not None:
        # Between two calls the challenger has learned: what was decided with the key stays.
        known = registry.state(SYSTEM).version(before.version)
        return Made(version=known.version, verdict=Verdict.from_dict(before.details))
    candidate = online_candidate(challenger, now)
    learned = int(candidate.parameters["learned"])
    data = {"decisions": DataSnapshot(digest=str(candidate.parameters["snapshot"]), rows=learned)}
    with tracker.run(EXPERIMENT, name=reason, params=candidate.parameters, data=data) as run:
        run.log_metrics(candidate.metrics)
        run.log_artifact("gate.json", candidate.verdict.to_dict())
        version = registry.register(
            SYSTEM, candidate.files, now=now, actor=actor, run_id=run.run_id, reason=reason, key=key
        )
        name = f"{SYSTEM}/{version.version}"
        Catalogue(registry.home / "features").uses(model=name, features=challenger.features, actor=actor)
        registry.ledger.record_gate(
            SYSTEM, version.version, candidate.verdict, now=now, actor="gate", key=f"{key}/gate"
        )
        card = model_card(
            version,
            metrics=candidate.metrics,
            gate=candidate.verdict,
            parameters=candidate.parameters,
            intended_use="Verdicts on card transactions: allow, review, block.",
            training_data=f"{learned:,} decisions, each learned when its label was known, by FTRL-Proximal",
            evaluation_data=f"{candidate.parameters['compared_since']} to {candidate.parameters['compared_until']}: "
            "what it said in the shadow, before it learned",
        )
        run.log_artifact("card.md", card.markdown())
        run.log_folder(registry.load(SYSTEM, version.version).folder, "package")
    tracker.mirror(registry.state(SYSTEM), packages=registry.location)
    return Made(version=version.version, verdict=candidate.verdict)
