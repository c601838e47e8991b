"""From rows with labels to a version: trees, calibrator, tiers, reference profile, and what its gate is shown."""

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from vitok import __version__, stats
from vitok.clock import DAY, isoformat
from vitok.errors import InvalidInput
from vitok.features import FeatureSet
from vitok.models import BoostedTrees, Forest, fit_best, fit_boosted_trees
from vitok.models.calibrators import Calibrator, IsotonicCalibrator, PlattCalibrator
from vitok.models.convert import convert
from vitok.models.tradeoffs import time_in_turns
from vitok.monitoring import PerformanceEstimator, ReferenceProfile
from vitok.policies import Costs, TierPolicy
from vitok.registry import Verdict, column_statistics
from vitok.systems.fraud import gate, rules
from vitok.systems.fraud.features import CALENDAR, FEATURES, LABELS
from vitok.systems.fraud.model import LEARNED
from vitok.systems.fraud.sketching import SLICES, with_slices

if TYPE_CHECKING:
    import polars as pl

EXAMPLES = 2_000
BATCH_SIZES = (1, 16, 256)
TIMED_ANSWERS = 1_000
N_RANDOM_FEATURES = 256
ENOUGH_FOR_STEPS = 500
COVERAGE = 0.95
REVIEW_SHARE = 0.01


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timeline:
    """How a stretch of data is used: warm-up, training, delay gap, validation, delay gap, replay.

    Each gap is as long as a label takes, so that nothing is learnt or judged from labels that were not known yet.
    All times are microseconds.
    """

    start: int
    train_start: int
    train_end: int
    validation_start: int
    validation_end: int
    replay_start: int
    end: int
    label_delay: int

    @classmethod
    def plan(cls, start: int, end: int, *, label_delay: int) -> Self:
        """Lays out whole days: a fifth trains, a tenth validates, two fifths are replayed.

        The rest comes before the training, so that windows of 30 days fill.

        Raises:
            InvalidInput: If the data are shorter than two label delays and twelve days.

        Example:
            >>> plan = Timeline.plan(0, 61 * DAY, label_delay=7 * DAY)
            >>> [(moment // DAY) for moment in (plan.train_start, plan.validation_start, plan.replay_start, plan.end)]
            [14, 30, 42, 61]
        """
        first, last = start // DAY, -(-end // DAY)
        gap = -(-label_delay // DAY)
        free = last - first - 2 * gap
        if free < 12:
            raise InvalidInput(
                "transactions: length",
                f"{last - first} days",
                f"be at least {2 * gap + 12} days with a label delay of {gap} days",
                "Give more days, or a shorter --label-delay if labels really come sooner.",
            )
        validation = min(7, max(3, round(free * 0.1)))
        replay = min(56, max(5, round(free * 0.4)))
        train = min(28, max(3, round(free * 0.2)))
        train_start = first + free - validation - replay - train
        days = {"start": first, "train_start": train_start, "train_end": train_start + train}
        days["validation_start"] = days["train_end"] + gap
        days["validation_end"] = days["validation_start"] + validation
        days["replay_start"] = days["validation_end"] + gap
        return cls(**{name: day * DAY for name, day in days.items()}, end=last * DAY, label_delay=label_delay)

    def __str__(self) -> str:
        """Says it in one line."""

        def span(a: int, b: int) -> str:
            return f"{(b - a) // DAY} d"

        def date(moment: int) -> str:
            return isoformat(moment)[:10]

        return (
            f"warm-up {span(self.start, self.train_start)}, "
            f"training {span(self.train_start, self.train_end)} from {date(self.train_start)}, "
            f"gap {span(self.train_end, self.validation_start)}, "
            f"validation {span(self.validation_start, self.validation_end)} from {date(self.validation_start)}, "
            f"gap {span(self.validation_end, self.replay_start)}, "
            f"replay {span(self.replay_start, self.end)} from {date(self.replay_start)}"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """Rows with features and, where they are known, labels.

    Attributes:
        values: Shape (n, features), float64, in the order of the feature set.
        is_fraud: Shape (n,), 0 or 1; NaN where not known.
        event_time: Shape (n,), int64 microseconds.
        customer: Shape (n,), codes.
        amount: Shape (n,).
    """

    values: np.ndarray
    is_fraud: np.ndarray
    event_time: np.ndarray
    customer: np.ndarray
    amount: np.ndarray

    @classmethod
    def of(cls, frame: "pl.DataFrame", features: FeatureSet = FEATURES, *, prefix: str = "") -> Self:
        """Reads a frame with feature columns, `event_time`, `customer_id` and, optionally, `is_fraud`."""
        import polars as pl

        label = frame["is_fraud"].cast(pl.Float64) if "is_fraud" in frame.columns else pl.Series([None] * len(frame))
        values = np.empty((len(frame), len(features.names)))
        for i, name in enumerate(features.names):
            values[:, i] = frame[f"{prefix}{name}"].cast(pl.Float64).fill_null(float("nan")).to_numpy()
        return cls(
            values=values,
            is_fraud=label.cast(pl.Float64).fill_null(float("nan")).to_numpy(),
            event_time=frame["event_time"].cast(pl.Datetime("us", "UTC")).to_physical().to_numpy().astype(np.int64),
            customer=frame["customer_id"].rank("dense").to_numpy().astype(np.int64),
            amount=frame["amount"].to_numpy().astype(np.float64),
        )

    def __len__(self) -> int:
        """How many rows."""
        return len(self.is_fraud)

    def where(self, mask: np.ndarray) -> Self:
        """Returns the rows of a mask of shape (n,)."""
        return type(self)(**{item.name: getattr(self, item.name)[mask] for item in dataclasses.fields(self)})

    def between(self, start: int, end: int) -> Self:
        """Returns the rows of `[start, end)`."""
        return self.where((self.event_time >= start) & (self.event_time < end))

    @property
    def days(self) -> np.ndarray:
        """Day of each row, whole days since 1970."""
        return self.event_time // DAY

    def columns(self, features: FeatureSet = FEATURES) -> dict[str, np.ndarray]:
        """Returns the feature columns by name."""
        return {name: self.values[:, i] for i, name in enumerate(features.names)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """A fitted version before it is registered."""

    trees: BoostedTrees
    calibrator: Calibrator
    policy: TierPolicy
    profile: ReferenceProfile
    metrics: Mapping[str, stats.Estimate]
    verdict: Verdict
    parameters: Mapping[str, Any]
    examples: np.ndarray
    latency: Mapping[str, Any]
    slices: Mapping[str, Mapping[str, stats.Estimate]]
    statistics: Mapping[str, Mapping[str, float | None]]
    changed: int | None = None
    estimator: PerformanceEstimator | None = None
    sets: stats.ConformalSets | None = None

    def files(self, features: FeatureSet = FEATURES) -> dict[str, Any]:
        """Returns the files of the model package.

        Raises:
            GateRefused: If what will be served does not score as the trees do.
        """
        # In 32 bits, as the trees were fitted and as they are asked.
        converted = convert(self.trees, self.examples.astype(np.float32), names=features.names)
        watched = {"estimator.json": self.estimator, "conformal.json": self.sets}
        return {
            **converted.files(),
            **{name: part.to_dict() for name, part in watched.items() if part is not None},
            "model.txt": self.trees.text,
            "features.json": {"version": features.version, **features.describe()},
            "calibrator.json": self.calibrator.to_dict(),
            "policy.json": self.policy.describe(),
            "profile.json": self.profile.to_dict(),
            "metrics.json": {name: estimate.to_dict() for name, estimate in self.metrics.items()},
            "importance.json": self.trees.importance(),
            "latency.json": dict(self.latency),
            LEARNED: {name: self.parameters[name] for name in ("train_start", "train_end")} | {"changed": self.changed},
        }


def latency_profile(trees: BoostedTrees, rows: np.ndarray) -> dict[str, Any]:
    """Returns how long the model takes as it will be served, in microseconds.

    Args:
        trees: The model.
        rows: Rows as they will be served, shape (n, features), float32.

    Returns:
        `microseconds` of a batch in the median, by the rows of the batch, and `answers_us`, each of many answers to
        one row, from which a quantile can be shown.
    """
    forest = Forest.of(trees)
    X = np.resize(rows, (max(BATCH_SIZES), rows.shape[1])).astype(forest.input_dtype)

    def form(n: int) -> Callable[[], object]:
        batch = np.ascontiguousarray(X[:n])
        return lambda: forest.predict(batch)

    found = time_in_turns({"forest": form}, BATCH_SIZES)["forest"]
    return {
        "engine": "forest",
        "microseconds": {str(item.batch_size): round(item.microseconds, 2) for item in found},
        "answers_us": _answers(forest, X),
    }


def _answers(forest: Forest, X: np.ndarray) -> list[float]:
    taken = []
    for i in range(TIMED_ANSWERS):
        row = X[i % len(X)][np.newaxis]
        started = time.perf_counter_ns()
        forest.predict(row)
        taken.append(round((time.perf_counter_ns() - started) / 1000, 2))
    return taken


def measure(sample: Sample, score: np.ndarray, *, k: int = 100) -> dict[str, stats.Estimate]:
    """Measures a score on rows with known labels: AUC, average precision, card precision@k."""
    return {
        "auc": stats.roc_auc(sample.is_fraud, score),
        "average_precision": stats.average_precision(sample.is_fraud, score),
        f"card_precision_{k}": stats.card_precision_at_k(
            day=sample.days, card=sample.customer, is_fraud=sample.is_fraud, score=score, k=k
        ),
    }


def not_filled(history: int, label_delay: int, features: FeatureSet = FEATURES) -> tuple[str, ...]:
    """Names the features whose windows are longer than the history behind them, and those made of them.

    They grow for no other reason than that the data begin; that is no drift.

    Args:
        history: Length of the data before the rows in question, in microseconds.
        label_delay: How much later the history of labels begins, in microseconds.
        features: The definitions.

    Example:
        >>> not_filled(36 * DAY, 7 * DAY)
        ('terminal_labels_count_30d', 'terminal_labels_risk_30d')
    """
    names: list[str] = []
    for view in features.windowed:
        known = history - (label_delay if view.source == LABELS else 0)
        spans = view.plan.bounds[view.plan.rows[: len(view.feature_names), 1], 0].tolist()
        names += [name for name, span in zip(view.feature_names, spans, strict=True) if span > known]
    names += [item.name for item in features.on_demand if set(item.inputs) & set(names)]
    return tuple(names)


def rule_cost(sample: Sample, costs: Costs) -> np.ndarray:
    """Returns what the rules' action would have cost on each row, shape (n,)."""
    actions = np.array(rules.rule_actions(rules.rule_score(sample.columns())))
    return costs.realised(actions, sample.amount, sample.is_fraud)


def fit(
    train: Sample,
    validation: Sample,
    reference: Sample,
    *,
    costs: Costs,
    review_share: float = REVIEW_SHARE,
    pass_through: float = 0.01,
    incumbent: gate.Incumbent | None = None,
    changed: int | None = None,
    unwatched: tuple[str, ...] = (),
    features: FeatureSet = FEATURES,
) -> Candidate:
    """Fits a version and judges it.

    The earlier half of the validation days stops the trees and fits the calibrator; tiers and gate use the later
    half, which nothing was fitted on.

    Args:
        train: Rows with labels.
        validation: Later rows with labels.
        reference: The most recent rows, labels not needed: their distributions become the reference profile.
        costs: What actions cost.
        review_share: Share of the transactions that reviewers can look at.
        pass_through: Share of blocks let pass at random.
        incumbent: The version in force, on the validation rows.
        changed: When the world changed, microseconds: only rows since then are compared with the incumbent.
        unwatched: Features in which no drift is looked for, besides the calendar's.
        features: The definitions.

    Raises:
        InvalidInput: If there are fewer than ten frauds to learn from or to validate on.
    """
    for name, sample in (("training", train), ("validation", validation)):
        frauds = int(np.nansum(sample.is_fraud))
        if frauds < 10:
            raise InvalidInput(f"{name}: frauds", frauds, "be at least 10", "Give a longer or larger data set.")
    middle = _middle(validation)
    early, late = validation.where(validation.days < middle), validation.where(validation.days >= middle)
    trees = fit_boosted_trees(
        train.values, train.is_fraud, names=features.names, held_out=(early.values, early.is_fraud), n_trees=400
    )
    # With few frauds the top step of an isotonic fit stands on a handful of rows and promises certainty.
    many = int(early.is_fraud.sum()) >= ENOUGH_FOR_STEPS
    kinds = (PlattCalibrator, IsotonicCalibrator) if many else (PlattCalibrator,)
    choice = fit_best(trees.score(early.values), early.is_fraud, kinds=kinds)
    calibrator = choice.calibrator
    probability = calibrator(trees.score(late.values))
    n_days = max(1, len(np.unique(late.days)))
    policy = TierPolicy.fit(
        probability,
        late.amount,
        days=n_days,
        reviews_per_day=max(1.0, review_share * len(late) / n_days),
        costs=costs,
        pass_through=pass_through,
    )
    units = [""] * len(late)
    acting = dataclasses.replace(policy, pass_through=0.0)
    cost = costs.realised(np.array(acting.decide(probability, late.amount, units).actions), late.amount, late.is_fraud)
    metrics = measure(late, probability)
    metrics["calibration_error"] = stats.calibration_error(late.is_fraud, probability)
    metrics["brier"] = stats.brier(late.is_fraud, probability)
    metrics["cost_per_decision"] = stats.mean_interval(cost, name="cost_per_decision")
    rules_cost = rule_cost(late, costs)
    metrics["rules_cost_per_decision"] = stats.mean_interval(rules_cost, name="rules_cost_per_decision")
    metrics["rules_average_precision"] = stats.average_precision(
        late.is_fraud, rules.rule_score(late.columns(features))
    )
    metrics["fraud_rate"] = dataclasses.replace(
        stats.wilson(int(late.is_fraud.sum()), len(late)), name="fraud_rate", definition="share of frauds"
    )
    both = 2 <= late.is_fraud.sum() <= len(late) - 2
    present = calibrator(trees.score(reference.values))
    profile = ReferenceProfile.fit(
        list(features.names),
        reference.values,
        present,
        start=int(reference.event_time.min()),
        end=int(reference.event_time.max()) + 1,
        event_time=reference.event_time,
        baseline={name: estimate.to_dict() for name, estimate in metrics.items()},
        ignored=(*CALENDAR, *unwatched),
        slices=slices_of(reference, features),
        n_random_features=N_RANDOM_FEATURES,
    )
    examples = late.values[:EXAMPLES]
    latency = latency_profile(trees, examples.astype(np.float32))
    slices = slices_of(late, features)
    verdict = gate.judge(
        gate.Evidence(
            train=train,
            held_out=late,
            probability=probability,
            cost=cost,
            rules_cost=rules_cost,
            average_precision=metrics["average_precision"],
            slices=slices,
            latency_us=np.array(latency["answers_us"]),
            incumbent=None if incumbent is None else incumbent.where(validation.days >= middle),
            changed=changed,
        )
    )
    return Candidate(
        trees=trees,
        calibrator=calibrator,
        policy=policy,
        profile=profile,
        metrics=metrics,
        verdict=verdict,
        parameters={
            "trees": trees.n_trees,
            "calibrator": choice.kind,
            "train_rows": len(train),
            "train_frauds": int(train.is_fraud.sum()),
            "train_start": isoformat(int(train.event_time.min())),
            "train_end": isoformat(int(train.event_time.max())),
            "validation_rows": len(validation),
            "validation_start": isoformat(int(validation.event_time.min())),
            "validation_end": isoformat(int(validation.event_time.max())),
            "features": features.version,
            "policy": policy.version,
            "review_price": policy.review_price,
            "vitok": __version__,
        },
        examples=examples,
        latency=latency,
        statistics=column_statistics({"is_fraud": train.is_fraud, **train.columns(features)}),
        slices=_by_slice(late, probability, cost, slices),
        changed=changed,
        estimator=PerformanceEstimator.fit(probability, late.is_fraud) if both else None,
        sets=stats.ConformalSets.fit(
            np.column_stack([1 - probability, probability]), late.is_fraud.astype(np.intp), coverage=COVERAGE
        ),
    )


def slices_of(sample: Sample, features: FeatureSet) -> dict[str, np.ndarray]:
    """Returns the slices of rows by the columns that are watched by slice, shape (n,) each."""
    import polars as pl

    columns = with_slices(pl.DataFrame(sample.columns(features)), prefix="")
    return {name: columns[name].to_numpy() for name in SLICES if name in columns.columns}


def _middle(sample: Sample) -> int:
    days = np.unique(sample.days)
    return int(days[len(days) // 2])


def _by_slice(
    late: Sample, probability: np.ndarray, cost: np.ndarray, slices: Mapping[str, np.ndarray]
) -> dict[str, dict[str, stats.Estimate]]:
    found = {}
    for column, labels in slices.items():
        for label in np.unique(labels.astype(str)):
            rows = labels.astype(str) == label
            y = late.is_fraud[rows]
            rate = stats.wilson(int(y.sum()), len(y))
            found[f"{column} {label}"] = {
                "fraud_rate": dataclasses.replace(rate, name="fraud_rate", definition="share of frauds"),
                "brier": stats.mean_interval((probability[rows] - y) ** 2, name="brier"),
                "cost_per_decision": stats.mean_interval(cost[rows], name="cost_per_decision"),
            }
    return found
