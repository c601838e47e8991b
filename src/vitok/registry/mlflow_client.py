"""MLflow, imported late, without usage reports and without chatter; its errors as ours."""

import contextlib
import logging
import os
import sqlite3
from collections.abc import Iterator
from typing import Any

from vitok.errors import MissingExtra, StoreError


def import_mlflow() -> Any:
    """Imports MLflow without usage reports.

    Raises:
        MissingExtra: If MLflow or its SQL part is not installed.
    """
    # Read by MLflow when it is imported: no usage reports, no complaint about a machine without git.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    try:
        import alembic  # noqa: F401
        import mlflow
        import sqlalchemy  # noqa: F401
    except ImportError as error:
        raise MissingExtra("mlflow", "tracking runs") from error
    return mlflow


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps what MLflow and Alembic tell of their own steps off the screen; warnings still come."""
    loggers = [logging.getLogger(name) for name in ("mlflow", "alembic")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def store_errors(what: str) -> Iterator[None]:
    """Turns the errors of MLflow, SQLAlchemy and the disk into `StoreError`."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, sqlite3.Error, OSError) as error:
        raise StoreError(f"{what}: {error}") from error
