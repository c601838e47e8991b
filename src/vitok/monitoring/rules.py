"""What raises an alert: one small language, evaluated in the process and written out as rules of Prometheus.

A rule compares a gauge with a threshold, or says that a gauge must not be missing. How it goes from true to firing
and back is that of Prometheus, step for step, so that both tell the same story of the same series: `for`,
`keep_firing_for`, stale markers, samples that are too old, NaN. Hysteresis is written with the series `ALERTS` that
Prometheus keeps of its own alerts. What is not here: functions over time. A statistic that needs the past, such as
an anytime-valid test, is computed where the past is kept and published as a gauge.

Source: the alerting rules of Prometheus, https://prometheus.io/docs/prometheus/latest/configuration/alerting_rules/.
"""

import json
import math
import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, Literal

import numpy as np

from vitok.clock import DAY, MINUTE
from vitok.errors import InvalidInput
from vitok.stats.results import Result

Severity = Literal["critical", "warning", "info"]
SEVERITIES: tuple[Severity, ...] = ("critical", "warning", "info")
Labels = tuple[tuple[str, str], ...]

WINDOWS = "vitok_alert_windows"
# Prometheus 2 still sees a sample that is exactly this old; Prometheus 3 does not, so give it a millisecond less.
LOOKBACK = 5 * MINUTE
ALL_VERSIONS = "all"

_HOLDS = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
}
_RESERVED = ("alertname", "alertstate", "severity")
_METRIC = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL = re.compile(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]*")
_SUBJECT = (
    "{{ if or $labels.system $labels.version }} of {{ $labels.system }}"
    "{{ if and $labels.system $labels.version }} {{ end }}{{ $labels.version }}{{ end }}"
    "{{ with $labels.slice }}, slice {{ . }}{{ end }}"
)
_VALUE = '{{ printf "%.4g" $value }}'
_UNITS = (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1))


@dataclass(frozen=True, kw_only=True)
class AlertRule:
    """When measurements become an alert, and what to do then.

    A rule with a `metric` is about a gauge. One without is about windows that somebody judged, as `Watch` does with
    each closed day: it counts windows in a row, which `Alerts` publishes as the gauge `vitok_alert_windows`.

    Args:
        name: Name of the rule, such as `"data_drift"`.
        severity: `"critical"`, `"warning"` or `"info"`.
        playbook: The next step, in words that a person on call can follow or the loop can take.
        windows: Firing windows in a row that raise it, at least 1; this and the next two are about judged windows.
        clear_after: Quiet windows in a row that clear it, at least 1.
        every: How far the ends of two windows in a row are apart, in microseconds.
        metric: Name of the gauge; empty for judged windows.
        labels: Labels that a series must have, such as `{"system": "fraud"}`; each series that has them raises an
            alert of its own.
        comparison: One of `>`, `>=`, `<`, `<=`, `==`, `!=`.
        threshold: What the gauge is compared with; finite.
        clear: Hysteresis: a firing alert goes on while the comparison holds with this instead of the threshold.
        absent: Fires where there is no such series; without comparison and threshold.
        for_us: How long the comparison must hold, in microseconds, a multiple of 1000.
        keep_firing_us: How long a firing alert goes on after the comparison last held, counted from the first
            evaluation at which it did not, in microseconds, a multiple of 1000.

    Raises:
        InvalidInput: If an argument is outside its range.

    Example:
        >>> rule = AlertRule(name="model_out", severity="critical", playbook="let the rules answer",
        ...     metric="vitok_fallback_share", labels={"system": "fraud"}, threshold=0.02, clear=0.01)
        >>> print(rule.expression)
        (vitok_fallback_share{system="fraud"} > 0.02) or (vitok_fallback_share{system="fraud"} > 0.01
            and ignoring (alertname, alertstate, severity) ALERTS{alertname="model_out",alertstate="firing"})
    """

    name: str
    severity: Severity
    playbook: str
    windows: int = 3
    clear_after: int = 3
    every: int = DAY
    metric: str = ""
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)
    comparison: Literal[">", ">=", "<", "<=", "==", "!="] = ">"
    threshold: float = 0.0
    clear: float | None = None
    absent: bool = False
    for_us: int = 0
    keep_firing_us: int = 0

    def __post_init__(self) -> None:
        if not self.name or not self.playbook:
            raise InvalidInput(
                "name, playbook", (self.name, self.playbook), "not be empty", "An alarm names its action"
            )
        if self.severity not in SEVERITIES:
            raise InvalidInput("severity", self.severity, f"be one of {', '.join(SEVERITIES)}")
        for name in ("windows", "clear_after", "every"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < 1:
                raise InvalidInput(name, value, "be a whole number of at least 1")
        if "{{" in self.name + self.playbook:
            raise InvalidInput("name, playbook", (self.name, self.playbook), "not hold {{, which begins a template")
        if self.metric:
            self._check_metric()
        elif self.labels or self.absent or self.clear is not None or self.for_us or self.keep_firing_us:
            raise InvalidInput("metric", self.metric, "be given with labels, absent, clear, for_us or keep_firing_us")

    def _check_metric(self) -> None:
        if not isinstance(self.labels, Mapping):
            raise InvalidInput("labels", self.labels, "be a mapping of names to texts")
        if not isinstance(self.absent, bool):
            raise InvalidInput("absent", self.absent, "be true or false")
        if not _METRIC.fullmatch(self.metric):
            raise InvalidInput("metric", self.metric, "be letters, digits, _ and :, and not start with a digit")
        for label, value in self.labels.items():
            if not _LABEL.fullmatch(label) or label in _RESERVED:
                raise InvalidInput("labels", label, f"be a label's name, and none of {', '.join(_RESERVED)}")
            if not value or "{{" in value:
                raise InvalidInput(f"labels: {label}", value, "be a text that is not empty and holds no {{")
        if self.comparison not in _HOLDS:
            raise InvalidInput("comparison", self.comparison, f"be one of {', '.join(_HOLDS)}")
        if not math.isfinite(self.threshold):
            raise InvalidInput("threshold", self.threshold, "be finite")
        if self.clear is not None:
            upward = self.comparison in (">", ">=")
            if self.absent or self.comparison in ("==", "!=") or not math.isfinite(self.clear):
                raise InvalidInput("clear", self.clear, "be finite, with a comparison of >, >=, < or <=")
            if (self.clear > self.threshold) if upward else (self.clear < self.threshold):
                raise InvalidInput("clear", self.clear, f"be on the quiet side of the threshold {self.threshold:g}")
        for name in ("for_us", "keep_firing_us"):
            value = getattr(self, name)
            if value < 0 or value % 1000:
                raise InvalidInput(name, value, "be whole milliseconds in microseconds, at least 0")

    @property
    def condition(self) -> "Condition":
        """What is compared with what, the windows of `Watch` included."""
        if not self.metric:
            return Condition(
                metric=WINDOWS,
                labels=(("rule", self.name),),
                comparison=">=",
                threshold=float(self.windows),
                clear=float(1 - self.clear_after),
            )
        return Condition(
            metric=self.metric,
            labels=tuple(sorted(self.labels.items())),
            comparison=self.comparison,
            threshold=float(self.threshold),
            clear=None if self.clear is None else float(self.clear),
            absent=self.absent,
            for_us=self.for_us,
            keep_firing_us=self.keep_firing_us,
        )

    @property
    def expression(self) -> str:
        """The condition in PromQL."""
        condition = self.condition
        selector = condition.selector
        if condition.absent:
            return f"absent({selector})"
        raised = f"{selector} {condition.comparison} {_number(condition.threshold)}"
        if condition.clear is None:
            return raised
        name = json.dumps(self.name, ensure_ascii=False)
        return (
            f"({raised}) or ({selector} {condition.comparison} {_number(condition.clear)}"
            f' and ignoring ({", ".join(_RESERVED)}) ALERTS{{alertname={name},alertstate="firing"}})'
        )

    def summary(self, labels: Mapping[str, str], value: float) -> str:
        """Says in a line what fires: system, version, slice, size and bound; Prometheus writes the same line."""
        subject = " ".join(part for part in (labels.get("system", ""), labels.get("version", "")) if part)
        subject = f" of {subject}" if subject else ""
        where = f", slice {labels['slice']}" if labels.get("slice") else ""
        return f"{self.name}{subject}{where}: {self._size(_go_number(value))}"

    def template(self) -> str:
        """Returns what `summary` says as a template of Prometheus."""
        return f"{self.name}{_SUBJECT}: {self._size(_VALUE)}"

    def _size(self, value: str) -> str:
        condition = self.condition
        if condition.absent:
            return f"no {condition.metric}"
        return f"{condition.metric} is {value}, alarming from {condition.comparison} {_number(condition.threshold)}"


@dataclass(frozen=True, kw_only=True)
class Condition:
    """What a rule compares. Fields as in `AlertRule`, with all defaults filled in."""

    metric: str
    labels: Labels
    comparison: str
    threshold: float
    clear: float | None = None
    absent: bool = False
    for_us: int = 0
    keep_firing_us: int = 0

    @property
    def selector(self) -> str:
        """The series, in PromQL."""
        pairs = ",".join(f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in self.labels)
        return f"{self.metric}{{{pairs}}}" if pairs else self.metric

    def matches(self, metric: str, labels: Mapping[str, str]) -> bool:
        """Says whether a series is meant."""
        return metric == self.metric and all(labels.get(name) == value for name, value in self.labels)

    def holds(self, value: float, *, firing: bool) -> bool:
        """Says whether a value is alarming, for an alert that fires already or not."""
        bound = self.clear if firing and self.clear is not None else self.threshold
        return self.absent or bool(_HOLDS[self.comparison](value, bound))


@dataclass(frozen=True, kw_only=True)
class RuleState(Result):
    """An alert of one rule and series between two evaluations: pending or firing.

    Attributes:
        since: First of the evaluations in a row at which it was active, in microseconds.
        fired_at: Evaluation that made it fire, in microseconds; None while it is pending.
        quiet_since: First of the evaluations in a row at which a firing one was not active any more, else None.
        value: The gauge's value when it was last active.
    """

    since: int
    fired_at: int | None = None
    quiet_since: int | None = None
    value: float = math.nan

    @property
    def firing(self) -> bool:
        """Whether it fires."""
        return self.fired_at is not None


def step(condition: Condition, state: RuleState | None, value: float | None, now: int) -> RuleState | None:
    """Evaluates a rule once for one series.

    Args:
        condition: What is compared.
        state: What the evaluation before left, None where nothing was active.
        value: The gauge's value; None where there is no sample. For `absent`, 1 where there is no series, else None.
        now: The present, in microseconds.

    Returns:
        The state to keep, None where nothing is active.
    """
    firing = state is not None and state.firing
    if value is not None and condition.holds(value, firing=firing):
        state = RuleState(since=now, value=value) if state is None else _replaced(state, quiet_since=None, value=value)
    else:
        if state is None or not firing or not condition.keep_firing_us:
            return None
        quiet = now if state.quiet_since is None else state.quiet_since
        if now - quiet >= condition.keep_firing_us:
            return None
        state = _replaced(state, quiet_since=quiet)
    if not state.firing and now - state.since >= condition.for_us:
        state = _replaced(state, fired_at=now)
    return state


def _replaced(state: RuleState, **changes: Any) -> RuleState:
    return RuleState(**{**state.__dict__, **changes})


@dataclass(frozen=True, kw_only=True)
class Series:
    """The samples of one series.

    Args:
        metric: Name of the gauge.
        labels: Its labels; an empty value is no label.
        times: Times of the samples in microseconds, ascending.
        values: Their values, as many.
        stale: Which of them are stale markers, as Prometheus writes where a series is gone; None for none.

    Raises:
        InvalidInput: If the lengths differ or the times do not ascend.
    """

    metric: str
    labels: Mapping[str, str]
    times: np.ndarray
    values: np.ndarray
    stale: np.ndarray | None = None

    def __post_init__(self) -> None:
        stale = self.values if self.stale is None else self.stale
        if not len(self.times) == len(self.values) == len(stale):
            raise InvalidInput("values, stale", (len(self.values), len(stale)), f"be {len(self.times)}, as the times")
        if np.any(np.diff(self.times) <= 0):
            raise InvalidInput("times", self.times, "ascend")

    def at(self, now: int, *, lookback: int = LOOKBACK) -> float | None:
        """Returns the value as of a time: the newest sample, unless it is a stale marker or older than `lookback`."""
        place = int(np.searchsorted(self.times, now, side="right")) - 1
        if place < 0 or now - int(self.times[place]) > lookback:
            return None
        if self.stale is not None and self.stale[place]:
            return None
        return float(self.values[place])


@dataclass(frozen=True, kw_only=True)
class Firing(Result):
    """An alert that fires at one evaluation.

    Attributes:
        labels: Labels of its series and its severity, by name.
        value: The gauge's value when it was last active.
        since: Since when it is active, in microseconds.
        fired_at: Since when it fires, in microseconds.
        summary: What fires, in a line.
    """

    labels: Labels
    value: float
    since: int
    fired_at: int
    summary: str


def evaluate(
    rule: AlertRule, series: Iterable[Series], times: Sequence[int], *, lookback: int = LOOKBACK
) -> tuple[tuple[Firing, ...], ...]:
    """Evaluates a rule at each of the times, one after another, as Prometheus would.

    Args:
        rule: The rule.
        series: The series that there are, of this metric and others.
        times: Times of the evaluations in microseconds, ascending; with hysteresis at most five minutes apart, since
            Prometheus forgets its own alerts otherwise.
        lookback: How old a sample may be, in microseconds.

    Returns:
        What fires at each time, by labels.

    Example:
        >>> rule = AlertRule(name="slow", severity="warning", playbook="look", metric="m", threshold=2,
        ...     for_us=MINUTE)
        >>> seen = Series(metric="m", labels={}, times=np.arange(4) * MINUTE, values=np.array([3.0, 3.0, 3.0, 1.0]))
        >>> [len(firing) for firing in evaluate(rule, [seen], range(0, 4 * MINUTE, MINUTE))]
        [0, 1, 1, 0]
    """
    condition = rule.condition
    matching: dict[Labels, list[Series]] = {}
    for one in series:
        if condition.matches(one.metric, one.labels):
            matching.setdefault(canonical(one.labels), []).append(one)
    states: dict[Labels, RuleState] = {}
    found = []
    for now in times:
        vector = {}
        for labels, parts in matching.items():
            for one in parts:
                value = one.at(now, lookback=lookback)
                if value is not None:
                    vector[labels] = value
        states = advance(rule, states, vector, now)
        firing = sorted((labels, state) for labels, state in states.items() if state.firing)
        found.append(tuple(_firing(rule, labels, state) for labels, state in firing))
    return tuple(found)


def advance(
    rule: AlertRule, states: Mapping[Labels, RuleState], vector: Mapping[Labels, float], now: int
) -> dict[Labels, RuleState]:
    """Evaluates a rule once for all series that match it.

    Args:
        rule: The rule.
        states: What the evaluation before left, by labels.
        vector: The values of the matching series now, by labels.
        now: The present, in microseconds.

    Returns:
        The states to keep.
    """
    condition = rule.condition
    if condition.absent:
        vector = {} if vector else {condition.labels: 1.0}
    after = {}
    for labels in dict.fromkeys((*states, *vector)):
        state = step(condition, states.get(labels), vector.get(labels), now)
        if state is not None:
            after[labels] = state
    return after


def check_names(rules: Iterable[AlertRule]) -> None:
    """Checks that no two rules have one name, by which their memory is kept.

    Raises:
        InvalidInput: If two have.
    """
    seen: set[str] = set()
    for rule in rules:
        if rule.name in seen:
            raise InvalidInput("rules", rule.name, "differ in their names")
        seen.add(rule.name)


def canonical(labels: Mapping[str, str]) -> Labels:
    """Returns labels in the order of their names, without empty ones."""
    return tuple(sorted((name, value) for name, value in labels.items() if value))


def to_prometheus(rules: Sequence[AlertRule], *, group: str = "vitok", interval: int = MINUTE) -> str:
    """Writes rules as a rule file of Prometheus 2.42 or newer, which knows `keep_firing_for`.

    Args:
        rules: The rules; their names differ.
        group: Name of the group.
        interval: Time between two evaluations in microseconds, a multiple of 1000; at most five minutes.

    Raises:
        InvalidInput: If two rules have one name, or the interval is outside its range.

    Example:
        >>> rule = AlertRule(name="silence", severity="critical", playbook="check the service",
        ...     metric="vitok_watch_age_seconds", labels={"system": "fraud"}, absent=True, for_us=10 * MINUTE)
        >>> print(to_prometheus([rule]), end="")
        groups:
        - name: vitok
          interval: 1m
          rules:
          - alert: silence
            expr: absent(vitok_watch_age_seconds{system="fraud"})
            for: 10m
            labels:
              severity: critical
            annotations:
              summary: 'silence{{ if or $labels.system ...: no vitok_watch_age_seconds'
              playbook: check the service
    """
    import yaml

    check_names(rules)
    if not 0 < interval <= LOOKBACK or interval % 1000:
        raise InvalidInput("interval", interval, "be whole milliseconds in microseconds, up to five minutes")
    written = []
    for rule in rules:
        condition = rule.condition
        one: dict[str, Any] = {"alert": rule.name, "expr": rule.expression}
        if condition.for_us:
            one["for"] = duration_text(condition.for_us)
        if condition.keep_firing_us:
            one["keep_firing_for"] = duration_text(condition.keep_firing_us)
        one["labels"] = {"severity": rule.severity}
        one["annotations"] = {"summary": rule.template(), "playbook": rule.playbook}
        written.append(one)
    content = {"groups": [{"name": group, "interval": duration_text(interval), "rules": written}]}
    return str(yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=2**16))


def duration_text(microseconds: int) -> str:
    """Writes a length of time as Prometheus reads it.

    Example:
        >>> duration_text(90 * MINUTE), duration_text(1_500_000)
        ('1h30m', '1s500ms')
    """
    rest, text = microseconds // 1000, ""
    for unit, size in _UNITS:
        count, rest = divmod(rest, size)
        text += f"{count}{unit}" if count else ""
    return text or "0s"


def _firing(rule: AlertRule, labels: Labels, state: RuleState) -> Firing:
    return Firing(
        labels=canonical({**dict(labels), "severity": rule.severity}),
        value=state.value,
        since=state.since,
        fired_at=state.since if state.fired_at is None else state.fired_at,
        summary=rule.summary(dict(labels), state.value),
    )


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(value)


def _go_number(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return f"{value:.4g}"
