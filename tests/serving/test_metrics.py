"""The text that Prometheus reads, parsed by prometheus_client 0.26."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from vitok.errors import InvalidInput
from vitok.serving import Metrics
from vitok.serving.metrics import BOUNDS_US
from vitok.stats import LatencyHistogram


def parsed(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    samples = {}
    for family in text_string_to_metric_families(metrics.expose().decode()):
        for sample in family.samples:
            samples[sample.name, tuple(sorted(sample.labels.items()))] = sample.value
    return samples


def test_counters() -> None:
    metrics = Metrics()
    plain = metrics.counter("vitok_batches_total", "Batches.")
    actions = metrics.counter("vitok_decisions_total", "Decisions.", labels=("action", "route"))
    plain.add()
    actions.add(2, "block", "canary")
    actions.child("allow", "champion").value += 3
    assert parsed(metrics) == {
        ("vitok_batches_total", ()): 1,
        ("vitok_decisions_total", (("action", "block"), ("route", "canary"))): 2,
        ("vitok_decisions_total", (("action", "allow"), ("route", "champion"))): 3,
    }


def test_a_counter_without_labels_starts_at_zero() -> None:
    metrics = Metrics()
    metrics.counter("vitok_faults_total", "Faults.")
    assert parsed(metrics) == {("vitok_faults_total", ()): 0}


def test_numbers_kept_elsewhere() -> None:
    metrics, state = Metrics(), {"requests": 0, "queue": 7.5}
    metrics.read_counter("vitok_requests_total", "Requests.", lambda: {(): state["requests"]})
    metrics.gauge("vitok_queue", "Waiting.", lambda: {(): state["queue"]})
    state["requests"] = 12
    assert parsed(metrics) == {("vitok_requests_total", ()): 12, ("vitok_queue", ()): 7.5}


@given(st.text(), st.floats(), st.text())
def test_any_label_value_and_number_comes_back(value: str, number: float, help_text: str) -> None:
    metrics = Metrics()
    metrics.gauge("vitok_x", help_text, lambda: {(value,): number}, labels=("name",))
    lines = metrics.expose().decode()
    # The parser splits at every line end of Unicode, the format only at LF.
    if not any(sign in value + help_text for sign in "\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"):
        ((key, got),) = parsed(metrics).items()
        assert key == ("vitok_x", (("name", value),))
        assert got == number or (math.isnan(got) and math.isnan(number))
    assert lines.count("\n") == 3


@given(st.lists(st.integers(0, 200_000_000), max_size=200))
def test_buckets_against_numpy(latencies: list[int]) -> None:
    histogram = LatencyHistogram()
    histogram.record_many(np.array(latencies, dtype=np.int64))
    metrics = Metrics()
    metrics.latencies("vitok_latency_seconds", "Time.", lambda: {("x",): histogram}, labels=("route",))
    samples = parsed(metrics)
    assert samples["vitok_latency_seconds_count", (("route", "x"),)] == len(latencies)
    assert samples["vitok_latency_seconds_sum", (("route", "x"),)] == pytest.approx(sum(latencies) / 1e6)
    assert samples["vitok_latency_seconds_bucket", (("le", "+Inf"), ("route", "x"))] == len(latencies)
    values = np.array(latencies)
    before = 0.0
    for bound in BOUNDS_US:
        got = samples[
            "vitok_latency_seconds_bucket", (("le", f"{bound / 1e6:g}".replace("1e-04", "0.0001")), ("route", "x"))
        ]
        assert (values <= bound / 1.016).sum() <= got <= (values <= bound).sum()
        assert got >= before
        before = got


@pytest.mark.parametrize("name", ["", "1x_total", "a b_total", "a-b_total", "x"])
def test_wrong_names(name: str) -> None:
    with pytest.raises(InvalidInput, match="name: got"):
        Metrics().counter(name, "")


def test_wrong_arguments() -> None:
    metrics = Metrics()
    counter = metrics.counter("a_total", "", labels=("x",))
    with pytest.raises(InvalidInput, match="must be new"):
        metrics.counter("a_total", "")
    with pytest.raises(InvalidInput, match="not end in _total for a gauge"):
        metrics.gauge("b_total", "", dict)
    for label in ("__x", "1", "a-b", ""):
        with pytest.raises(InvalidInput, match="label: got"):
            metrics.counter("c_total", "", labels=(label,))
    with pytest.raises(InvalidInput, match="differ"):
        metrics.counter("c_total", "", labels=("x", "x"))
    with pytest.raises(InvalidInput, match="amount: got -1"):
        counter.add(-1, "v")
    with pytest.raises(InvalidInput, match="label values"):
        counter.add(1)
    with pytest.raises(InvalidInput, match="end in _seconds"):
        metrics.latencies("latency", "", dict)
    with pytest.raises(InvalidInput, match="buckets"):
        metrics.latencies("latency_seconds", "", dict, labels=("le",))
    with pytest.raises(InvalidInput, match="ascend"):
        metrics.latencies("latency_seconds", "", dict, bounds_us=(2, 1))
