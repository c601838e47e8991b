"""What outcomes do to labels: the rule one by one, over a whole log, and beside the log's own label view."""

import random

import polars as pl
import pytest

from vitok import decisions
from vitok.clock import DAY, HOUR
from vitok.decision import Outcome
from vitok.errors import StoreError
from vitok.systems.fraud.label_events import Standing, label_events, label_notes


def frame(*rows: tuple[str, float, int, int, str, bool]) -> pl.DataFrame:
    names = ["transaction_id", "is_fraud", "label_time", "known_time", "source", "supersedes"]
    kinds = [pl.String, pl.Float64, pl.Int64, pl.Int64, pl.String, pl.Boolean]
    told = pl.DataFrame(rows, schema=dict(zip(names, kinds, strict=True)), orient="row")
    return told.with_columns(pl.col("label_time", "known_time").cast(pl.Datetime("us", "UTC")))


def test_the_latest_in_its_own_time_stands() -> None:
    first = Standing.first(1.0, 10, "bank", 12)
    assert first.after(1.0, 10, "bank", 13) is None
    assert first.after(0.0, 9, "bank", 13) is None
    confirmed = first.after(1.0, 20, "bank", 21)
    assert confirmed is not None
    assert (confirmed.value, confirmed.label_time, confirmed.event_time) == (1.0, 10, 20)
    assert confirmed.after(0.0, 15, "bank", 22) is None
    # Of the same event time the one that comes later stands; each of them is known again.
    put_right = confirmed.after(0.0, 20, "bank", 22)
    assert put_right is not None
    assert put_right.value == 0.0
    assert put_right.after(1.0, 20, "bank", 23) is None
    assert put_right.after(0.0, 20, "bank", 23) is None
    other = put_right.after(1.0, 20, "court", 23)
    assert other is not None
    assert other.value == 1.0
    assert Standing.unpack(other.pack()) == other


def test_what_comes_later_is_learned_later() -> None:
    standing = Standing.first(1.0, 0, "bank", 10 * HOUR)
    assert standing.learned_after(11 * HOUR) == 11 * HOUR
    assert standing.learned_after(10 * HOUR) == 10 * HOUR + 1
    assert standing.learned_after(9 * HOUR + 1) == 10 * HOUR + 1
    assert standing.learned_after(8 * HOUR) == 8 * HOUR


@pytest.mark.parametrize("note", [b"", b"1234", Standing.first(1.0, 1, "", 1).pack()[:-1], bytes(32)])
def test_a_note_of_something_else_is_refused(note: bytes) -> None:
    with pytest.raises(StoreError, match="where a label stands"):
        Standing.unpack(note)


def test_a_log_makes_labels_and_corrections() -> None:
    found = label_events(
        frame(
            ("a", 1.0, 10, 11, "", False),
            ("gone", 0.0, 12, 13, "", True),  # its label was removed from the log
            ("b", 0.0, 14, 15, "", False),
            ("a", 1.0, 10, 16, "", False),  # delivered twice
            ("a", 0.0, 30, 31, "", True),
            ("a", 1.0, 20, 32, "", True),  # older, and late
            ("a", 0.0, 30, 33, "", True),  # delivered twice
            ("b", 1.0, 40, 41, "", True),
            ("a", 1.0, 50, 51, "", True),
        )
    )
    assert found.labels["transaction_id"].to_list() == ["a", "b"]
    corrections = found.corrections.with_columns(pl.col("label_time", "known_time").to_physical()).rows()
    assert corrections == [("a", 10, 31, -1.0), ("b", 14, 41, 1.0), ("a", 10, 51, 1.0)]
    assert found.n_orphans == 1
    nothing = label_events(frame())
    assert (len(nothing.labels), len(nothing.corrections), nothing.n_orphans) == (0, 0, 0)
    assert nothing.corrections.schema == found.corrections.schema


def test_notes_of_a_history_say_where_each_label_stands() -> None:
    labels = frame(("a", 1.0, 10, 10, "", False), ("b", 0.0, 20, 20, "", False))
    notes = label_notes(labels.with_columns(pl.col("is_fraud").cast(pl.Int8)))
    assert [Standing.unpack(note) for note in notes] == [
        Standing.first(1.0, 10, "", 10),
        Standing.first(0.0, 20, "", 20),
    ]


@pytest.mark.parametrize("seed", range(5))
def test_labels_and_corrections_add_up_to_the_label_view_at_any_time(tmp_path, seed: int) -> None:
    # A log as the desk writes it: what is older than what stands is not in it.
    rng = random.Random(seed)
    standing: dict[str, Standing] = {}
    written = []
    for learned in range(1, 300):
        name, value = f"t{rng.randrange(20)}", float(rng.randrange(2))
        told = (value, max(0, learned - rng.randrange(40)), rng.choice(["bank", "court"]), learned)
        after = standing[name].after(*told) if name in standing else Standing.first(*told)
        if after is not None:
            outcome = Outcome(
                request_id=name,
                kind="fraud",
                value=value,
                event_time=told[1],
                ingest_time=learned,
                source=told[2],
                supersedes=name in standing,
            )
            written += [outcome] * rng.choice([1, 1, 2])
            standing[name] = after
    with decisions.OutcomeLog(tmp_path / "outcomes") as log:
        log.append(written)
    rows = decisions.read(tmp_path / "outcomes").rename(
        {"request_id": "transaction_id", "value": "is_fraud", "event_time": "label_time", "ingest_time": "known_time"}
    )
    events = label_events(rows)
    assert len(events.corrections) > 10
    for as_of in (5, 50, 150, 300, 7 * DAY):
        moment = pl.lit(as_of).cast(pl.Datetime("us", "UTC"))
        added = (
            events.corrections.filter(pl.col("known_time") <= moment)
            .group_by("transaction_id")
            .agg(pl.col("is_fraud").sum().alias("added"))
        )
        known = events.labels.filter(pl.col("known_time") <= moment).join(added, on="transaction_id", how="left")
        made = dict(known.select("transaction_id", pl.col("is_fraud") + pl.col("added").fill_null(0.0)).rows())
        view = decisions.labels(tmp_path / "outcomes", as_of=as_of, kind="fraud")
        assert made == dict(view.select("request_id", "label").rows())
