"""A day whose mix of rows changed is estimated by rows weighed to look like it. Oracle: the simulated labels."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from vitok.clock import DAY
from vitok.errors import MissingExtra
from vitok.monitoring import (
    Alerts,
    EstimateLedger,
    EstimateWatch,
    PerformanceEstimator,
    ReferenceProfile,
    Sketches,
    Watch,
    WatchRules,
    estimate_watch,
    joint,
)
from vitok.monitoring.estimate_watch import METRICS, UNDER_SHIFT, worth_telling
from vitok.monitoring.joint import told_apart
from vitok.stats import Estimate

REFERENCE, SHIFT, END, MATURITY = 7, 13, 18, 2
A_DAY = 2_000


def traffic(day: int, *, share: float, together: float = 0.0) -> pl.DataFrame:
    """Returns decisions of which a share are young: for them a probability means another frequency."""
    rng = np.random.default_rng((5, day))
    age = rng.normal(1 - 2 * share, 0.5, A_DAY)
    young = age < 0
    p = rng.beta(1, 6, A_DAY)
    a = rng.normal(size=A_DAY)
    b = together * a + math.sqrt(1 - together**2) * rng.normal(size=A_DAY)
    return pl.DataFrame(
        {
            "request_id": np.arange(A_DAY),
            "event_time": pl.Series(day * DAY + np.sort(rng.integers(0, DAY, A_DAY))).cast(pl.Datetime("us", "UTC")),
            "amount": np.full(A_DAY, 10.0),
            "model_version": ["fraud/1"] * A_DAY,
            "route": ["champion"] * A_DAY,
            "feature_status": ["fresh"] * A_DAY,
            "probability": p,
            "action": ["allow"] * A_DAY,
            "propensity": np.ones(A_DAY),
            "latency_us": rng.integers(300, 3_000, A_DAY),
            "label": (rng.random(A_DAY) < np.where(young, np.minimum(1, 2.5 * p), 0.4 * p)).astype(float),
            "f_young": 40 - 10 * age,
            "f_a": a,
            "f_b": b,
        }
    )


class World:
    """Ten days as they were and then others, watched day by day."""

    def __init__(self, folder: Path, *, share: float = 0.2, together: float = 0.0, featured: bool = True) -> None:
        self.days = {day: traffic(day, share=0.2) for day in range(SHIFT)}
        self.days |= {day: traffic(day, share=share, together=together) for day in range(SHIFT, END)}
        known = pl.concat([self.days[day] for day in range(REFERENCE)])
        profile = ReferenceProfile.fit(
            ["young", "a", "b"],
            known.select("f_young", "f_a", "f_b").to_numpy(),
            known["probability"].to_numpy(),
            start=0,
            end=REFERENCE * DAY,
            event_time=known["event_time"].to_physical().to_numpy(),
            n_random_features=16 if together else 0,
        )
        estimator = PerformanceEstimator.fit(known["probability"], known["label"])
        self.sketches, self.alerts = Sketches(folder / "s.sqlite"), Alerts(folder / "a.sqlite")
        self.ledger = EstimateLedger(folder / "e.sqlite")
        self.asked: list[int] = []
        self.watch = Watch(
            "fraud",
            profile_of=lambda version: profile,
            sketches=self.sketches,
            alerts=self.alerts,
            rules=WatchRules(maturity=MATURITY * DAY, trailing=3 * DAY, hourly_quality=None, hourly_absence=None),
            labelled=self.labelled,
            estimates=EstimateWatch(
                self.ledger,
                estimator_of=lambda version: estimator,
                featured=self.featured if featured else None,
                hiding=("block",),
            ),
            logged=lambda start, end: self.between(start, end),
        )
        self.profile = profile

    def between(self, start: int, end: int) -> pl.DataFrame:
        return pl.concat([self.days[0].clear(), *(rows for day, rows in self.days.items() if start <= day * DAY < end)])

    def labelled(self, start: int, end: int, as_of: int) -> pl.DataFrame:
        return self.between(start, end).drop("f_young", "f_a", "f_b")

    def featured(self, start: int, end: int, as_of: int) -> pl.DataFrame:
        self.asked.append(end // DAY)
        return self.between(start, end)

    def run(self) -> None:
        for day in range(REFERENCE, END):
            self.sketches.follow(self.days[day], lambda version: self.profile, position=(day + 1, 0))
            self.watch.tick((day + 1) * DAY)

    def close(self) -> None:
        self.sketches.close()
        self.alerts.close()
        self.ledger.close()


@pytest.mark.slow
def test_a_drifted_day_is_estimated_twice_and_both_are_graded(tmp_path: Path) -> None:
    world = World(tmp_path, share=0.6)
    world.run()
    # Days before cost nothing: no row with features was read.
    assert min(world.asked) == SHIFT + 1 - MATURITY
    assert len(world.asked) == 2 * (END - SHIFT)
    assert set(world.ledger.subjects()["fraud/1"]) == {
        *(name for name in METRICS if name != "cost"),
        *(name + UNDER_SHIFT for name in METRICS if name != "cost"),
    }
    plain = [pair for pair in world.ledger.pairs("fraud/1", "positive_rate") if pair.start >= SHIFT * DAY]
    weighed = list(world.ledger.pairs("fraud/1", "positive_rate" + UNDER_SHIFT))
    assert [pair.start for pair in weighed] == [pair.start for pair in plain] == [d * DAY for d in range(SHIFT, END)]
    known = [(a, b) for a, b in zip(plain, weighed, strict=True) if b.realised is not None]
    assert [pair.start // DAY for _, pair in known] == [SHIFT, SHIFT + 1, SHIFT + 2]
    for before, after in known:
        assert before.realised is not None
        assert after.realised is not None
        assert before.realised.value == after.realised.value
        assert abs(after.error) < 0.3 * abs(before.error)
        assert not before.covered
    assert world.ledger.grade("fraud/1", "positive_rate" + UNDER_SHIFT).verdict == "too early"
    (alert,) = [one for one in world.alerts.history() if one.rule == "data_drift"]
    assert "estimated without labels: average precision under shift 0." in alert.reason
    assert "average precision 0." not in alert.reason
    world.close()


def test_days_without_drift_read_no_features(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.run()
    assert world.asked == []
    assert not any(name.endswith(UNDER_SHIFT) for name in world.ledger.subjects()["fraud/1"])
    world.close()


def alone(folder: Path, days: pl.DataFrame, **given: Any) -> tuple[EstimateLedger, EstimateWatch]:
    ledger = EstimateLedger(folder / "e.sqlite")

    def featured(start: int, end: int, as_of: int) -> pl.DataFrame:
        times = days["event_time"].to_physical()
        return days.filter((times >= start) & (times < end))

    return ledger, EstimateWatch(ledger, estimator_of=lambda version: None, featured=featured, **given)


def estimated(watch: EstimateWatch, features: tuple[str, ...] = ("young", "a")) -> tuple[Any, ...]:
    return watch.estimate_under_shift("fraud/1", features, DAY, 2 * DAY, known=(0, DAY), made_at=2 * DAY)


def test_a_day_far_from_all_labelled_rows_says_so(tmp_path: Path) -> None:
    before, now = traffic(0, share=0.2), traffic(1, share=0.2)
    far = pl.concat([before, now.with_columns(f_a=pl.col("f_a") * 0.1 + 6)])
    ledger, watch = alone(tmp_path, far)
    (said,) = estimated(watch)
    assert (said.name, math.isnan(said.value)) == ("average_precision" + UNDER_SHIFT, True)
    assert "only labels can tell" in said.definition
    assert ledger.subjects() == {}
    ledger.close()


def test_too_few_labels_no_features_or_no_trees_give_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, now = traffic(0, share=0.2), traffic(1, share=0.7)
    hidden = before.with_columns(action=pl.lit("block"))
    for at, (days, features) in enumerate(
        [
            (pl.concat([before.with_columns(label=pl.lit(None, pl.Float64)), now]), ("young",)),
            (pl.concat([before.with_columns(label=pl.lit(0.0)), now]), ("young",)),
            (pl.concat([hidden, now]), ("young",)),
            (pl.concat([before, now.head(100)]), ("young",)),
            (pl.concat([before, now]), ("other",)),
        ]
    ):
        (tmp_path / f"{at}").mkdir()
        ledger, watch = alone(tmp_path / f"{at}", days, hiding=("block",))
        assert estimated(watch, features) == ()
        ledger.close()

    def missing(**given: Any) -> Any:
        raise MissingExtra("lightgbm", "models")

    monkeypatch.setattr(estimate_watch, "estimate_under_shift", missing)
    ledger, watch = alone(tmp_path, pl.concat([before, now]))
    assert estimated(watch) == ()
    ledger.close()


def test_where_only_how_features_go_together_moved_a_classifier_names_them(tmp_path: Path) -> None:
    world = World(tmp_path, together=0.9, featured=False)
    world.run()
    (alert,) = [one for one in world.alerts.history() if one.rule == "data_drift"]
    assert "joint drift" in alert.reason
    told = alert.reason.partition("against the same day a week before: domain classifier AUC ")[2]
    assert float(told[:5]) > 0.55
    assert set(told.partition("): ")[2].partition(";")[0].replace(",", "").split()) >= {"a", "b"}
    world.close()


def test_told_apart_takes_samples_and_refuses_what_it_cannot_compare(monkeypatch: pytest.MonkeyPatch) -> None:
    before, now = traffic(0, share=0.2), traffic(1, share=0.7)
    found = told_apart(["young", "a"], before, now, most=600)
    assert found is not None
    assert (found.n_reference, found.n_current, found.features[0][0]) == (600, 600, "young")
    assert told_apart(["young"], before.head(50), now) is None
    assert told_apart(["other"], before, now) is None
    assert told_apart(["young"], before, now, ignored=("young",)) is None

    def missing(*given: Any) -> Any:
        raise MissingExtra("lightgbm", "models")

    monkeypatch.setattr(joint, "domain_classifier", missing)
    assert told_apart(["young"], before, now) is None


def said(name: str, lower: float, upper: float, *, value: float | None = None) -> Estimate:
    return Estimate(name=name, value=(lower + upper) / 2 if value is None else value, lower=lower, upper=upper, n_obs=9)


def told(*estimates: Estimate) -> list[tuple[str, bool]]:
    made = {"average_precision": said("ap", 0.6, 0.7), "cost_per_decision": said("cost", 0.1, 0.2)}
    return [(one.name, before is not None) for one, before in worth_telling(estimates, made.get)]


def test_an_alert_is_told_the_best_estimate_of_each_metric_and_none_that_says_nothing() -> None:
    plain = said("average_precision", 0.5, 0.7), said("cost", 0.1, 0.4), said("brier", 0.0, 0.1)
    assert told(*plain) == [("average_precision", True), ("cost", True)]
    under = said("average_precision_under_shift", 0.5, 0.8), said("cost_under_shift", -0.4, 1.1)
    assert told(*plain, *under) == [("average_precision_under_shift", True), ("cost", True)]
    assert told(said("cost", -1.0, 1.0), *under[1:]) == []
    blind = said("average_precision_under_shift", 0.0, 1.0, value=math.nan)
    assert told(*plain, blind) == [("average_precision_under_shift", False)]
    assert told(said("average_precision", 0.0, 0.3, value=math.nan)) == []
    assert [one.name for one, _ in worth_telling(plain, lambda _: None)] == ["average_precision", "cost"]
    assert told() == []


def test_what_could_not_be_seen_belongs_to_the_mix_of_rows(tmp_path: Path) -> None:
    rows = traffic(3, share=0.2)
    blocked = pl.col("probability") > 0.3
    rows = rows.with_columns(
        action=pl.when(blocked).then(pl.lit("block")).otherwise("action"),
        label=pl.when(blocked).then(None).otherwise("label"),
    )
    n_blocked = int((rows["action"] == "block").sum())
    unlabelled = rows.head(5).with_columns(action=pl.lit("allow"), label=pl.lit(None, pl.Float64))
    ledger = EstimateLedger(tmp_path / "e.sqlite")
    watch = EstimateWatch(ledger, estimator_of=lambda _: None, hiding=("block",))
    known = watch._known(pl.concat([rows, unlabelled]))
    assert len(known) == A_DAY
    assert int((known["action"] == "block").sum()) == n_blocked > 0
    assert known.filter(pl.col("action") == "block")["label"].sum() == 0
    ledger.close()
