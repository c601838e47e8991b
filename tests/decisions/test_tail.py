"""Following a log: every row once and in order, across sealings, restarts, chunks and processes."""

import itertools
import json
import subprocess
import sys

import pytest

import vitok.decisions.tail
from vitok.decisions import DecisionLog, OutcomeLog, Position, Tail
from vitok.decisions.messages import MessageMaker
from vitok.decisions.schema import decision_message, open_schema
from vitok.decisions.segments import sealed_path
from vitok.errors import InvalidInput


def follow(tail: Tail, max_rows: int | None = None) -> list[str]:
    found: list[str] = []
    while (frame := tail.read(max_rows)) is not None:
        assert max_rows is None or frame.height <= max_rows
        found += frame["request_id"].to_list()
    return found


def names(start: int, stop: int) -> list[str]:
    return [f"r{i}" for i in range(start, stop)]


def test_before_and_after_the_writer(tmp_path, schema, make_block):
    tail = Tail(tmp_path / "log")
    assert tail.read() is None
    with DecisionLog(tmp_path / "log", schema) as log:
        assert tail.read() is None
        log.append(make_block(0, 3))
        frame = tail.read()
        assert frame.columns == list(schema.columns)
        assert frame["f_mean_1d"].to_list() == [0.0, 1 / 3, 2 / 3]
        assert tail.read() is None
    assert tail.read() is None
    assert tail.position == Position(1, 3)
    tail.close()


@pytest.mark.parametrize("max_rows", [None, 1, 3, 7, 1000])
@pytest.mark.parametrize("chunk", [64, 5000, 4 << 20])
def test_across_segments(tmp_path, schema, make_block, monkeypatch, max_rows, chunk):
    monkeypatch.setattr(vitok.decisions.tail, "_CHUNK", chunk)
    tail = Tail(tmp_path)
    found: list[str] = []
    written = 0
    for run in range(3):
        with DecisionLog(tmp_path, schema, rows_per_segment=12) as log:
            for n in (1, 5, 2, 8, 3, 1):
                log.append(make_block(written, n))
                written += n
                if run != 1:
                    found += follow(tail, max_rows)
                    assert len(found) == written
    assert found + follow(tail, max_rows) == names(0, written)
    assert follow(Tail(tmp_path), max_rows) == names(0, written)
    tail.close()


def test_position_of_every_row_keeps_its_meaning(tmp_path, schema, make_block):
    with DecisionLog(tmp_path, schema, rows_per_segment=8) as log:
        marks = []
        for start in range(0, 18, 3):
            log.append(make_block(start, 3))
            marks.append((start + 3, log.position))
        tail, kept = Tail(tmp_path), []
        for row in range(18):
            kept.append((row, json.dumps(tail.position)))
            assert tail.read(1)["request_id"].to_list() == [f"r{row}"]
        for _ in range(2):
            for row, text in kept:
                assert follow(Tail(tmp_path, json.loads(text))) == names(row, 18)
            for row, position in marks:
                assert follow(Tail(tmp_path, position)) == names(row, 18)
            # The second time around everything is sealed.
            log.close()


def test_row_groups_of_a_sealed_segment(tmp_path, schema, make_block, monkeypatch):
    monkeypatch.setattr("vitok.decisions.sealing.ROWS_PER_GROUP", 4)
    with DecisionLog(tmp_path, schema) as log:
        log.append(make_block(0, 10))
    for start in range(11):
        for step in (None, 1, 3, 4, 5):
            assert follow(Tail(tmp_path, (1, start)), step) == names(start, 10)


def test_segment_removed_by_retention(tmp_path, schema, make_block):
    for start in range(3):
        with DecisionLog(tmp_path, schema) as log:
            log.append(make_block(start))
    sealed_path(tmp_path, 1).unlink()
    assert follow(Tail(tmp_path)) == ["r1", "r2"]
    assert follow(Tail(tmp_path, (1, 1))) == ["r1", "r2"]


def test_position_behind_the_end(tmp_path, schema, make_block):
    # A power cut may take back rows that a reader has seen; it then goes on with the next segment.
    tail = Tail(tmp_path, (1, 5))
    with DecisionLog(tmp_path, schema) as log:
        log.append(make_block(0, 3))
        assert tail.read() is None
    with DecisionLog(tmp_path, schema) as log:
        log.append(make_block(3, 2))
    assert follow(tail) == ["r3", "r4"]


def test_bytes_that_arrive_one_by_one(tmp_path, schema, make_block):
    maker = MessageMaker(open_schema(schema))
    messages = [decision_message(make_block(i, 1), schema, maker) for i in range(3)]
    data = maker.arrow.serialize().to_pybytes() + b"".join(messages)
    ends = list(itertools.accumulate([len(maker.arrow.serialize()), *map(len, messages)]))[1:]
    tail = Tail(tmp_path)
    path = tmp_path / "segment-00000001.arrows"
    found: list[str] = []
    with path.open("wb", buffering=0) as file:
        for at in range(len(data)):
            file.write(data[at : at + 1])
            frame = tail.read()
            if frame is not None:
                assert at + 1 == ends[len(found)]
                found += frame["request_id"].to_list()
    assert found == ["r0", "r1", "r2"]
    tail.close()


def test_sealing_between_two_looks(tmp_path, schema, make_block):
    log = DecisionLog(tmp_path, schema)
    log.append(make_block(0, 4))
    early, late = Tail(tmp_path), Tail(tmp_path)
    assert early.read(2).height == 2
    assert late.read(2).height == 2
    late.close()
    log.append(make_block(4, 2))
    log.close()
    assert follow(early) == follow(late) == names(2, 6)


def test_reader_in_another_process(tmp_path, schema, make_block):
    code = """if True:
        import json, sys
        from vitok.decisions import Tail
        tail, n = Tail(sys.argv[1]), 0
        while n < 3000:
            frame = tail.read()
            if frame is not None:
                expected = [f"r{i}" for i in range(n, n + frame.height)]
                assert frame["request_id"].to_list() == expected
                assert frame["f_count_1d"].to_list() == [float(i) for i in range(n, n + frame.height)]
                n += frame.height
                print(n, flush=True)
        print(json.dumps(tail.position), flush=True)
    """
    with (
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) as reader,
        DecisionLog(tmp_path, schema, rows_per_segment=500) as log,
    ):
        log.append(make_block(0, 10))
        # The reader is up once it has told of the first rows; from here on both work at once.
        assert reader.stdout.readline() == "10\n"
        for start in range(10, 3000, 10):
            log.append(make_block(start, 10))
        told = reader.stdout.read().split("\n")
        assert reader.wait() == 0
    assert Position(*json.loads(told[-2])) in (Position(6, 500), Position(7, 0))


def test_outcomes(tmp_path):
    with OutcomeLog(tmp_path):
        assert Tail(tmp_path).read() is None


@pytest.mark.parametrize("position", [(1,), (1, -1), (1.5, 0), "12", (1, 2, 3)])
def test_position_refused(tmp_path, position):
    with pytest.raises(InvalidInput, match="position"):
        Tail(tmp_path, position)


def test_max_rows_refused(tmp_path):
    with pytest.raises(InvalidInput, match="max_rows"):
        Tail(tmp_path).read(0)
