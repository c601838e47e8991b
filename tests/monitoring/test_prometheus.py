"""Gauges: one scheme, no label of a single decision, and a page that the Prometheus client reads back."""

import math

import pytest
from prometheus_client.parser import text_string_to_metric_families

from vitok.clock import DAY, MINUTE
from vitok.errors import InvalidInput
from vitok.monitoring.alerts import Alert
from vitok.monitoring.prometheus import (
    GAUGES,
    MOST_SERIES,
    Sample,
    alert_samples,
    by_labels,
    detector_samples,
    estimate_samples,
    expose,
    maturity_samples,
    publish,
)
from vitok.monitoring.rule_set import usual_rules
from vitok.monitoring.rules import WINDOWS
from vitok.serving.metrics import Metrics
from vitok.stats import Estimate

DECISION = {"decision_id", "request_id", "entity", "entity_key", "user", "customer_id", "trace_id", "event_time"}


def read(page: bytes) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset((name, value) for name, value in sample.labels.items() if value)): sample.value
        for family in text_string_to_metric_families(page.decode())
        for sample in family.samples
    }


def test_the_page_is_read_back_by_the_client() -> None:
    recall = Estimate(name="recall", value=0.5, lower=math.nan, upper=0.6, n_obs=90)
    samples = (
        *estimate_samples([recall], system="fraud", version="fraud/1", source="estimated", slice_name='country="F\\R"'),
        *detector_samples(3.25, alarmed=True, system="fraud", version="fraud/1", detector="adwin"),
        *maturity_samples({"1d": 0.2, "7d": 0.93}, system="fraud", kind="label"),
    )
    found = read(expose(samples))
    assert len(found) == 8
    for sample in samples:
        labels = frozenset((name, value) for name, value in sample.labels.items() if value)
        assert found[sample.metric, labels] == pytest.approx(sample.value, nan_ok=True)


def test_names_follow_one_scheme_and_no_label_is_about_one_decision() -> None:
    for name, gauge in GAUGES.items():
        assert name.startswith("vitok_")
        assert not name.endswith("_total")
        assert not DECISION & set(gauge.labels)
        assert not {"severity", "alertname", "alertstate"} & set(gauge.labels)
    used = {rule.condition.metric for rule in usual_rules()}
    assert used <= set(GAUGES)
    assert WINDOWS in used
    for rule in usual_rules():
        assert {name for name, _ in rule.condition.labels} <= set(GAUGES[rule.condition.metric].labels)


def test_a_service_shows_them_as_they_are_when_it_is_asked() -> None:
    metrics, samples = Metrics(), [Sample(metric="vitok_incidents_open", labels={"system": "fraud"}, value=1)]
    publish(metrics, lambda: samples)
    assert list(read(metrics.expose()).values()) == [1.0]
    samples.clear()
    assert read(metrics.expose()) == {}
    with pytest.raises(InvalidInput, match="there is such a metric already"):
        publish(metrics, lambda: samples, gauges=["vitok_estimate"])
    with pytest.raises(InvalidInput, match="be one of vitok_drift_effect"):
        publish(Metrics(), lambda: samples, gauges=["vitok_mood"])


def test_open_alerts_and_the_age_of_the_watch() -> None:
    alert = Alert(
        id=1,
        rule="quality",
        severity="critical",
        system="fraud",
        version="all",
        first_seen=0,
        raised_at=0,
        value=0,
        bound=0,
        reason="",
        playbook="",
        state="open",
        cleared_at=None,
        cleared_reason="",
    )
    found = read(expose(alert_samples([alert], system="fraud", watched_until=DAY, now=DAY + MINUTE)))
    told = {(name, dict(labels).get("level", "")): value for (name, labels), value in found.items()}
    assert told == {
        ("vitok_alerts_open", "critical"): 1,
        ("vitok_alerts_open", "warning"): 0,
        ("vitok_alerts_open", "info"): 0,
        ("vitok_watch_age_seconds", ""): 60,
    }
    assert len(alert_samples([], system="fraud", watched_until=None, now=0)) == 3


def test_foreign_labels_doubles_and_too_many_series_are_refused() -> None:
    with pytest.raises(InvalidInput, match="Log it instead"):
        by_labels([Sample(metric="vitok_incidents_open", labels={"decision_id": "7"}, value=1)])
    with pytest.raises(InvalidInput, match="be given once"):
        expose([Sample(metric="vitok_incidents_open", value=1)] * 2)
    with pytest.raises(InvalidInput, match="metric"):
        expose([Sample(metric="mood", value=1)])
    many = (Sample(metric="vitok_incidents_open", labels={"system": str(n)}, value=1) for n in range(MOST_SERIES + 1))
    with pytest.raises(InvalidInput, match="at most 100,000"):
        by_labels(many)
