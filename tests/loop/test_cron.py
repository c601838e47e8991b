"""Schedules against croniter 7, which DBOS brings along, and against what cron says of both days."""

import datetime as dt
import itertools
from typing import Any

import numpy as np
import pytest

from vitok.clock import DAY, HOUR, MINUTE, isoformat, parse_time
from vitok.errors import InvalidInput
from vitok.loop.cron import Cron

FIELDS = (
    ("*", "0", "5-20/5", "*/15", "59"),
    ("*", "3", "0-6/2", "8,20"),
    ("*", "1", "31", "10-12", "29"),
    ("*", "2", "jan-mar", "*/5", "feb"),
    ("*", "0", "7", "mon-fri", "tue,sat", "6"),
)


def test_the_next_times_are_those_of_croniter() -> None:
    croniter = pytest.importorskip("croniter", reason="croniter comes with dbos, which is not installed").croniter
    rng = np.random.default_rng(3)
    every = [" ".join(fields) for fields in itertools.product(*FIELDS)]
    for text in rng.choice(every, 150, replace=False):
        start = int(rng.integers(0, 80 * 365)) * DAY + int(rng.integers(0, DAY))
        # croniter looks four years ahead, and 29 February may be farther.
        if " 29 2 " in text or " 29 feb " in text or " 31 2 " in text or " 31 feb " in text:
            continue
        oracle = croniter(text, dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(microseconds=start))
        moment = start
        for _ in range(3):
            moment = Cron(text).after(moment)
            assert isoformat(moment) == oracle.get_next(dt.datetime).isoformat().replace("+00:00", "Z"), text


def test_a_day_that_is_rare_or_never_comes() -> None:
    assert isoformat(Cron("0 0 29 2 *").after(parse_time("2097-01-01"))) == "2104-02-29T00:00:00Z"
    with pytest.raises(InvalidInput, match="come at some time"):
        Cron("0 0 30 2 *")


def test_the_last_time_before() -> None:
    daily = Cron("0 3 * * *")
    assert daily.before(2 * DAY, since=0) == DAY + 3 * HOUR
    assert daily.before(3 * HOUR, since=0) == 3 * HOUR
    assert daily.before(3 * HOUR, since=3 * HOUR) is None
    assert Cron("* * * * *").before(900 * DAY + 1, since=0) == 900 * DAY
    assert Cron("0 0 1 1 *").before(900 * DAY, since=0) == 730 * DAY
    assert daily.after(3 * HOUR - MINUTE) == 3 * HOUR


@pytest.mark.parametrize(
    "text",
    [
        *("", "* * * *", "60 * * * *", "* 24 * * *", "* * 0 * *", "* * * 13 *", "* * * * 8", "5-1 * * * *"),
        *("*/0 * * * *", "a * * * *", "-1 * * * *", "1, * * * *", "* * * * mon-", "1//2 * * * *", "* * * * * *"),
        "99999 * * * *",
    ],
)
def test_odd_schedules_are_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="schedule"):
        Cron(text)


@pytest.mark.parametrize("given", [None, 5, ["0", "3", "*", "*", "*"]])
def test_what_is_no_text_is_refused(given: Any) -> None:
    with pytest.raises(InvalidInput, match="five fields"):
        Cron(given)
