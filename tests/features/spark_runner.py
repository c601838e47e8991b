"""Runs cases on a local Spark, in Spark's own environment: folders of Parquet in, one Parquet file a case out.

    python spark_runner.py FOLDER    # FOLDER holds NUMBER/spine.parquet and NUMBER/source_NAME.parquet

It writes NUMBER/out.parquet, verdicts.json (what went wrong, by case) and refusals.json (what is said of bad input).
"""

import datetime as dt
import json
import sys
import traceback
from pathlib import Path
from typing import Any

from vitok.errors import VitokError
from vitok.features import Buckets, Count, Embedding, Entity, FeatureSet, Max, Source, View


def main(folder: Path) -> None:
    import jvm_cases
    from pyspark.sql import SparkSession

    from vitok.features.spark_columns import fingerprint

    session = (
        SparkSession.builder.master("local[2]")
        .config("spark.ui.enabled", "false")
        .config("spark.driver.bindAddress", "127.0.0.1")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.sql.session.timeZone", "UTC")
        .config("spark.sql.shuffle.partitions", "2")
        .config("spark.sql.warehouse.dir", str(folder / "warehouse"))
        .getOrCreate()
    )
    session.sparkContext.setLogLevel("OFF")
    verdicts = {}
    for place, name in enumerate(jvm_cases.CASES):
        try:
            run(session, folder / str(place), jvm_cases.CASES[name])
            verdicts[name] = ""
        except Exception:  # noqa: BLE001 - a case that fails must not hide the others
            verdicts[name] = traceback.format_exc()
    (folder / "verdicts.json").write_text(json.dumps(verdicts))
    (folder / "refusals.json").write_text(json.dumps(refusals(session)))
    texts = session.createDataFrame([(place, text) for place, text in enumerate(jvm_cases.TEXTS)], "n int, text string")
    words = texts.select("n", fingerprint()("text").alias("word")).orderBy("n").collect()
    (folder / "fingerprints.json").write_text(json.dumps([row["word"] for row in words]))
    session.stop()


def run(session: Any, folder: Path, features: FeatureSet) -> None:
    import pandas as pd

    from vitok.features import spark

    sources = {
        path.stem.removeprefix("source_"): session.read.parquet(str(path)) for path in folder.glob("source_*.parquet")
    }
    spine = session.read.parquet(str(folder / "spine.parquet"))
    out = spark.table(spine, features, sources)
    frame = pd.DataFrame([row.asDict() for row in out.collect()])[out.columns]
    frame.drop(columns="event_time").to_parquet(folder / "out.parquet")


def refusals(session: Any) -> dict[str, str]:
    """What is said where a table cannot be made."""
    from pyspark.sql import functions as f

    from vitok.features import spark

    customer = Entity("customer", "customer_id")
    payments = Source("payments", "id", encode={"x": Buckets(3)})
    features = FeatureSet(
        views=(View(name="customer", entity=customer, source=payments, aggregations=(Count(("1h",)),)),)
    )
    largest = FeatureSet(
        views=(View(name="customer", entity=customer, source=payments, aggregations=(Max("y", ("1h",)),)),)
    )
    vectors = Embedding(name="vector", entity=customer, index="customers", index_version="1", dimension=2)
    hours = [dt.datetime(2024, 1, 1, hour, tzinfo=dt.UTC) for hour in range(2)]
    schema = "customer_id string, event_time timestamp"
    spine = session.createDataFrame([("c", hours[1])], schema)
    good = session.createDataFrame([("c", hours[0], "a", 1.0)], f"{schema}, id string, y double")
    tries = {
        "column": lambda: spark.table(spine, features, {"payments": spine}),
        "source": lambda: spark.table(spine, features, {}),
        "type of time": lambda: spark.table(spine.withColumn("event_time", f.lit(1)), features, {"payments": good}),
        "type of key": lambda: spark.table(spine.withColumn("customer_id", f.lit(1.5)), features, {"payments": good}),
        "embedding": lambda: spark.table(spine, FeatureSet(views=(vectors,)), {}),
        "text": lambda: spark.table(spine, largest, {"payments": good.withColumn("y", f.lit("a"))}),
        "null key": lambda: spark.table(spine, features, {"payments": good.replace("c", "", "customer_id")}).collect(),
        "infinity": lambda: spark.table(
            spine, largest, {"payments": good.withColumn("y", f.col("y") * float("inf"))}
        ).collect(),
        "time zone": lambda: spark.table(spine, features, {"payments": good}),
    }
    said = {}
    for name, attempt in tries.items():
        session.conf.set("spark.sql.session.timeZone", "Europe/Riga" if name == "time zone" else "UTC")
        try:
            attempt()
            said[name] = ""
        except VitokError as error:
            said[name] = str(error)
        except Exception as error:  # noqa: BLE001 - what Spark raises when a job stops
            said[name] = str(error)[:1000]
    return said


if __name__ == "__main__":
    main(Path(sys.argv[1]))
