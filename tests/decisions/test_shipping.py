"""What was deleted because of a subject goes from a store too, whatever the store keeps for longer than the log."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitok.clock import DAY, HOUR
from vitok.decision import Outcome
from vitok.decisions import DecisionBlock, DecisionLog, LogSchema, OutcomeLog, forget, merge, retain, verify
from vitok.decisions.forgetting import FORGOTTEN, forgotten
from vitok.decisions.rewriting import rewrite
from vitok.decisions.shipping import forget_shipped, ship
from vitok.engines import LogStore, open_log_store
from vitok.errors import InvalidInput, StoreError

KEY = b"a secret of sixteen bytes"
NOW = 30 * DAY
SECRETS = ["o'brien", 'back\\slash "quoted"', "зоя"]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LogStore]:
    opened = open_log_store(f"duckdb://{tmp_path / 'store.duckdb'}")
    yield opened
    opened.close()


@pytest.fixture
def logs(tmp_path: Path, schema: LogSchema, make_block: Callable[..., DecisionBlock]) -> Path:
    """Six segments of three decisions, one an hour, and one segment of their outcomes for each; request i of i % 3."""
    with DecisionLog(tmp_path / "log" / "decisions", schema, rows_per_segment=3) as log:
        for at in range(6):
            times = DAY + at * HOUR + np.arange(3)
            who = [SECRETS] if at != 4 else [[SECRETS[0]] * 3]
            log.append(make_block(at * 3, 3, event_time=times, ingest_time=times, entities=who))
    with OutcomeLog(tmp_path / "log" / "outcomes", rows_per_segment=3) as outcomes:
        for at in range(6):
            moment = DAY + at * HOUR
            outcomes.append(
                [
                    Outcome(request_id=f"r{row}", kind="fraud", value=1.0, event_time=moment, ingest_time=moment)
                    for row in range(at * 3, at * 3 + 3)
                ]
            )
    return tmp_path / "log"


def bring(logs: Path, store: LogStore, *, mirror: bool = False) -> list[int]:
    return [ship(logs / name, store, name, mirror=mirror) for name in ("decisions", "outcomes")]


def shipped(store: LogStore, table: str) -> list[int]:
    found = store.query(f"SELECT request_id FROM {table}").column(0).to_pylist()
    return sorted(int(name[1:]) for name in found)


def without(*gone: int) -> list[int]:
    return [row for row in range(18) if row not in gone]


OF_FIRST = (0, 3, 6, 9, 12, 13, 14, 15)


@pytest.mark.parametrize("merged", ["before", "between", "never"])
def test_a_segment_that_a_deletion_took_whole_goes_from_the_store(logs: Path, store: LogStore, merged: str) -> None:
    """Segment 5 holds nobody but the subject, alone or among others in a merged file."""
    if merged == "before":
        merge(logs / "decisions", now=NOW)
    assert bring(logs, store) == [6, 6]
    if merged == "between":
        merge(logs / "decisions", now=NOW)
    receipt = forget(logs, "customer_id", SECRETS[0], key=KEY, now=NOW)
    assert receipt.rows_removed == 16
    assert forgotten(logs / "decisions") == {1: 2, 2: 2, 3: 2, 4: 2, 5: 0, 6: 2}
    assert forgotten(logs / "outcomes") == {1: 2, 2: 2, 3: 2, 4: 2, 5: 0, 6: 2}
    if merged == "never":
        merge(logs / "decisions", now=NOW)
    assert bring(logs, store) == [6, 6]
    assert shipped(store, "decisions") == shipped(store, "outcomes") == without(*OF_FIRST)
    assert bring(logs, store) == [0, 0]
    assert verify(logs, receipt, "customer_id", SECRETS[0], key=KEY).good


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("between", [False, True])
def test_what_is_old_stays_in_the_store_and_what_was_forgotten_does_not(
    logs: Path, store: LogStore, *, merged: bool, between: bool
) -> None:
    """Retention takes the first three segments, after a deletion took rows of each."""
    bring(logs, store)
    if merged:
        merge(logs / "decisions", now=NOW)
    forget(logs, "customer_id", SECRETS[0], key=KEY, now=NOW)
    if between:
        bring(logs, store)
    retain(logs / "decisions", "1d", now=2 * DAY + 2 * HOUR + 4)
    bring(logs, store)
    # Where the store had them as they were before the deletion, nobody can tell any more whose rows were whose.
    old = [] if not between else [1, 2, 4, 5, 7, 8]
    assert shipped(store, "decisions") == [*old, 10, 11, 16, 17]
    assert bring(logs, store) == [0, 0]
    retain(logs / "decisions", "1d", now=NOW)
    bring(logs, store)
    assert shipped(store, "decisions") == [*old, 10, 11, 16, 17]
    bring(logs, store, mirror=True)
    assert shipped(store, "decisions") == []


def test_what_only_the_store_has_is_deleted_there(logs: Path, store: LogStore) -> None:
    bring(logs, store)
    for name in ("decisions", "outcomes"):
        retain(logs / name, "1d", now=2 * DAY + 2 * HOUR + 4)
    bring(logs, store)
    assert shipped(store, "decisions") == shipped(store, "outcomes") == without()
    for gone, name in enumerate(SECRETS, 1):
        n = len(shipped(store, "decisions")) + len(shipped(store, "outcomes"))
        removed = forget_shipped(store, "customer_id", name)
        # What is shipped in between comes from the log, and follows it.
        bring(logs, store)
        forget(logs, "customer_id", name, key=KEY, now=NOW)
        bring(logs, store)
        left = [row for row in without(*OF_FIRST) if row % 3 >= gone]
        assert shipped(store, "decisions") == shipped(store, "outcomes") == left
        assert removed == n - 2 * len(left)
    assert forget_shipped(store, "customer_id", SECRETS[0]) == 0


def test_of_decisions_alone_and_of_nothing(logs: Path, store: LogStore) -> None:
    ship(logs / "decisions", store, "taken")
    assert forget_shipped(store, "customer_id", SECRETS[0], decisions="taken", outcomes=None) == 8
    assert forget_shipped(store, "customer_id", "nobody", decisions="taken", outcomes=None) == 0
    assert shipped(store, "taken") == without(*OF_FIRST)
    rest = store.query("SELECT customer_id, amount, _file FROM taken WHERE request_id = 'r4'").to_pylist()
    assert rest[0]["customer_id"] == SECRETS[1]
    assert rest[0]["amount"] == 2.0
    assert rest[0]["_file"]
    for column, table in (("nobody", "taken"), ("customer_id", "decisions"), ('customer_id" OR 1', "taken")):
        with pytest.raises(InvalidInput):
            forget_shipped(store, column, "17", decisions=table)


def test_a_deletion_that_was_killed_is_followed_once_it_is_done(
    logs: Path, store: LogStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring(logs, store)
    calls: list[Any] = []

    def killed(*arguments: Any, **named: Any) -> int:
        calls.append(arguments)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return rewrite(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr("vitok.decisions.forgetting.rewrite", killed)
        with pytest.raises(KeyboardInterrupt):
            forget(logs, "customer_id", SECRETS[0], key=KEY, now=NOW)
    bring(logs, store)
    # The rest goes by age before the deletion is done again.
    retain(logs / "decisions", "1d", now=NOW)
    bring(logs, store)
    assert not {*shipped(store, "decisions")} & {*OF_FIRST}
    assert shipped(store, "outcomes") == without(*OF_FIRST)
    forget(logs, "customer_id", SECRETS[0], key=KEY, now=NOW)
    bring(logs, store)
    assert not {*shipped(store, "decisions")} & {*OF_FIRST}


def test_a_damaged_note_is_told(logs: Path, store: LogStore) -> None:
    bring(logs, store)
    for content in ("[]", "{", '{"one": 2}'):
        (logs / "decisions" / FORGOTTEN).write_text(content)
        with pytest.raises(StoreError, match="is damaged"):
            bring(logs, store)
