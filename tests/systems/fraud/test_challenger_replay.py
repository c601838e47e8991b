"""A decision with the challenger as its shadow, taken again: the shadow too, or that its snapshot is gone."""

import json
import shutil
import time
from pathlib import Path

from tests.systems.fraud.challenger_logs import BEGIN

from vitok.clock import DAY, EventClock
from vitok.console.decision_replay import FraudReplay
from vitok.decisions import replay_decision
from vitok.registry import Registry
from vitok.serving import HotRequest
from vitok.systems.fraud.challenger import Challenger
from vitok.systems.fraud.challenger_serving import FOLDER, SNAPSHOTS
from vitok.systems.fraud.service import FraudService


def test_the_shadow_is_taken_again_while_its_snapshot_is_kept(home: Path) -> None:
    service = FraudService(home, clock=EventClock(), deadline=5.0)
    registry = Registry(home)
    Challenger(home, registry, label_delay=DAY).hour(BEGIN)
    registry.close()
    service.refresh()
    body = {
        "transaction_id": "q-1",
        "event_time": "2018-05-20T12:00:00Z",
        "customer_id": "1",
        "terminal_id": "2",
        "amount": 9.5,
    }
    [reply] = service.handle([HotRequest(json.dumps(body).encode(), time.perf_counter_ns(), [])])
    service.close()
    decision_id = json.loads(reply.body)["decision_id"]
    log = home / "log" / "decisions"
    kept = replay_decision(log, decision_id, FraudReplay(home).recompute)
    assert (kept.differences, kept.left_out) == ((), {})
    assert "shadow_probability" in kept.compared
    shutil.rmtree(home / FOLDER / SNAPSHOTS)
    gone = replay_decision(log, decision_id, FraudReplay(home).recompute)
    assert gone.differences == ()
    assert "shadow_probability: not computed, the snapshot fraud-online/" in str(gone)
    assert "no difference in score" in str(gone)
    assert list(gone.to_dict()["left_out"]) == ["shadow_probability"]
