"""Several processes that tick one release at the same moments: each move is made once, and no look counts twice."""

import subprocess
import sys
from pathlib import Path

from tests.loop.release_house import Traffic, furnish, plan_of

ROOT = Path(__file__).resolve().parents[2]
CHILD = """
import dataclasses, sys
from pathlib import Path
from tests.loop.release_house import House, Traffic, plan_of

house = House.at(Path(sys.argv[1]), plan_of(approvals=1), Traffic())
for line in sys.stdin:
    now = int(line)
    traffic = dataclasses.replace(house.traffic, there=now)
    release = house.releases.tick("fraud/2", house.plan, traffic, now=now)
    print(release.status, flush=True)
house.close()
"""


def test_processes_that_tick_at_the_same_moments_act_once(tmp_path: Path) -> None:
    house = furnish(tmp_path / "many", plan_of(approvals=1), Traffic())
    alone = furnish(tmp_path / "alone", plan_of(approvals=1), Traffic())
    command = [sys.executable, "-c", CHILD, str(tmp_path / "many")]
    children = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(3)
    ]
    try:
        for now in range(100, 240, 5):
            if now == 170:
                # Until then three processes have asked for full traffic that nobody approved.
                assert house.registry.state("fraud").production == 1
                for each in (house, alone):
                    each.releases.approve("fraud/2", who="bob", why="read it", now=now)
            for child in children:
                assert child.stdin is not None
                child.stdin.write(f"{now}\n")
                child.stdin.flush()
            for child in children:
                assert child.stdout is not None
                assert child.stdout.readline().strip() in ("running", "finished")
            alone.traffic.there = now
            # Whoever comes second in a process of its own looks once more, at nothing new.
            for _ in children:
                alone.releases.tick("fraud/2", alone.plan, alone.traffic, now=now)
    finally:
        for child in children:
            child.communicate(timeout=60)
    assert [child.returncode for child in children] == [0, 0, 0]
    assert house.releases.book.get("fraud/2").status == "finished"
    assert house.kinds() == alone.kinds()
    assert [kind for kind, stage in house.kinds() if (kind, stage) == ("promoted", "Production")] == ["promoted"]
    assert house.registry.ledger.verify().intact
    ends = [each.releases.book.get("fraud/2") for each in (house, alone)]
    # Who was too late for a look took nothing in: the judges have seen what they see where one process ticks.
    assert ends[0].position == ends[1].position
    for judge in ("canary", "probation"):
        states = [each.releases.book.state(end, judge) for each, end in zip((house, alone), ends, strict=True)]
        assert states[0] == states[1]
    assert [event.kind for event in ends[0].events] == [event.kind for event in ends[1].events]
    house.close()
    alone.close()
