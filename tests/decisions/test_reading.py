"""Reading at rest: spans, columns, models, and single decisions."""

import math
import uuid

import numpy as np
import pytest

from vitok import ids
from vitok.decision import Decision
from vitok.decisions import DecisionLog, LogSchema, OutcomeLog, find, read
from vitok.decisions.index import candidates, index_path
from vitok.decisions.segments import segments
from vitok.errors import InvalidInput, NotFound


@pytest.fixture
def mixed(tmp_path, schema, make_block):
    """Thirty rows: two sealed segments and an open one."""
    with DecisionLog(tmp_path, schema, rows_per_segment=10) as log:
        log.append(make_block(0, 10))
        log.append(make_block(10, 10))
    log = DecisionLog(tmp_path, schema, rows_per_segment=100)
    log.append(make_block(20, 4))
    log.append(make_block(24, 6))
    yield tmp_path
    log.close()


def numbers(frame) -> list[int]:
    return [int(name[1:]) for name in frame["request_id"]]


def test_span_is_half_open(mixed):
    assert [part.sealed for part in segments(mixed)] == [True, True, False]
    assert numbers(read(mixed)) == list(range(30))
    assert numbers(read(mixed, since=5000, until=23_000)) == list(range(5, 23))
    assert numbers(read(mixed, since=5001)) == list(range(6, 30))
    empty = read(mixed, since=10**9)
    assert empty.height == 0
    assert empty.schema == read(mixed).schema


def test_columns_and_models(mixed):
    frame = read(mixed, columns=["f_mean_1d", "request_id"], models=["fraud/1"], until=12_000)
    assert frame.columns == ["f_mean_1d", "request_id"]
    assert numbers(frame) == [1, 3, 5, 7, 9, 11]
    assert read(mixed, models=[]).height == 0
    with pytest.raises(NotFound, match="f_nothing"):
        read(mixed, columns=["f_nothing"])
    with pytest.raises(InvalidInput, match="columns"):
        read(mixed, columns=[])


def test_no_log(tmp_path):
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(NotFound):
            read(folder)
    with pytest.raises(NotFound):
        find(tmp_path / "absent", request_id="r1")


def test_empty_logs(tmp_path, schema):
    with DecisionLog(tmp_path / "d", schema), OutcomeLog(tmp_path / "o"):
        assert read(tmp_path / "d").columns == list(schema.columns)
        assert read(tmp_path / "d", models=["fraud/1"], since=0).height == 0
        assert read(tmp_path / "o").columns[:3] == ["request_id", "kind", "value"]
        assert find(tmp_path / "d", request_id="r1") is None


def test_find_by_either_id(mixed, schema):
    rows = read(mixed, columns=["decision_id", "request_id"]).rows()
    for number, (decision_id, request_id) in enumerate(rows):
        found = find(mixed, request_id=request_id)
        assert found == find(mixed, decision_id=ids.text(decision_id))
        assert isinstance(found, Decision)
        assert found.request_id == request_id
        assert found.decision_id == str(uuid.UUID(bytes=decision_id))
        assert found.event_time == number * 1000
        assert found.ingest_time == number * 1000 + 1
        assert found.entities == {"customer_id": f"customer_id-{number}"}
        assert found.request == {"amount": number * 0.5, "channel": None if number % 2 else f"c{number}"}
        assert found.features == {"count_1d": float(number), "mean_1d": number / 3}
        assert (found.shadow_version, found.shadow_probability) == ((None, None) if number % 2 else ("fraud/3", 0.25))
        assert found.system == "fraud"
        assert found.latency_us == number


def test_find_nothing(mixed):
    assert find(mixed, request_id="r") is None
    assert find(mixed, request_id="") is None
    assert find(mixed, request_id="count_1d") is None
    assert find(mixed, request_id="r99") is None
    assert find(mixed, decision_id=str(uuid.UUID(int=5))) is None
    for arguments in ({}, {"request_id": "a", "decision_id": str(uuid.UUID(int=5))}, {"decision_id": "r1"}):
        with pytest.raises(InvalidInput, match="decision_id"):
            find(mixed, **arguments)


def test_find_the_first_of_two(tmp_path, schema, make_block):
    for score in (0.1, 0.2):
        with DecisionLog(tmp_path, schema) as log:
            log.append(make_block(0, 1, score=[score]))
    assert find(tmp_path, request_id="r0").score == 0.1


def test_find_needs_no_index(mixed):
    path = next(part.path for part in segments(mixed))
    assert candidates(path, "request_id", b"r3") == [3]
    index_path(path).unlink()
    assert candidates(path, "request_id", b"r3") is None
    assert find(mixed, request_id="r3").request_id == "r3"
    index_path(path).write_bytes(b"damaged")
    assert find(mixed, request_id="r4").request_id == "r4"
    assert find(mixed, request_id="r10").request_id == "r10"


def test_find_short_id_among_many(tmp_path, schema, make_block):
    # "7" is part of hundreds of other ids and of bytes that are no id at all.
    with DecisionLog(tmp_path, schema) as log:
        for start in range(0, 2000, 4):
            log.append(make_block(start, 4, request_id=[f"1{i}7" for i in range(start, start + 4)]))
        assert find(tmp_path, request_id="7") is None
        log.append(make_block(2000, 2, request_id=["x", "7"], score=[0.0, 0.5]))
        assert find(tmp_path, request_id="7").score == 0.5
        assert find(tmp_path, request_id="7") == find(tmp_path, decision_id=find(tmp_path, request_id="7").decision_id)


def test_find_in_a_message_larger_than_the_window(tmp_path, make_block):
    schema = LogSchema("wide", (), (), tuple(f"c{i}" for i in range(60)))
    features = np.full((3000, 60), math.nan)
    # Bytes that look like the start of a message lie between the real start and the ids.
    features.view(np.uint32)[:] = 0xFFFFFFFF
    with DecisionLog(tmp_path, schema) as log:
        log.append(make_block(0, 3000, schema, features=features))
        log.append(make_block(3000, 3000, schema, features=features))
        for number in (0, 2999, 3000, 5999):
            assert find(tmp_path, request_id=f"r{number}").latency_us == number


def test_decisions_only(tmp_path):
    with OutcomeLog(tmp_path):
        assert find(tmp_path, request_id="r1") is None


def test_index_of_ids_of_every_length(tmp_path, schema, make_block):
    names = ["", "a", "ab", "b", "ж", "x" * 1000, "a", "\x00", "\x00\x00"]
    with DecisionLog(tmp_path, schema) as log:
        log.append(make_block(0, 4, request_id=names[:4]))
        log.append(make_block(4, 5, request_id=names[4:]))
    path = segments(tmp_path)[0].path
    for name in set(names):
        assert candidates(path, "request_id", name.encode()) == [i for i, other in enumerate(names) if other == name]
    assert candidates(path, "request_id", b"absent") == []
