"""What monitoring measures as gauges of Prometheus: one scheme of names, one publisher, no label with many values.

A name begins with `vitok_`, then what is measured; its unit ends it where it has one (`_seconds`, `_share`). The
labels are the same words everywhere: `system`, `version`, `slice`, `window`, `column`, `rule`. What belongs to one
decision (its id, its entity, its time) is never a label: each set of values is a time series that is kept for weeks.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vitok.errors import InvalidInput
from vitok.serving.metrics import Metrics
from vitok.stats import Estimate

if TYPE_CHECKING:
    from vitok.monitoring.alerts import Alert
    from vitok.monitoring.drift import DriftReport

MOST_SERIES = 100_000
_MICROSECONDS = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Gauge:
    """A gauge of the scheme.

    Attributes:
        explanation: What it measures, in a sentence.
        labels: Names of its labels; one that does not apply is empty.
    """

    explanation: str
    labels: tuple[str, ...]


_WHO = ("system", "version")
GAUGES: Mapping[str, Gauge] = {
    "vitok_drift_effect": Gauge(
        explanation="Population stability index of a window against the reference, less its mean without drift.",
        labels=(*_WHO, "slice", "window", "column"),
    ),
    "vitok_drift_shift": Gauge(
        explanation="How far the values moved on average, in interquartile ranges of the reference.",
        labels=(*_WHO, "slice", "window", "column"),
    ),
    "vitok_drift_adjusted_p": Gauge(
        explanation="Chance of such drift without change, adjusted over all columns.",
        labels=(*_WHO, "slice", "window", "column"),
    ),
    "vitok_estimate": Gauge(
        explanation="A quality of the decisions: estimated without labels, or realised once they came.",
        labels=(*_WHO, "slice", "quantity", "source", "bound"),
    ),
    "vitok_estimate_observations": Gauge(
        explanation="How many decisions such an estimate rests on.",
        labels=(*_WHO, "slice", "quantity", "source"),
    ),
    "vitok_detector_statistic": Gauge(
        explanation="Statistic of a change detector or of a sequential test.",
        labels=(*_WHO, "slice", "detector", "column"),
    ),
    "vitok_detector_alarm": Gauge(
        explanation="Whether a change detector is alarmed: 1 for a change to the worse, else 0.",
        labels=(*_WHO, "slice", "detector", "column"),
    ),
    "vitok_outcome_mature_share": Gauge(
        explanation="Share of the outcomes that have come by this age of a decision.",
        labels=("system", "kind", "age"),
    ),
    "vitok_alert_windows": Gauge(
        explanation="Windows in a row in which a rule fired; windows in a row in which it did not, as a negative.",
        labels=(*_WHO, "rule"),
    ),
    "vitok_alerts_open": Gauge(explanation="Open alerts.", labels=("system", "level")),
    "vitok_watch_age_seconds": Gauge(
        explanation="How long ago the last window ended that was judged.", labels=("system",)
    ),
    "vitok_notices": Gauge(explanation="Messages to people by what became of them.", labels=("channel", "state")),
    "vitok_incidents_open": Gauge(explanation="Incidents without a resolution.", labels=("system",)),
}


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One number of a gauge.

    Attributes:
        metric: Name of the gauge.
        labels: Values of its labels by name.
        value: The number; NaN where it is not known.
    """

    metric: str
    labels: Mapping[str, str] = field(default_factory=dict)
    value: float


def drift_samples(report: "DriftReport", *, system: str, window: str, slice_name: str = "") -> tuple[Sample, ...]:
    """Returns the drift of each column and of the prediction.

    Args:
        report: What `drift` measured.
        system: Which system.
        window: Length of the window as people call it, such as `"1d"`.
        slice_name: Which part of the decisions; empty for all.
    """
    found = []
    for column in (*report.features, report.prediction):
        labels = {
            "system": system,
            "version": report.model_version,
            "slice": slice_name,
            "window": window,
            "column": column.name,
        }
        for metric, value in (
            ("vitok_drift_effect", column.effect),
            ("vitok_drift_shift", column.shift),
            ("vitok_drift_adjusted_p", column.adjusted_p_value),
        ):
            found.append(Sample(metric=metric, labels=labels, value=float(value)))
    return tuple(found)


def estimate_samples(
    estimates: Iterable[Estimate], *, system: str, version: str, source: str, slice_name: str = ""
) -> tuple[Sample, ...]:
    """Returns estimates with their intervals and their number of observations.

    Args:
        estimates: Average precision, cost a decision and so on, with their names.
        system: Which system.
        version: Which version.
        source: `"estimated"` without labels, `"realised"` once they came.
        slice_name: Which part of the decisions; empty for all.

    Example:
        >>> found = Estimate(name="recall", value=0.5, lower=0.4, upper=0.6, n_obs=90)
        >>> for sample in estimate_samples([found], system="fraud", version="fraud/1", source="realised"):
        ...     print(sample.metric, sample.labels.get("bound", ""), sample.value)
        vitok_estimate  0.5
        vitok_estimate lower 0.4
        vitok_estimate upper 0.6
        vitok_estimate_observations  90.0
    """
    found = []
    for one in estimates:
        labels = {
            "system": system,
            "version": version,
            "slice": slice_name,
            "quantity": one.name,
            "source": source,
        }
        for bound, value in (("", one.value), ("lower", one.lower), ("upper", one.upper)):
            found.append(Sample(metric="vitok_estimate", labels={**labels, "bound": bound}, value=float(value)))
        found.append(Sample(metric="vitok_estimate_observations", labels=labels, value=float(one.n_obs)))
    return tuple(found)


def detector_samples(
    statistic: float,
    *,
    alarmed: bool,
    system: str,
    version: str,
    detector: str,
    column: str = "",
    slice_name: str = "",
) -> tuple[Sample, ...]:
    """Returns what a change detector or a sequential test says; alarmed is only a change to the worse."""
    labels = {"system": system, "version": version, "slice": slice_name, "detector": detector, "column": column}
    return (
        Sample(metric="vitok_detector_statistic", labels=labels, value=float(statistic)),
        Sample(metric="vitok_detector_alarm", labels=labels, value=float(alarmed)),
    )


def maturity_samples(shares: Mapping[str, float], *, system: str, kind: str) -> tuple[Sample, ...]:
    """Returns the share of outcomes that have come, by age such as `"7d"`."""
    return tuple(
        Sample(
            metric="vitok_outcome_mature_share", labels={"system": system, "kind": kind, "age": age}, value=float(share)
        )
        for age, share in shares.items()
    )


def alert_samples(alerts: "Iterable[Alert]", *, system: str, watched_until: int | None, now: int) -> tuple[Sample, ...]:
    """Returns how many alerts of a system are open, and how long ago its last window was judged.

    Args:
        alerts: The open alerts, as `Alerts.open` gives them.
        system: Which system.
        watched_until: End of the last window that was judged, in microseconds; None before the first.
        now: The present, in microseconds.
    """
    counts = dict.fromkeys(("critical", "warning", "info"), 0)
    for alert in alerts:
        if alert.system == system:
            counts[alert.severity] += 1
    found = [
        Sample(metric="vitok_alerts_open", labels={"system": system, "level": level}, value=float(count))
        for level, count in counts.items()
    ]
    if watched_until is not None:
        age = (now - watched_until) / _MICROSECONDS
        found.append(Sample(metric="vitok_watch_age_seconds", labels={"system": system}, value=age))
    return tuple(found)


def publish(metrics: Metrics, read: Callable[[], Iterable[Sample]], *, gauges: Sequence[str] | None = None) -> None:
    """Shows gauges on a service's page of metrics; they are read each time that somebody asks.

    Args:
        metrics: The metrics of the service.
        read: Gives all samples as they are now; a series that is not among them is gone.
        gauges: Names of the gauges to show; by default all of the scheme.

    Raises:
        InvalidInput: If a name is not of the scheme, or is shown already. When the page is asked for: if a sample
            has labels that its gauge has not, two have the same labels, or there are more than 100,000.

    Example:
        >>> metrics = Metrics()
        >>> publish(metrics, lambda: maturity_samples({"7d": 0.93}, system="fraud", kind="label"),
        ...         gauges=["vitok_outcome_mature_share"])
        >>> print(metrics.expose().decode(), end="")
        # HELP vitok_outcome_mature_share Share of the outcomes that have come by this age of a decision.
        # TYPE vitok_outcome_mature_share gauge
        vitok_outcome_mature_share{system="fraud",kind="label",age="7d"} 0.93
    """
    for name in GAUGES if gauges is None else gauges:
        gauge = _gauge(name)

        def values(name: str = name) -> dict[tuple[str, ...], float]:
            return by_labels(read()).get(name, {})

        metrics.gauge(name, gauge.explanation, values, labels=gauge.labels)


def expose(samples: Iterable[Sample]) -> bytes:
    """Writes samples in the text format of Prometheus, version 0.0.4; gauges without a sample are left out.

    Example:
        >>> print(expose([Sample(metric="vitok_watch_age_seconds", labels={"system": "fraud"}, value=60)]).decode())
        # HELP vitok_watch_age_seconds How long ago the last window ended that was judged.
        # TYPE vitok_watch_age_seconds gauge
        vitok_watch_age_seconds{system="fraud"} 60
    """
    found = by_labels(samples)
    metrics = Metrics()
    for name, values in found.items():
        gauge = GAUGES[name]
        metrics.gauge(name, gauge.explanation, functools.partial(dict, values), labels=gauge.labels)
    return metrics.expose()


def by_labels(samples: Iterable[Sample]) -> dict[str, dict[tuple[str, ...], float]]:
    """Orders samples by gauge and by the values of its labels.

    Raises:
        InvalidInput: If a sample is of no gauge, has other labels than its gauge, or is there twice, or if there are
            more than 100,000.
    """
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for count, sample in enumerate(samples):
        gauge = _gauge(sample.metric)
        unknown = set(sample.labels) - set(gauge.labels)
        if unknown:
            raise InvalidInput(
                f"{sample.metric}: labels", sorted(unknown), f"be among {', '.join(gauge.labels)}", "Log it instead"
            )
        key = tuple(sample.labels.get(name, "") for name in gauge.labels)
        values = found.setdefault(sample.metric, {})
        if key in values:
            raise InvalidInput(f"{sample.metric}: labels", key, "be given once")
        values[key] = float(sample.value)
        if count == MOST_SERIES:
            raise InvalidInput("samples", count + 1, f"be at most {MOST_SERIES:,}", "Publish fewer columns or slices")
    return found


def _gauge(name: str) -> Gauge:
    if name not in GAUGES:
        raise InvalidInput("metric", name, f"be one of {', '.join(GAUGES)}")
    return GAUGES[name]
