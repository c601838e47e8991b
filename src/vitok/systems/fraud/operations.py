"""What runs beside the service: sketches, watch, retraining, canary, probation and rollback, all from the log."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitok import decisions, monitoring
from vitok.clock import DAY, isoformat
from vitok.loop import (
    Durable,
    JudgeRules,
    PairedJudge,
    Records,
    ReleaseVerdict,
    RetrainTrigger,
    begin_canary,
    push,
    roll_back,
    settle_canary,
)
from vitok.policies import Costs, TierPolicy
from vitok.registry import Registry, Tracker
from vitok.systems.fraud.releases import Made, Workshop, load, register
from vitok.systems.fraud.service import SYSTEM

if TYPE_CHECKING:
    import polars as pl

CANARY_SHARE = 0.1
ACTOR = "loop"


@dataclasses.dataclass
class Trial:
    """A version that is being judged: a canary beside the champion, or a champion on probation."""

    judge: PairedJudge
    version: int
    kind: str
    started: int
    seen: "list[pl.DataFrame]" = dataclasses.field(default_factory=list)
    matured: set[str] = dataclasses.field(default_factory=set)


class Operator:
    """Watches the log of the fraud service and acts on what it says.

    Args:
        home: The service's home folder.
        registry: Where versions stand.
        tracker: Where runs are kept.
        workshop: Where versions are made.
        label_delay: Age at which labels are known, microseconds.
        tell: Gets (time, text) for everything worth telling.
    """

    def __init__(
        self,
        home: Path,
        registry: Registry,
        tracker: Tracker,
        workshop: Workshop,
        *,
        label_delay: int,
        trigger: RetrainTrigger,
        tell: Callable[[int, str], None],
    ) -> None:
        self.home = home
        self.registry, self.tracker, self.workshop = registry, tracker, workshop
        self.costs: Costs = workshop.costs
        self.label_delay = label_delay
        self.trigger = trigger
        self.tell = tell
        self.records = Records(home)
        self.durable = Durable(home)
        self.sketches = monitoring.Sketches(home / "monitoring" / "sketches.sqlite")
        self.alerts = monitoring.Alerts(home / "monitoring" / "alerts.sqlite")
        self.tail = decisions.Tail(home / "log" / "decisions", self.sketches.position())
        self.profiles: dict[str, monitoring.ReferenceProfile] = {}
        self.trial: Trial | None = None
        self.last_retrain: int | None = None
        self.retrainings = 0
        self.rollback_seconds: list[float] = []
        self.promoted_at: dict[int, int] = {}
