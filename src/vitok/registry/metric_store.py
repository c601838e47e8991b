"""Metric points into the tables of an MLflow store, thousands in a transaction."""

import contextlib
import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vitok.errors import InvalidInput

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

Point = tuple[str, float, int, int]
"""A point of a metric: name, value, milliseconds since 1970, step."""

Row = tuple[str, float, int, int, str, bool]

_COLUMNS = {
    "metrics": {"key", "value", "timestamp", "step", "is_nan", "run_uuid"},
    "latest_metrics": {"key", "value", "timestamp", "step", "is_nan", "run_uuid"},
}
_WAIT_SECONDS = 20.0
_ROWS_A_STATEMENT = 20_000
# Fewer than 32,766 values in one statement of SQLite, and sizes of which few make up any number.
_ROWS_AT_ONCE = (2048, 256, 32, 4, 1)


class MetricStore:
    """Writes the points of runs to where MLflow reads them.

    MLflow makes an object of each point, and asks for it in Python, with the interpreter held: about 100 us a point
    of the time of the program that trains. Here a transaction is two statements for any number of points, by the
    rules of MLflow: a point that is there already is written once, and the latest of a metric is the largest by
    (step, time, value). PostgreSQL gets them as columns.

    Args:
        uri: Address of the store, `sqlite:///...` or `postgresql://...`; the latter through psycopg 3.

    Raises:
        InvalidInput: If the store is of another kind, or its tables are not those known here; then write through
            MLflow's own `log_batch`.
    """

    def __init__(self, uri: str) -> None:
        import sqlalchemy
        from sqlalchemy.engine import make_url

        url = make_url(uri)
        kind = url.get_backend_name()
        if kind == "sqlite":
            self._engine = sqlalchemy.create_engine(url, connect_args={"timeout": _WAIT_SECONDS})
        elif kind == "postgresql":
            # A plain address means another driver to SQLAlchemy before 2.1.
            self._engine = sqlalchemy.create_engine(url.set(drivername="postgresql+psycopg"), pool_pre_ping=True)
        else:
            raise InvalidInput("uri", uri, "be of SQLite or PostgreSQL")
        with contextlib.ExitStack() as undo:
            undo.callback(self._engine.dispose)
            inspector = sqlalchemy.inspect(self._engine)
            for table, columns in _COLUMNS.items():
                found = (
                    {column["name"] for column in inspector.get_columns(table)} if inspector.has_table(table) else set()
                )
                if found != columns:
                    raise InvalidInput(f"table {table} of {uri}", sorted(found), f"have the columns {sorted(columns)}")
            undo.pop_all()
        self._marks, self._insert, self._latest, self._read = _statements(kind)

    def write(self, run_id: str, points: Sequence[Point]) -> None:
        """Writes the points of a run, all or none.

        Args:
            run_id: The run.
            points: The points, of finite values.

        Raises:
            SQLAlchemyError: If the store cannot be written.
        """
        if not points:
            return
        latest: dict[str, tuple[int, int, float]] = {}
        rows: list[Row] = []
        for key, value, timestamp, step in points:
            rows.append((key, value, timestamp, step, run_id, False))
            at = (step, timestamp, value)
            if key not in latest or at > latest[key]:
                latest[key] = at
        # In one order for all writers: none waits for a row of another that waits for one of its own.
        newest = [(key, value, time, step, run_id, False) for key, (step, time, value) in sorted(latest.items())]
        with self._engine.begin() as connection:
            self._put(connection, self._insert, rows)
            self._put(connection, self._latest, newest)

    def _put(self, connection: "Connection", statement: tuple[str, str], rows: Sequence[tuple[Any, ...]]) -> None:
        into, on_conflict = statement
        if self._engine.name != "sqlite":
            for at in range(0, len(rows), _ROWS_A_STATEMENT):
                one = f"{into} ({self._marks}) {on_conflict}"
                connection.exec_driver_sql(one, list(rows[at : at + _ROWS_A_STATEMENT]))
            return
        # SQLite's driver gives the interpreter away at every step, and beside a loop that computes it gets it back
        # after 5 ms: ten thousand rows, a step each, would take a minute.
        at = 0
        for size in _ROWS_AT_ONCE:
            many = f"{into} {', '.join([f'({self._marks})'] * size)} {on_conflict}"
            while len(rows) - at >= size:
                connection.exec_driver_sql(many, tuple(itertools.chain.from_iterable(rows[at : at + size])))
                at += size

    def read(self, run_id: str, key: str) -> list[tuple[int, int, float]]:
        """Returns the points of a metric of a run: step, milliseconds since 1970, value; in no order.

        Args:
            run_id: The run.
            key: Name of the metric.

        Raises:
            SQLAlchemyError: If the store cannot be read.
        """
        with self._engine.connect() as connection:
            rows = connection.exec_driver_sql(self._read, (run_id, key)).fetchall()
        return [(step, time, math.nan if is_nan else value) for step, time, value, is_nan in rows]

    def close(self) -> None:
        """Closes the connections."""
        self._engine.dispose()


def _statements(kind: str) -> tuple[str, tuple[str, str], tuple[str, str], str]:
    """Gives the marks of a row, the two statements around rows that write, and the one that reads, for a driver."""
    mark = "?" if kind == "sqlite" else "%s"
    into = "(key, value, timestamp, step, run_uuid, is_nan) VALUES"
    later = (
        "(excluded.step, excluded.timestamp, excluded.value) > "
        "(latest_metrics.step, latest_metrics.timestamp, latest_metrics.value)"
    )
    return (
        ", ".join([mark] * 6),
        (f"INSERT INTO metrics {into}", "ON CONFLICT DO NOTHING"),
        (
            f"INSERT INTO latest_metrics {into}",
            "ON CONFLICT (key, run_uuid) DO UPDATE SET value = excluded.value, "
            f"timestamp = excluded.timestamp, step = excluded.step, is_nan = excluded.is_nan WHERE {later}",
        ),
        f"SELECT step, timestamp, value, is_nan FROM metrics WHERE run_uuid = {mark} AND key = {mark}",  # noqa: S608
    )


def opened(uri: str) -> "MetricStore | None":
    """Opens the store for points, or says by None that MLflow has to write them itself.

    Args:
        uri: Address of an MLflow store that is there.
    """
    from sqlalchemy.exc import SQLAlchemyError

    try:
        return MetricStore(uri)
    except (InvalidInput, SQLAlchemyError):
        return None
