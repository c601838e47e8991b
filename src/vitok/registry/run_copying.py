"""Runs of an MLflow store on SQLite copied into one on PostgreSQL: each whole or not at all, and read back."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitok.errors import Conflict, StoreError
from vitok.registry.mlflow_client import store_errors

if TYPE_CHECKING:
    from sqlalchemy import Select, Table
    from sqlalchemy.engine import Connection, Engine

MARK = "vitok.copied"
"""Tag of a run that was copied: the digest of what it was then."""
_AT_ONCE = 20_000
_REVISION = "SELECT version_num FROM alembic_version"
# What is another one in another store, and so is in no digest.
_OWN = frozenset({"experiment_id", "artifact_uri", "artifact_location", "source_id", "dataset_uuid"})
_ONGOING = ("RUNNING", "SCHEDULED")

Address = Callable[[str], str]
"""Gives the address of a file in the other place."""

Rows = Sequence[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class _Kind:
    """Something that is copied as a whole: a row, and rows of other tables that belong to it."""

    name: str
    table: str
    key: str
    parts: tuple[str, ...]
    tags: tuple[str, str, str]


_RUN = _Kind(
    name="run",
    table="runs",
    key="run_uuid",
    parts=("params", "tags", "metrics", "latest_metrics"),
    tags=("tags", "key", "value"),
)
_MODEL = _Kind(
    name="logged model",
    table="logged_models",
    key="model_id",
    parts=("logged_model_params", "logged_model_tags", "logged_model_metrics"),
    tags=("logged_model_tags", "tag_key", "tag_value"),
)


@dataclass(frozen=True, kw_only=True)
class CopiedRuns:
    """What came into the other store.

    Attributes:
        n_experiments: Experiments whose runs were looked at.
        n_runs: Runs that were copied now.
        n_before: Runs that an earlier call has copied.
        n_models: Logged models that were copied now or before.
        n_points: Points of metrics of all these runs.
        left: What was left behind, in words.
    """

    n_experiments: int
    n_runs: int
    n_before: int
    n_models: int
    n_points: int
    left: tuple[str, ...]


def copy_runs(
    source: Path,
    target: str,
    *,
    experiment: Callable[[Mapping[str, Any], Mapping[str, str]], int],
    address: Address,
    unfinished: bool = False,
) -> CopiedRuns:
    """Copies the runs of all experiments that are not deleted, with what belongs to them.

    Each run is written in one transaction, read back in it, and compared by its digest; so one that is there is whole,
    and the same call again goes on with the rest. What a run became after it was copied is not looked at.

    Args:
        source: The SQLite file.
        target: Address of the other store, as SQLAlchemy takes it; made by the same MLflow.
        experiment: Finds or makes the experiment in the target, of its row and its tags; returns its number there.
        address: Gives the addresses of files in the other place.
        unfinished: Whether to copy runs as well that say that they are still going on.

    Raises:
        Conflict: If a run or model is there with other contents.
        StoreError: If a store cannot be read or written, or what was read back is not what was written.
    """
    import sqlalchemy

    what = f"runs of {source} cannot be copied"
    with store_errors(what), contextlib.ExitStack() as stack:
        here = stack.enter_context(_snapshot(source))
        there = sqlalchemy.create_engine(target, hide_parameters=True)
        stack.callback(there.dispose)
        _same_layout(here, there, source)
        copier = _Copier(here, there, address)
        numbers = {}
        for found, tags in copier.experiments():
            numbers[found["experiment_id"]] = experiment(found, tags)
            copier.date(numbers[found["experiment_id"]], found["creation_time"])
        runs = [row for row in copier.rows("runs", {}) if row["experiment_id"] in numbers]
        ongoing = [] if unfinished else [row for row in runs if row["status"] in _ONGOING]
        for row in ongoing:
            runs.remove(row)
        copied = [copier.copy(_RUN, row, numbers) for row in runs]
        known = {row["run_uuid"] for row in runs}
        models, apart = [], 0
        for row in copier.rows("logged_models", {}):
            asked = {part["run_id"] for part in copier.rows("logged_model_metrics", {"model_id": row["model_id"]})}
            if row["experiment_id"] in numbers and asked <= known and row["source_run_id"] in known | {None}:
                models.append(copier.copy(_MODEL, row, numbers))
            else:
                apart += 1
        left = {
            "runs that say they are still going on (--unfinished takes them along)": len(ongoing),
            "runs of deleted experiments": copier.count("runs") - len(runs) - len(ongoing),
            "logged models of such runs": apart,
            "addresses of files outside the home, which stay as they are": copier.elsewhere,
            "traces": copier.count("trace_info"),
        }
        return CopiedRuns(
            n_experiments=len(numbers),
            n_runs=sum(copied),
            n_before=len(copied) - sum(copied),
            n_models=len(models),
            n_points=copier.points,
            left=tuple(f"{count:,} {name}" for name, count in left.items() if count),
        )


@contextlib.contextmanager
def _snapshot(source: Path) -> "Iterator[Connection]":
    import sqlalchemy

    engine = sqlalchemy.create_engine(f"sqlite:///{source}", isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as connection:
            # All that is read is as of one moment, whoever writes beside.
            connection.exec_driver_sql("BEGIN")
            yield connection
            connection.exec_driver_sql("ROLLBACK")
    finally:
        engine.dispose()


def _same_layout(here: "Connection", there: "Engine", source: Path) -> None:
    with there.connect() as connection:
        wanted = connection.exec_driver_sql(_REVISION).scalar()
    found = here.exec_driver_sql(_REVISION).scalar()
    if found != wanted:
        raise StoreError(
            f"MLflow's tables in {source} are of revision {found}, and of {wanted} where they shall go; run "
            f"mlflow db upgrade on the older of the two first, such as: mlflow db upgrade sqlite:///{source}"
        )


class _Copier:
    def __init__(self, here: "Connection", there: "Engine", address: Address) -> None:
        import mlflow.store.tracking.dbmodels.models  # noqa: F401 - it tells what tables there are
        from mlflow.store.db.base_sql_model import Base

        self._here, self._there, self._address = here, there, address
        self._tables: Mapping[str, Table] = Base.metadata.tables
        self.points = 0
        self.elsewhere = 0

    def experiments(self) -> Iterator[tuple[dict[str, Any], dict[str, str]]]:
        for row in self.rows("experiments", {"lifecycle_stage": "active"}):
            tags = self.rows("experiment_tags", {"experiment_id": row["experiment_id"]})
            moved = {**row, "artifact_location": self._address(row["artifact_location"])}
            yield moved, {tag["key"]: tag["value"] for tag in tags}

    def date(self, number: int, created: int | None) -> None:
        """Lets an experiment of the target be as old as the oldest that came to it."""
        if created is not None:
            table = self._tables["experiments"]
            later = table.update().where(table.c.experiment_id == number, table.c.creation_time > created)
            with self._there.begin() as there:
                there.execute(later.values(creation_time=created))

    def count(self, table: str) -> int:
        from sqlalchemy import func, select

        return int(self._here.execute(select(func.count()).select_from(self._tables[table])).scalar() or 0)

    def rows(self, table: str, where: Mapping[str, Any]) -> list[dict[str, Any]]:
        return [row for part in _read(self._here, self._tables[table], where) for row in part]

    def copy(self, kind: _Kind, row: Mapping[str, Any], numbers: Mapping[int, int]) -> bool:
        """Copies one of a kind; returns whether it was not there yet."""
        key, name = row[kind.key], f"{kind.name} {row[kind.key]}"
        seen, digest = self._digest(self._here, kind, key)
        self.points += seen.get("metrics", 0)
        table, key_column, value_column = kind.tags
        with self._there.begin() as there:
            if self._one(there, kind.table, {kind.key: key}) is not None:
                mark = self._one(there, table, {kind.key: key, key_column: MARK})
                if mark is None or mark[value_column] != digest:
                    raise Conflict(f"{name} is there already, and with other contents; nothing is written over it")
                return False
            for part, rows in self._whole(self._here, kind, key):
                there.execute(self._tables[part].insert(), self._fitted(there, part, rows, numbers))
            if self._digest(there, kind, key) != (seen, digest):
                raise StoreError(f"{name}: what was read back is not what was written")
            experiment = numbers[row["experiment_id"]]
            mark = {kind.key: key, key_column: MARK, value_column: digest, "experiment_id": experiment}
            columns = self._tables[table].c
            there.execute(self._tables[table].insert(), [{k: v for k, v in mark.items() if k in columns}])
        return True

    def _fitted(self, there: "Connection", table: str, rows: Rows, numbers: Mapping[int, int]) -> Rows:
        fitted = []
        for row in rows:
            new = dict(row)
            if new.get("experiment_id") is not None:
                new["experiment_id"] = numbers[new["experiment_id"]]
            for column in ("artifact_uri", "artifact_location"):
                if new.get(column):
                    new[column] = self._address(new[column])
                    self.elsewhere += new[column] == row[column]
            if table == "inputs" and new["source_type"] == "DATASET":
                new["source_id"] = self._dataset(there, new["source_id"], numbers)
            fitted.append(new)
        return fitted

    def _dataset(self, there: "Connection", uuid: str, numbers: Mapping[int, int]) -> str:
        """Finds a data set in the target by what it is, or puts it there; runs share them."""
        row = self._one(self._here, "datasets", {"dataset_uuid": uuid})
        if row is None:
            return uuid
        row["experiment_id"] = numbers[row["experiment_id"]]
        found = self._one(there, "datasets", {name: row[name] for name in ("experiment_id", "name", "digest")})
        if found is None:
            there.execute(self._tables["datasets"].insert(), [row])
        return str((found or row)["dataset_uuid"])

    def _one(self, connection: "Connection", table: str, where: Mapping[str, Any]) -> dict[str, Any] | None:
        row = connection.execute(_query(self._tables[table], where)).mappings().first()
        return None if row is None else dict(row)

    def _whole(self, connection: "Connection", kind: _Kind, key: str) -> Iterator[tuple[str, Rows]]:
        for table in (kind.table, *kind.parts):
            for rows in _read(connection, self._tables[table], {kind.key: key}):
                yield table, rows
        if kind is _RUN:
            # Data that it has read, and models that it has read or made.
            for side in ("destination_id", "source_id"):
                for rows in _read(connection, self._tables["inputs"], {side: key}):
                    yield "inputs", rows
                    for row in rows:
                        for tags in _read(connection, self._tables["input_tags"], {"input_uuid": row["input_uuid"]}):
                            yield "input_tags", tags

    def _digest(self, connection: "Connection", kind: _Kind, key: str) -> tuple[dict[str, int], str]:
        """Gives rows by table, and a digest of all: of a sum, since stores order text differently."""
        total, seen = 0, dict.fromkeys((kind.table, *kind.parts), 0)
        mark = kind.tags[1]
        for table, rows in self._whole(connection, kind, key):
            for row in rows:
                if table == kind.tags[0] and row[mark] == MARK:
                    continue
                seen[table] = seen.get(table, 0) + 1
                plain = [table, *(value for name, value in sorted(row.items()) if name not in _OWN)]
                line = json.dumps(plain, default=str).encode()
                total += int.from_bytes(hashlib.blake2b(line, digest_size=16).digest())
        counted = json.dumps([total % 2**128, seen], sort_keys=True).encode()
        return seen, hashlib.sha256(counted).hexdigest()


def _read(connection: "Connection", table: "Table", where: Mapping[str, Any]) -> Iterator[list[dict[str, Any]]]:
    found = connection.execute(_query(table, where), execution_options={"yield_per": _AT_ONCE})
    for part in found.mappings().partitions(_AT_ONCE):
        yield [dict(row) for row in part]


def _query(table: "Table", where: Mapping[str, Any]) -> "Select[Any]":
    from sqlalchemy import select

    return select(table).where(*(table.c[name] == value for name, value in where.items()))
