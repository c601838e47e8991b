"""The job that Flink runs: its text, and on a local Flink its tiles, which must merge into what `table` gives."""

import importlib.util
import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from vitok.clock import HOUR, MINUTE
from vitok.errors import InvalidInput
from vitok.features import (
    Buckets,
    Count,
    Distinct,
    Entity,
    FeatureSet,
    Latest,
    Max,
    Mean,
    Recent,
    Source,
    Std,
    TopK,
    View,
    compare,
    table,
)
from vitok.features.flink import Stream, TileReader, job

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv" / "flink" / "bin" / "python"
CUSTOMER = Entity("customer", "customer_id")
PAYMENTS = Source("payments", "payment_id", location="kafka://host:9092/payments", encode={"city": Buckets(9)})

_spec = importlib.util.spec_from_file_location("jvm_cases", Path(__file__).with_name("jvm_cases.py"))
assert _spec is not None
assert _spec.loader is not None
jvm_cases = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(jvm_cases)

EVERYTHING = FeatureSet(
    views=(
        View(
            name="customer",
            entity=jvm_cases.CUSTOMER,
            source=jvm_cases.PAYMENTS,
            lag="0s",
            aggregations=jvm_cases.every_kind(("1h", "6h", "3d")),
        ),
        View(
            name="pair",
            entity=jvm_cases.BOTH,
            source=jvm_cases.PAYMENTS,
            lag="10m",
            aggregations=jvm_cases.every_kind(("2d", "13d")),
        ),
        Latest(name="profile", entity=jvm_cases.CUSTOMER, source=jvm_cases.PROFILES, columns=("amount",)),
    )
)


def one_view(*aggregations: object, exact: bool = False, source: Source = PAYMENTS) -> FeatureSet:
    view = View(name="customer", entity=CUSTOMER, source=source, exact=exact, aggregations=aggregations)  # type: ignore[arg-type]
    return FeatureSet(views=(view,))


def test_a_job_reads_and_writes_kafka() -> None:
    text = job(one_view(Count(("1h",)), Mean("amount", ("30d",), where=(("shop's", "==", "it's"),))))
    assert "'connector' = 'kafka', 'topic' = 'payments', 'properties.bootstrap.servers' = 'host:9092'" in text
    assert "'connector' = 'upsert-kafka', 'topic' = 'payments-tiles.customer_tiles'" in text
    assert "WATERMARK FOR `__moment` AS `__moment` - INTERVAL '10' MINUTE" in text
    assert "CASE WHEN `shop's` = 'it''s' THEN CAST(`amount` AS DOUBLE) END" in text
    assert "UNNEST(ARRAY[CAST(300000000 AS BIGINT), CAST(86400000000 AS BIGINT)])" in text
    assert "'table.exec.state.ttl' = '2765400000 ms'" in text  # 30 d window, 1 d hop, 10 min late, 1 d for a tile


def test_a_stream_says_what_the_definitions_do_not() -> None:
    stream = Stream(
        location="file:///in",
        format="csv",
        types={"event_time": "bigint", "city": "string"},
        lateness="2h",
        options={"csv.field-delimiter": ";"},
    )
    text = job(one_view(Distinct("city", ("1h",))), streams={"payments": stream}, sink="kafka://other:1/tiles")
    assert "'connector' = 'filesystem', 'path' = 'file:///in', 'format' = 'csv', 'csv.field-delimiter' = ';'" in text
    assert "`__moment` AS TO_TIMESTAMP_LTZ(`event_time` / 1000, 3)" in text
    assert "`event_time` AS `__time`" in text
    assert "INTERVAL '2' HOUR" in text
    assert "'properties.bootstrap.servers' = 'other:1'" in text


def test_a_truth_value_can_be_averaged_and_asked_for() -> None:
    text = job(one_view(Mean("is_new", ("1h",)), Count(("1h",), name="new", where=(("is_new", "==", True),))))
    assert "`is_new` BOOLEAN" in text
    assert "CASE `is_new` WHEN TRUE THEN 1e0 WHEN FALSE THEN 0e0 END" in text


@pytest.mark.parametrize(
    ("features", "streams", "sink", "message"),
    [
        (FeatureSet(request=("amount",)), {}, "", "features: views: got ()"),
        (one_view(Count(("1h",)), exact=True), {}, "", "view 'customer': exact: got True"),
        (one_view(Max("city", ("1h",))), {}, "", "must not make numbers by buckets on Flink"),
        (one_view(Count(("1h",)), source=Source("p", "id")), {}, "", "source 'p': location: got ''"),
        (one_view(Count(("1h",))), {"payments": Stream(location="s3://bucket")}, "file:///out", "begin with kafka://"),
        (one_view(Count(("1h",))), {"payments": Stream(location="kafka://host")}, "", "look like kafka://host:9092"),
        (one_view(Count(("1h",))), {}, "redis://host", "sink: got 'redis://host'"),
        (one_view(Count(("1h",))), {"payments": Stream(types={"event_time": "STRING"})}, "", "BIGINT microseconds"),
        (one_view(Count(("1h",))), {"paiments": Stream()}, "", "streams: got 'paiments'"),
        (one_view(Mean("a", ("1h",))), {"payments": Stream(types={"a": "STRING"})}, "", "be DOUBLE, for a number"),
        (
            one_view(Mean("a", ("1h",)), Count(("1h",), where=(("a", "==", "x"),))),
            {},
            "",
            "source 'payments': a: got ('STRING', 'DOUBLE'), must have one type",
        ),
        (one_view(Count(("1h",))), {"payments": Stream(lateness="1500")}, "", "duration: got '1500'"),
    ],
)
def test_what_cannot_be_is_said(features: FeatureSet, streams: dict[str, Stream], sink: str, message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        job(features, streams=streams, sink=sink)
    assert message in str(caught.value)


def test_tiles_and_raw_events_make_features() -> None:
    features = one_view(
        Count(("1h",)), Std("amount", ("1h",)), TopK("kind", ("1h",), k=2), Recent("amount", ("1h",), n=3)
    )
    reader = TileReader(features, features.windowed[0])
    key = {"customer_id": "c", "hop": 5 * MINUTE}

    def tile(at: int, values: list[float], kinds: dict[str, int]) -> dict[str, object]:
        away = np.array(values) - values[0]
        parts = {"amount_0_n": len(values), "amount_0_pivot": values[0], "amount_0_shifted": away.sum()}
        return {**key, "tile": at, "events": len(values), **parts, "amount_0_squares": (away**2).sum()} | {
            "kind_0_values": kinds
        }

    reader.put("customer_tiles", tile(0, [1.0], {"7.0": 1}))
    reader.put("customer_tiles", tile(0, [1e9, 1e9 + 1], {"7.0": 1, "8.0": 1}))  # the newest row of a key holds
    reader.put("customer_tiles", tile(5 * MINUTE, [5.0], {"9.0": 1}))
    reader.put("customer_tiles", tile(5 * MINUTE, [5.0], {"9.0": 1}), gone=True)
    end = {**key, "tile": 0, "side": "last", "input": "amount_0", "place": 1, "ingest_time": 0, "event_id": "a"}
    reader.put("customer_ends", {**end, "event_time": 2, "value": 1e9 + 1})
    raw = [
        {"payment_id": i, "event_time": at, "amount": 1e9 + 2, "kind": 8.0}
        for i, at in ((1, HOUR - 1), (1, HOUR - 1), (2, HOUR), (3, 0))
    ]
    assert reader.head(HOUR) == HOUR
    assert reader.head(HOUR + 2) == HOUR
    early = reader.read(("c",), HOUR - 1, raw)
    assert early.tolist()[:1] == [2.0]
    late = reader.read(("c",), HOUR + 1, raw)
    np.testing.assert_allclose(late, [3.0, 1.0, 8.0, 7.0, 1e9 + 2, 1e9 + 1, np.nan], rtol=1e-12)
    assert np.isnan(reader.read(("d",), HOUR, [])[1])
    with pytest.raises(InvalidInput, match="customer_tiles, customer_ends"):
        reader.put("other", end)


@pytest.mark.jvm
@pytest.mark.xdist_group("flink")
def test_tiles_of_a_local_flink_merge_into_what_the_table_gives(tmp_path: Path) -> None:
    if not PYTHON.exists():
        pytest.skip("no environment for Flink; make .venv/flink makes it")
    if shutil.which("java") is None and "JAVA_HOME" not in os.environ:
        pytest.skip("no Java here; Flink needs version 11 or newer")
    spine, sources = jvm_cases.data("every kind, by ingest time")
    # Events of one entity that share both times are ordered by their ids' texts here, by fingerprints in the table.
    events = sources["payments"].unique(["customer_id", "event_time", "ingest_time"], keep="first", maintain_order=True)
    (tmp_path / "in").mkdir()
    events.with_columns(
        pl.col("event_time").dt.strftime("%Y-%m-%dT%H:%M:%S%.6fZ"), pl.col("ingest_time").dt.epoch("us")
    ).write_ndjson(tmp_path / "in" / "events.json")
    stream = Stream(location=(tmp_path / "in").as_uri(), types={"ingest_time": "BIGINT"}, lateness="12h")
    text = job(EVERYTHING, streams={"payments": stream}, sink=(tmp_path / "out").as_uri())
    (tmp_path / "job.sql").write_text(text, encoding="utf-8")
    done = subprocess.run(
        [PYTHON, Path(__file__).with_name("flink_runner.py"), tmp_path / "job.sql"],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    # Questions on the hops' edges, which tiles alone answer, and between them, which need the open tile's raw events.
    spine = pl.concat([spine, spine.with_columns(pl.col("event_time").dt.truncate("1h"))]).drop_nulls("customer_id")
    spine = spine.filter(pl.col("terminal_id") != "").drop("row")
    rows = events.with_columns(pl.col("event_time", "ingest_time").dt.epoch("us")).to_dicts()
    times = spine["event_time"].dt.epoch("us").to_list()
    for view in EVERYTHING.windowed:
        reader = TileReader(EVERYTHING, view, stream)
        for name in (reader.tables.tiles_table, reader.tables.ends_table):
            for path in (tmp_path / "out" / name).rglob("part-*"):
                for line in path.read_text(encoding="utf-8").splitlines():
                    change = json.loads(line)
                    reader.put(name, change["after"] or change["before"], gone=change["after"] is None)
        raw: dict[tuple[str, ...], list[dict[str, object]]] = {}
        for row in rows:
            raw.setdefault(tuple(str(row[name]) for name in view.entity.keys), []).append(row)
        seen = []
        for row, time in zip(spine.to_dicts(), times, strict=True):
            key = tuple(str(row[name]) for name in view.entity.keys)
            seen.append(reader.read(key, time, raw.get(key, [])))
        features = FeatureSet(views=(view,))
        expected = table(spine.select("event_time", *view.entity.keys), features, {"payments": events})
        comparison = compare(features, np.array(seen), expected)
        assert comparison.n_differing_rows == 0, str(comparison)
        assert comparison.n_rows > 400
