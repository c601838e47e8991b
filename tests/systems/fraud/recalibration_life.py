"""The life of an operator that was asked for a new calibrator, and is killed where it is told to be.

`python recalibration_life.py HOME NOW [PLACE]`.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

from vitok.clock import DAY
from vitok.loop import TriggerRules
from vitok.loop.release_book import ReleaseBook
from vitok.policies import Costs
from vitok.registry import Registry, at_least, evaluate
from vitok.systems.fraud.acting import CALIBRATOR
from vitok.systems.fraud.messages import SYSTEM
from vitok.systems.fraud.operations import Operator


class Making:
    """Makes a copy of the first version."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry

    def lacks(self, now: int) -> str:
        """Nothing is lacking."""
        return "" if now else "time"

    def again(self, key: str, *, reason: str, at: int, changed: int | None) -> dict[str, Any]:
        """Is not asked."""
        raise AssertionError((key, reason, at, changed))

    def refit(self, key: str, *, champion: int, reason: str, at: int) -> dict[str, Any]:
        """Makes it; the same key again makes nothing new."""
        assert (champion, reason) == (1, "ann: probabilities are off")
        package = self.registry.load(SYSTEM, champion)
        files = {name: package.bytes(name) for name in package.files}
        made = self.registry.register(SYSTEM, files, now=at, actor="test", key=key).version
        gate = evaluate([at_least("average_precision", 0.6, 0.5)])
        self.registry.ledger.record_gate(SYSTEM, made, gate, now=at, actor="gate", key=f"{key}/gate")
        return {"version": made, "gate": "calibrator refitted: test"}

    def mirror(self) -> None:
        """Shows nothing to nobody."""


def die_after(owner: type, name: str) -> None:
    """Kills this process after a method has done its work."""
    real = getattr(owner, name)

    def method(*given: Any, **named: Any) -> Any:
        real(*given, **named)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, name, method)


def main(home: Path, now: int, place: str = "") -> None:
    """Lives."""
    if place == "made":
        die_after(Making, "refit")
    elif place == "begun":
        die_after(ReleaseBook, "begin")
    registry = Registry(home)
    maker = Making(registry)
    triggers = TriggerRules(debounce=0)
    operator = Operator(home, registry, maker, costs=Costs(), label_delay=7 * DAY, triggers=triggers, refit=maker.refit)
    operator.triggers.ask(CALIBRATOR, who="ann", why="probabilities are off", now=now, key="test")
    operator.recalibrate(now)
    operator.close()
    registry.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
