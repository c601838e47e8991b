"""Evidence from the logs: each decision once, and again once it is old enough, under the share of its own day."""

import dataclasses
import itertools
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from vitok import ids
from vitok.clock import DAY
from vitok.decision import Outcome
from vitok.decisions import DecisionBlock, DecisionLog, LogSchema, merge
from vitok.decisions.log import OutcomeLog
from vitok.decisions.segments import segments
from vitok.errors import InvalidInput
from vitok.loop import JudgeRules, LogEvidence, PairedJudge, Records, ReleasePlan, Releases, release_evidence
from vitok.loop.release_evidence import Look, Seen, split_by_share
from vitok.loop.release_looks import scored_by
from vitok.policies import Costs, TierPolicy
from vitok.registry import Registry, at_least, evaluate

SCHEMA = LogSchema("fraud", (), (("amount", "float64"),), ())


@dataclasses.dataclass
class Asked:
    position: Any = None
    begun_at: int = 100
    shares: tuple[tuple[int, float], ...] = ((100, 0.0), (120, 0.1), (140, 0.5))


def block(times: Sequence[int], **changes: Any) -> DecisionBlock:
    n = len(times)
    at = np.array(times, dtype=np.int64)
    columns: dict[str, Any] = {
        "decision_id": [ids.uuid7() for _ in times],
        "request_id": [f"r{time}" for time in times],
        "event_time": at,
        "ingest_time": at,
        "entities": [],
        "request": [np.ones(n)],
        "features": np.empty((n, 0)),
        "feature_status": ["fresh"] * n,
        "model_version": ["fraud/2" if time % 2 else "fraud/1" for time in times],
        "stage": ["Production"] * n,
        "route": ["champion"] * n,
        "route_reason": [""] * n,
        "score": np.zeros(n),
        "probability": np.zeros(n),
        "shadow_version": [None if time % 2 else "fraud/2" for time in times],
        "shadow_probability": np.zeros(n),
        "policy_version": ["p"] * n,
        "action": ["allow"] * n,
        "propensity": np.ones(n),
        "latency_us": np.zeros(n, dtype=np.int32),
        "cost": np.zeros(n),
    }
    return DecisionBlock(**(columns | changes))


def outcomes(times: Sequence[int], *, late: int = 5) -> list[Outcome]:
    return [
        Outcome(
            request_id=f"r{time}", kind="fraud", value=float(time % 3 == 0), event_time=time, ingest_time=time + late
        )
        for time in times
    ]


def evidence(home: Path) -> LogEvidence:
    return LogEvidence(
        folder=home,
        kind="fraud",
        maturity=20,
        label_every=1,
        settling=2,
        requests=lambda rows: rows.select(version="model_version", failed=pl.col("action") == "block"),
        outcomes=lambda rows: rows.select(version="model_version", cost="label"),
    )


def test_each_decision_comes_once_and_once_more_with_its_label(tmp_path: Path) -> None:
    asked = Asked()
    before = evidence(tmp_path).look(asked, now=110)
    assert (before.decisions, before.labelled, before.splits) == (None, None, ())
    asked.position = json.loads(json.dumps(before.position))
    with DecisionLog(tmp_path / "decisions", SCHEMA) as log, OutcomeLog(tmp_path / "outcomes") as labels:
        log.append(block(range(80, 130)))
        labels.append(outcomes(range(80, 126)))
        first = evidence(tmp_path).look(asked, now=130)
        assert first.decisions is not None
        assert first.decisions["request_id"].to_list() == [f"r{time}" for time in range(100, 130)]
        # Those of an age of 20, with the label that was known by then.
        assert first.labelled is not None
        assert first.labelled["request_id"].to_list() == [f"r{time}" for time in range(100, 110)]
        assert [(len(split.requests), split.share) for split in first.splits] == [(8, 0.1)]
        again = evidence(tmp_path).look(asked, now=130)
        assert again.decisions is not None
        assert again.decisions.equals(first.decisions)
        asked.position = json.loads(json.dumps(first.position))
        log.append(block(range(130, 150)))
        second = evidence(tmp_path).look(asked, now=150)
        assert second.decisions is not None
        assert second.labelled is not None
        assert second.decisions["request_id"].to_list() == [f"r{time}" for time in range(130, 150)]
        # r126 and later have no label by now, and count in no cost.
        assert second.labelled["request_id"].to_list() == [f"r{time}" for time in range(110, 126)]
        # Late outcomes are of the shares under which they were decided, not of today's.
        shares = [(len(split.requests), split.share, split.requests.columns[1]) for split in second.splits]
        assert shares == [(10, 0.1, "failed"), (8, 0.5, "failed"), (4, 0.1, "cost")]
        assert scored_by(second, "fraud/2") == 20
        asked.position = second.position
        nothing = evidence(tmp_path).look(asked, now=149)
        assert (nothing.decisions, nothing.labelled, nothing.position) == (None, None, second.position)


def test_a_clock_that_steps_back_takes_nothing_twice(tmp_path: Path) -> None:
    asked = Asked()
    with DecisionLog(tmp_path / "decisions", SCHEMA) as log, OutcomeLog(tmp_path / "outcomes") as labels:
        log.append(block(range(100, 160)))
        labels.append(outcomes(range(100, 160)))
        seen: list[str] = []
        for now in (140, 130, 150, 145, 180):
            look = evidence(tmp_path).look(asked, now=now)
            asked.position = look.position
            seen += [] if look.labelled is None else look.labelled["request_id"].to_list()
    assert seen == [f"r{time}" for time in range(100, 160)]


def test_labels_are_looked_up_in_whole_stretches(tmp_path: Path) -> None:
    asked = Asked()
    hourly = dataclasses.replace(evidence(tmp_path), label_every=25)
    with DecisionLog(tmp_path / "decisions", SCHEMA) as log, OutcomeLog(tmp_path / "outcomes") as labels:
        log.append(block(range(100, 160)))
        labels.append(outcomes(range(100, 160)))
        found = []
        for now in (140, 144, 145, 169, 170):
            look = hourly.look(asked, now=now)
            asked.position = look.position
            found.append(0 if look.labelled is None else len(look.labelled))
    assert found == [0, 0, 25, 0, 25]
    for changes in ({"label_every": 0}, {"maturity": -1}, {"settling": -1}):
        with pytest.raises(InvalidInput, match="evidence"):
            dataclasses.replace(hourly, **changes)


def test_the_age_of_a_decision_is_that_of_its_record(tmp_path: Path) -> None:
    # Events that come late: an hour of the caller's clock says nothing about when the label is due.
    with DecisionLog(tmp_path / "decisions", SCHEMA) as log, OutcomeLog(tmp_path / "outcomes") as labels:
        asked = Asked()
        log.append(block(range(100, 110)))
        labels.append(outcomes(range(100, 130), late=0))
        asked.position = evidence(tmp_path).look(asked, now=135).position
        log.append(block(range(120, 130), event_time=np.arange(102, 112)))
        look = evidence(tmp_path).look(asked, now=150)
        assert look.labelled is not None
        assert look.labelled["request_id"].to_list() == [f"r{time}" for time in range(120, 130)]


def test_outcomes_without_a_decision_hold_no_release_up(tmp_path: Path) -> None:
    with OutcomeLog(tmp_path / "outcomes") as labels:
        labels.append(outcomes(range(100, 110)))
    look = evidence(tmp_path).look(Asked(), now=150)
    assert (look.decisions, look.labelled, look.position) == (None, None, {"decisions": None, "matured": 130})


def test_what_comes_or_is_taken_back_after_the_age_changes_nothing(tmp_path: Path) -> None:
    asked, seen = Asked(), []
    with DecisionLog(tmp_path / "decisions", SCHEMA) as log, OutcomeLog(tmp_path / "outcomes") as labels:
        log.append(block(range(100, 110)))
        labels.append(outcomes(range(100, 105)))
        for now in (125, 140, 160):
            look = evidence(tmp_path).look(asked, now=now)
            asked.position = look.position
            seen.append([] if look.labelled is None else look.labelled["request_id"].to_list())
            if now == 125:
                # Of one that was counted the outcome is taken back, of another it comes too late.
                back = Outcome(request_id="r102", kind="fraud", value=0.0, event_time=102, ingest_time=130)
                labels.append([back, *outcomes([103], late=28)])
            if now == 140:
                labels.append(outcomes([107], late=40))
    assert seen == [[f"r{time}" for time in range(100, 105)], [], []]


def test_a_position_in_a_segment_that_has_expired_goes_on_behind_it(tmp_path: Path) -> None:
    asked, folder = Asked(), tmp_path / "decisions"
    with DecisionLog(folder, SCHEMA) as log:
        log.append(block(range(100, 110)))
    asked.position = evidence(tmp_path).look(asked, now=110).position
    with DecisionLog(folder, SCHEMA) as log:
        log.append(block(range(110, 120)))
    for segment in segments(folder)[:1]:
        segment.path.unlink()
    wider = LogSchema("fraud", (), (("amount", "float64"),), ("count_1d",))
    with DecisionLog(folder, wider) as log:
        log.append(block(range(120, 125), features=np.ones((5, 1))))
    look = evidence(tmp_path).look(asked, now=130)
    assert look.decisions is not None
    assert look.decisions["request_id"].to_list() == [f"r{time}" for time in range(110, 125)]
    assert look.decisions["f_count_1d"].null_count() == 10


def test_a_long_log_comes_in_pieces_and_what_is_older_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(release_evidence, "_MOST", 20)
    monkeypatch.setattr(release_evidence, "_PIECE", 20)
    hour, began = 3_600_000_000, 10 * 3_600_000_000
    for at in (1, 8):
        with DecisionLog(tmp_path / "decisions", SCHEMA) as log:
            log.append(block([at * hour + row for row in range(5)]))
    with DecisionLog(tmp_path / "decisions", SCHEMA) as log:
        log.append(block(range(began, began + 50)))
    made = segments(tmp_path / "decisions")
    assert release_evidence._start(tmp_path / "decisions", began) == [[made[1].number, 0]]
    asked = Asked(begun_at=began)
    found: list[int] = []
    while True:
        look = dataclasses.replace(evidence(tmp_path), maturity=hour).look(asked, now=began + 60)
        asked.position = look.position
        found.append(0 if look.decisions is None else len(look.decisions))
        if not look.more:
            break
    # Read 20 at a time until there are 20: 15 behind the 5 that are older, and 20; then what is left.
    assert found == [35, 15]


def test_a_release_that_begins_over_a_merged_log_sees_the_same(tmp_path: Path) -> None:
    hour, began = 3_600_000_000, 10 * 3_600_000_000
    for at in (1, 8, 10, 11):
        times = [at * hour + row for row in range(5)]
        with DecisionLog(tmp_path / "apart" / "decisions", SCHEMA) as log:
            log.append(block(times))
        with OutcomeLog(tmp_path / "apart" / "outcomes") as labels:
            labels.append(outcomes(times))
    shutil.copytree(tmp_path / "apart", tmp_path / "merged")
    assert merge(tmp_path / "merged" / "decisions", now=3 * DAY).segments_after == 1
    asked = Asked(begun_at=began)
    apart, merged = (evidence(tmp_path / name).look(asked, now=began + 2 * hour) for name in ("apart", "merged"))
    for first, second in ((apart.decisions, merged.decisions), (apart.labelled, merged.labelled)):
        assert first is not None
        assert second is not None
        assert second["request_id"].to_list() == [f"r{at * hour + row}" for at in (10, 11) for row in range(5)]
        assert second.equals(first)
    # A place in a segment keeps its meaning in the file that it lies in now.
    asked.position = json.loads(json.dumps(apart.position))
    assert evidence(tmp_path / "merged").look(asked, now=began + 2 * hour).decisions is None


def test_labels_of_a_long_absence_come_a_day_at_a_time(tmp_path: Path) -> None:
    asked = Asked()
    late = 3 * DAY
    look = evidence(tmp_path).look(asked, now=late)
    assert (look.more, look.position["matured"]) == (True, 100 + DAY)


def test_a_release_that_is_opened_anew_at_each_tick_ends_as_one_that_never_was(tmp_path: Path) -> None:
    ends = [judged_on_the_log(tmp_path / name, anew=anew) for name, anew in (("lived", False), ("anew", True))]
    assert ends[0] == ends[1]
    assert json.loads(ends[0])["release"]["status"] == "finished"


def judged_on_the_log(home: Path, *, anew: bool) -> str:
    """Releases a better version on a real log: pairs and late labels in the shadow, the canary and the probation."""

    def compare(*, candidate: str, incumbent: str, confidence_level: float) -> PairedJudge:
        policy, costs = TierPolicy(costs=Costs()), Costs()
        rules = JudgeRules(
            confidence_level=confidence_level,
            min_outcomes=50,
            min_positives=5,
            max_alert_rate_increase=0.5,
            tuned_for=500,
        )
        return PairedJudge(
            candidate=candidate,
            incumbent=incumbent,
            candidate_policy=policy,
            incumbent_policy=policy,
            costs=costs,
            rules=rules,
        )

    plan = ReleasePlan.of(shadow=compare, canary=compare, probation=compare, shares=(0.5,), least=4, shadow_for=4)
    steps = (*plan.steps[:-1], dataclasses.replace(plan.steps[-1], least=6))
    plan = dataclasses.replace(plan, steps=steps)
    rng, gate = np.random.default_rng(5), evaluate([at_least("x", 1, 0)])
    registry = Registry(home)
    for number in (1, 2):
        registry.register("fraud", {"weights": bytes([number])}, now=0, actor="train")
        registry.ledger.record_gate("fraud", number, gate, now=0, actor="gate")
    registry.ledger.promote("fraud", 1, "Production", reason="first", actor="ann", now=0)
    releases = Releases(registry, Records(home))
    releases.begin("fraud", 2, plan, now=100, actor="ann", reason="retrained")
    seen = dataclasses.replace(evidence(home), maturity=2, requests=None, outcomes=None)
    with DecisionLog(home / "decisions", SCHEMA) as log, OutcomeLog(home / "outcomes") as labels:
        for now in range(100, 130):
            serves = registry.state("fraud").production
            fraud = rng.random(150) < 0.2
            good, poor = np.where(fraud, 0.9, 0.001), np.full(150, 0.1)
            names = [f"r{now}-{row}" for row in range(150)]
            acting, beside = ("fraud/2", "fraud/1") if serves == 2 else ("fraud/1", "fraud/2")
            first, second = (good, poor) if serves == 2 else (poor, good)
            actions = TierPolicy(costs=Costs()).decide(first, np.ones(150), names).actions
            log.append(
                block(
                    [now] * 150,
                    decision_id=[names[row].encode().ljust(16)[:16] for row in range(150)],
                    request_id=names,
                    model_version=[acting] * 150,
                    probability=first,
                    shadow_version=[beside] * 150,
                    shadow_probability=second,
                    action=actions,
                    request=[np.full(150, 60.0)],
                )
            )
            labels.append(
                [
                    Outcome(request_id=name, kind="fraud", value=float(bad), event_time=now, ingest_time=now + 1)
                    for name, bad in zip(names, fraud, strict=True)
                ]
            )
            release = releases.tick("fraud/2", plan, seen, now=now)
            if anew:
                releases.close()
                registry.close()
                registry = Registry(home)
                releases = Releases(registry, Records(home))
            if not release.is_open:
                break
    states = {name: releases.book.state(release, name) for name in plan.judges}
    releases.close()
    registry.close()
    return json.dumps({"release": release.to_dict(), "states": states}, sort_keys=True)


def test_requests_are_split_where_the_share_was_one() -> None:
    time = pl.Series(range(10), dtype=pl.Int64).cast(pl.Datetime("us", "UTC"))
    frame = pl.DataFrame({"ingest_time": time, "version": ["m/1"] * 10})
    parts = split_by_share(frame, lambda rows: rows, [(2, 0.0), (4, 0.2), (7, 0.4), (9, 1.0)], settling=1)
    assert [(part.share, len(part.requests)) for part in parts] == [(0.2, 2), (0.4, 1)]
    assert split_by_share(frame, lambda rows: rows, []) == ()
    assert scored_by(Look(splits=parts), "m/1") == 3


def test_ids_lie_in_few_runs_and_say_what_a_set_says() -> None:
    rng, seen, plain = np.random.default_rng(3), Seen(), set[int]()
    for _ in range(200):
        some = rng.integers(0, 30_000, int(rng.integers(0, 300))).tolist()
        assert seen.new(some) == [one not in plain for one in some]
        seen.add(some)
        plain.update(some)
        lengths = [len(run) for run in seen.runs]
        assert all(first >= 2 * second for first, second in itertools.pairwise(lengths))
        assert len(seen) == len(plain)
        if rng.random() < 0.3:
            seen = Seen(seen.runs)
    whole = Seen()
    whole.add(sorted(plain))
    assert whole.to_state() == seen.to_state() == Seen.from_state(seen.to_state()).to_state()


@pytest.mark.parametrize("state", ["no!", "AAAA", 7])
def test_what_is_no_state_of_ids_is_refused(state: Any) -> None:
    with pytest.raises(InvalidInput, match="state"):
        Seen.from_state(state)
