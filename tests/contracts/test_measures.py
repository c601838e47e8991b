import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitok import contracts
from vitok.contracts.measures import frozen_histogram, merged
from vitok.errors import ContractBroken, InvalidInput

TEXT = """\
apiVersion: v3.1.0
kind: DataContract
id: m
version: 1.0.0
status: active
schema:
  - name: m
    properties:
      - {name: x, logicalType: number%s}
      - {name: word, logicalType: string%s}
"""
WORDS = ["EUR"] * 6 + ["USD"] * 3 + ["GBP"]
NUMBERS = np.random.default_rng(7).lognormal(3, 1, 5000)


def contract(implementation: str, *, field: str = "x", severity: str = "") -> contracts.Contract:
    more = f", quality: [{{type: custom, engine: vitok, implementation: {implementation}{severity}}}]"
    return contracts.load(TEXT % ((more, "") if field == "x" else ("", more)))


def seen(implementation: str, data: dict[str, list[Any]], *, field: str = "x") -> contracts.RuleResult:
    frame = pl.DataFrame(
        {
            "x": data.get("x", [1.0] * len(data.get("word", []))),
            "word": data.get("word", ["a"] * len(data.get("x", []))),
        },
        schema={"x": pl.Float64(), "word": pl.String()},
    )
    return contract(implementation, field=field).check(frame).results[-1]


@pytest.mark.parametrize(
    ("implementation", "status", "observed"),
    [
        ("{metric: mean, mustBeBetween: [2, 3]}", "passed", "2.5 of 4 values"),
        ("{metric: mean, mustBeGreaterThan: 3}", "failed", "2.5 of 4 values"),
        ("{metric: stddev, mustBeLessThan: 1.3}", "passed", "1.29099 of 4 values"),
        ("{metric: quantile, q: 0.25, mustBe: 1.75}", "passed", "1.75 of 4 values"),
        ("{metric: share, values: [1, 4], mustBe: 50}", "passed", "50 percent of 4 values"),
        ("{metric: distinctValues, mustBe: 4}", "passed", "4 of 4 values"),
        ('"metric: mean\\nmustBeLessThan: 3"', "passed", "2.5 of 4 values"),
    ],
)
def test_bounds_of_numbers(implementation: str, status: str, observed: str) -> None:
    # Oracle: numpy 2 (std with ddof=1, linear quantile) on 1, 2, 3, 4; null, NaN and infinity count for nothing.
    assert np.std([1, 2, 3, 4], ddof=1) == pytest.approx(1.29099, abs=1e-5)
    assert np.quantile([1, 2, 3, 4], 0.25) == 1.75
    found = seen(implementation, {"x": [1.0, 2.0, None, 3.0, 4.0, math.nan, math.inf]})
    assert (found.status, found.observed) == (status, observed)


def test_share_of_words() -> None:
    found = seen("{metric: share, values: [EUR], mustBeBetween: [50, 70]}", {"word": [*WORDS, None]}, field="word")
    assert (found.label, found.status, found.observed) == ("word.share", "passed", "60 percent of 10 values")
    assert found.wanted == "be between 50 and 70 percent for 'EUR'"


@pytest.mark.parametrize(
    "metric", ["mean", "stddev", "quantile", "share, values: [1]", "psi, edges: [1], counts: [0, 0, 1, 1, 0]"]
)
def test_nothing_to_measure_is_skipped(metric: str) -> None:
    name = f"{{metric: {metric}, mustBe: 1}}"
    assert seen(name, {"x": []}).status == "skipped"
    assert seen(name, {"x": [None]}).status == ("skipped" if "psi" not in metric else "failed")


@pytest.mark.parametrize("metric", ["psi", "ks"])
def test_distribution_that_has_moved(metric: str) -> None:
    frozen = frozen_histogram(pl.Series("x", NUMBERS))
    written = f"{{metric: {metric}, edges: {frozen['edges']}, counts: {frozen['counts']}, mustBeLessThan: 0.1}}"
    same = np.random.default_rng(8).lognormal(3, 1, 2000).tolist()
    other = np.random.default_rng(9).lognormal(3.7, 1, 2000).tolist()
    assert seen(written, {"x": same}).status == "passed"
    moved = seen(written, {"x": other})
    assert moved.status == "failed"
    assert moved.observed.startswith(metric)
    # Twelve values differ from any reference by chance.
    few = seen(written, {"x": same[:12]})
    assert (few.status, "by chance" in few.observed) == ("passed", True)


def test_psi_is_that_of_the_counts() -> None:
    # Oracle: vitok.stats, whose histogram and divergence have oracles of their own.
    from vitok.stats import FrozenEdges, ks, psi

    edges = FrozenEdges.from_values(NUMBERS, n_bins=8)
    reference = edges.count(NUMBERS)
    values = [*np.random.default_rng(3).lognormal(3.2, 1, 500).tolist(), *edges.edges[:3]]
    for metric, expected in (
        ("psi", psi(reference, edges.count([*values, math.nan]))),
        ("ks", ks(reference[2:-1], edges.count(values)[2:-1])),
    ):
        written = f"{{metric: {metric}, edges: {list(edges.edges)}, counts: {reference.tolist()}, mustBeLessThan: 1}}"
        assert seen(written, {"x": [*values, None]}).observed == str(expected)


def test_psi_of_words() -> None:
    frozen = frozen_histogram(pl.Series("w", [*WORDS, None]), n_bins=2)
    assert frozen == {"values": ["EUR", "USD"], "counts": [1, 6, 3, 1]}
    written = f"{{metric: psi, values: {frozen['values']}, counts: {frozen['counts']}, mustBeLessThan: 0.2}}"
    assert seen(written, {"word": [*WORDS, None] * 50}, field="word").status == "passed"
    assert seen(written, {"word": ["USD"] * 500}, field="word").status == "failed"


def test_rejected_rows_do_not_count_and_severity_is_kept() -> None:
    text = contract("{metric: mean, mustBeLessThan: 10}", severity=", severity: error").text
    ranged = contracts.load(
        text.replace("logicalType: number", "logicalType: number, logicalTypeOptions: {maximum: 20}")
    )
    report = ranged.check(pl.DataFrame({"x": [1.0, 1000.0], "word": ["a", "b"]}))
    assert (report.n_rejected, report.results[-1].observed) == (1, "1 of 1 values")
    with pytest.raises(ContractBroken, match=r"x\.mean"):
        ranged.check(pl.DataFrame({"x": [19.0, 18.0], "word": ["a", "b"]}))


@pytest.mark.parametrize(
    ("implementation", "field", "message"),
    [
        ("{metric: median, mustBe: 1}", "x", "be one of mean"),
        ("{metric: mean}", "x", "come with one of mustBe"),
        ("{metric: mean, mustBe: 1, mustBeles: 2}", "x", "got 'mustBeles'"),
        ("{metric: mean, mustBe: 1}", "word", "be of a number"),
        ("{metric: quantile, q: 2, mustBe: 1}", "x", "between 0 and 1"),
        ("{metric: share, mustBe: 1}", "x", "list the values"),
        ("{metric: psi, mustBeLessThan: 1}", "x", "either edges or values"),
        ("{metric: psi, edges: [2, 1], counts: [1], mustBeLessThan: 1}", "x", "ascend"),
        ("{metric: psi, edges: [1, 2], counts: [1, 1], mustBeLessThan: 1}", "x", "be 6 counts"),
        ("{metric: psi, edges: [1], counts: [0, 0, 0, 0, 0], mustBeLessThan: 1}", "x", "some above it"),
        ("{metric: psi, edges: [1], counts: [0, 0, 1, 1, 0], mustBeLessThan: 1}", "word", "number or an integer"),
        ('"metric: [mean"', "x", "be YAML"),
        ("[mean]", "x", "mapping"),
    ],
)
def test_measures_that_cannot_be(implementation: str, field: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        contract(implementation, field=field)
    with pytest.raises(InvalidInput, match="warn or block"):
        contract("{metric: mean, mustBe: 1}", severity=", severity: quarantine")


def test_frozen_histogram_refuses_what_it_cannot_freeze() -> None:
    for values in (pl.Series([], dtype=pl.Float64), pl.Series([None], dtype=pl.Float64), pl.Series([True])):
        with pytest.raises(InvalidInput):
            frozen_histogram(values)
    with pytest.raises(InvalidInput, match="at least 2"):
        frozen_histogram(pl.Series([1.0]), n_bins=1)


@given(st.lists(st.lists(st.floats(-1e6, 1e6), max_size=5), min_size=1, max_size=5))
def test_parts_add_up_to_the_whole(parts: list[list[float]]) -> None:
    # Oracle: numpy 2 on all values together.
    for name in ("mean", "stddev"):
        item = contracts.Measure(field="x", name=name, comparison=contracts.Comparison(operator="mustBe", low=0))
        total: dict[str, Any] = {}
        for part in parts:
            series = pl.Series(part, dtype=pl.Float64)
            found = {"n": len(part), "seen": series.mean() if name == "mean" else series.std(), "mean": series.mean()}
            total = merged(item, total, found)
        values = [value for part in parts for value in part]
        assert total["n"] == len(values)
        if len(values) > 1:
            expected = np.mean(values) if name == "mean" else np.std(values, ddof=1)
            assert total["seen"] == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_streamed_from_files(tmp_path: Path) -> None:
    for index, part in enumerate(np.array_split(NUMBERS, 4)):
        pl.DataFrame({"x": part, "word": ["a"] * len(part)}).write_parquet(tmp_path / f"{index}.parquet")
    found = contract("{metric: mean, mustBeGreaterThan: 0}").check(pl.scan_parquet(tmp_path / "*.parquet")).results[-1]
    assert found.observed == f"{NUMBERS.mean():.6g} of 5,000 values"
