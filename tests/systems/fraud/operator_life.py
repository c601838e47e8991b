"""The life of an operator that retrains, tries what it made and promotes it, and is killed where it is told to be.

`python operator_life.py HOME START FROM [PLACE]`: goes on from the hour FROM, and is killed at PLACE.
"""

import dataclasses
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vitok.clock import DAY, HOUR
from vitok.loop import PairedJudge, ReleaseVerdict, TriggerRules
from vitok.loop.release_book import ReleaseBook
from vitok.loop.release_moves import Moves
from vitok.policies import Costs
from vitok.registry import Ledger, Registry, at_least, evaluate
from vitok.systems.fraud.messages import SYSTEM
from vitok.systems.fraud.operations import Operator
from vitok.systems.fraud.releasing import Releasing

HOURS = 8
PLACES = ("made", "begun", "entering", "canary", "seen", "promoted", "told")


class Making:
    """Makes a copy of the first version."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry

    def lacks(self, now: int) -> str:
        """Nothing is lacking."""
        return "" if now else "time"

    def again(self, key: str, *, reason: str, at: int, changed: int | None) -> dict[str, Any]:
        """Makes it; the same key again makes nothing new."""
        assert (reason, changed) == ("ann: a new feature", None)
        folder = self.registry.packages / SYSTEM / "1"
        files = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "manifest.json"}
        made = self.registry.register(SYSTEM, files, now=at, actor="test", key=key).version
        gate = evaluate([at_least("average_precision", 0.6, 0.5)])
        self.registry.ledger.record_gate(SYSTEM, made, gate, now=at, actor="gate", key=f"{key}/gate")
        return {"version": made, "accepted": True, "gate": "all checks passed"}

    def mirror(self) -> None:
        """Shows nothing to nobody."""


class Kind(PairedJudge):
    """Accepts what is no worse on 500 decisions."""

    def verdict(self, now: int) -> ReleaseVerdict:
        """Judges."""
        found = super().verdict(now)
        enough = found.n_decisions >= 500 and found.state == "continue"
        return dataclasses.replace(found, state="accept", reason="as good") if enough else found


def die_at(place: str) -> None:
    """Kills this process at a place."""

    def killed(owner: type, name: str, *, after: bool, when: Callable[..., bool] = lambda *_, **__: True) -> None:
        real = getattr(owner, name)

        def method(*given: Any, **named: Any) -> Any:
            if not after and when(*given, **named):
                os.kill(os.getpid(), signal.SIGKILL)
            found = real(*given, **named)
            if after and when(*given, **named):
                os.kill(os.getpid(), signal.SIGKILL)
            return found

        setattr(owner, name, method)

    if place == "made":
        killed(Making, "again", after=True)
    elif place == "begun":
        killed(ReleaseBook, "begin", after=True)
    elif place == "entering":
        killed(Moves, "_enter", after=False)
    elif place == "canary":
        killed(Ledger, "start_canary", after=True)
    elif place == "seen":
        killed(Moves, "settled", after=False, when=lambda _, release, __: bool(release.verdicts))
    elif place == "promoted":
        killed(Ledger, "promote", after=True)
    elif place == "told":
        killed(Releasing, "_after", after=False, when=lambda _, release, __: release.kind == "full")


def judge(self: Releasing, *, candidate: str, incumbent: str, confidence_level: float) -> PairedJudge:
    """Makes the kind judge of a plan."""
    assert confidence_level == 0.975
    policies: dict[str, Any] = {
        "candidate_policy": self._policy_of(candidate),
        "incumbent_policy": self._policy_of(incumbent),
    }
    return Kind(candidate=candidate, incumbent=incumbent, costs=self.costs, **policies)


def main(home: Path, start: int, begin: int, place: str = "") -> None:
    """Lives."""
    die_at(place)
    Releasing._judge = judge  # type: ignore[method-assign]
    registry = Registry(home)
    operator = Operator(
        home,
        registry,
        Making(registry),
        costs=Costs(),
        label_delay=7 * DAY,
        triggers=TriggerRules(debounce=0),
    )
    operator.triggers.ask(SYSTEM, who="ann", why="a new feature", now=start, key="test")
    for hour in range(begin, HOURS):
        (home / "hour").write_text(str(hour))
        operator.follow_up(start + hour * HOUR)
        operator.retrain(start + hour * HOUR)
    operator.close()
    registry.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:])
