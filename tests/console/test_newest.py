"""The log from its end while its files are sealed, merged and dropped. Oracle: the same log read undisturbed."""

from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from vitok.clock import DAY, HOUR
from vitok.console import newest as module
from vitok.console.newest import latest_rows, newest, one_in, taken_rows
from vitok.decision import Outcome
from vitok.decisions import OutcomeLog, merge, read, retain
from vitok.decisions.segments import Segment, segments
from vitok.errors import StoreError

N, ROWS = 6, 4
COLUMNS = ("request_id", "value")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six sealed segments of four outcomes, one an hour."""
    with OutcomeLog(tmp_path / "outcomes", rows_per_segment=ROWS) as log:
        for hour in range(N):
            at = DAY + hour * HOUR
            log.append(
                [
                    Outcome(
                        request_id=f"r{hour * ROWS + row}", kind="fraud", value=1.0, event_time=at, ingest_time=at + row
                    )
                    for row in range(ROWS)
                ]
            )
    return tmp_path / "outcomes"


def disturb(monkeypatch: pytest.MonkeyPatch, *changes: Callable[[Path], object]) -> None:
    """Makes the first changes happen between a listing of the folder and the reading of what was listed."""
    left = list(changes)

    def listed(folder: Path) -> list[Segment]:
        found = segments(folder)
        if left:
            left.pop(0)(folder)
        return found

    monkeypatch.setattr(module, "segments", listed)


def latest(folder: Path) -> list[str]:
    found = latest_rows(folder, COLUMNS, most=1_000)
    assert found is not None
    return sorted(found["request_id"].to_list())


def taken(folder: Path) -> list[str]:
    found, _ = taken_rows(folder, COLUMNS, one_in=1)
    assert found is not None
    return list(found["request_id"])


READERS: dict[str, tuple[Callable[[Path], object], object]] = {
    "newest": (
        lambda folder: newest(folder, COLUMNS, None, skip=1, most=3),
        ([{"request_id": f"r{at}", "value": 1.0} for at in (22, 21, 20)], N * ROWS),
    ),
    "latest": (latest, sorted(f"r{at}" for at in range(N * ROWS))),
    "taken": (taken, [f"r{at}" for at in range(N * ROWS)]),
    "one_in": (lambda folder: one_in(folder, most=5), 5),
}


@pytest.mark.parametrize(("reader", "wanted"), READERS.values(), ids=READERS)
def test_rows_of_segments_that_are_merged_meanwhile_are_read_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, reader: Callable[[Path], object], wanted: object
) -> None:
    assert reader(folder) == wanted
    disturb(monkeypatch, lambda folder: merge(folder, now=30 * DAY))
    assert reader(folder) == wanted
    assert len(segments(folder)) == 1


def test_a_segment_without_a_column_of_the_condition_gives_none_of_its_rows(folder: Path) -> None:
    later = taken_rows(folder, COLUMNS, one_in=1, condition=pl.col("request_id") >= "r8")[0]
    assert later is not None
    assert later["request_id"].to_list() == ["r8", "r9"]
    assert taken_rows(folder, COLUMNS, one_in=1, condition=pl.col("propensity") < 1) == (None, 1)


def test_what_is_dropped_for_its_age_meanwhile_is_not_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disturb(monkeypatch, lambda folder: retain(folder, "2h", now=DAY + 5 * HOUR))
    assert newest(folder, COLUMNS, pl.col("value") > 0, skip=0, most=2)[1] == read(folder).height == 3 * ROWS


def test_files_that_always_go_away_are_an_error_that_names_the_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = Segment(1, folder / "day=1970-01-02" / "hour=00" / "segment-00000099.parquet")
    monkeypatch.setattr(module, "segments", lambda _: [gone])
    with pytest.raises(StoreError, match=r"outcomes'.*try again"):
        newest(folder, COLUMNS, None, skip=0, most=1)


def test_an_open_segment_that_is_sealed_meanwhile_is_read_sealed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = OutcomeLog(tmp_path)
    log.append([Outcome(request_id="a", kind="fraud", value=0.0, event_time=DAY, ingest_time=DAY)])
    assert not segments(tmp_path)[0].sealed
    disturb(monkeypatch, lambda _: log.close())
    assert newest(tmp_path, COLUMNS, None, skip=0, most=1) == ([{"request_id": "a", "value": 0.0}], 1)
    assert segments(tmp_path)[0].sealed
