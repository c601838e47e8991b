"""Pieces of SQL text: what stands in a name or a value stays in it."""

import pytest

from vitok.clock import DAY, SECOND
from vitok.errors import InvalidInput
from vitok.features import sql


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("it's", "'it''s'"),
        ("'; DROP TABLE x; --", "'''; DROP TABLE x; --'"),
        ("`\\", "'`\\'"),
        (True, "TRUE"),
        (False, "FALSE"),
        (-7, "-7"),
        (0.1, "0.1e0"),
        (1e-9, "1e-09"),
        (-0.5, "-0.5e0"),
    ],
)
def test_values_are_quoted(value: str | float, text: str) -> None:
    assert sql.literal(value) == text


def test_names_are_quoted() -> None:
    assert sql.quoted("a`; b") == "`a``; b`"


@pytest.mark.parametrize(
    ("where", "text"),
    [
        (("a", "==", 1), "`a` = 1"),
        (("a", "!=", "x"), "`a` <> 'x'"),
        (("a", ">=", 0.5), "`a` >= 0.5e0"),
        (("a", "in", ("x", "y'")), "`a` IN ('x', 'y''')"),
        (("a", "not in", (1, 2)), "`a` NOT IN (1, 2)"),
    ],
)
def test_conditions(where: tuple[str, str, object], text: str) -> None:
    assert sql.condition(where) == text


def test_lengths_of_time() -> None:
    assert sql.interval(90 * SECOND) == "INTERVAL '90' SECOND"
    assert sql.interval(1000 * DAY) == "INTERVAL '1000' DAY(4)"
    with pytest.raises(InvalidInput, match="whole seconds"):
        sql.interval(1)


def test_what_a_condition_is_compared_with() -> None:
    assert [sql.type_of(value) for value in ("a", ("a",), True, 1, (0.5,))] == [
        "STRING",
        "STRING",
        "BOOLEAN",
        "DOUBLE",
        "DOUBLE",
    ]
