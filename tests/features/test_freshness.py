import dataclasses

import polars as pl
import pytest
from tests.features.definition_cases import ACCOUNT, ACCOUNTS, EVERYTHING, PLACE

from vitok.clock import DAY, HOUR, MINUTE
from vitok.engines import open_rows
from vitok.features.freshness import Newest, freshness, newest_in, stale
from vitok.features.materialise import materialise

NOW = 100 * DAY
PROMISED = dataclasses.replace(ACCOUNT, fresh_within="1d")


def test_two_clocks() -> None:
    (found,) = freshness([EVERYTHING], {"payments": Newest(event_time=NOW - HOUR, arrival=NOW - MINUTE)}, now=NOW)
    assert (found.event_age, found.arrival_age, found.promised) == (HOUR, MINUTE, 15 * MINUTE)
    assert found.state == "stale"
    assert str(found) == "card: stale, newest event 1 h ago, newest arrival 1 min ago, promised within 15 min"


@pytest.mark.parametrize(
    ("age", "state"),
    [(0, "fresh"), (15 * MINUTE, "fresh"), (15 * MINUTE + 1, "stale"), (-HOUR, "fresh")],
)
def test_promise_ends_after_its_last_microsecond(age: int, state: str) -> None:
    assert freshness([EVERYTHING], {"payments": Newest(event_time=NOW - age)}, now=NOW)[0].state == state


def test_states_without_a_promise_or_a_time() -> None:
    assert freshness([ACCOUNT], {}, now=NOW)[0].state == "unpromised"
    assert freshness([PLACE], {}, now=NOW)[0].state == "timeless"
    assert freshness([EVERYTHING], {}, now=NOW)[0].state == "stale"
    assert "nothing of payments is known" in str(freshness([EVERYTHING], {}, now=NOW)[0])
    assert "shops@7" in str(freshness([PLACE], {}, now=NOW)[0])


def test_what_the_store_holds_counts_before_its_source() -> None:
    newest = {"payments": Newest(event_time=NOW), "card": Newest(event_time=NOW - HOUR)}
    assert freshness([EVERYTHING], newest, now=NOW)[0].event_age == HOUR


def test_stale_lists_the_worst_first() -> None:
    newest = {"payments": Newest(event_time=NOW - HOUR), "accounts": Newest(event_time=NOW - 10 * DAY)}
    assert [item.view for item in stale([EVERYTHING, PROMISED, PLACE], newest, now=NOW)] == ["account", "card"]
    del newest["payments"]
    assert [item.view for item in stale([EVERYTHING, PROMISED, PLACE], newest, now=NOW)] == ["card", "account"]
    assert stale([PROMISED], {"accounts": Newest(event_time=NOW)}, now=NOW) == ()


def test_newest_merge_by_clock() -> None:
    one, other = Newest(event_time=5, arrival=None), Newest(event_time=3, arrival=9)
    assert one.merge(other) == other.merge(one) == Newest(event_time=5, arrival=9)
    assert Newest().merge(Newest()) == Newest()


def test_dict_has_seconds_and_times() -> None:
    told = freshness([EVERYTHING], {"payments": Newest(event_time=NOW - HOUR)}, now=NOW)[0].to_dict()
    assert (told["event_age_s"], told["promised_s"], told["arrival_age_s"]) == (3600.0, 900.0, None)
    assert told["newest_event"] == "1970-04-10T23:00:00Z"


def test_a_store_tells_how_far_its_runs_came() -> None:
    store = open_rows("memory://freshness-test")
    assert newest_in(store, [ACCOUNT]) == {}
    rows = pl.DataFrame(
        {"card_id": ["a"], "event_time": [DAY], "loaded_at": [2 * DAY], "is_closed": [False]}
    ).with_columns(
        pl.col("event_time", "loaded_at").cast(pl.Datetime("us", "UTC")),
        credit_limit=pl.lit(1.0),
        is_vip=pl.lit(value=True),
    )
    materialise(ACCOUNT, {ACCOUNTS.name: rows}, store, until=3 * DAY)
    found = newest_in(store, [ACCOUNT, PLACE])
    assert set(found) == {"account"}
    assert found["account"].arrival == 3 * DAY
    (told,) = freshness([PROMISED], found, now=3 * DAY + HOUR)
    assert told.arrival_age == HOUR
    assert told.state == "fresh"
