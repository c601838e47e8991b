"""Rows that benchmarks of features work on: made from a seed, written once as Parquet under `.venv/bench-data`.

`VITOK_BENCH_SCALE` (default 1) scales the number of rows and entities down, to see whether a benchmark runs; a
figure stands at scale 1 only. A row of history is at an even microsecond and a row of a spine at an odd one, so that
the answer does not depend on how an engine treats equal times.
"""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

CACHE = Path(__file__).resolve().parent.parent.parent / ".venv" / "bench-data"
GENERATION = 1  # part of every file's name: raised when a generator changes
START = 1_704_067_200_000_000  # 2024-01-01 UTC: past on any clock, as a store asks
SECOND = 1_000_000
HOUR = 3_600 * SECOND
DAY = 24 * HOUR
STAMP = pa.timestamp("us", tz="UTC")
ROW_GROUP = 122_880
N_FEATURES = 20
FEATURES = tuple(f"f{number:02d}" for number in range(N_FEATURES))
TTL_DAYS = 3
PIT_DAYS = 30


def scaled(n: int, least: int = 1) -> int:
    """Returns `n` times `VITOK_BENCH_SCALE`, at least `least`."""
    return max(least, round(n * float(os.environ.get("VITOK_BENCH_SCALE", "1"))))


def _kept(name: str, make: Callable[[Path], None]) -> Path:
    path = CACHE / f"{name}-g{GENERATION}.parquet"
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}.{os.getpid()}")
        make(unfinished)
        unfinished.replace(path)
    return path


def _write(path: Path, columns: dict[str, pa.Array | np.ndarray]) -> None:
    pq.write_table(pa.table(columns), path, row_group_size=ROW_GROUP)


def _stamps(microseconds: np.ndarray) -> pa.Array:
    return pa.array(microseconds.astype(np.int64)).cast(STAMP)


@dataclasses.dataclass(frozen=True)
class PointInTime:
    """W-PIT: history(entity_id, event_time, created, f00 .. f19) and spine(row_id, entity_id, event_time)."""

    history: Path
    spine: Path
    n_history: int
    n_spine: int


def point_in_time(rows: int | None = None) -> PointInTime:
    """Makes W-PIT: 1 M history rows and 1 M spine rows of 100 k entities over 30 days, in order of arrival.

    One history row in fifty was created up to two days after its event; the others at once.

    Args:
        rows: That many instead, not scaled, of a tenth as many entities.
    """
    n = scaled(1_000_000, 1_000) if rows is None else rows
    entities = max(100, n // 10)

    def history(path: Path) -> None:
        rng = np.random.default_rng(20_260_101)
        event_time = START + rng.integers(0, PIT_DAYS * DAY // 2, n) * 2
        late = rng.random(n) < 0.02
        created = event_time + np.where(late, rng.integers(1, DAY, n) * 2, 0)
        order = np.argsort(created, kind="stable")
        columns = {
            "entity_id": rng.integers(0, entities, n)[order],
            "event_time": _stamps(event_time[order]),
            "created": _stamps(created[order]),
        }
        _write(path, columns | {name: rng.standard_normal(n, dtype=np.float32) for name in FEATURES})

    def spine(path: Path) -> None:
        rng = np.random.default_rng(20_260_102)
        times = START + rng.integers(0, PIT_DAYS * DAY // 2, n) * 2 + 1
        columns = {
            "row_id": np.arange(n),
            "entity_id": rng.integers(0, entities, n),
            "event_time": _stamps(np.sort(times)),
        }
        _write(path, columns)

    return PointInTime(_kept(f"pit-history-{n}", history), _kept(f"pit-spine-{n}", spine), n, n)


@dataclasses.dataclass(frozen=True)
class Wide:
    """Ten sources of a hundred float32 columns for the same entities, and a spine."""

    histories: tuple[Path, ...]
    spine: Path
    columns: tuple[str, ...]
    n_history: int
    n_spine: int


def wide(n_views: int = 10, n_columns: int = 100) -> Wide:
    """Makes 10 sources x 200 k rows x 100 float32 columns of 100 k entities, and a spine of 1 M rows."""
    n, entities, spine_rows = scaled(200_000, 1_000), scaled(100_000, 100), scaled(1_000_000, 1_000)
    names = tuple(f"c{number:02d}" for number in range(n_columns))

    def history(seed: int) -> Callable[[Path], None]:
        def make(path: Path) -> None:
            rng = np.random.default_rng([20_260_103, seed])
            times = np.sort(START + rng.integers(0, PIT_DAYS * DAY // 2, n) * 2)
            columns = {"entity_id": rng.integers(0, entities, n), "event_time": _stamps(times)}
            _write(path, columns | {name: rng.standard_normal(n, dtype=np.float32) for name in names})

        return make

    def spine(path: Path) -> None:
        rng = np.random.default_rng(20_260_104)
        times = np.sort(START + rng.integers(0, PIT_DAYS * DAY // 2, spine_rows) * 2 + 1)
        entity = rng.integers(0, entities, spine_rows)
        _write(path, {"row_id": np.arange(spine_rows), "entity_id": entity, "event_time": _stamps(times)})

    histories = tuple(_kept(f"wide-{number}-{n}x{n_columns}", history(number)) for number in range(n_views))
    return Wide(histories, _kept(f"wide-spine-{spine_rows}", spine), names, n, spine_rows)


def skewed(rng: np.random.Generator, keys: int, n: int) -> np.ndarray:
    """Draws `n` keys of `keys`, the k-th most frequent in proportion to 1 / k."""
    weights = 1.0 / np.arange(1, keys + 1)
    return np.searchsorted(np.cumsum(weights / weights.sum()), rng.random(n)).clip(0, keys - 1).astype(np.int64)


def stream(n: int, *, keys: int = 10_000, days: float = 40.0, seed: int = 0, ordered: bool = False) -> Path:
    """Makes W-STREAM: `n` arrivals of (event_id, event_time, arrived, key, amount, item), in order of arrival.

    One event in five comes up to an hour late, one in two hundred up to two days, and one arrival in fifty is a copy
    of an earlier event. Amounts are whole cents, items whole numbers, and keys are skewed. What is given is not
    scaled: scale `n` yourself.

    Args:
        n: Arrivals, copies among them.
        keys: Different keys.
        days: How long the stream is.
        seed: Another seed, another stream.
        ordered: Whether every event arrives at once instead, and no copies do.
    """

    def make(path: Path) -> None:
        rng = np.random.default_rng([20_260_105, seed])
        copies = 0 if ordered else n // 50
        fresh = n - copies
        event_time = np.sort(START + rng.integers(0, int(days * DAY) // 2, fresh) * 2)
        draw = rng.random(fresh)
        most = np.where(draw < 0.005, 2 * DAY, np.where(draw < 0.2, HOUR, SECOND))
        delay = np.zeros(fresh, np.int64) if ordered else (rng.random(fresh) * most).astype(np.int64) // 2 * 2
        copied = rng.choice(fresh, copies, replace=False)
        event = np.concatenate([np.arange(fresh), copied])
        again = (event_time + delay)[copied] + rng.integers(1, HOUR // 2, copies) * 2
        arrived = np.concatenate([event_time + delay, again])
        order = np.argsort(arrived, kind="stable")
        event, arrived = event[order], arrived[order]
        amount = (rng.gamma(2.0, 3_000.0, fresh).round() / 100.0)[event]
        columns = {
            "event_id": pa.array(event).cast(pa.string()),
            "event_time": _stamps(event_time[event]),
            "arrived": _stamps(arrived),
            "key": pa.array(skewed(rng, keys, fresh)[event]).cast(pa.string()),
            "amount": amount,
            "item": rng.integers(0, 50, fresh)[event].astype(np.float64),
        }
        _write(path, columns)

    return _kept(f"stream-{n}-{keys}-{days:g}-{seed}{'-ordered' if ordered else ''}", make)


def events(n: int, *, keys: int = 100_000, days: int = 90) -> Path:
    """Makes `n` events of (event_id, event_time, key, amount) in order of time; events10M is `events(10_000_000)`.

    What is given is not scaled: scale `n` yourself.
    """

    def make(path: Path) -> None:
        rng = np.random.default_rng(20_260_106)
        times = np.sort(START + rng.integers(0, days * DAY // 2, n) * 2)
        columns = {
            "event_id": np.arange(n),
            "event_time": _stamps(times),
            "key": rng.integers(0, keys, n),
            "amount": rng.gamma(2.0, 3_000.0, n).round() / 100.0,
        }
        _write(path, columns)

    return _kept(f"events-{n}-{keys}-{days}", make)


def event_spine(n: int, *, keys: int = 100_000, days: int = 90) -> Path:
    """Makes `n` questions of (row_id, key, event_time) over the same time and keys as `events`."""

    def make(path: Path) -> None:
        rng = np.random.default_rng(20_260_107)
        times = np.sort(START + rng.integers(0, days * DAY // 2, n) * 2 + 1)
        _write(path, {"row_id": np.arange(n), "key": rng.integers(0, keys, n), "event_time": _stamps(times)})

    return _kept(f"events-spine-{n}-{keys}-{days}", make)
