"""Decisions taken again. Oracles: the record itself, and costs of a world whose labels are all known."""

import math
import uuid

import numpy as np
import pytest

from vitok.decision import Outcome
from vitok.decisions import DecisionLog, OutcomeLog, Recomputed, Rescored, read, replay_decision, replay_period
from vitok.errors import InvalidInput, NotFound

N = 6000


class Toy:
    """Blocks above a threshold, at 10 a block of an honest one and 100 a fraud let pass."""

    def recompute(self, decision):
        return Recomputed(fields={"action": "allow", "f_count_1d": decision.features["count_1d"], "score": 1.0})

    def rescore(self, rows, version):
        threshold = float(version)
        probability = rows["probability"].to_numpy()
        return Rescored(action=np.where(probability > threshold, "block", "allow").tolist(), probability=probability)

    def cost(self, rows, action, label):
        return np.where(np.array(action) == "block", 10 * (1 - label), 100 * label)


@pytest.fixture
def world(tmp_path, schema, make_block):
    """Logs a policy that blocks above 0.3 and lets 20 % of these pass; labels come where nothing was blocked."""
    rng = np.random.default_rng(2)
    probability = rng.beta(1, 4, N)
    fraud = (rng.random(N) < probability).astype(float)
    block = (probability > 0.3) & (rng.random(N) > 0.2)
    propensity = np.where(probability > 0.3, np.where(block, 0.8, 0.2), 1.0)
    with DecisionLog(tmp_path / "decisions", schema) as log, OutcomeLog(tmp_path / "outcomes") as outcomes:
        action = np.where(block, "block", "allow").tolist()
        log.append(make_block(0, N, action=action, probability=probability, propensity=propensity))
        seen = [i for i in range(N) if not block[i]]
        outcomes.append(
            [Outcome(request_id=f"r{i}", kind="fraud", value=fraud[i], event_time=1, ingest_time=1) for i in seen]
        )
    return tmp_path, probability, fraud, block


def test_a_period_by_another_version(world):
    folder, probability, fraud, block = world
    found = replay_period(folder, Toy(), "0.1", since=0, until=N * 1000, as_of=10, kind="fraud")
    changed = ((probability > 0.1) & ~block).sum()
    assert (found.n, found.n_changed, found.changed) == (N, changed, (("allow", "block", changed),))
    assert (found.n_labelled, found.n_unlabelled, found.n_unsupported) == ((~block).sum(), 0, 0)
    truth = np.where(probability > 0.1, 10 * (1 - fraud), 100 * fraud).mean()
    logged = np.where(block, 10 * (1 - fraud), 100 * fraud).mean()
    for one in found.candidate:
        assert one.lower <= truth <= one.upper
        assert one.n_eff < one.n_obs
    assert found.logged.lower <= logged <= found.logged.upper
    for one in found.difference:
        assert one.lower <= truth - logged <= one.upper
    assert [one.name for one in found.difference] == ["ips", "snips", "dr"]
    # A model that is right about the rest makes the estimate sharper.
    widths = [one.upper - one.lower for one in found.candidate]
    assert widths[2] < widths[0]
    text = str(found)
    assert f"{changed:,} actions change" in text
    assert "answered by 0.1" in text
    assert found.to_dict()["changed"] == [{"from": "allow", "to": "block", "n": changed}]


def test_the_same_version_changes_what_its_dice_did(world):
    folder, _, _, _ = world
    found = replay_period(folder, Toy(), "0.3", since=0, until=N * 1000, as_of=10, kind="fraud")
    assert {(one, other) for one, other, _ in found.changed} == {("allow", "block")}


def test_what_has_no_label_is_left_out(world):
    folder, _, _, block = world
    found = replay_period(folder, Toy(), "0.1", since=0, until=N * 1000, as_of=0, kind="fraud")
    assert (found.n_labelled, found.n_unlabelled) == (0, (~block).sum())
    assert math.isnan(found.logged.value)
    assert str(found)
    with pytest.raises(NotFound, match="decisions"):
        replay_period(folder, Toy(), "0.1", since=10**15, until=2 * 10**15, as_of=0, kind="fraud")


def test_one_decision(tmp_path, schema, make_block):
    with DecisionLog(tmp_path, schema) as log:
        log.append(make_block(0, 20, score=np.ones(20)))
    made = read(tmp_path).row(11, named=True)
    name = str(uuid.UUID(bytes=made["decision_id"]))
    toy = Toy()
    good = replay_decision(tmp_path, name, toy.recompute)
    assert good.differences == ()
    assert good.compared == ("action", "f_count_1d", "score")
    assert "no difference in action, f_count_1d, score" in str(good)
    bad = replay_decision(tmp_path, name, lambda _: Recomputed(fields={"action": "block", "probability": math.nan}))
    assert [one.field for one in bad.differences] == ["action", "probability"]
    assert "action: logged allow, recomputed block" in str(bad)
    assert bad.to_dict()["differences"][1]["recomputed"] is None
    assert not replay_decision(tmp_path, name, lambda _: Recomputed(fields={"score": 1.0 + 1e-15})).differences
    with pytest.raises(NotFound):
        replay_decision(tmp_path, str(uuid.uuid4()), toy.recompute)
    for field in ("f_unknown", "colour"):
        with pytest.raises(InvalidInput, match=field):
            replay_decision(tmp_path, name, lambda _, field=field: Recomputed(fields={field: 1.0}))
