"""Making versions: reading rows with what is known of them today, fitting, registering with gate, run and card."""

import contextlib
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitok import decisions, settings
from vitok.clock import DAY, parse_time
from vitok.errors import InvalidInput
from vitok.features import Catalogue
from vitok.monitoring import ReferenceProfile
from vitok.monitoring.label_guard import LabelGuard
from vitok.policies import Costs
from vitok.registry import DataSnapshot, Package, Registry, Tracker, Verdict, evaluate, model_card
from vitok.stats import Estimate
from vitok.systems.fraud import training
from vitok.systems.fraud.acting import LOOP, too_young
from vitok.systems.fraud.features import FEATURES
from vitok.systems.fraud.gate import Incumbent
from vitok.systems.fraud.label_check import HOLDS, label_check
from vitok.systems.fraud.messages import SYSTEM
from vitok.systems.fraud.model import LEARNED, LoadedModel
from vitok.systems.fraud.recalibrating import LONGEST, Recalibrated, recalibrated
from vitok.systems.fraud.training import Candidate, Sample

if TYPE_CHECKING:
    import polars as pl

EXPERIMENT = "fraud"
_DAYS_TO_LEARN = 28
_DAYS_TO_VALIDATE = 7
_LEAST_DAYS_TO_VALIDATE = 2
_FRAUDS = 50


@dataclasses.dataclass(frozen=True, kw_only=True)
class Made:
    """A version that was made.

    Attributes:
        version: Its number.
        verdict: What its gate said.
    """

    version: int
    verdict: Verdict

    @property
    def name(self) -> str:
        """Such as `"fraud/2"`."""
        return f"{SYSTEM}/{self.version}"


@dataclasses.dataclass(frozen=True)
class Workshop:
    """Where versions of the fraud model are made.

    Args:
        home: Home folder: registry, logs, tracking.
        history: The rows before the service began: features, `event_time`, `customer_id`, `amount`, `transaction_id`.
        labels: Their labels: `transaction_id`, `is_fraud`, `label_time`.
        fingerprint: Hash of the data behind the history.
        costs: What actions cost.
        start: When the data begin, microseconds.
        guarded: Whether labels whose source has gone wrong are left out; where they are not, a gate asks for them.
    """

    home: Path
    history: "pl.DataFrame"
    labels: "pl.DataFrame"
    fingerprint: str
    costs: Costs
    start: int
    guarded: bool = True

    def rows(self, now: int, *, since: int) -> Sample:
        """Reads all rows of `[since, now)` with the labels known at `now`, from the history and the decision log."""
        import polars as pl

        moment = pl.lit(now).cast(pl.Datetime("us", "UTC"))
        first = pl.lit(since).cast(pl.Datetime("us", "UTC"))
        known = self.labels.filter(pl.col("label_time") <= moment).select("transaction_id", "is_fraud")
        columns = ["event_time", "customer_id", "amount", *FEATURES.names]
        parts = [
            self.history.filter((pl.col("event_time") >= first) & (pl.col("event_time") < moment))
            .join(known, on="transaction_id", how="left")
            .select(*dict.fromkeys(columns), pl.col("is_fraud").cast(pl.Float64))
        ]
        logged = self.decided(now, since=since, until=now)
        if logged is not None:
            features = [pl.col(f"f_{name}").alias(name) for name in FEATURES.names if name != "amount"]
            parts.append(
                logged.select(
                    "event_time", "customer_id", "amount", *features, pl.col("label").cast(pl.Float64).alias("is_fraud")
                ).select(parts[0].columns)
            )
        return Sample.of(pl.concat(parts, how="vertical_relaxed").sort("event_time", maintain_order=True))

    def decided(self, now: int, *, since: int, until: int) -> "pl.DataFrame | None":
        """Reads the decisions of `[since, until)` with the labels known at `now`; None where nothing was logged yet."""
        import polars as pl

        folder, outcomes = self.home / "log" / "decisions", self.home / "log" / "outcomes"
        if not (folder.exists() and any(folder.rglob("segment-*"))):
            return None
        logged = decisions.read(folder, since=since, until=until)
        if any(outcomes.rglob("segment-*")):
            return decisions.join(logged, self._believed(decisions.labels(outcomes, as_of=now, kind=SYSTEM)))
        return logged.with_columns(label=pl.lit(None, pl.Float64))

    def _believed(self, view: "pl.DataFrame") -> "pl.DataFrame":
        # Labels whose source has gone wrong teach nothing.
        if not self.guarded or not (self.home / HOLDS).exists():
            return view
        with contextlib.closing(LabelGuard(self.home / HOLDS)) as guard:
            return guard.trusted(view)

    @classmethod
    def of_log(cls, home: Path, *, costs: Costs, start: int) -> "Workshop":
        """Returns the workshop of a home whose log is all that is known; nothing is read yet.

        Args:
            home: Home folder.
            costs: What actions cost.
            start: When the log begins, microseconds.
        """
        import hashlib

        import polars as pl

        moment = pl.Datetime("us", "UTC")
        rows: dict[str, Any] = {"event_time": moment, "customer_id": pl.String, "transaction_id": pl.String}
        history = pl.DataFrame(schema=rows | dict.fromkeys(FEATURES.names, pl.Float64) | {"amount": pl.Float64})
        labels = pl.DataFrame(schema={"transaction_id": pl.String, "is_fraud": pl.Float64, "label_time": moment})
        files = sorted((path.name, path.stat().st_size) for path in (home / "log").rglob("segment-*") if path.is_file())
        return cls(home, history, labels, hashlib.sha256(repr(files).encode()).hexdigest(), costs, start)

    def lacks(self, now: int) -> str:
        """Says why no version can be made of what is here; empty where one can be tried."""
        return too_young(self.start, now)

    def first(self, timeline: training.Timeline) -> Candidate:
        """Fits the first version by the timeline's split."""
        rows = self.rows(timeline.replay_start, since=timeline.train_start)
        return training.fit(
            rows.between(timeline.train_start, timeline.train_end),
            rows.between(timeline.validation_start, timeline.validation_end),
            rows.between(timeline.validation_end, timeline.replay_start),
            costs=self.costs,
            unwatched=training.not_filled(timeline.validation_end - self.start, timeline.label_delay),
        )

    def again(self, now: int, *, label_delay: int, changed: int | None, incumbent: LoadedModel | None) -> Candidate:
        """Fits a version on what is known today.

        There is no gap of the label delay before the validation days: after a change the newest matured days are the
        ones to learn from, and the canary judges the version on later days anyway.

        Args:
            now: The present.
            label_delay: Age at which labels are known.
            changed: When the world changed, as far as the alerts say; earlier rows then count a fifth.
            incumbent: The version in force, to be compared with on the validation rows.
        """
        validate = _DAYS_TO_VALIDATE
        if changed is not None:
            # Half of the days of the new world at most: a version that is only tested on it has learned nothing of it.
            known = (now - label_delay) // DAY - changed // DAY
            validate = min(validate, max(_LEAST_DAYS_TO_VALIDATE, known // 2))
        train, validation, reference = self._recent(now, label_delay=label_delay, validate=validate)
        if changed is not None and int(np.nansum(train.is_fraud[train.event_time >= changed])) >= 10:
            train = _newer(train, changed)
        against = None
        if incumbent is not None:
            _, probability = incumbent.answer(validation.values)
            policy = dataclasses.replace(incumbent.policy, pass_through=0.0)
            actions = policy.decide(probability, validation.amount, [""] * len(validation)).actions
            cost = self.costs.realised(np.array(actions), validation.amount, validation.is_fraud)
            against = Incumbent(name=incumbent.version, probability=probability, cost=cost)
        unwatched = training.not_filled(int(reference.event_time.min()) - self.start, label_delay)
        return training.fit(
            train,
            validation,
            reference,
            costs=self.costs,
            incumbent=against,
            changed=changed,
            unwatched=unwatched,
        )

    def refit(self, now: int, *, label_delay: int, champion: LoadedModel, made: int, package: Package) -> Recalibrated:
        """Refits the calibrator of a version to decisions that its trees have not learned from.

        Args:
            now: The present.
            label_delay: Age at which labels are known.
            champion: The version.
            made: When it was registered: no label of younger decisions than a label delay was known then.
            package: Its package.

        Raises:
            InvalidInput: If there are too few frauds with mature labels, or no decisions of late.
        """
        if "profile.json" not in package:
            raise InvalidInput(f"package of {champion.version}", "no profile.json", "say how well it ranked when made")
        matured = (now - label_delay) // DAY * DAY
        # Who learns from the log itself, row by row, has seen each label as it came.
        known = made - label_delay if LEARNED in package else made
        rows = self.decided(now, since=min(matured, max(known, matured - LONGEST)), until=matured)
        if rows is None:
            raise InvalidInput("decisions", 0, "be there to refit a calibrator to")
        reference = self.rows(now, since=now - 7 * DAY)
        if not len(reference):
            raise InvalidInput("decisions of the last 7 days", 0, "be there: a version is watched against them")
        profile = ReferenceProfile.from_dict(package.json("profile.json"))
        unwatched = training.not_filled(int(reference.event_time.min()) - self.start, label_delay)
        return recalibrated(rows, reference, champion, profile, costs=self.costs, unwatched=unwatched)

    def upside_down(self, now: int, *, label_delay: int) -> Candidate:
        """Fits a deliberately bad version: as if an export had flipped the meaning of the labels."""
        train, validation, reference = self._recent(now, label_delay=label_delay, validate=_DAYS_TO_VALIDATE)
        train = dataclasses.replace(train, is_fraud=1 - train.is_fraud)
        validation = dataclasses.replace(validation, is_fraud=1 - validation.is_fraud)
        return training.fit(train, validation, reference, costs=self.costs)

    def _recent(self, now: int, *, label_delay: int, validate: int) -> tuple[Sample, Sample, Sample]:
        matured = (now - label_delay) // DAY * DAY
        start = matured - (_DAYS_TO_LEARN + _DAYS_TO_VALIDATE) * DAY
        rows = self.rows(now, since=start)
        known = rows.where(np.isfinite(rows.is_fraud))
        # Days with few frauds cannot tell two versions apart.
        middle = matured - validate * DAY
        while validate < _DAYS_TO_VALIDATE and known.between(middle, matured).is_fraud.sum() < _FRAUDS:
            validate, middle = validate + 1, middle - DAY
        reference = rows.between(max(start, now - 7 * DAY), now)
        return known.between(start, middle), known.between(middle, matured), reference


def _learned_after(package: Package, matured: int) -> int | None:
    if LEARNED not in package:
        return None
    changed = package.json(LEARNED)["changed"]
    started = matured // DAY * DAY - (_DAYS_TO_LEARN + _DAYS_TO_VALIDATE) * DAY
    return changed if changed is not None and changed > started else None


def _newer(train: Sample, changed: int) -> Sample:
    # Earlier rows are thinned to a fifth by their time, which is no property of what they are.
    keep = (train.event_time >= changed) | (np.arange(len(train)) % 5 == 0)
    return train.where(keep)


def register(
    workshop: Workshop,
    registry: Registry,
    tracker: Tracker,
    candidate: Candidate,
    *,
    name: str,
    now: int,
    actor: str,
    key: str,
) -> Made:
    """Tracks the run, registers the package, records the gate, and writes the model card.

    The gate asks too whether it has learned from labels that are held. The same key again makes nothing new.
    """
    learned = label_check(
        workshop.home,
        since=parse_time(candidate.parameters["train_start"]),
        until=parse_time(candidate.parameters["validation_end"]) + 1,
        now=now,
        left_out=workshop.guarded,
    )
    candidate = dataclasses.replace(candidate, verdict=evaluate([*candidate.verdict.checks, learned]))
    first, last = candidate.parameters["train_start"], candidate.parameters["train_end"]
    return _record(
        registry,
        tracker,
        candidate.files(),
        {"importance.json": candidate.trees.importance()},
        metrics=candidate.metrics,
        verdict=candidate.verdict,
        parameters=candidate.parameters,
        learned_from=DataSnapshot(
            digest=workshop.fingerprint, rows=candidate.parameters["train_rows"], statistics=candidate.statistics
        ),
        slices=candidate.slices,
        training_data=f"{candidate.parameters['train_rows']} transactions, {first} to {last}",
        evaluation_data=f"The later half of {candidate.parameters['validation_start']} to "
        f"{candidate.parameters['validation_end']}; nothing was fitted on it",
        name=name,
        now=now,
        actor=actor,
        key=key,
    )


def _record(
    registry: Registry,
    tracker: Tracker,
    files: Mapping[str, Any],
    artifacts: Mapping[str, Any],
    *,
    metrics: Mapping[str, Estimate],
    verdict: Verdict,
    parameters: Mapping[str, Any],
    learned_from: DataSnapshot,
    slices: Mapping[str, Mapping[str, Estimate]],
    training_data: str,
    evaluation_data: str,
    name: str,
    now: int,
    actor: str,
    key: str,
) -> Made:
    seeds = {"training": settings.current().seed}
    data = {"transactions": learned_from}
    with tracker.run(EXPERIMENT, name=name, params=parameters, seeds=seeds, data=data) as run:
        run.log_metrics(metrics)
        for file, content in ({"gate.json": verdict.to_dict()} | dict(artifacts)).items():
            run.log_artifact(file, content)
        version = registry.register(SYSTEM, files, now=now, actor=actor, run_id=run.run_id, reason=name, key=key)
        Catalogue(registry.home / "features").uses(model=f"{SYSTEM}/{version.version}", features=FEATURES, actor=actor)
        registry.ledger.record_gate(SYSTEM, version.version, verdict, now=now, actor="gate", key=f"{key}/gate")
        card = model_card(
            version,
            metrics=metrics,
            slices=slices,
            gate=verdict,
            parameters=parameters,
            intended_use="Verdicts on card transactions: allow, review, block.",
            training_data=training_data,
            evaluation_data=evaluation_data,
        )
        run.log_artifact("card.md", card.markdown())
        run.log_folder(registry.load(SYSTEM, version.version).folder, "package")
    tracker.mirror(registry.state(SYSTEM), packages=registry.location)
    return Made(version=version.version, verdict=verdict)


class Maker:
    """Makes versions in this process, and shows where they stand in the tracking store.

    Args:
        workshop: Where versions are made.
        registry: Where they are registered.
        tracker: Where runs are kept.
        label_delay: Age at which labels are known, microseconds.
    """

    def __init__(self, workshop: Workshop, registry: Registry, tracker: Tracker, *, label_delay: int) -> None:
        self.workshop, self.registry, self.tracker, self.label_delay = workshop, registry, tracker, label_delay

    def lacks(self, now: int) -> str:
        """Says why no version can be made of what is here; empty where one can be tried."""
        return self.workshop.lacks(now)

    def again(self, key: str, *, reason: str, at: int, changed: int | None) -> dict[str, Any]:
        """Makes a version of what is known at a time; the same key again makes nothing new.

        Args:
            key: Names the retraining.
            reason: Why it is made.
            at: The time, microseconds.
            changed: When the world changed, as far as the alerts say. Where they say nothing, what the version in
                force was told stands, for as long as there are rows of before to learn from.

        Returns:
            `version`, `accepted` and `gate`, the gate's reason; or `impossible` with why none can be made.
        """
        state = self.registry.state(SYSTEM)
        incumbent = load(self.registry, state.production) if state.production is not None else None
        if changed is None and state.production is not None:
            changed = _learned_after(self.registry.load(SYSTEM, state.production), at - self.label_delay)
        try:
            candidate = self.workshop.again(at, label_delay=self.label_delay, changed=changed, incumbent=incumbent)
        except InvalidInput as error:
            return {"impossible": str(error)}
        made = register(self.workshop, self.registry, self.tracker, candidate, name=reason, now=at, actor=LOOP, key=key)
        return {"version": made.version, "accepted": made.verdict.accepted, "gate": made.verdict.reason}

    def refit(self, key: str, *, champion: int, reason: str, at: int) -> dict[str, Any]:
        """Makes a version of the champion's trees and a new calibrator; the same key again makes nothing new.

        Args:
            key: Names the job.
            champion: Number of the version in force.
            reason: Why it is made.
            at: The time, microseconds.

        Returns:
            `version` and `gate`, the gate's reason; or `impossible` with why none was made: a version that its gate
            would refuse is not registered, since a retraining comes next.
        """
        before = self.registry.ledger.entry(SYSTEM, f"{key}/gate")
        if before is not None:
            return {"version": before.version, "gate": Verdict.from_dict(before.details).reason}
        package, made = self.registry.load(SYSTEM, champion), self.registry.ledger.history(SYSTEM, version=champion)[0]
        model = load(self.registry, champion)
        try:
            found = self.workshop.refit(
                at, label_delay=self.label_delay, champion=model, made=made.time_us, package=package
            )
        except InvalidInput as error:
            return {"impossible": str(error)}
        given = found.parameters
        since, until = parse_time(given["train_start"]), parse_time(given["validation_end"]) + 1
        guarded = self.workshop.guarded
        learned = label_check(self.workshop.home, since=since, until=until, now=at, left_out=guarded)
        verdict = evaluate([*found.verdict.checks, learned])
        if not verdict.accepted:
            return {"impossible": verdict.reason}
        verdict = dataclasses.replace(verdict, reason=f"calibrator refitted: {verdict.reason}")
        recorded = _record(
            self.registry,
            self.tracker,
            found.files(package),
            {"calibrator.json": found.refit.candidate.to_dict()},
            metrics=found.metrics,
            verdict=verdict,
            parameters=given,
            learned_from=DataSnapshot(digest=self.workshop.fingerprint, rows=given["train_rows"]),
            slices=found.slices,
            training_data=f"The trees are those of {model.version}; the calibrator was fitted to {given['train_rows']} "
            f"decisions, {given['train_start']} to {given['train_end']}",
            evaluation_data=f"{given['validation_rows']} later decisions, {given['validation_start']} to "
            f"{given['validation_end']}; nothing was fitted on them",
            name=f"calibrator refitted: {reason}",
            now=at,
            actor=LOOP,
            key=key,
        )
        return {"version": recorded.version, "gate": verdict.reason}

    def mirror(self) -> None:
        """Shows the stages of the versions in the tracking store."""
        self.tracker.mirror(self.registry.state(SYSTEM), packages=self.registry.location)


def load(registry: Registry, version: int) -> LoadedModel:
    """Loads a version for use outside the service."""
    return LoadedModel.load(registry.load(SYSTEM, version), f"{SYSTEM}/{version}", "", FEATURES)
