"""Reading open segments by span and column. Oracle: the same log read whole, and filtered."""

import os
import random

import polars as pl
import pytest

from vitok.decision import Outcome
from vitok.decisions import DecisionLog, OutcomeLog, Position, Tail, labels, opened, read, tail
from vitok.decisions.segments import open_path
from vitok.errors import InvalidInput


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(opened, "_BLOCK", 3000)
    opened._kept.clear()
    tail._kept.clear()


def filtered(folder, since: int, until: int) -> pl.DataFrame:
    times = pl.col("event_time").to_physical()
    return read(folder).filter((times >= since) & (times < until))


@pytest.mark.parametrize("columns", [None, ["request_id"], ["f_mean_1d", "system", "amount"], ["f_count_1d", "tenant"]])
def test_any_span_of_a_growing_segment(tmp_path, schema, make_block, columns):
    rng = random.Random(3)
    written = 0
    with DecisionLog(tmp_path, schema, rows_per_segment=400) as log:
        for _ in range(60):
            n = rng.choice([1, 2, 9, 40])
            log.append(make_block(written, n))
            written += n
            since = rng.randint(0, written) * 1000
            until = since + rng.choice([0, 1, 5000, 200_000])
            expected = filtered(tmp_path, since, until)
            found = read(tmp_path, since=since, until=until, columns=columns)
            assert found.equals(expected if columns is None else expected.select(columns))
            assert read(tmp_path, since=since, until=until, models=["fraud/1"]).equals(
                expected.filter(pl.col("model_version") == "fraud/1")
            )


def test_blocks_that_are_not_wanted_are_not_read_again(tmp_path, schema, make_block, monkeypatch):
    with DecisionLog(tmp_path, schema) as log:
        for start in range(0, 1000, 10):
            log.append(make_block(start, 10))
        size = open_path(tmp_path, 1).stat().st_size
        asked: list[int] = []
        pread = os.pread
        monkeypatch.setattr(os, "pread", lambda fd, n, at: asked.append(n) or pread(fd, n, at))
        assert read(tmp_path, since=500_000, until=501_000)["request_id"].to_list() == ["r500"]
        assert sum(asked) > size
        asked.clear()
        assert read(tmp_path, since=500_000, until=501_000)["request_id"].to_list() == ["r500"]
        assert sum(asked) < size / 4


def test_half_a_message_and_zeros_at_the_end(tmp_path, schema, make_block):
    with DecisionLog(tmp_path, schema) as log:
        log.append(make_block(0, 50))
        log.append(make_block(50, 50))
        path = open_path(tmp_path, 1)
        whole = path.read_bytes()
        log.append(make_block(100, 30))
        for rest in (path.read_bytes()[len(whole) : -9], bytes(500), b""):
            path.write_bytes(whole + rest)
            assert read(tmp_path, since=60_000, until=10**9)["request_id"].to_list() == [
                f"r{i}" for i in range(60, 100)
            ]
            assert read(tmp_path, columns=["f_count_1d"]).height == 100


def test_a_write_that_was_taken_back(tmp_path, schema, make_block):
    with DecisionLog(tmp_path, schema) as log:
        for start in range(0, 200, 10):
            log.append(make_block(start, 10))
        path = open_path(tmp_path, 1)
        whole = path.stat().st_size
        for start in range(200, 300, 10):
            log.append(make_block(start, 10))
        assert read(tmp_path, since=150_000).height == 150
        # As the writer does where the disk did not keep what was written.
        os.truncate(path, whole)
        assert read(tmp_path, since=150_000).height == 50


def test_a_log_that_was_made_anew(tmp_path, schema, make_block):
    path = open_path(tmp_path, 1)
    with DecisionLog(tmp_path, schema) as log:
        for start in range(0, 200, 10):
            log.append(make_block(start, 10))
        first = path.read_bytes()
        assert read(tmp_path, since=0, until=50_000).height == 50
        again = Tail(tmp_path, [1, 100])
        assert again.read()["request_id"].to_list() == [f"r{i}" for i in range(100, 200)]
        again.close()
        with DecisionLog(tmp_path / "other", schema) as other:
            for start in range(1000, 1200, 10):
                other.append(make_block(start, 10))
            content = open_path(tmp_path / "other", 1).read_bytes()
        # The same name, the same inode, the same length; other rows.
        assert len(content) == pytest.approx(len(first), rel=0.1)
        with path.open("r+b") as file:
            file.truncate(0)
            file.write(content)
        assert read(tmp_path, since=0, until=50_000).height == 0
        assert read(tmp_path, since=1_000_000, until=1_050_000).height == 50
        assert Tail(tmp_path, [1, 150]).read()["request_id"].to_list() == [f"r{i}" for i in range(1150, 1200)]


def test_sealed_between_two_looks(tmp_path, schema, make_block):
    with DecisionLog(tmp_path, schema) as log:
        for start in range(0, 200, 10):
            log.append(make_block(start, 10))
        before = read(tmp_path, since=30_000, until=90_000)
        assert before.height == 60
    assert read(tmp_path, since=30_000, until=90_000).equals(before)


def test_outcomes_by_ingest_time(tmp_path):
    with OutcomeLog(tmp_path) as log:
        for i in range(300):
            log.append([Outcome(request_id=f"r{i}", kind="fraud", value=1.0, event_time=5, ingest_time=10 * (i + 1))])
            if i % 50 == 49:
                for as_of in (5, 5 * i, 10 * i):
                    assert labels(tmp_path, as_of=as_of, kind="fraud").height == as_of // 10


def test_a_new_tail_goes_on_where_one_was_closed(tmp_path, schema, make_block, monkeypatch):
    with DecisionLog(tmp_path, schema) as log:
        place, seen = None, []
        for start in range(0, 300, 10):
            log.append(make_block(start, 10))
            one = Tail(tmp_path, place)
            while (rows := one.read(7)) is not None:
                seen += rows["request_id"].to_list()
            place = one.position
            one.close()
        assert seen == [f"r{i}" for i in range(300)]
        # Behind it, and before it.
        for first in (0, 3, 299):
            assert Tail(tmp_path, [1, first]).read()["request_id"].to_list() == seen[first:]


@pytest.mark.parametrize("sealed", [False, True])
def test_places_within_what_was_read(tmp_path, schema, make_block, sealed):
    with DecisionLog(tmp_path, schema, rows_per_segment=25) as log:
        for start in range(0, 60, 5):
            log.append(make_block(start, 5))
        if sealed:
            log.close()
        whole = Tail(tmp_path)
        head = whole.read(7)
        assert whole.behind(0) == (Position(0, 0),)
        rest = whole.read()
        assert (head.height, rest.height) == (7, 53)
        for n in (0, 1, 17, 18, 19, 40, 53):
            again = Tail(tmp_path, whole.behind(n)).read()
            assert (again["request_id"].to_list() if again is not None else []) == [f"r{i}" for i in range(7 + n, 60)]
        with pytest.raises(InvalidInput, match="n_rows"):
            whole.behind(54)
