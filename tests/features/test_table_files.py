"""What a table reads from files and writes to one: types, differing files, damage, and disks that are full."""

import contextlib
import errno
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.features.table_oracle import frame, history, questions

from vitok.clock import DAY, HOUR
from vitok.errors import InvalidInput, StoreError
from vitok.features import Count, Distinct, Entity, FeatureSet, Latest, Source, Sum, View, table
from vitok.features.history import Session
from vitok.features.spine import TableWriter

CUSTOMER = Entity("customer", "customer")
EVENTS = Source("events", "id", ingest_time="seen_at")
FEATURES = FeatureSet(
    views=(
        View(name="v", entity=CUSTOMER, source=EVENTS, aggregations=(Count("1d"), Sum("amount", "1d"))),
        View(
            name="p",
            entity=Entity("pair", ("customer", "city")),
            source=EVENTS,
            aggregations=(Count("2d"), Distinct("channel", "2d")),
        ),
        Latest(name="l", entity=CUSTOMER, source=EVENTS, columns={"amount": "float32", "pieces": "int64"}, ttl="2d"),
    )
)


@contextlib.contextmanager
def full_at(n_bytes: int) -> Iterator[None]:
    # No file may grow beyond so many bytes; Python ignores the signal, so that writing fails as on a full disk.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def asked(seed: int, n: int) -> pl.DataFrame:
    cities = [None, "", "Riga", "Århus", "北京", "nowhere"]
    city = np.random.default_rng(seed).integers(0, len(cities), n)
    return frame(questions(seed, n)).with_columns(city=pl.Series([cities[place] for place in city], dtype=pl.String))


def known(seed: int, n: int) -> pl.DataFrame:
    # A key may not be empty.
    return frame(history(seed, n)).filter(pl.col("city").is_not_null() & (pl.col("city") != ""))


@pytest.mark.parametrize("kind", [pl.Categorical, pl.Enum])
@pytest.mark.parametrize("side", ["events", "asks", "both"])
def test_keys_and_ids_that_are_categories_equal_their_texts(kind: type[pl.DataType], side: str, tmp_path: Path) -> None:
    events, asks = known(1, 200), asked(1, 80)
    whole = table(asks, FEATURES, {"events": events})

    def coded(rows: pl.DataFrame, *names: str) -> pl.DataFrame:
        kinds = {
            name: pl.Categorical() if kind is pl.Categorical else pl.Enum(rows[name].drop_nulls().unique().sort())
            for name in names
        }
        return rows.with_columns(pl.col(name).cast(to) for name, to in kinds.items())

    if side != "asks":
        events = coded(events, "id", "customer", "city", "channel")
    if side != "events":
        asks = coded(asks, "customer", "city")
    assert table(asks, FEATURES, {"events": events}).select(FEATURES.names).equals(whole.select(FEATURES.names))
    events.write_parquet(tmp_path / "events.parquet", row_group_size=50)
    asks.write_parquet(tmp_path / "asks.parquet")
    for memory in (1, "2GB"):
        out = table(
            tmp_path / "asks.parquet",
            FEATURES,
            {"events": tmp_path / "events.parquet"},
            into=tmp_path / "out.parquet",
            memory_limit=memory,
        )
        found = pl.read_parquet(out)
        assert found.select(FEATURES.names).equals(whole.select(FEATURES.names))
        assert found["customer"].cast(pl.String).equals(whole["customer"])


def test_files_may_differ_in_columns_their_order_and_their_types(tmp_path: Path) -> None:
    events, asks = known(2, 200), asked(2, 60)
    events = events.with_columns(terminal=pl.col("terminal").cast(pl.Int64))
    (tmp_path / "events").mkdir()
    older = events[:80].with_columns(pieces=pl.lit(None, pl.Int32))
    older.drop("pieces", "gone").write_parquet(tmp_path / "events" / "1.parquet")
    newer = events[80:]
    newer.select(reversed(newer.columns)).with_columns(
        pl.col("pieces").cast(pl.Int64), pl.col("event_time").cast(pl.Datetime("ns", "UTC"))
    ).write_parquet(tmp_path / "events" / "2.parquet")
    asks[:20].write_parquet(tmp_path / "asks-1.parquet")
    asks[20:].select(reversed(asks.columns)).write_parquet(tmp_path / "asks-2.parquet")
    whole = table(asks, FEATURES, {"events": pl.concat([older, newer])})
    paths = str(tmp_path / "asks-*.parquet")
    out = table(paths, FEATURES, {"events": tmp_path / "events"}, into=tmp_path / "out.parquet")
    assert pl.read_parquet(out).equals(whole)
    assert table(paths, FEATURES, {"events": tmp_path / "events"}).equals(whole)


def test_files_whose_enums_differ_become_texts(tmp_path: Path) -> None:
    view = View(name="v", entity=CUSTOMER, source=Source("events", "id"), aggregations=(Count("1d"),))
    for place, names in enumerate((["c", "d"], ["d", "e"])):
        customer = pl.Series(names, dtype=pl.Enum(names))
        rows = pl.DataFrame({"id": [2 * place, 2 * place + 1], "customer": customer, "event_time": _moments([1, 2])})
        rows.write_parquet(tmp_path / f"{place}.parquet")
    paths = str(tmp_path / "*.parquet")
    found = table(paths, FeatureSet(views=(view,)), {"events": paths})
    assert found["customer"].to_list() == ["c", "d", "d", "e"]
    assert found["v_count_1d"].to_list() == [0, 1, 0, 0]


def test_a_key_that_is_a_number_in_one_file_and_a_text_in_another(tmp_path: Path) -> None:
    rows = {"id": [1, 2], "event_time": _moments([1, 2]), "amount": [1.0, 2.0]}
    pl.DataFrame({**rows, "customer": [7, 8]}).write_parquet(tmp_path / "1.parquet")
    pl.DataFrame({**rows, "id": [3, 4], "customer": ["7", "x"]}).write_parquet(tmp_path / "2.parquet")
    view = View(name="v", entity=CUSTOMER, source=Source("events", "id"), aggregations=(Count("1d"),))
    asks = pl.DataFrame({"customer": ["7", "8", "x", "9"], "event_time": _moments([HOUR] * 4)})
    found = table(asks, FeatureSet(views=(view,)), {"events": str(tmp_path / "*.parquet")})
    assert found["v_count_1d"].to_list() == [2, 1, 1, 0]


@pytest.mark.parametrize("zone", ["+05:30", "-03:00", "Asia/Kathmandu"])
@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_moments_of_other_tools_in_any_zone(zone: str, unit: str, tmp_path: Path) -> None:
    moments = pa.array([0, 3600, 7200], pa.int64()).cast(pa.timestamp("s")).cast(pa.timestamp(unit))
    moments = moments.cast(pa.timestamp(unit, "UTC")).cast(pa.timestamp(unit, zone))
    rows = {"id": ["a", "b", "c"], "customer": ["c"] * 3, "event_time": moments}
    pq.write_table(pa.table(rows), tmp_path / "rows.parquet")
    view = View(name="v", entity=CUSTOMER, source=Source("events", "id"), aggregations=(Count("1h"),), exact=True)
    features, path = FeatureSet(views=(view,)), tmp_path / "rows.parquet"
    out = table(path, features, {"events": path}, into=tmp_path / "out.parquet")
    assert pq.read_table(out)["v_count_1h"].to_pylist() == [0, 1, 1]
    found = table(path, features, {"events": path})
    assert found["v_count_1h"].to_list() == [0, 1, 1]
    assert found["event_time"].dt.epoch("s").to_list() == [0, 3600, 7200]


def test_old_moments_of_spark_keep_their_microseconds(tmp_path: Path) -> None:
    # INT96 is nanoseconds on paper, in which the year 3000 does not fit.
    moments = pa.array([1, 32_503_680_000_000_001], pa.timestamp("us"))
    rows = pa.table({"id": ["a", "b"], "customer": ["c"] * 2, "event_time": moments})
    pq.write_table(rows, tmp_path / "rows.parquet", use_deprecated_int96_timestamps=True)
    view = View(name="v", entity=CUSTOMER, source=Source("events", "id"), aggregations=(Count("1d"),))
    asks = pl.DataFrame({"customer": ["c"] * 3, "event_time": _moments([1, 2, 32_503_680_000_000_002])})
    found = table(asks, FeatureSet(views=(view,)), {"events": tmp_path / "rows.parquet"})
    assert found["v_count_1d"].to_list() == [0, 1, 1]


def test_columns_of_a_spine_are_kept_whatever_they_are(tmp_path: Path) -> None:
    n = 30_000
    rng = np.random.default_rng(3)
    asks = pl.DataFrame(
        {
            "customer": rng.choice(["c0", "c1", "c2"], n),
            "city": ["Riga"] * n,
            "event_time": _moments(rng.integers(0, 3 * DAY, n)),
            "a.b": rng.random(n),
            'say "a"': rng.integers(0, 9, n),
            "list": [[1, 2, 3][: i % 4] for i in range(n)],
            "struct": [{"x": i, "y": None} for i in range(n)],
            "kind": pl.Series(rng.choice(["a", "b"], n)).cast(pl.Enum(["a", "b"])),
            "bytes": [b"\0\1"] * n,
            "nothing": [None] * n,
        }
    )
    asks.write_parquet(tmp_path / "asks.parquet")
    whole = table(asks, FEATURES, {"events": known(3, 100)})
    assert whole.select(asks.columns).equals(asks)
    read = table(tmp_path / "asks.parquet", FEATURES, {"events": known(3, 100)})
    assert read.equals(whole)
    assert read.schema == whole.schema
    for spine in (asks, tmp_path / "asks.parquet"):
        out = table(spine, FEATURES, {"events": known(3, 100)}, into=tmp_path / "out.parquet")
        assert pl.read_parquet(out).with_columns(pl.col("kind").cast(asks.schema["kind"])).equals(whole)


@pytest.mark.parametrize("copies", [2, 50])
def test_training_rows_that_repeat_are_all_kept(copies: int, tmp_path: Path) -> None:
    one = asked(4, 20)
    asks = pl.concat([one] * copies)
    asks.write_parquet(tmp_path / "asks.parquet")
    whole = table(one, FEATURES, {"events": known(4, 90)})
    for memory in (1, "2GB"):
        out = table(
            tmp_path / "asks.parquet",
            FEATURES,
            {"events": known(4, 90)},
            into=tmp_path / "out.parquet",
            memory_limit=memory,
        )
        assert pl.read_parquet(out).equals(pl.concat([whole] * copies))


def test_a_writer_compresses_what_gets_smaller_and_lists_what_repeats(tmp_path: Path) -> None:
    n = 400_000
    rng = np.random.default_rng(0)
    rows = pa.table(
        {
            "row": rng.permutation(n),
            "key": rng.integers(0, 50, n),
            "noise": rng.random(n),
            "zeros": np.zeros(n),
            "seldom": pa.array(np.ones(n), mask=np.arange(n) < n - 10),
        }
    )
    writer = TableWriter(tmp_path / "out.parquet", rows.schema, ["row", "key"])
    for at in range(0, n, 16_384):
        writer.write(rows.slice(at, 16_384))
    assert pq.read_table(writer.finish()).equals(rows)
    group = pq.read_metadata(tmp_path / "out.parquet").row_group(0)
    columns = {group.column(place).path_in_schema: group.column(place) for place in range(group.num_columns)}
    assert {name: item.compression for name, item in columns.items()} == {
        "row": "SNAPPY",
        "key": "SNAPPY",
        "noise": "UNCOMPRESSED",
        "zeros": "SNAPPY",
        "seldom": "SNAPPY",
    }
    assert [name for name, item in columns.items() if item.has_dictionary_page] == ["key"]
    assert [name for name, item in columns.items() if item.is_stats_set] == ["row", "key"]


@pytest.mark.parametrize("memory", [1, "2GB"])
def test_a_disk_that_fills_up_is_said_and_leaves_what_was_there(memory: int | str, tmp_path: Path) -> None:
    n = 40_000
    asks = asked(5, 40)[np.arange(n) % 40].with_columns(noise=pl.Series(np.random.default_rng(0).random(n)))
    events, out = known(5, 60), tmp_path / "out.parquet"
    table(asks, FEATURES, {"events": events}, into=out, memory_limit=memory)
    before = out.read_bytes()
    with full_at(100_000), pytest.raises(StoreError, match=r"File too large.*free some space"):
        table(asks, FEATURES, {"events": events}, into=out, memory_limit=memory)
    assert out.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out.parquet"]


def test_a_file_damaged_in_the_middle_is_refused(tmp_path: Path) -> None:
    known(6, 3_000).write_parquet(tmp_path / "rows.parquet", compression="snappy", row_group_size=500)
    whole = bytearray((tmp_path / "rows.parquet").read_bytes())
    whole[len(whole) // 3 : len(whole) // 2] = b"\7" * (len(whole) // 2 - len(whole) // 3)
    (tmp_path / "rows.parquet").write_bytes(whole)
    with pytest.raises(InvalidInput, match="must be whole Parquet or CSV") as raised:
        table(asked(6, 5), FEATURES, {"events": tmp_path / "rows.parquet"}, into=tmp_path / "out.parquet")
    assert raised.value.field == "source 'events'"
    assert [path.name for path in tmp_path.iterdir()] == ["rows.parquet"]


def test_a_disk_that_fails_while_it_is_read_is_no_fault_of_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(*_: object, **__: object) -> Iterator[None]:
        raise OSError(errno.EIO, "Input/output error")

    known(6, 30).write_parquet(tmp_path / "rows.parquet")
    with Session("2GB") as session:
        rows = session.open(tmp_path / "rows.parquet", "source 'events'")
        monkeypatch.setattr(pq.ParquetFile, "iter_batches", dies)
        with pytest.raises(StoreError, match=r"source 'events': reading .* stopped: .*Input/output error"):
            list(rows.batches(["id"]))


def test_a_file_that_goes_away_is_named(tmp_path: Path) -> None:
    known(6, 30).write_parquet(tmp_path / "rows.parquet")
    with Session("2GB") as session:
        rows = session.open(tmp_path / "rows.parquet", "source 'events'")
        (tmp_path / "rows.parquet").unlink()
        with pytest.raises(InvalidInput, match=r"rows\.parquet"):
            list(rows.batches(["id"]))


def test_places_that_cannot_be_are_refused(tmp_path: Path) -> None:
    events, asks = known(7, 20), asked(7, 5)
    with pytest.raises(InvalidInput, match="be a file in a folder that exists"):
        table(asks, FEATURES, {"events": events}, into=tmp_path)
    with pytest.raises(InvalidInput, match="be files of one kind"):
        table(asks, FEATURES, {"events": []})
    twice = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"])
    pq.write_table(twice, tmp_path / "twice.parquet")
    with pytest.raises(InvalidInput, match="have each column once"):
        table(asks, FEATURES, {"events": tmp_path / "twice.parquet"})
    events.write_csv(tmp_path / "events.csv")
    events.write_parquet(tmp_path / "events.parquet")
    with pytest.raises(InvalidInput, match="be files of one kind"):
        table(asks, FEATURES, {"events": [tmp_path / "events.csv", tmp_path / "events.parquet"]})


def test_parquet_is_read_without_what_takes_much_memory_to_import(tmp_path: Path) -> None:
    known(8, 40).write_parquet(tmp_path / "events.parquet")
    asked(8, 9).write_parquet(tmp_path / "asks.parquet")
    code = """
import sys
from pathlib import Path
from vitok.features import Count, Entity, FeatureSet, Latest, Source, View, table
customer, source = Entity("customer", "customer"), Source("events", "id")
views = View(name="v", entity=customer, source=source, aggregations=(Count("1d"),)), Latest(
    name="l", entity=customer, source=source, columns=("amount",)
)
table(Path("asks.parquet"), FeatureSet(views=views), {"events": Path("events.parquet")}, into="out.parquet")
print({"duckdb", "pandas"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def _moments(microseconds: object) -> pl.Series:
    return pl.Series(np.asarray(microseconds, np.int64)).cast(pl.Datetime("us", "UTC"))
