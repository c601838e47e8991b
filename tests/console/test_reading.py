import dataclasses
import itertools
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from tests.console.conftest import A_DAY, N_DAYS, ODD_CUSTOMER, POLICY, START, Home

from vitok import decisions
from vitok.clock import DAY
from vitok.console import reading
from vitok.console.decision_reading import position, tiers_of
from vitok.console.release_reading import stretches
from vitok.monitoring import ReferenceProfile
from vitok.registry import Ledger


def test_overview_counts_what_the_log_holds(home: Home) -> None:
    traffic = reading.overview(home.folder).traffic
    assert traffic is not None
    assert traffic.total == home.rows.height == N_DAYS * A_DAY
    assert [day.day for day in traffic.days] == [START + day * DAY for day in range(N_DAYS)]
    by_day = home.rows.with_columns(day=pl.col("event_time") // DAY * DAY)
    for day in traffic.days:
        rows = by_day.filter(pl.col("day") == day.day)
        assert day.actions == dict(rows.group_by("action").len().iter_rows())
        assert day.n_labelled == sum(request in home.labels for request in rows["request_id"])


def test_overview_counts_the_money(home: Home) -> None:
    # Oracle: the definition, row by row.
    traffic = reading.overview(home.folder).traffic
    assert traffic is not None
    cost, fraud_amount, stopped = 0.0, 0.0, 0.0
    for row in home.rows.iter_rows(named=True):
        label = home.labels.get(row["request_id"])
        if label is None:
            continue
        lost = row["amount"] if label else 0.0
        cost += {"allow": lost, "review": 3.0 + 0.1 * lost, "block": 0.0 if label else 30.0}[row["action"]]
        fraud_amount += lost
        stopped += lost if row["action"] != "allow" else 0.0
    money = traffic.money
    assert money.n == len(home.labels)
    assert money.cost == pytest.approx(cost)
    assert money.fraud_amount == money.allowed_cost == pytest.approx(fraud_amount)
    assert money.stopped_amount == pytest.approx(stopped)
    assert sum(part.cost for _, part in money.versions) == pytest.approx(cost)
    assert sum(day.cost for day in traffic.days) == pytest.approx(cost)


def test_overview_of_alerts(home: Home) -> None:
    seen = reading.overview(home.folder)
    assert (seen.verdict, seen.production, seen.canary) == ("watch", "fraud/1", "fraud/2")
    assert [alert.rule for alert in seen.alerts] == ["data_drift"]
    assert seen.canary_record is not None
    times = [item.time for item in seen.happenings]
    assert times == sorted(times, reverse=True)


@pytest.mark.parametrize(
    "filters",
    [
        {},
        {"action": "block"},
        {"version": "fraud/2", "action": "allow"},
        {"route": "canary"},
        {"customer": "17"},
        {"customer": ODD_CUSTOMER},
        {"customer": "' OR '1'='1"},
        {"day": "2018-07-05"},
        {"version": "rules"},
    ],
)
def test_filters_find_what_a_frame_finds(home: Home, filters: dict[str, str]) -> None:
    wanted = home.rows.reverse()
    for name, value in filters.items():
        if name == "day":
            start = START + 4 * DAY
            wanted = wanted.filter(pl.col("event_time").is_between(start, start + DAY - 1))
        else:
            wanted = wanted.filter(pl.col(name) == value)
    found = []
    page = reading.decisions_page(home.folder, reading.DecisionFilters(**filters))
    for number in range(1, page.pages + 1):
        page = reading.decisions_page(home.folder, reading.DecisionFilters(**filters), page=number)
        found += [row.decision_id for row in page.rows]
    assert found == wanted["decision_id"].to_list()
    assert page.total == len(found)


def test_rows_carry_the_outcome_that_counts(home: Home) -> None:
    # Oracle: the label view of the decisions room.
    known = decisions.labels(home.folder / "log" / "outcomes", as_of=2**62, kind="fraud")
    labels = dict(known.select("request_id", "label").iter_rows())
    page = reading.decisions_page(home.folder, reading.DecisionFilters(day="2018-07-01"), page=A_DAY // 50)
    assert len(page.rows) == 50
    assert {row.request_id: row.label for row in page.rows} == {
        row.request_id: labels[row.request_id] for row in page.rows
    }
    assert page.rows[-1].request_id == "t0-0"
    late = reading.decisions_page(home.folder)
    assert {row.label for row in late.rows} == {None}


def test_story_of_a_decision(home: Home) -> None:
    first = home.rows.row(0, named=True)
    story = reading.decision_story(home.folder, first["decision_id"])
    assert story.amount == first["amount"]
    assert len(story.outcomes) == 2
    assert story.outcome is not None
    assert story.outcome.value == home.labels["t0-0"]
    sizes = [abs(change) for _, change in story.reasons]
    assert sizes == sorted(sizes, reverse=True)
    assert [feature.name for feature in story.features[: len(story.reasons)]] == [name for name, _ in story.reasons]
    taken = [cost for cost in story.costs if cost.taken]
    assert [cost.action for cost in taken] == [first["action"]]
    if first["action"] != "allow":
        assert taken[0].expected == min(cost.expected for cost in story.costs)


@pytest.mark.parametrize("amount", [0.0, 1.0, 50.0, 300.0, 1e6])
def test_tiers_are_those_of_the_policy(amount: float) -> None:
    # Oracle: the policy, asked at random probabilities.
    tiers = tiers_of(POLICY, amount)
    assert tiers[0].low == 0.0
    assert tiers[-1].high == 1.0
    assert all(before.high == after.low for before, after in itertools.pairwise(tiers))
    probability = np.random.default_rng(2).random(400)
    acting = dataclasses.replace(POLICY, pass_through=0.0)
    actions = acting.decide(probability, np.full(400, amount), [""] * 400).actions
    wrong = 0
    for p, action in zip(probability, actions, strict=True):
        wrong += next(tier.action for tier in tiers if tier.low <= p < tier.high) != action
    # An edge is known to within a step of the grid.
    assert wrong <= 6


def test_position_in_the_reference() -> None:
    # Oracle: counting by hand; 60 zeros, the numbers 1 to 40, and 25 rows without a value.
    values = np.concatenate([np.zeros(60), np.arange(1, 41), np.full(25, np.nan)])
    p = np.full(len(values), 0.01)
    profile = ReferenceProfile.fit(["amount"], values[:, None], p, start=0, end=DAY, n_bins=8)
    assert position(profile, 0, 0.0) == (0.0, 0.6, "like 60 % of the reference")
    low, high, place = position(profile, 0, 40.0)
    assert low is not None
    assert low >= 0.9
    assert high == pytest.approx(1.0)
    assert place.startswith("above 9")
    assert position(profile, 0, float("nan")) == (None, None, "no value; 20 % of the reference had none")
    assert position(profile, 0, -5.0)[2] == "the reference has none like it"
    empty = ReferenceProfile.fit(["amount"], np.full((5, 1), np.nan), np.full(5, 0.1), start=0, end=DAY)
    assert position(empty, 0, 1.0)[2] == "the reference never had a value"


def test_drift_of_a_version(home: Home) -> None:
    seen = reading.drift(home.folder)
    assert seen.version == "fraud/1"
    assert seen.features[0].name == "customer_count_15m"
    assert [cell.drifted for cell in seen.features[0].cells] == [day >= 5 for day in range(N_DAYS)]
    assert seen.column is not None
    assert seen.column.day == START + 7 * DAY
    assert sum(item.current for item in seen.column.bins) == pytest.approx(1.0)
    assert sum(item.reference for item in seen.column.bins) == pytest.approx(1.0)
    canary = reading.drift(home.folder, "fraud/2")
    assert len(canary.days) == 4
    assert not any(cell.judged for cell in canary.features[0].cells)


def test_alerts_open_and_past(home: Home) -> None:
    seen = reading.alerts(home.folder)
    assert [item.alert.rule for item in seen.open] == ["data_drift"]
    assert [item.alert.rule for item in seen.past] == ["quality"]
    assert len(seen.open[0].observations) == N_DAYS - 1


def test_versions_and_uses(home: Home) -> None:
    seen = reading.versions(home.folder)
    assert [item.version.name for item in seen.versions] == ["fraud/3", "fraud/2", "fraud/1"]
    assert [item.role for item in seen.versions] == ["", "canary", "serves"]
    assert seen.versions[0].verdict is not None
    assert not seen.versions[0].verdict.accepted
    assert all(use.current for use in reading.features(home.folder).uses)


def test_stretches_follow_promotions_canaries_and_a_roll_back(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    for version in (1, 2):
        ledger.register("fraud", digest=f"d{version}", path=f"fraud/{version}", now=version, actor="a")
    why = {"reason": "r", "actor": "a", "override": "test"}
    ledger.promote("fraud", 1, "Production", now=10, **why)
    ledger.start_canary("fraud", 2, 0.1, now=20, **why)
    ledger.promote("fraud", 2, "Production", now=30, **why)
    ledger.rollback("fraud", reason="r", actor="a", now=40)
    found = stretches(ledger.history("fraud"), end=50)
    assert [(item.version, item.kind, item.start, item.end, item.open) for item in found] == [
        ("fraud/1", "production", 10, 30, False),
        ("fraud/2", "canary", 20, 30, False),
        ("fraud/2", "production", 30, 40, False),
        ("fraud/1", "production", 40, 50, True),
    ]
    ledger.close()


def test_results_print_themselves(home: Home) -> None:
    for result in (
        reading.overview(home.folder),
        reading.decisions_page(home.folder),
        reading.decision_story(home.folder, home.rows["decision_id"][0]),
        reading.features(home.folder),
        reading.versions(home.folder),
        reading.version_story(home.folder, 1),
        reading.drift(home.folder),
        reading.alerts(home.folder),
        reading.releases(home.folder),
    ):
        assert str(result)
        assert "object at" not in str(result)
