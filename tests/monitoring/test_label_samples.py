"""Oracle: `estimate_from_labels` on the same draw, with all rows at hand."""

import csv
import io
import json
from dataclasses import replace

import numpy as np
import pytest

from vitok.errors import InvalidInput
from vitok.monitoring.label_samples import LabelSample
from vitok.monitoring.sampling import METRICS, Population, estimate_from_draw, estimate_from_labels, plan_labels

N = 8_000


def rows() -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    p = rng.beta(0.1, 4, N)
    return [f"t,{i}" for i in range(N)], p, p > 0.3, rng.random(N) < p**1.2


def judged(metric: str = "recall") -> LabelSample:
    names, p, flags, y = rows()
    sample = LabelSample.draw(names, p, flags, metric=metric, budget=200, seed=5, rows="fraud since May")
    return sample.labelled(y[[int(name[2:]) for name in sample.request_ids]])


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("form", ["csv", "json"])
def test_a_file_that_went_and_came_says_what_the_rows_say(metric: str, form: str) -> None:
    _, p, flags, y = rows()
    plan = plan_labels(p, flags, metric=metric, budget=200, seed=5)
    sample = judged(metric)
    back = LabelSample.read(sample.to_csv() if form == "csv" else json.dumps(sample.to_dict()))
    assert back == sample
    found, expected = back.estimate(), estimate_from_labels(plan, y[plan.rows], p, flags)
    assert (found.value, found.lower, found.upper) == pytest.approx((expected.value, expected.lower, expected.upper))
    assert (found.n_obs, found.definition) == (expected.n_obs, expected.definition)
    assert f"to label for {metric}, fraud since May" in str(back)


def test_what_a_spreadsheet_makes_of_it() -> None:
    sample = judged()
    lines = sample.to_csv().replace(",1,", ",Yes,").replace(",0,", ", no ,").replace("\n", "\r\n")
    back = LabelSample.read("\ufeff" + lines)
    assert back.labels == sample.labels
    assert back.estimate() == sample.estimate()


def written(sample: LabelSample, between: str, decimal: str) -> str:
    text = io.StringIO()
    writer = csv.writer(text, delimiter=between, lineterminator="\r\n")
    for row in csv.reader(io.StringIO(sample.to_csv())):
        # What a column shows is what is saved.
        numbers = [one if one[0] == "p" else f"{float(one):.6g}".replace(".", decimal) for one in row[2:4]]
        writer.writerow([*row[:2], *numbers, *row[4:]])
    return text.getvalue() + between * 5 + "\r\n\r\n"


@pytest.mark.parametrize(("between", "decimal"), [(";", ","), ("\t", "."), (",", ".")])
def test_decimal_commas_tabs_rounded_numbers_and_empty_lines(between: str, decimal: str) -> None:
    sample = judged()
    back = LabelSample.read(written(sample, between, decimal))
    assert back.labels == sample.labels
    assert back.estimate().value == pytest.approx(sample.estimate().value, rel=1e-4)


def test_ids_that_were_not_drawn_and_columns_sorted_apart_are_told() -> None:
    sample = judged()
    other = replace(sample, request_ids=("t,none", *sample.request_ids[1:]))
    torn = replace(sample, propensities=tuple(sorted(sample.propensities)))
    plan = json.dumps(sample.to_dict()["plan"])
    for changed, told in ((other, "other request_ids"), (torn, "other propensities")):
        content = changed.to_dict() | {"plan": json.loads(plan)}
        with pytest.raises(InvalidInput, match=told):
            LabelSample.read(json.dumps(content))
    # The first files had no marks.
    earlier = sample.to_dict()
    del earlier["plan"]["ids"], earlier["plan"]["tied"]
    assert LabelSample.read(json.dumps(earlier)) == sample
    turned = sample.to_dict()
    turned["rows"].reverse()
    assert LabelSample.read(json.dumps(turned)).estimate().value == pytest.approx(sample.estimate().value)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('",1,', '",2,', r"^label of t,[0-9]+: got '2', must be 0 or 1"),
        ('",1,', '",NaN,', r"^label: got None, must be 0 or 1 for each of the .* 1 have none"),
        (",1,0.", ",1,x.", r"^propensity of t,[0-9]+: got 'x"),
        (',0,"{', ',,"{', r"^flagged of t,[0-9]+: got '', must be 0 or 1"),
        ("request_id,label,propensity", "request_id,label,p", "got 'no column propensity'"),
        ('0.95}"', '0.9}"', r"plan of t,[0-9]+: got"),
    ],
)
def test_what_is_wrong_is_told_by_its_row(old: str, new: str, told: str) -> None:
    text = judged().to_csv()
    assert old in text
    with pytest.raises(InvalidInput, match=told):
        LabelSample.read(text.replace(old, new, 1)).estimate()


def test_the_file_keeps_the_interval_as_wide_as_was_planned() -> None:
    sample = judged()
    wider, surer = (replace(sample, half_width=half).estimate() for half in (0.3, 0.0))
    assert wider.value == surer.value
    assert wider.lower < surer.lower < surer.upper < wider.upper
    assert sample.estimate().lower <= surer.lower


def test_rows_without_a_label_are_not_passed_over() -> None:
    names, p, flags, _ = rows()
    sample = LabelSample.draw(names, p, flags, metric="recall", budget=200)
    assert set(sample.labels) == {None}
    with pytest.raises(InvalidInput, match=r"rows; [12][0-9][0-9] have none: t,"):
        LabelSample.read(sample.to_csv()).estimate()


def test_a_row_that_is_left_out_or_doubled_is_told() -> None:
    lines = judged().to_csv().splitlines()
    for changed in (lines[:-1], [*lines, lines[-1]], [*lines[:-1], lines[-2]]):
        with pytest.raises(InvalidInput, match="different rows that were drawn"):
            LabelSample.read("\n".join(changed))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "be a table with the columns"),
        ("a,b\n1,2\n", "be a table with the columns"),
        ("{", "be a table with the columns"),
        ('{"plan": {}, "rows": []}', "have the columns and numbers"),
        ('{"plan": 3, "rows": []}', "be a table with the columns"),
    ],
)
def test_what_is_no_sample_is_told(text: str, told: str) -> None:
    with pytest.raises(InvalidInput, match=told):
        LabelSample.read(text)


def test_two_plans_in_one_file_and_odd_labels_are_told() -> None:
    text = judged().to_csv()
    other = judged("precision").to_csv()
    with pytest.raises(InvalidInput, match="one plan in all rows"):
        LabelSample.read(text + other.partition("\n")[2])
    odd = text.replace('",1,', '",maybe,', 1)
    assert odd != text
    with pytest.raises(InvalidInput, match=r"^label of t,[0-9]+: got 'maybe', must be 0 or 1"):
        LabelSample.read(odd)


def test_a_draw_that_cannot_help_is_refused() -> None:
    names, p, _, _ = rows()
    with pytest.raises(InvalidInput, match="Where all or none are flagged"):
        LabelSample.draw(names, p, np.zeros(N, bool), metric="recall", budget=50)
    with pytest.raises(InvalidInput, match="different ones"):
        LabelSample.draw(["a"] * N, p, p > 0.3, metric="recall", budget=50)
    with pytest.raises(InvalidInput, match="labels"):
        judged().labelled([True])


def test_estimate_from_draw_checks_what_it_is_given() -> None:
    population = Population.of([0.2, 0.9], [False, True])
    assert (population.n_obs, population.n_flagged, population.expected_flagged) == (2, 1, 0.9)
    good = {"probability": [0.5], "flagged": [1], "propensity": [0.5], "population": population}
    for y, change in (
        ([2], {}),
        ([0, 1], {}),
        ([1], {"propensity": [0.0]}),
        ([1], {"propensity": [float("nan")]}),
        ([1], {"probability": [1.5]}),
    ):
        with pytest.raises(InvalidInput):
            estimate_from_draw("recall", y, **{**good, **change})  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="metric"):
        estimate_from_draw("f1", [1], **good)  # type: ignore[arg-type]
    # Labels that leave no positive at all say nothing of recall.
    off = estimate_from_draw("recall", [0], **{**good, "propensity": [0.1]})  # type: ignore[arg-type]
    assert np.isnan(off.value)
    assert (off.lower, off.upper) == (0.0, 1.0)
