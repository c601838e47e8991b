"""How a table is read: once where all is well, again for rows that break a rule, and never silently something else."""

import datetime as dt
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from tests.contracts.conftest import GOOD, NOW, SCHEMA, TEXT, frame

from vitok import contracts
from vitok.contracts import batch, sources
from vitok.errors import ContractBroken, StoreError

CONTRACT = contracts.load(TEXT)


def counted(frame: pl.DataFrame, reads: list[int]) -> pl.LazyFrame:
    """A lazy frame that notes each time it is read."""

    def note(data: pl.DataFrame) -> pl.DataFrame:
        reads.append(data.height)
        return data

    # Pushing a query below the note would let it see a part of the rows.
    return frame.lazy().map_batches(
        note, predicate_pushdown=False, projection_pushdown=False, slice_pushdown=False, schema=frame.schema
    )


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (({}, {}), 1),
        (({}, {"amount": -1.0}), 1),
        (({"id": "a"}, {"id": "a"}), 2),
    ],
)
def test_data_is_read_again_only_where_a_key_is_repeated(changes: tuple[dict[str, Any], ...], expected: int) -> None:
    reads: list[int] = []
    report = CONTRACT.check(counted(frame(*changes), reads), now=NOW)
    assert len(reads) == expected
    assert report.accepted.height == report.n_accepted
    _ = report.accepted, report.rejected
    assert len(reads) == expected + 1


def test_folder_of_files(tmp_path: Path) -> None:
    parts = [frame(*({"id": f"{part}-{row}"} for row in range(50))) for part in range(5)]
    parts[1] = parts[1].with_columns(amount=pl.lit(-1.0))
    parts[3] = parts[3].with_columns(id=pl.lit("0-7"))
    for index, part in enumerate(parts):
        part.write_parquet(tmp_path / f"{index}.parquet", row_group_size=20)
    report = CONTRACT.check(pl.scan_parquet(tmp_path / "*.parquet"), now=NOW)
    whole = CONTRACT.check(pl.concat(parts), now=NOW)
    assert report.rejected.equals(whole.rejected)
    assert report.accepted.equals(whole.accepted)
    assert report.to_dict() == whole.to_dict()
    assert (report.n_accepted, report.n_rejected) == (150, 100)
    report.scan_accepted().sink_parquet(tmp_path / "accepted.parquet")
    assert pl.read_parquet(tmp_path / "accepted.parquet").equals(report.accepted)
    assert report.scan_rejected().select(pl.len()).collect().item() == 100


def changing(*versions: pl.DataFrame) -> pl.LazyFrame:
    """A lazy frame that gives another table each time it is read."""
    left = list(versions)
    return (
        versions[0]
        .lazy()
        .map_batches(
            lambda _: left.pop(0) if len(left) > 1 else left[0],
            predicate_pushdown=False,
            projection_pushdown=False,
            slice_pushdown=False,
        )
    )


def test_data_that_changed_is_told(tmp_path: Path) -> None:
    data = frame({}, {}, {"amount": -1.0})
    report = CONTRACT.check(changing(data, frame({})), now=NOW)
    assert report.rejected.height == 1
    with pytest.raises(StoreError, match="the data changed while it was read: 2 rows were counted, and 1 are there"):
        _ = report.accepted
    repeated = frame({"id": "a"}, {"id": "a"}, {"id": "b"})
    with pytest.raises(StoreError, match="2 rows were counted, and 0 are there"):
        CONTRACT.check(changing(repeated, frame({})), now=NOW)


def test_files_that_changed_are_told(tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    frame({}, {}, {"amount": -1.0}).write_parquet(path)
    report = CONTRACT.check(pl.scan_parquet(path), now=NOW)
    frame({}).write_parquet(path)
    with pytest.raises(StoreError):
        _ = report.accepted
    path.unlink()
    with pytest.raises(StoreError, match="the data cannot be read"):
        _ = report.accepted


def test_rows_in_another_order_are_told() -> None:
    data = frame({"id": "a"}, {"id": "b"}, {"id": "b"})
    report = CONTRACT.check(changing(data, data, data.reverse()), now=NOW)
    assert report.n_rejected == 1
    with pytest.raises(StoreError, match="another order"):
        _ = report.accepted


def test_damaged_file(tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    frame(*({"id": f"x{row}"} for row in range(500))).write_parquet(path, compression="uncompressed")
    lazy = pl.scan_parquet(path)
    blob = path.read_bytes()
    path.write_bytes(blob[:4] + bytes(len(blob) // 2) + blob[4 + len(blob) // 2 :])
    with pytest.raises((StoreError, ContractBroken)):
        CONTRACT.check(lazy, now=NOW)


def test_many_rejected_rows_are_read_when_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "MOST_READ_AT_ONCE", 1)
    reads: list[int] = []
    report = CONTRACT.check(counted(frame({"amount": -1.0}, {"amount": -1.0}), reads), now=NOW)
    assert (report.n_rejected, len(reads)) == (2, 1)
    assert report.rejected.height == 2
    assert "2 rejected" in str(report)


def test_keys_whose_hashes_are_equal_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources.Plan, "hashed", lambda plan, key: plan.whole(key).str.len_chars().cast(pl.UInt64))
    report = CONTRACT.check(frame({"id": "a"}, {"id": "b"}, {"id": "a"}, {"id": "cc"}), now=NOW)
    assert report.rejected["id"].to_list() == ["a"]
    assert report.accepted["id"].to_list() == ["a", "b", "cc"]


def test_several_keys_at_once() -> None:
    contract = contracts.load(TEXT.replace("{name: count,", "{name: count, unique: true,"))
    data = frame({"id": "a", "count": 1}, {"id": "a", "count": 1}, {"id": "b", "count": 1}, {"id": "c", "count": None})
    report = contract.check(data, now=NOW)
    assert report.rejected["rules"].to_list() == [["count.unique", "id.unique"], ["count.unique"]]
    assert (report.n_rejected, report.n_accepted) == (2, 2)


def test_one_row_and_none_and_all_null() -> None:
    assert CONTRACT.check(frame({}), now=NOW).n_accepted == 1
    empty = CONTRACT.check(pl.LazyFrame(schema=SCHEMA), now=NOW)
    assert (empty.accepted.schema, empty.rejected.columns) == (SCHEMA, [*SCHEMA, "reason", "rules"])
    nothing = pl.DataFrame({name: [None, None] for name in SCHEMA})
    report = CONTRACT.check(nothing, now=NOW)
    required = ["id.required", "time.required", "amount.required"]
    assert report.rejected["rules"].to_list() == [required, required]
    assert {item.label for item in report.failed} == {*required, "time.latency"}


@pytest.mark.parametrize("rule", ["minimum: 0", "maximum: 0", "exclusiveMinimum: 0", "exclusiveMaximum: 0"])
def test_a_null_is_in_no_range_and_breaks_none(rule: str) -> None:
    text = TEXT.replace("logicalTypeOptions: {exclusiveMinimum: 0, maximum: 10}", f"logicalTypeOptions: {{{rule}}}")
    contract = contracts.load(text)
    report = contract.check(frame({"count": None}), now=NOW)
    found = next(item for item in report.results if item.field == "count" and item.rule != "type")
    assert (report.n_rejected, found.n_checked, found.n_failed) == (0, 0, 0)
    assert contract.row_checker()({**GOOD, "count": None}) == []


@pytest.mark.parametrize(
    ("values", "accepted"),
    [
        (pl.Series([2**63 - 1, -(2**63), 0]), 1),
        (pl.Series([2**64 - 1, 1, 2], dtype=pl.UInt64), 2),
        (pl.Series([1.0, 2.0**53, float("nan")]), 1),
    ],
)
def test_huge_numbers(values: pl.Series, accepted: int) -> None:
    text = TEXT.replace("exclusiveMinimum: 0, maximum: 10", "minimum: 0, maximum: 9")
    report = contracts.load(text).check(frame({}, {}, {}).with_columns(count=values), now=NOW)
    assert report.n_accepted == accepted


def test_bounds_beyond_64_bits() -> None:
    text = TEXT.replace("exclusiveMinimum: 0, maximum: 10", "minimum: 0, maximum: 99999999999999999999")
    assert contracts.load(text).check(frame({"count": 2**63 - 1}), now=NOW).n_accepted == 1


def test_times_of_other_zones_in_files(tmp_path: Path) -> None:
    moment = dt.datetime(2018, 4, 1, 10)
    zones = ["UTC", "Asia/Kolkata", "America/New_York"]
    for zone in zones:
        time = pl.Series([moment]).dt.replace_time_zone(zone)
        frame({}).with_columns(time=time).write_parquet(tmp_path / f"{zone.replace('/', '-')}.parquet")
    hours = [
        CONTRACT.check(pl.scan_parquet(tmp_path / f"{zone.replace('/', '-')}.parquet"), now=NOW)
        .accepted["time"][0]
        .hour
        for zone in zones
    ]
    # Oracle: the offsets of these zones in April 2018: 0, 5:30 and -4 hours.
    assert hours == [10, 4, 14]


def test_many_repeated_keys_are_found_by_a_join(monkeypatch: pytest.MonkeyPatch) -> None:
    data = frame(*({"id": str(row % 70), "amount": -1.0 if row % 11 == 0 else 1.0} for row in range(200)))
    few = CONTRACT.check(data.lazy(), now=NOW)
    monkeypatch.setattr(sources, "_FEW", 0)
    many = CONTRACT.check(data.lazy(), now=NOW)
    assert many.rejected.equals(few.rejected)
    assert many.accepted.equals(few.accepted)
    seen: set[str] = set()
    for row in range(200):
        if row % 11:
            seen.add(str(row % 70))
    assert few.n_accepted == len(seen)
