"""The label view as of a time, its join, and maturity; oracle for the view: a loop over rows in plain Python."""

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitok.decision import Outcome
from vitok.decisions import DecisionLog, OutcomeLog, join, labels, maturity, read
from vitok.errors import InvalidInput, NotFound


def outcome(request: str, value: float, learned: int, **changes) -> Outcome:
    values = {"kind": "fraud", "event_time": learned - 1, "source": "bank"} | changes
    return Outcome(request_id=request, value=value, ingest_time=learned, **values)


def view(folder, as_of: int, kind: str = "fraud") -> dict[str, float]:
    frame = labels(folder, as_of=as_of, kind=kind)
    return dict(zip(frame["request_id"], frame["label"], strict=True))


def test_as_of_any_time(tmp_path):
    with OutcomeLog(tmp_path) as log:
        log.append([outcome("a", 1.0, 10), outcome("b", 0.0, 30), outcome("a", 0.0, 20, supersedes=True)])
        log.append([outcome("a", 3.0, 12, kind="amount"), outcome("c", 1.0, 5)])
        for _ in range(2):
            assert view(tmp_path, 4) == {}
            assert view(tmp_path, 9) == {"c": 1.0}
            assert view(tmp_path, 10) == {"c": 1.0, "a": 1.0}
            assert view(tmp_path, 20) == {"c": 1.0, "a": 0.0}
            assert view(tmp_path, 30) == {"c": 1.0, "a": 0.0, "b": 0.0}
            assert view(tmp_path, 30, "amount") == {"a": 3.0}
            assert view(tmp_path, 30, "other") == {}
            log.close()


def test_learned_late_but_written_early(tmp_path):
    with OutcomeLog(tmp_path) as log:
        log.append([outcome("a", 1.0, 50), outcome("a", 0.0, 40)])
        assert view(tmp_path, 45) == {"a": 0.0}
        assert view(tmp_path, 50) == {"a": 1.0}


def test_ties_by_order_in_the_log(tmp_path):
    with OutcomeLog(tmp_path) as log:
        log.append([outcome("a", 1.0, 10), outcome("a", 0.0, 10)])
        assert view(tmp_path, 10) == {"a": 0.0}


def test_repeated_delivery_changes_nothing(tmp_path):
    first = outcome("a", 1.0, 10, event_time=3)
    second = outcome("a", 0.0, 20, event_time=4, supersedes=True)
    with OutcomeLog(tmp_path) as log:
        log.append([first, second])
        before = labels(tmp_path, as_of=100, kind="fraud")
        log.append([outcome("a", 1.0, 30, event_time=3), outcome("a", 0.0, 40, event_time=4, supersedes=True)])
        assert labels(tmp_path, as_of=100, kind="fraud").equals(before)
        assert before["label_ingest_time"].cast(pl.Int64).to_list() == [20]
        # The bank changes its mind once more: the same value, but a new statement.
        log.append([outcome("a", 1.0, 50, event_time=45, supersedes=True)])
        assert view(tmp_path, 100) == {"a": 1.0}


rows = st.lists(
    st.builds(
        outcome,
        st.sampled_from("abc"),
        st.sampled_from([0.0, 1.0]),
        st.integers(1, 6),
        event_time=st.integers(1, 2),
        supersedes=st.booleans(),
    ),
    max_size=12,
)


@settings(deadline=None, max_examples=60)
@given(written=rows, as_of=st.integers(0, 7))
def test_view_equals_a_plain_loop(tmp_path_factory, written, as_of):
    folder = tmp_path_factory.mktemp("log")
    seen: set[tuple] = set()
    expected: dict[str, float] = {}
    for one in sorted(written, key=lambda one: one.ingest_time):
        statement = (one.request_id, one.value, one.event_time, one.source, one.supersedes)
        if one.ingest_time <= as_of and statement not in seen:
            seen.add(statement)
            expected[one.request_id] = one.value
    with OutcomeLog(folder) as log:
        for one in written:
            log.append([one])
        assert view(folder, as_of) == expected


def test_empty_and_absent(tmp_path):
    with OutcomeLog(tmp_path / "log"):
        frame = labels(tmp_path / "log", as_of=10, kind="fraud")
    assert frame.columns == ["request_id", "label", "label_time", "label_ingest_time", "source"]
    assert frame.height == 0
    with pytest.raises(NotFound):
        labels(tmp_path / "absent", as_of=10, kind="fraud")


def test_join_keeps_every_decision_in_place(tmp_path, schema, make_block):
    with DecisionLog(tmp_path / "d", schema) as log:
        log.append(make_block(0, 5))
        log.append(make_block(2, 1))
    with OutcomeLog(tmp_path / "o") as log:
        log.append([outcome("r2", 1.0, 10), outcome("r4", 0.0, 20), outcome("unknown", 1.0, 5)])
    decisions = read(tmp_path / "d")
    known = labels(tmp_path / "o", as_of=100, kind="fraud")
    joined = join(decisions, known)
    assert joined["request_id"].to_list() == ["r0", "r1", "r2", "r3", "r4", "r2"]
    assert joined["label"].to_list() == [None, None, 1.0, None, 0.0, 1.0]
    assert joined["label_ingest_time"].cast(pl.Int64).to_list() == [None, None, 10, None, 20, 10]
    assert joined["label_time"].cast(pl.Int64).to_list() == [None, None, 9, None, 19, 9]
    assert joined.columns == [*decisions.columns, "label", "label_time", "label_ingest_time"]
    assert join(decisions, known.clear())["label"].to_list() == [None] * 6
    assert join(decisions.clear(), known).height == 0
    with pytest.raises(InvalidInput, match="not have label columns"):
        join(joined, known)
    with pytest.raises(InvalidInput, match="one row per request"):
        join(decisions, pl.concat([known, known]))


def test_maturity(tmp_path, schema, make_block):
    with DecisionLog(tmp_path / "d", schema) as log, OutcomeLog(tmp_path / "o") as outcomes:
        log.append(make_block(0, 10))
        empty = maturity(read(tmp_path / "d").clear(), read(tmp_path / "o"), ["1d"])
        assert empty.select("n_obs", "labelled", "lower", "upper").rows() == [(0, 0, 0.0, 1.0)]
        none = maturity(read(tmp_path / "d"), read(tmp_path / "o"), [1000])
        assert none.select("n_obs", "labelled").rows() == [(9, 0)]
        # Decision i happens at 1000 i; labels come 500 later for even ones, again much later, and 2500 later for r1.
        outcomes.append([outcome(f"r{i}", 1.0, 1000 * i + 500) for i in range(0, 10, 2)])
        outcomes.append([outcome("r0", 0.0, 9999), outcome("r1", 0.0, 3500), outcome("stranger", 0.0, 10)])
        frame = maturity(read(tmp_path / "d"), read(tmp_path / "o"), [499, 500, 2500], as_of=9000)
        known = labels(tmp_path / "o", as_of=9000, kind="fraud")
    assert frame.select("age", "n_obs", "labelled").rows() == [(499, 9, 0), (500, 9, 5), (2500, 7, 5)]
    assert frame["share"].to_list() == [0.0, 5 / 9, 5 / 7]
    assert all(frame["lower"] <= frame["share"])
    assert all(frame["share"] <= frame["upper"])
    again = maturity(read(tmp_path / "d"), known, [2500], as_of=9000)
    assert again["labelled"].to_list() == [5]


def test_a_view_that_was_asked_for_before_sees_what_came_since(tmp_path):
    with OutcomeLog(tmp_path) as log:
        log.append([outcome("a", 1.0, 10)])
        first = labels(tmp_path, as_of=50, kind="fraud")
        first.insert_column(0, pl.Series("mine", [1]))
        assert labels(tmp_path, as_of=50, kind="fraud").columns[0] == "request_id"
        # It comes late, and counts from when it was learned of.
        log.append([outcome("a", 0.0, 30), outcome("b", 1.0, 60)])
        assert view(tmp_path, 50) == {"a": 0.0}
        assert view(tmp_path, 20) == {"a": 1.0}
        assert view(tmp_path, 60) == {"a": 0.0, "b": 1.0}
    assert view(tmp_path, 60) == {"a": 0.0, "b": 1.0}
