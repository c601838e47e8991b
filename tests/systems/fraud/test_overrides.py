"""What is other than released for a while: written once, followed by the service, over in time, replayed exactly."""

import dataclasses
import json
import time
from pathlib import Path

import numpy as np
import pytest

from vitok.clock import DAY, HOUR, EventClock
from vitok.console.decision_replay import FraudReplay
from vitok.decisions import read, replay_decision
from vitok.errors import Conflict, InvalidInput, StoreError
from vitok.policies import Costs, TierPolicy
from vitok.serving import HotRequest
from vitok.systems.fraud.overrides import Override, Overrides, RaisedPolicy, as_released, policy_as_logged, policy_under
from vitok.systems.fraud.replay import hours
from vitok.systems.fraud.service import FraudService

RAISE = Override(key="a", action="raise_threshold", by=0.1, who="loop", why="worse", since=0, until=DAY)
RULES = dataclasses.replace(RAISE, key="r", action="use_rules", by=0.0, until=6 * HOUR)


@pytest.mark.parametrize(
    "changes",
    [
        {"by": 0.0},
        {"by": 0.6},
        {"by": float("nan")},
        {"until": 0},
        {"until": 8 * DAY},
        {"who": " "},
        {"why": ""},
        {"action": "sleep"},
        {"action": "use_rules"},
    ],
)
def test_ranges_are_checked(changes: dict[str, object]) -> None:
    with pytest.raises(InvalidInput):
        dataclasses.replace(RAISE, **changes)


def test_one_key_is_one_override_and_its_end_is_kept(tmp_path: Path) -> None:
    here, there = Overrides(tmp_path), Overrides(tmp_path)
    assert here.standing(0) == ()
    here.add(RAISE)
    assert there.add(dataclasses.replace(RAISE, why="said again")) == RAISE
    assert there.standing(DAY - 1) == (RAISE,)
    assert there.standing(DAY) == ()
    with pytest.raises(Conflict, match="another one"):
        here.add(dataclasses.replace(RULES, key="a"))
    assert here.end("a", who="ann", now=5).ended == 5
    assert here.end("a", who="bob", now=6).ended_by == "ann"
    assert there.standing(6) == ()
    assert "taken back 1970-01-01T00:00:00.000005Z by ann" in str(there.history()[0])
    with pytest.raises(Conflict, match="no override"):
        here.end("b", who="ann", now=6)


def test_a_file_that_is_damaged_says_so(tmp_path: Path) -> None:
    (tmp_path / "loop").mkdir()
    (tmp_path / "loop" / "overrides.json").write_text("[{")
    with pytest.raises(StoreError, match="cannot be read"):
        Overrides(tmp_path).standing(0)


def test_a_raised_policy_moves_blocks_to_people_and_nothing_else() -> None:
    rng = np.random.default_rng(5)
    n = 4_000
    probability, amount = rng.random(n), rng.lognormal(4, 1, n)
    units = [f"t{row}" for row in range(n)]
    policy = TierPolicy(costs=Costs(), review_price=2.0, pass_through=0.2)
    usual = policy.decide(probability, amount, units)
    raised = RaisedPolicy.of(policy, 0.15).decide(probability, amount, units)
    # The oracle: the threshold that each of the two gives for an amount.
    block = np.array([policy.thresholds(value)[1] for value in amount])
    between = (probability >= block + 1e-4) & (probability < block + 0.15 - 1e-4)
    above = probability >= block + 0.15 + 1e-4
    below = probability < block - 1e-4
    changed = np.array([a != b for a, b in zip(usual.actions, raised.actions, strict=True)])
    actions = np.array(raised.actions)
    assert (actions[between] == "review").all()
    assert (raised.propensity[between] == 1).all()
    assert not changed[above | below].any()
    assert (raised.propensity[above | below] == usual.propensity[above | below]).all()
    assert between.sum() > 200


def test_raises_add_up_to_a_half_at_most_and_the_log_names_them() -> None:
    policy = TierPolicy(costs=Costs(), pass_through=0.01)
    assert policy_under(policy, (RULES,)) is policy
    found = policy_under(policy, (RAISE, dataclasses.replace(RAISE, key="b", by=0.1), RULES))
    assert found.version == f"{policy.version}+raised-0.2"
    assert policy_as_logged(policy, found.version) == found
    assert policy_as_logged(policy, policy.version) is policy
    most = policy_under(policy, tuple(dataclasses.replace(RAISE, key=str(key), by=0.4) for key in range(3)))
    assert isinstance(most, RaisedPolicy)
    assert most.by == 0.5
    assert dataclasses.replace(found, pass_through=0.0).version.endswith("+raised-0.2")
    assert json.loads(json.dumps(found.describe()))["raised"] == 0.2


class Bench:
    """A service in this process whose clock the requests move, an hour of the world at a time."""

    def __init__(self, home: Path, world) -> None:
        self.home, self.clock = home, EventClock()
        self.service = FraudService(home, clock=self.clock)
        start = world.timeline.replay_start
        self.hours = hours(world.transactions, world.labels, start=start, end=start + 4 * DAY)

    def send(self, n: int) -> None:
        for hour in [next(self.hours) for _ in range(n)]:
            self.service.versions.refresh()
            if hour.bodies:
                self.service.handle([HotRequest(body, time.perf_counter_ns(), []) for body in hour.bodies])


def test_the_service_follows_and_each_decision_is_replayed_without_a_difference(home: Path, world) -> None:
    bench = Bench(home, world)
    start = world.timeline.replay_start
    overrides = Overrides(home)
    bench.send(12)
    overrides.add(dataclasses.replace(RAISE, by=0.5, since=start + 12 * HOUR, until=start + 36 * HOUR))
    bench.send(12)
    overrides.add(dataclasses.replace(RULES, since=start + DAY, until=start + DAY + 6 * HOUR))
    bench.send(3)
    assert "the rules answer until" in bench.service.versions.problem()
    overrides.end("r", who="ann", now=start + 27 * HOUR)
    bench.send(21)
    assert bench.service.versions.current.overrides == ()
    bench.service.close()
    log = home / "log" / "decisions"
    rows = read(log)
    policies = rows["policy_version"].unique().sort().to_list()
    released = next(name for name in policies if name.startswith("tiers") and "+" not in name)
    assert set(policies) == {released, f"{released}+raised-0.5", "rules"}
    by_rules = rows.filter(rows["policy_version"] == "rules")
    assert set(by_rules["route"]) == {"fallback"}
    assert by_rules["route_reason"][0].endswith("by loop: worse")
    replay = FraudReplay(home)
    for policy in policies:
        for row in (
            rows.filter(rows["policy_version"] == policy)
            .sort("probability", descending=True)
            .head(40)
            .iter_rows(named=True)
        ):
            found = replay_decision(log, row["decision_id"].hex(), replay.recompute)
            assert found.differences == ()
    # What the versions would have done by themselves is what they do without the override.
    plain = as_released(rows, lambda version: replay.model(version).policy)
    raised = rows["policy_version"].str.ends_with("+raised-0.5")
    model = replay.model("fraud/1")
    own = rows.filter(raised)
    tiers = model.policy.decide(own["probability"].to_numpy(), own["amount"].to_numpy(), own["request_id"].to_list())
    assert plain.filter(raised)["action"].to_list() == tiers.actions
    assert plain.filter(~raised).equals(rows.filter(~raised))


def test_overrides_that_cannot_be_read_are_as_good_as_none(home: Path, world) -> None:
    bench = Bench(home, world)
    Overrides(home).add(dataclasses.replace(RULES, since=0, until=DAY))
    (home / "loop" / "overrides.json").write_text("{}{")
    bench.send(2)
    assert bench.service.versions.problem() == ""
    assert bench.service.counts["override_failures"] == 1
    bench.service.close()
