"""When to retrain: an alert that matured data can answer, or the schedule; never more often than is allowed."""

import dataclasses
from collections.abc import Collection, Sequence
from typing import Literal, Protocol

from vitok.clock import DAY, isoformat
from vitok.errors import InvalidInput


class OpenAlert(Protocol):
    """What a trigger reads of an alert that is open."""

    @property
    def rule(self) -> str:
        """Name of the rule that raised it, such as `"score_drift"`."""
        ...

    @property
    def first_seen(self) -> int:
        """Since when it holds, in microseconds."""
        ...

    @property
    def reason(self) -> str:
        """Why it was raised, in words."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reason:
    """Why a retraining is due.

    Attributes:
        kind: `"alert"` or `"schedule"`.
        text: Why, in words.
        since: The alert's beginning, or when the schedule fell due, in microseconds.
        rule: Rule of the alert, or None.
    """

    kind: Literal["alert", "schedule"]
    text: str
    since: int
    rule: str | None = None

    def __str__(self) -> str:
        return f"{self.kind}: {self.text}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RetrainTrigger:
    """Says when a retraining is due; pure, what it knows is given with each call.

    Drift alone tells nothing to learn: only once labels of the time since the alert began have come can a new model
    learn what changed, and a gate judge it. So an alert counts from `first_seen + label_delay_us + min_matured_us`.

    Attributes:
        schedule_us: Microseconds between two retrainings where nothing happens, or None for no schedule.
        cool_down_us: Least time between two retrainings, at least 0.
        budget: How many retrainings there may be in all; the caller says what it counts (a month, a demo).
        min_matured_us: How much time since the alert's beginning must have labels.
        label_delay_us: How long labels take.
        rules: Rules whose alerts call for retraining; None for all. An alert about latency, volume or a broken
            feed is none of them: no new model mends that.

    Example:
        >>> from types import SimpleNamespace
        >>> trigger = RetrainTrigger(cool_down_us=7 * DAY, budget=3, min_matured_us=3 * DAY, label_delay_us=7 * DAY)
        >>> alert = SimpleNamespace(rule="score_drift", first_seen=20 * DAY, reason="PSI 0.31 above 0.2")
        >>> trigger.due(29 * DAY, [alert], last_retrain=0, n_retrains=1, data_ready=True) is None
        True
        >>> print(trigger.due(30 * DAY, [alert], last_retrain=0, n_retrains=1, data_ready=True))
        alert: score_drift since 1970-01-21T00:00:00Z, now with 3 d of labels: PSI 0.31 above 0.2
    """

    schedule_us: int | None = None
    cool_down_us: int
    budget: int
    min_matured_us: int = 0
    label_delay_us: int = 0
    rules: Collection[str] | None = None

    def __post_init__(self) -> None:
        """Checks the ranges."""
        if self.schedule_us is not None and self.schedule_us <= 0:
            raise InvalidInput("trigger: schedule_us", self.schedule_us, "be above 0, or None for no schedule")
        for name in ("cool_down_us", "budget", "min_matured_us", "label_delay_us"):
            if getattr(self, name) < 0:
                raise InvalidInput(f"trigger: {name}", getattr(self, name), "be at least 0")
        if isinstance(self.rules, str):
            raise InvalidInput("trigger: rules", self.rules, "be a collection of names")

    def due(
        self,
        now: int,
        alerts_open: Sequence[OpenAlert],
        last_retrain: int | None,
        n_retrains: int,
        *,
        data_ready: bool,
    ) -> Reason | None:
        """Says whether to retrain now, and why.

        Args:
            now: The present, in microseconds.
            alerts_open: Alerts that hold now.
            last_retrain: When the last retraining began, in microseconds, whether its model was released or not;
                when the model that serves was trained where there was none; None where nothing is known.
            n_retrains: Retrainings so far, as the budget counts them.
            data_ready: Whether there is a new stretch of checked data to train and to judge on.

        Returns:
            The reason, an alert's before the schedule's and the oldest alert's first, or None.
        """
        if not data_ready or n_retrains >= self.budget:
            return None
        if last_retrain is not None and now - last_retrain < self.cool_down_us:
            return None
        for alert in sorted(alerts_open, key=lambda alert: (alert.first_seen, alert.rule)):
            if self.rules is not None and alert.rule not in self.rules:
                continue
            matured = now - self.label_delay_us - alert.first_seen
            if matured >= self.min_matured_us:
                begin = isoformat(alert.first_seen)
                text = f"{alert.rule} since {begin}, now with {matured / DAY:.3g} d of labels: {alert.reason}"
                return Reason(kind="alert", text=text, since=alert.first_seen, rule=alert.rule)
        if self.schedule_us is not None and last_retrain is not None and now - last_retrain >= self.schedule_us:
            text = f"{(now - last_retrain) / DAY:.3g} d since the last training, every {self.schedule_us / DAY:.3g} d"
            return Reason(kind="schedule", text=text, since=last_retrain + self.schedule_us)
        return None
