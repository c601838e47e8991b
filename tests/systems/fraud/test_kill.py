"""The service as a real process, killed at random moments of a replay: nothing is lost or counted twice."""

import json
import random
import threading
from pathlib import Path

import pytest

from vitok import decisions
from vitok.clock import DAY
from vitok.errors import ServiceError
from vitok.features import compare
from vitok.serving import ConnectionBroken
from vitok.systems.fraud.features import FEATURES
from vitok.systems.fraud.replay import Replay, ServiceProcess, hours

KILLS = 20


@pytest.mark.slow
def test_killed_at_twenty_random_moments(home: Path, world) -> None:
    rng = random.Random(7)
    start = world.timeline.replay_start
    part = list(hours(world.transactions, world.labels, start=start, end=start + 6 * DAY))
    acknowledged: dict[str, str] = {}
    service = ServiceProcess(home)
    replay = Replay(service)
    kills = 0
    pending: threading.Timer | None = None

    def arm() -> None:
        nonlocal pending
        pending = threading.Timer(rng.uniform(0.0, 0.08), service.process.kill)
        pending.start()

    def again() -> None:
        nonlocal service, kills
        assert pending is not None
        pending.join()
        service.process.wait()
        kills += 1
        service = ServiceProcess(home)
        replay.reconnect(service)

    moments = sorted(rng.sample(range(len(part)), KILLS))
    for number, hour in enumerate(part):
        if number in moments:
            arm()
        outcomes, bodies = list(hour.outcomes), list(hour.bodies)
        while True:
            try:
                replay.learn(outcomes)
                sent = 0

                def on_reply(i: int, status: int, body: bytes, bodies: list[bytes] = bodies) -> None:
                    nonlocal sent
                    assert status == 200, body
                    answer = json.loads(body)
                    request = json.loads(bodies[i])["transaction_id"]
                    assert answer["transaction_id"] == request
                    assert acknowledged.setdefault(request, answer["decision_id"]) == answer["decision_id"]
                    sent += 1

                replay._client.send_all(bodies, on_reply)
                break
            except (ConnectionBroken, ServiceError):
                # What was not acknowledged is sent again, and to be sure the last acknowledged ones too.
                again()
        if number in moments and pending is not None and kills < moments.index(number) + 1:
            again()
    replay.close()
    service.stop()
    assert kills == KILLS
    logged = decisions.read(home / "log" / "decisions")
    assert logged["request_id"].n_unique() == len(logged) == sum(len(hour.bodies) for hour in part)
    ids = {
        row["request_id"]: bytes(row["decision_id"]).hex()
        for row in logged.select("request_id", "decision_id").iter_rows(named=True)
    }
    assert {request: answer.replace("-", "") for request, answer in acknowledged.items()} == ids
    rows = world.rows.join(logged, left_on="transaction_id", right_on="request_id", suffix="_logged")
    assert len(rows) == len(logged)
    seen = rows.select(f"f_{name}" for name in FEATURES.names).to_numpy()
    result = compare(FEATURES, seen, rows.select(FEATURES.names).to_numpy())
    assert result.n_differing_rows == 0, str(result)
