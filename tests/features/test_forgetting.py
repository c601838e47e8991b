"""Forgetting a subject: it is gone from the store and the files, the others are as they were, and it stays gone."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.features.latest_oracle import Failing, frame, history

from vitok.clock import DAY, HOUR, EventClock
from vitok.engines.memory import MemoryRows
from vitok.errors import InvalidInput, StoreError
from vitok.features import Count, Embedding, Entity, FeatureSet, Latest, Source, View, forgetting
from vitok.features.embeddings import ArrayIndex
from vitok.features.forgetting import forget
from vitok.features.materialise import forgotten, materialise
from vitok.features.reader import FeatureReader
from vitok.features.rows import row_keys

CUSTOMER = Entity("customer", "customer_id")
SOURCE = Source("accounts", event_id="id", ingest_time="known_at", deleted="gone")
ACCOUNT = Latest(name="account", entity=CUSTOMER, source=SOURCE, columns=("limit",))
OLD = Latest(name="account", entity=CUSTOMER, source=SOURCE, columns=("limit",), ttl="1d")
BUSY = View(name="busy", entity=CUSTOMER, source=SOURCE, aggregations=(Count(("7d",)),))
TASTE = Embedding(name="taste", entity=CUSTOMER, index="tastes", index_version="1", dimension=1)
FEATURES = FeatureSet(views=(ACCOUNT, BUSY, TASTE))
INDEXES = {"tastes@1": ArrayIndex(["c0", "c1"], [[1.0], [2.0]])}  # type: ignore[arg-type]
UNTIL = 140 * HOUR
CLOCK = EventClock(UNTIL)


def write_files(folder: Path) -> list[Path]:
    rows = history(0, 90)
    whole = frame(rows).with_row_index("id").with_columns(pl.col("id").cast(pl.String))
    paths = []
    for place in range(3):
        part = whole[30 * place : 30 * place + 30]
        paths.append(folder / f"{place}.parquet")
        part.filter(pl.col("customer_id") != "c0" if place == 2 else pl.lit(value=True)).write_parquet(
            paths[-1], row_group_size=7
        )
    return paths


def filled(paths: list[Path]) -> Failing:
    store = Failing(MemoryRows())
    materialise(OLD, {"accounts": paths}, store, until=UNTIL)
    materialise(FEATURES, {"accounts": paths}, store, until=UNTIL, indexes=INDEXES)
    return store


def held(store: Any, key: str) -> int:
    keys = [row_keys(view, [key])[0] for view in (ACCOUNT, OLD, BUSY, TASTE)]
    return sum(row is not None for row in store.read(keys))


def test_a_subject_goes_everywhere_and_the_others_stay(tmp_path: Path) -> None:
    paths = write_files(tmp_path)
    store = filled(paths)
    reader = FeatureReader(FEATURES, store, clock=CLOCK)
    reader.read({"customer_id": ["c0", "c1"]})
    assert (held(store, "c0"), held(store, "c1")) == (4, 4)
    before = [pl.read_parquet(path) for path in paths]
    untouched = paths[2].stat().st_ino

    report = forget(FEATURES, CUSTOMER, "c0", store=store, sources=[tmp_path], holders=[reader], clock=CLOCK)

    assert (held(store, "c0"), held(store, "c1")) == (0, 4)
    after = [pl.read_parquet(path) for path in paths]
    for one, other in zip(before, after, strict=True):
        assert other.equals(one.filter(pl.col("customer_id") != "c0"))
        assert other.schema == one.schema
    assert paths[2].stat().st_ino == untouched
    assert (report.rows_online, report.held_elsewhere, report.files_read, len(report.files)) == (4, 3, 3, 2)
    assert report.rows_offline == sum(len(one) - len(other) for one, other in zip(before, after, strict=True)) > 0
    assert "c0" not in str(report).replace(str(tmp_path), "")
    assert not list(tmp_path.glob(".*"))
    store.down = True
    assert reader.read({"customer_id": ["c0"]}).source_of(0) == "default"


def test_it_does_not_come_back_before_its_date_and_does_afterwards(tmp_path: Path) -> None:
    paths = write_files(tmp_path)
    store = filled(paths)
    forget(FEATURES, "customer", "c0", store=store, until=UNTIL + DAY, clock=CLOCK)
    # The files were not given, as of a source that somebody else keeps: the rows are still offered.
    report = materialise(FEATURES, {"accounts": paths}, store, since=0, until=UNTIL, indexes=INDEXES, chunk_entities=2)
    assert [item.forgotten for item in report.views] == [1, 1, 1]
    assert (held(store, "c0"), held(store, "c1")) == (0, 4)
    assert forgotten(store, "customer", ["c0", "c1"], UNTIL).tolist() == [True, False]
    materialise(FEATURES, {"accounts": paths}, store, since=0, until=UNTIL + DAY, indexes=INDEXES)
    assert held(store, "c0") == 3


def test_it_can_be_said_again_and_the_longer_date_holds(tmp_path: Path) -> None:
    paths = write_files(tmp_path)
    store = filled(paths)
    first = forget(FEATURES, "customer", "c0", store=store, sources=paths, until=UNTIL + DAY, clock=CLOCK)
    bytes_after = [path.read_bytes() for path in paths]
    again = forget(FEATURES, "customer", "c0", store=store, sources=paths, until=UNTIL + HOUR, clock=CLOCK)
    assert (again.rows_online, again.rows_offline, again.key_hash) == (0, 0, first.key_hash)
    assert [path.read_bytes() for path in paths] == bytes_after
    assert forgotten(store, "customer", ["c0"], UNTIL + 2 * HOUR).tolist() == [True]
    forget(FEATURES, "customer", "c0", store=store, clock=CLOCK)
    assert forgotten(store, "customer", ["c0"], UNTIL + 9999 * DAY).tolist() == [True]


def test_a_crash_between_files_is_made_up_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = write_files(tmp_path)
    store = filled(paths)
    rewrite = forgetting._rewrite

    def dying(path: Path, keys: Any) -> Any:
        if path == paths[1]:
            # As a killed process leaves it: half a new file beside the old one.
            (tmp_path / f".{path.name}.forgetting").write_bytes(b"half")
            raise KeyboardInterrupt
        return rewrite(path, keys)

    with monkeypatch.context() as patch:
        patch.setattr(forgetting, "_rewrite", dying)
        with pytest.raises(KeyboardInterrupt):
            forget(FEATURES, "customer", "c0", store=store, sources=paths, clock=CLOCK)
    assert held(store, "c0") == 0
    report = forget(FEATURES, "customer", "c0", store=store, sources=paths, clock=CLOCK)
    assert [file.path for file in report.files] == [str(paths[1])]
    assert not list(tmp_path.glob(".*"))
    assert all("c0" not in pl.read_parquet(path)["customer_id"].to_list() for path in paths)


def test_a_dead_store_stops_it_before_anything_is_lost(tmp_path: Path) -> None:
    paths = write_files(tmp_path)
    store = filled(paths)
    store.down = True
    before = [path.read_bytes() for path in paths]
    with pytest.raises(StoreError):
        forget(FEATURES, "customer", "c0", store=store, sources=paths, clock=CLOCK)
    assert [path.read_bytes() for path in paths] == before


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    n = 60_000
    rows = pl.DataFrame({"customer_id": range(n), "noise": pl.Series(range(n)).hash()})
    rows.write_parquet(tmp_path / "rows.parquet", compression="uncompressed")
    before = (tmp_path / "rows.parquet").read_bytes()
    program = textwrap.dedent("""
        import resource, sys
        from vitok.errors import StoreError
        from vitok.features import Entity, FeatureSet, Latest, Source
        from vitok.features.forgetting import forget
        view = Latest(name="v", entity=Entity("customer", "customer_id"), source=Source("s"), columns=("noise",))
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            forget(FeatureSet(views=(view,)), "customer", 7, store="memory://full", sources=[sys.argv[1]])
        except StoreError as error:
            print(error)
    """)
    command = [sys.executable, "-c", program, str(tmp_path / "rows.parquet")]
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True, check=True)
    assert "rows.parquet could not be rewritten and is as it was" in done.stdout
    assert (tmp_path / "rows.parquet").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["rows.parquet"]


def test_files_keep_their_schema_metadata_and_mode(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    table = pa.table(
        {
            "customer_id": pa.array(["a", None, "b", "a"]).dictionary_encode(),
            "day": pa.array([1, 2, 3, 4], pa.int8()),
            "tags": pa.array([[1], [], None, [2, 3]]),
        }
    ).replace_schema_metadata({"owner": "risk"})
    pq.write_table(table, path, compression="zstd")
    path.chmod(0o640)
    report = forget(FEATURES, "customer", "a", store=MemoryRows(), sources=[path], clock=CLOCK)
    assert (report.files[0].rows_before, report.files[0].rows_after) == (4, 2)
    after = pq.read_table(path)
    assert after.schema.equals(table.schema)
    assert after.schema.metadata[b"owner"] == b"risk"
    assert after.column("day").to_pylist() == [2, 3]
    assert pq.ParquetFile(path).metadata.row_group(0).column(0).compression == "ZSTD"
    assert path.stat().st_mode & 0o777 == 0o640
    forget(FEATURES, "customer", "b", store=MemoryRows(), sources=[path], clock=CLOCK)
    assert pq.read_table(path).column("customer_id").to_pylist() == [None]


def test_a_file_that_is_emptied_stays_a_file_and_links_stay_links(tmp_path: Path) -> None:
    pl.DataFrame({"customer_id": [7, 7], "x": [1, 2]}).write_parquet(tmp_path / "rows.parquet")
    (tmp_path / "link.parquet").symlink_to(tmp_path / "rows.parquet")
    forget(FEATURES, "customer", 7, store=MemoryRows(), sources=[tmp_path / "link.parquet"], clock=CLOCK)
    assert (tmp_path / "link.parquet").is_symlink()
    assert pl.read_parquet(tmp_path / "rows.parquet").height == 0


def test_a_key_of_several_columns() -> None:
    pair = Entity("pair", ("card", "terminal"))
    view = Latest(name="pair", entity=pair, source=Source("pairs"), columns=("x",))
    rows = pl.DataFrame({"card": [1, 1], "terminal": ["a", "b"], "event_time": [1, 1], "x": [1.0, 2.0]})
    rows = rows.with_columns(pl.col("event_time").cast(pl.Datetime("us")))
    features, store = FeatureSet(views=(view,)), MemoryRows()
    materialise(view, {"pairs": rows}, store, until=HOUR)
    report = forget(features, "pair", {"card": 1, "terminal": "a"}, store=store, clock=CLOCK)
    assert report.rows_online == 1
    reader = FeatureReader(features, store)
    assert reader.read({"card": [1, 1], "terminal": ["a", "b"]}, time=HOUR).status[:, 0].tolist() == [2, 0]
    with pytest.raises(InvalidInput, match="be by column: card, terminal"):
        forget(features, "pair", "1", store=store, clock=CLOCK)
    with pytest.raises(InvalidInput, match="be by column: card, terminal"):
        forget(features, "pair", {"card": 1}, store=store, clock=CLOCK)


def test_wrong_calls_are_named_and_nothing_is_done(tmp_path: Path) -> None:
    store = MemoryRows()
    path = tmp_path / "rows.parquet"
    pl.DataFrame({"other": [1], "customer_id": [1.5]}).write_parquet(path)
    with pytest.raises(InvalidInput, match="be one of customer"):
        forget(FEATURES, "client", "c0", store=store, clock=CLOCK)
    with pytest.raises(InvalidInput, match="be after the present"):
        forget(FEATURES, "customer", "c0", store=store, until=UNTIL, clock=CLOCK)
    with pytest.raises(InvalidInput, match="be a Parquet file"):
        forget(FEATURES, "customer", "c0", store=store, sources=[tmp_path / "none"], clock=CLOCK)
    with pytest.raises(InvalidInput, match="be local files"):
        forget(FEATURES, "customer", "c0", store=store, sources=["s3://bucket/rows.parquet"], clock=CLOCK)
    with pytest.raises(InvalidInput, match="be a text that is not empty"):
        forget(FEATURES, "customer", "", store=store, clock=CLOCK)
    with pytest.raises(InvalidInput, match="customer_id: got 'double', must be text or whole numbers"):
        forget(FEATURES, "customer", "c0", store=store, sources=[path], clock=CLOCK)
    pl.DataFrame({"other": [1]}).write_parquet(path)
    with pytest.raises(InvalidInput, match="have the column customer_id"):
        forget(FEATURES, "customer", "c0", store=store, sources=[path], clock=CLOCK)
    path.write_bytes(b"PAR1")
    with pytest.raises(StoreError, match="could not be read"):
        forget(FEATURES, "customer", "c0", store=store, sources=[path], clock=CLOCK)
    assert forgotten(store, "customer", ["c0"], UNTIL).tolist() == [False]
