import datetime as dt

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.contracts.conftest import SCHEMA, frame

from vitok import contracts
from vitok.errors import InvalidInput


def test_draft_states_what_was_seen() -> None:
    data = pl.DataFrame(
        {
            "id": ["a", "b"],
            "amount": [1.5, float("inf")],
            "count": [3, None],
            "time": [dt.datetime(2018, 4, 1), dt.datetime(2018, 4, 2)],
            "day": [dt.date(2018, 4, 1)] * 2,
            "online": [True, False],
            "kind": pl.Series(["x", "x"], dtype=pl.Categorical),
            "price": pl.Series(["1.10", "2.20"]).cast(pl.Decimal(8, 2)),
        }
    )
    contract = contracts.infer(data, name="продажи")
    table = contract.table("продажи")
    types = [field.logical_type for field in table.fields]
    assert types == ["string", "number", "integer", "timestamp", "date", "boolean", "string", "number"]
    assert [field.required for field in table.fields] == [True, True, False, True, True, True, True, True]
    assert [key.fields for key in table.keys] == [("id",)]
    assert "be at most 1.5" in str(contract)
    assert contracts.load(contract.text) == contract
    assert contract.check(data.filter(pl.col("amount").is_finite())).n_rejected == 0


@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "amount": st.none() | st.floats(allow_nan=False, allow_infinity=False),
                "id": st.text(st.characters(codec="utf-8"), max_size=3),
                "count": st.none() | st.integers(-(2**63), 2**63 - 1),
            }
        ),
        max_size=6,
    )
)
def test_data_keeps_its_own_draft(rows: list[dict[str, object]]) -> None:
    data = pl.DataFrame(rows, schema={name: SCHEMA[name] for name in ("amount", "id", "count")})
    report = contracts.infer(data.lazy(), name="draft").check(data)
    assert report.n_rejected == 0


def test_no_rows_and_no_columns() -> None:
    contract = contracts.infer(frame(), name="empty")
    assert not any(field.required for field in contract.table().fields)
    with pytest.raises(InvalidInput, match="at least one column"):
        contracts.infer(pl.DataFrame(), name="nothing")


def test_types_that_a_contract_cannot_state() -> None:
    with pytest.raises(InvalidInput, match="tags"):
        contracts.infer(pl.DataFrame({"tags": [["a"]]}), name="lists")
    with pytest.raises(InvalidInput, match="DataFrame"):
        contracts.infer([1], name="list")  # type: ignore[arg-type]
