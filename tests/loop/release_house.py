"""What the tests of releases by plan share: a home with three versions, a plan, and traffic drawn from seeds."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from vitok.loop import RateRule, Records, TrafficJudge
from vitok.loop.release_book import Release
from vitok.loop.release_evidence import Look, Split
from vitok.loop.release_plan import ReleasePlan
from vitok.loop.release_run import Releases
from vitok.registry import Registry, at_least, evaluate

GOOD = evaluate([at_least("average_precision", 0.6, 0.5)])


def watch(**versions: Any) -> TrafficJudge:
    return TrafficJudge(rates={"failed": RateRule(margin=0.05)}, **versions)


def plan_of(**changes: Any) -> ReleasePlan:
    """Shadow for 10, canaries for 10 each, and full for 20; times are in microseconds."""
    given: dict[str, Any] = {"canary": watch, "probation": watch, "shares": (0.1, 0.5), "least": 10}
    return ReleasePlan.of(**(given | {"shadow_for": 10, "probation_for": 20} | changes))


@dataclasses.dataclass
class Traffic:
    """Looks that are there up to a number, each drawn from its own seed; the position is how many were taken."""

    bad: float = 0.02
    there: int = 0
    n: int = 2_000

    def look(self, release: Any, *, now: int) -> Look:
        taken = release.position or 0
        share = release.shares[-1][1]
        splits = []
        for number in range(taken, self.there):
            rng = np.random.default_rng(number)
            candidate = rng.random(self.n) < share
            failed = rng.random(self.n) < np.where(candidate, self.bad, 0.02)
            version = np.where(candidate, "fraud/2", "fraud/1")
            splits.append(Split(pl.DataFrame({"version": version, "failed": failed}), share))
        return Look(splits=tuple(splits) if 0 < share < 1 else (), position=max(self.there, taken))


@dataclasses.dataclass
class House:
    home: Path
    registry: Registry
    records: Records
    releases: Releases
    plan: ReleasePlan
    traffic: Traffic
    begun: Release

    @classmethod
    def at(cls, home: Path, plan: ReleasePlan, traffic: Traffic) -> "House":
        """Opens what lies there, as a process that was started anew does."""
        registry, records = Registry(home), Records(home)
        releases = Releases(registry, records)
        return cls(home, registry, records, releases, plan, traffic, releases.book.get("fraud/2"))

    def tick(self, now: int, *, looks: int = 1) -> Release:
        self.traffic.there += looks
        return self.releases.tick("fraud/2", self.plan, self.traffic, now=now)

    def kinds(self) -> list[tuple[str, str | None]]:
        found = self.registry.ledger.history("fraud", version=2)
        return [(entry.kind, entry.stage_to) for entry in found if entry.kind not in ("registered", "gate")]

    def close(self) -> None:
        self.releases.close()
        self.registry.close()

    def all(self) -> str:
        """Everything that is kept, as one text."""
        release = self.releases.book.get("fraud/2")
        kept = {
            "release": release.to_dict(),
            "judges": {name: self.releases.book.state(release, name) for name in self.plan.judges},
            "ledger": [entry.to_dict() for entry in self.registry.ledger.history("fraud")],
            "records": [record.to_dict() for record in self.records.list() if record.kind == "release"],
        }
        return json.dumps(kept, sort_keys=True)


def furnish(home: Path, plan: ReleasePlan, traffic: Traffic, *, approvals: int = 0) -> House:
    registry, records = Registry(home), Records(home)
    for number in (1, 2, 3):
        registry.register("fraud", {"weights": bytes([number])}, now=number, actor="train")
        registry.ledger.record_gate("fraud", number, GOOD, now=5, actor="gate")
    registry.ledger.promote("fraud", 1, "Production", reason="first", actor="ann", now=6)
    if approvals:
        registry.ledger.require_approvals("fraud", approvals, reason="policy", actor="ann", now=7)
    releases = Releases(registry, records)
    begun = releases.begin("fraud", 2, plan, now=100, actor="ann", reason="retrained")
    return House(home, registry, records, releases, plan, traffic, begun)
