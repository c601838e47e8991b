"""Scores a folder on a local Spark in a process of its own, as the driver of a job does.

    python batch_spark_runner.py ADDRESS PACKAGE INPUTS OUT OPTIONS    # OPTIONS is JSON; "waves": stop after so many

It writes answers.json beside OUT: how each job ended, or its error.
"""

import json
import sys
from pathlib import Path
from typing import Any

from vitok.errors import VitokError
from vitok.serving.batch_spark import score_files_on_spark


class Watch:
    """Takes the machine away after so many waves."""

    def __init__(self, told: dict[str, Any], after: int | None) -> None:
        self._told, self._after = told, after

    @property
    def notice(self) -> str | None:
        return "taken away" if self._after is not None and self._told["waves"] >= self._after else None


def main(address: str, package: str, inputs: str, out: str, options: dict[str, Any]) -> None:
    from pyspark.sql import SparkSession

    session = (
        SparkSession.builder.master(address.removeprefix("spark://"))
        .config("spark.ui.enabled", "false")
        .config("spark.driver.bindAddress", "127.0.0.1")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.sql.warehouse.dir", str(Path(out).parent / "warehouse"))
        .getOrCreate()
    )
    session.sparkContext.setLogLevel("OFF")
    answers = []
    for job in options["jobs"]:
        told: dict[str, Any] = {"waves": 0}
        stop_after = job.pop("stop_after", None)

        def progress(_: object, told: dict[str, Any] = told) -> None:
            told["waves"] += 1

        try:
            result = score_files_on_spark(
                job.pop("address", session),
                job.pop("package", package),
                inputs,
                job.pop("out", out),
                progress=progress,
                watch=Watch(told, stop_after),  # type: ignore[arg-type]
                **job,
            )
            told |= {"done": result.done, "scored": result.scored, "quarantined": result.quarantined}
            told |= {"resumed": result.resumed, "shards": result.shards, "notice": result.notice}
        except VitokError as error:
            told |= {"error": f"{type(error).__name__}: {error}"}
        answers.append(told)
    (Path(out).parent / "answers.json").write_text(json.dumps(answers), encoding="utf-8")
    session.stop()


if __name__ == "__main__":
    main(*sys.argv[1:5], json.loads(sys.argv[5]))
