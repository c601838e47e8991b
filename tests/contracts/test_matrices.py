"""Rows of a matrix against the function that checks one request."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitok import contracts
from vitok.errors import InvalidInput

TEXT = """\
apiVersion: v3.1.0
kind: DataContract
id: features
version: 1.0.0
status: active
schema:
  - name: features
    properties:
      - {name: amount, logicalType: number, required: true, logicalTypeOptions: {minimum: 0, exclusiveMaximum: 1e6}}
      - {name: count, logicalType: integer, logicalTypeOptions: {exclusiveMinimum: 0, maximum: 10}}
      - {name: ratio, logicalType: number}
      - {name: online, logicalType: boolean}
      - {name: text, logicalType: string}
      - name: code
        logicalType: integer
        quality:
          - {metric: invalidValues, arguments: {validValues: [1, 2, 3]}, mustBe: 0}
"""
CONTRACT = contracts.load(TEXT)
NAMES = ("ratio", "amount", "online", "count")
CHECK = CONTRACT.matrix_checker(NAMES)
ROW = CONTRACT.row_checker()


def expected(row: list[float]) -> set[str]:
    given_row: dict[str, object] = {}
    for name, value in zip(NAMES, row, strict=True):
        kept: object = None if value != value else value
        if name == "count" and kept is not None and value % 1 == 0:
            kept = int(value)
        if name == "online" and kept in (0.0, 1.0):
            kept = bool(kept)
        given_row[name] = kept
    return {violation.message for violation in ROW(given_row)}


VALUES = st.one_of(
    st.sampled_from(
        [0.0, -0.0, 1.0, 10.0, 11.0, 0.5, 1e6, math.nextafter(1e6, 0), math.nan, math.inf, -math.inf, 1e308]
    ),
    st.floats(),
)


@settings(max_examples=300)
@given(st.lists(st.lists(VALUES, min_size=4, max_size=4), max_size=5))
def test_the_same_words_as_one_request(rows: list[list[float]]) -> None:
    found = CHECK(np.array(rows, np.float64).reshape(len(rows), 4))
    for place, row in enumerate(rows):
        assert {violation.message for at, violation in found if at == place} == expected(row)
    assert [at for at, _ in found] == sorted(at for at, _ in found)


def test_rules_that_the_loop_does_not_know() -> None:
    check = CONTRACT.matrix_checker(["code", "amount"])
    found = check(np.array([[1.0, 5.0], [4.0, 5.0], [math.nan, -1.0]]))
    assert [(at, violation.field) for at, violation in found] == [(1, "code"), (2, "amount")]
    assert found[0][1].message.startswith("code: got 4, must be one of")


def test_wrong_columns_and_shapes() -> None:
    with pytest.raises(InvalidInput, match="must be a field of features: amount"):
        CONTRACT.matrix_checker(["none"])
    with pytest.raises(InvalidInput, match="must be a number in a matrix; it is a string"):
        CONTRACT.matrix_checker(["text"])
    with pytest.raises(InvalidInput, match=r"\(n, 4\)"):
        CHECK(np.zeros((2, 3)))
    assert CHECK(np.zeros((0, 4))) == []
