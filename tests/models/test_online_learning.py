"""Learning from the logs. Oracle: the rule written out row by row (tests/models/online_logs.py), equal in every bit."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.models.online_logs import (
    SCHEMA,
    append_decisions,
    by_the_rule,
    decisions,
    model,
    outcomes,
    write,
)

from vitok.decision import Outcome
from vitok.decisions import DecisionLog, OutcomeLog
from vitok.errors import Conflict, InvalidInput, StoreError
from vitok.models import online_learning
from vitok.models.online import OnlineModel
from vitok.models.online_learning import LearningRules, LogLearner

END = 10**12
PLAIN = LearningRules(kind="fraud", maturity=50_000)
RULES = [
    PLAIN,
    LearningRules(kind="fraud", maturity=50_000, correct_for=10**9),
    LearningRules(kind="fraud", maturity=50_000, correct_for=60_000, censored=("block",), most_weight=3.0),
    LearningRules(kind="fraud", maturity=500, correct_for=10**9, slice_by="country"),
]


@pytest.fixture(autouse=True)
def short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(online_learning, "_CHUNK", 64)


def bits(made: OnlineModel) -> bytes:
    return made.to_bytes()


@pytest.mark.parametrize("rules", RULES)
def test_follows_the_rule_in_every_bit(tmp_path: Path, rules: LearningRules) -> None:
    rows = decisions(700)
    told = outcomes(rows)
    expected, order = by_the_rule(rows, told, rules, until=END)
    places = write(tmp_path, rows, told)
    learner = LogLearner(model(), rules, decisions=places[0], outcomes=places[1])
    counts = learner.advance(as_of=END)
    assert bits(learner.model) == bits(expected)
    assert counts.decisions == 700
    assert counts.corrected == sum(entry.startswith("correct") for entry in order)
    assert counts.learned == len(order) - counts.corrected
    assert bool(counts.corrected) == bool(rules.correct_for)
    assert bool(counts.censored) == bool(rules.censored)
    assert counts.late == counts.uncorrected == counts.repeated == 0


@pytest.mark.parametrize("rules", RULES)
def test_when_somebody_looks_changes_nothing(tmp_path: Path, rules: LearningRules) -> None:
    rows = decisions(400, seed=1)
    told = outcomes(rows, seed=1)
    places = tmp_path / "decisions", tmp_path / "outcomes"
    rng = random.Random(2)
    learner = LogLearner(model(), rules, decisions=places[0], outcomes=places[1])
    assert learner.advance().decisions == 0
    waiting_rows, waiting_told = list(rows), list(told)
    path = tmp_path / "snapshot"
    with DecisionLog(places[0], SCHEMA, rows_per_segment=100) as log, OutcomeLog(places[1]) as other:
        while waiting_rows or waiting_told:
            # What comes first in the world is written first, a few rows at a time.
            many = rng.randint(1, 20)
            if waiting_rows and (not waiting_told or waiting_rows[0]["ingest_time"] <= waiting_told[0].ingest_time):
                append_decisions(log, waiting_rows[:many])
                del waiting_rows[:many]
            else:
                other.append(waiting_told[: many // 4 + 1])
                del waiting_told[: many // 4 + 1]
            chance = rng.random()
            if chance < 0.3:
                learner.advance(max_decisions=rng.choice([None, 1, 7]))
            elif chance < 0.5:
                learner.save(path)
                learner = LogLearner.load(path, decisions=places[0], outcomes=places[1], rules=rules)
        learner.advance()
        until = max(outcome.ingest_time for outcome in told) - 1
        assert bits(learner.model) == bits(by_the_rule(rows, told, rules, until)[0])
        learner.advance(as_of=END)
    assert bits(learner.model) == bits(by_the_rule(rows, told, rules, END)[0])


def test_subsampled_negatives_are_the_same_in_a_replay_and_weigh_more(tmp_path: Path) -> None:
    rows = decisions(3000, seed=3)
    places = write(tmp_path, rows, outcomes(rows, seed=3), block=500)
    rules = LearningRules(kind="fraud", maturity=50_000, negative_rate=0.25)
    first = LogLearner(model(), rules, decisions=places[0], outcomes=places[1])
    counts = first.advance(as_of=END)
    assert counts.left_out == pytest.approx(0.75 * (3000 - counts.positives), rel=0.05)
    again = LogLearner(model(), rules, decisions=places[0], outcomes=places[1])
    while again.advance(as_of=END, max_decisions=100).decisions < 3000:
        pass
    assert bits(first.model) == bits(again.model)
    score, counted = first.model.validation.score(window=1), first.model.validation.score(window=1).positive_rate
    assert counted == pytest.approx(counts.positives / 3000, rel=0.05)
    assert score.calibration_ratio == pytest.approx(1.0, abs=0.15)


def test_the_outcome_log_alone_proves_less_than_a_promise(tmp_path: Path) -> None:
    rows = decisions(10, every=10_000)
    told = [Outcome(request_id="r0", kind="fraud", value=1.0, event_time=1, ingest_time=60_000)]
    places = write(tmp_path, rows, told)
    learner = LogLearner(model(), PLAIN, decisions=places[0], outcomes=places[1])
    # Only what lies before the last outcome's own time is certain.
    resolved = [row["event_time"] + 50_000 for row in rows]
    assert learner.advance().decisions == sum(np.maximum.accumulate(resolved) < 60_000)
    assert learner.advance(as_of=80_000).decisions == sum(np.maximum.accumulate(resolved) <= 80_000)
    assert learner.reached <= 80_000


def test_an_outcome_after_the_promise_is_counted(tmp_path: Path) -> None:
    rows = decisions(10)
    places = write(tmp_path, rows, [])
    learner = LogLearner(
        model(),
        LearningRules(kind="fraud", maturity=500, correct_for=10**9),
        decisions=places[0],
        outcomes=places[1],
    )
    learner.advance(as_of=10**6)
    with OutcomeLog(places[1]) as log:
        log.append([Outcome(request_id="r1", kind="fraud", value=1.0, event_time=1, ingest_time=900_000)])
    assert learner.advance(as_of=10**6).late == 1


def test_the_same_request_is_learned_once_while_it_is_remembered(tmp_path: Path) -> None:
    rows = decisions(60, every=1000)
    for i, other in ((5, 4), (20, 4), (50, 4), (51, 4), (52, 30)):
        rows[i]["request_id"] = rows[other]["request_id"]
    places = write(tmp_path, rows, [])
    found = []
    for chunks in (None, 1, 3):
        rules = LearningRules(kind="fraud", maturity=100, correct_for=30_000)
        learner = LogLearner(model(), rules, decisions=places[0], outcomes=places[1])
        while learner.advance(as_of=END, max_decisions=chunks).decisions < 60:
            pass
        found.append(bits(learner.model))
        # r4 at 4, 5, 20 (repeated), then 50 (new, 46 ms later), 51 (repeated); r30 at 30 and 52 (repeated).
        assert learner.counts.repeated == 4
        assert learner.counts.learned == 56
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("rules", RULES[1:])
def test_logs_of_several_processes_are_learned_by_ingest_time(tmp_path: Path, rules: LearningRules) -> None:
    rows = decisions(400, seed=4)
    told = sorted(
        outcomes(rows, seed=4),
        key=lambda o: (o.ingest_time, o.request_id, o.kind, o.event_time, o.value, o.source, o.supersedes),
    )
    places = {"decisions": tmp_path / "decisions", "outcomes": tmp_path / "outcomes"}
    path = tmp_path / "snapshot"
    rng = random.Random(5)
    learner = LogLearner(model(), rules, **places)
    two = [DecisionLog(places["decisions"], SCHEMA, rows_per_segment=60, shared=True) for _ in range(2)]
    others = [OutcomeLog(places["outcomes"], rows_per_segment=60, shared=True) for _ in range(2)]
    now, waiting_rows, waiting_told = 0, list(rows), list(told)
    while waiting_rows or waiting_told:
        now += 5_000
        # Each of the two processes writes what is its own; one of them is 40 ms behind.
        for lane in (0, 1):
            until = now - 40_000 * lane
            mine = [
                row for row in waiting_rows if row["ingest_time"] // 1000 % 2 == lane and row["ingest_time"] <= until
            ]
            if mine:
                append_decisions(two[lane], mine)
                waiting_rows = [row for row in waiting_rows if row not in mine]
            heard = [o for o in waiting_told if o.ingest_time % 2 == lane and o.ingest_time <= until]
            if heard:
                others[lane].append(heard)
                waiting_told = [o for o in waiting_told if o not in heard]
        if rng.random() < 0.3:
            learner.advance(as_of=now - 40_000, max_decisions=rng.choice([None, 1, 9]))
        if rng.random() < 0.2:
            learner.save(path)
            learner = LogLearner.load(path, **places, rules=rules)
    counts = learner.advance(as_of=END)
    assert counts.decisions == 400
    assert counts.late == 0
    assert bits(learner.model) == bits(by_the_rule(rows, told, rules, END)[0])
    for log in (*two, *others):
        log.close()
    # A replay of the finished log, in which nothing is by the way any more, comes to the same.
    replay = LogLearner(model(), rules, **places)
    replay.advance(as_of=END)
    assert bits(replay.model) == bits(learner.model)


def test_of_a_shared_log_nothing_is_learned_without_a_promise(tmp_path: Path) -> None:
    rows = decisions(30)
    places = {"decisions": tmp_path / "decisions", "outcomes": tmp_path / "outcomes"}
    learner = LogLearner(model(), LearningRules(kind="fraud", maturity=1000), **places)
    with DecisionLog(places["decisions"], SCHEMA, shared=True) as log:
        append_decisions(log, rows[:10] + rows[11:20])
        assert learner.advance().decisions == 0
        assert learner.advance(as_of=60_000).decisions == 19
        # One that is behind the promise is left out, those after it are not.
        append_decisions(log, rows[10:11] + rows[20:])
        assert learner.advance(as_of=60_000).decisions == 29
        learner.save(tmp_path / "snapshot")
        again = LogLearner.load(tmp_path / "snapshot", **places)
        assert again.advance(as_of=70_000).decisions == 29


def test_what_was_predicted_is_told_in_the_order_of_learning_and_notes_are_kept(tmp_path: Path) -> None:
    rows = decisions(600, seed=3)
    places = write(tmp_path, rows, outcomes(rows, seed=3))
    logs = {"decisions": places[0], "outcomes": places[1]}

    def told(snapshot: Path, every: int | None) -> tuple[list[float], LogLearner]:
        heard: list[float] = []

        def hear(p: Any, labels: Any) -> None:
            heard.extend((p - labels).tolist())

        learner = LogLearner(model(), RULES[0], **logs, learned=hear)
        while learner.advance(as_of=END, max_decisions=every).decisions < 600 and every is not None:
            learner.notes = {"heard": len(heard)}
            learner.save(snapshot)
            learner = LogLearner.load(snapshot, **logs, learned=hear)
            assert learner.notes == {"heard": len(heard)}
        return heard, learner

    straight, one = told(tmp_path / "a.online", None)
    again, other = told(tmp_path / "a.online", 37)
    assert straight == again
    assert len(straight) == one.counts.learned
    assert one.notes == {}
    assert other.model.to_bytes() == one.model.to_bytes()


CHILD = """
import sys
from pathlib import Path
from tests.models.online_logs import model
from tests.models.test_online_learning import RULES
from vitok.models import online_learning
from vitok.models.online_learning import LogLearner
online_learning._CHUNK = 200
folder, snapshot, n, every = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
places = {"decisions": folder / "decisions", "outcomes": folder / "outcomes"}
rules = RULES[2]
learner = LogLearner.load(snapshot, **places) if snapshot.exists() else LogLearner(model(), rules, **places)
print("ready", flush=True)
while learner.advance(as_of=10**12, max_decisions=every).decisions < n:
    learner.save(snapshot)
learner.save(snapshot)
"""


@pytest.mark.slow
def test_killed_at_any_moment_it_comes_to_the_same_weights(tmp_path: Path) -> None:
    rows = decisions(12_000, seed=7)
    places = write(tmp_path, rows, outcomes(rows, seed=7), block=1000)
    straight = LogLearner(model(), RULES[2], decisions=places[0], outcomes=places[1])
    straight.advance(as_of=END)
    snapshot = tmp_path / "fraud.online"
    rng = random.Random(11)
    kills = 0
    while True:
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(tmp_path), str(snapshot), "12000", str(rng.randint(20, 90))],
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        if kills < 12:
            try:
                child.wait(timeout=rng.random() * 0.4)
            except subprocess.TimeoutExpired:
                os.kill(child.pid, signal.SIGKILL)
                kills += 1
        code = child.wait(timeout=120)
        child.stdout.close()
        if snapshot.exists():
            OnlineModel.load(snapshot)
        if code == 0:
            break
    found = LogLearner.load(snapshot, decisions=places[0], outcomes=places[1])
    assert kills == 12
    assert found.counts == straight.counts
    assert found.reached == straight.reached
    assert bits(found.model) == bits(straight.model)


def test_a_snapshot_is_of_its_rules_features_and_log(tmp_path: Path) -> None:
    rows = decisions(300)
    places = write(tmp_path, rows, outcomes(rows))
    logs: dict[str, Any] = {"decisions": places[0], "outcomes": places[1]}
    learner = LogLearner(model(), PLAIN, **logs)
    learner.advance(as_of=END, max_decisions=100)
    path = tmp_path / "snapshot"
    learner.save(path)
    assert LogLearner.load(path, **logs, rules=PLAIN, model=model()).counts == learner.counts
    with pytest.raises(Conflict, match="learned by"):
        LogLearner.load(path, **logs, rules=RULES[1])
    other = OnlineModel(model().features)
    with pytest.raises(Conflict, match="features"):
        LogLearner.load(path, **logs, model=other)
    OnlineModel.load(path).save(tmp_path / "model")
    with pytest.raises(StoreError, match="no learner"):
        LogLearner.load(tmp_path / "model", **logs)


def test_columns_that_the_log_lacks_are_named(tmp_path: Path) -> None:
    from vitok.models.online_features import Category, HashedFeatures

    rows = decisions(5)
    places = write(tmp_path, rows, [])
    made = OnlineModel(HashedFeatures(features=(Category("card"), Category("browser")), bits=8))
    learner = LogLearner(made, PLAIN, decisions=places[0], outcomes=places[1])
    assert learner.advance(as_of=END).learned == 5
    assert learner.lacking == {"browser"}
    nothing = OnlineModel(HashedFeatures(features=(Category("browser"),), bits=8))
    with pytest.raises(InvalidInput, match="columns of the log"):
        LogLearner(nothing, PLAIN, decisions=places[0], outcomes=places[1]).advance(as_of=END)


@pytest.mark.parametrize(
    "wrong",
    [{"maturity": 0}, {"correct_for": -1}, {"negative_rate": 0.0}, {"most_weight": 0.5}, {"most_weight": float("inf")}],
)
def test_rules_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        LearningRules(**({"kind": "fraud", "maturity": 1} | wrong))


def test_it_tells_what_it_did(tmp_path: Path) -> None:
    places = write(tmp_path, decisions(5), [])
    learner = LogLearner(model(), PLAIN, decisions=places[0], outcomes=places[1])
    assert "nothing yet" in str(learner)
    with pytest.raises(InvalidInput, match="max_decisions"):
        learner.advance(max_decisions=0)
    learner.advance(as_of=END)
    assert "5 decisions: 5 learned (0 positive, 5 timed out)" in str(learner)
    assert learner.counts.to_dict()["timed_out"] == 5


def test_of_a_shared_log_only_batches_in_memory_are_remembered(tmp_path: Path) -> None:
    from vitok.models.online_order import DecisionOrder

    rows = decisions(400)
    with DecisionLog(tmp_path, SCHEMA, shared=True) as log:
        order, seen = DecisionOrder(tmp_path), 0
        for start in range(0, 400, 10):
            append_decisions(log, rows[start : start + 10])
            frame = order.read(1_000, (start + 5) * 1_000)
            seen += 0 if frame is None else frame.height
            # Where to begin again: at the batch whose last rows are not promised yet, or the one being learned.
            assert len(order._starts) <= 3
        assert seen == 395
        again = DecisionOrder(tmp_path, order.place(5))
        left = again.read(1_000, 10**12)
        assert left is not None
        assert left["request_id"].to_list() == [f"r{i}" for i in range(390, 400)]
