"""Runs and model versions in an MLflow store on SQLite or PostgreSQL, which the plain `mlflow ui` opens.

The ledger is mirrored there and never read back: MLflow keeps no history of its aliases.
"""

import contextlib
import json
import os
import re
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitok.clock import Clock, SystemClock
from vitok.engines.address import hidden
from vitok.engines.postgres import alone, connect, is_postgres
from vitok.engines.postgres import store_errors as store_errors_of_postgres
from vitok.engines.s3 import bucket_address, is_s3
from vitok.errors import InvalidInput, NotFound
from vitok.registry.attachment import attachment_of
from vitok.registry.files import check_whole, exclusive
from vitok.registry.metric_store import opened
from vitok.registry.mlflow_client import import_mlflow, quiet, store_errors
from vitok.registry.package import check_model_name
from vitok.registry.provenance import DataSnapshot, Provenance, find_provenance
from vitok.registry.run_reading import MetricHistory, RunList, RunRecord, history, record
from vitok.registry.runs import TrackedRun
from vitok.registry.stages import ModelState, Version

CHAMPION = "champion"
CHALLENGER = "challenger"
_RUNS_A_PAGE = 1000
_RUN_ID = re.compile(r"[0-9a-zA-Z]{4,32}")


class Tracker:
    """An MLflow store under one folder: `home/mlflow.db` (SQLite, WAL) and `home/mlartifacts/`; or on servers.

    Open it with `mlflow ui --backend-store-uri sqlite:///home/mlflow.db` (the full `mlflow` package). Only the
    client class with explicit addresses is used: MLflow's global state, and another store that the same program
    tracks to, stay as they are. Usage reports of MLflow are switched off.

    A home that was attached to a registry together with its runs (`attach`) has them there.

    For many machines, name a PostgreSQL database and a bucket; both are passed on to MLflow. An endpoint in the
    bucket's address becomes `MLFLOW_S3_ENDPOINT_URL` of this process, since MLflow looks for it there.

    Args:
        home: Folder of everything vitok writes, made where it does not exist; or `postgresql://user@host/database`.
        artifacts: Where the files of runs lie where `home` is a database: `s3://bucket/prefix?endpoint=...`, or any
            other address that MLflow knows.
        clock: Gives the times of runs and metrics.

    Raises:
        InvalidInput: If an address is missing or none of these, or another endpoint is in force.

    Example:
        >>> Tracker("/data/vitok").uri
        'sqlite:////data/vitok/mlflow.db'
    """

    def __init__(self, home: str | Path, *, artifacts: str | None = None, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._opened: Any = None
        self.database: str | None = None
        if isinstance(home, str) and "://" in home:
            if not is_postgres(home):
                raise InvalidInput("home", hidden(home), "be a folder, or look like postgresql://user@host/database")
            if artifacts is None or "://" not in artifacts:
                raise InvalidInput("artifacts", artifacts, "look like s3://bucket/prefix where runs are in a database")
            self.database = home
            self._artifacts = _artifact_root(artifacts)
            return
        if artifacts is not None:
            raise InvalidInput("artifacts", artifacts, "be left out where runs lie in a folder")
        self.home = Path(home).resolve()
        attached = attachment_of(self.home)
        if attached is not None and attached.artifacts is not None:
            self.database = attached.registry
            self._artifacts = _artifact_root(attached.artifacts)
            return
        self._artifacts = (self.home / "mlartifacts").as_uri()

    def __repr__(self) -> str:
        place = str(self.home) if self.database is None else hidden(self.database)
        return f"Tracker({place!r})"

    @property
    def uri(self) -> str:
        """The store's address, as `mlflow ui --backend-store-uri` takes it; with its password where it has one."""
        if self.database is None:
            return f"sqlite:///{self.home / 'mlflow.db'}"
        return f"postgresql+psycopg://{self.database.partition('://')[2]}"

    @property
    def artifact_root(self) -> str:
        """Address of all runs' files, as `mlflow server --default-artifact-root` takes it."""
        return self._artifacts

    @property
    def artifacts(self) -> Path:
        """The folder of all runs' files.

        Raises:
            InvalidInput: If they lie in no folder.
        """
        if self.database is not None:
            raise InvalidInput("artifacts", self._artifacts, "be a folder to have a path")
        return self.home / "mlartifacts"

    @staticmethod
    def prepare(home: str | Path) -> None:
        """Makes the store unless it is there: MLflow takes some seconds for the 69 steps of its schema.

        Any number of processes and threads may call it at once; one makes the store, the others wait. Start it
        early in a process of its own where the seconds matter.

        Args:
            home: Folder of everything vitok writes.

        Raises:
            MissingExtra: If MLflow or its SQL part is not installed.
            StoreError: If the store cannot be made.
        """
        home = Path(home).resolve()
        check_whole(home)
        attached = attachment_of(home)
        if attached is not None and attached.artifacts is not None:
            Tracker(home).make()
            return
        database = home / "mlflow.db"
        if database.exists():
            return
        with exclusive(home / "mlflow.lock"):
            if database.exists():
                return
            # Under another name until it is whole: a store half made would pass for a store of an old MLflow.
            unfinished = home / "mlflow-unfinished.db"
            unfinished.unlink(missing_ok=True)
            import_mlflow()
            from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

            with quiet(), store_errors(f"MLflow store {database} cannot be made"):
                SqlAlchemyStore(f"sqlite:///{unfinished}", (home / "mlartifacts").as_uri()).engine.dispose()
                with contextlib.closing(sqlite3.connect(unfinished)) as connection:
                    connection.execute("PRAGMA journal_mode = WAL")
                unfinished.rename(database)

    def make(self) -> None:
        """Makes the store unless it is there, wherever it lies.

        Raises:
            MissingExtra: If MLflow or its SQL part is not installed.
            StoreError: If the store cannot be made.
        """
        self._client()

    def run(
        self,
        experiment: str,
        *,
        name: str,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
        seeds: Mapping[str, int] | None = None,
        data: Mapping[str, DataSnapshot] | None = None,
        source: Path | None = None,
        flush_seconds: float = 1.0,
    ) -> "TrackedRun":
        """Starts a run; use it in a `with` block, which ends it as finished, failed or killed.

        Recorded besides what is given: git commit, branch and unsaved changes, Python, packages and hardware.

        Args:
            experiment: Name of the experiment; made where it does not exist.
            name: Name of the run.
            params: Parameters, each written once.
            tags: Tags.
            seeds: Seed of each random part, kept as parameters `seed.<name>`.
            data: The data that was read, by role, kept as parameters `data.<role>.digest` and `data.<role>.rows`; its
                statistics, where given, as the artifact `data.<role>.statistics.json`.
            source: A folder of the code that runs, for git; None for the working folder.
            flush_seconds: How long what is logged is kept back before it is written, in seconds.

        Raises:
            MissingExtra: If MLflow or its SQL part is not installed.
            InvalidInput: If a name or value cannot be kept.
            StoreError: If the store cannot be written.
        """
        origin = find_provenance(source)
        collected = dict(params or {})
        collected |= {f"seed.{part}": seed for part, seed in (seeds or {}).items()}
        for role, snapshot in (data or {}).items():
            collected |= {f"data.{role}.digest": snapshot.digest, f"data.{role}.rows": snapshot.rows}
        client = self._client()
        with store_errors(f"run {name!r} cannot be started"):
            created = client.create_run(self._experiment(experiment), start_time=self._now_ms(), run_name=name)
        run = TrackedRun(
            client, created.info.run_id, clock=self._clock, points=opened(self.uri), flush_seconds=flush_seconds
        )
        try:
            run.set_tags({**_origin_tags(origin), **(tags or {})})
            run.log_params(collected)
            if origin.commit is not None:
                run.log_artifact("provenance/git.diff", origin.diff)
                run.log_artifact("provenance/git-status.txt", origin.status)
            run.log_artifact("provenance/environment.json", origin.environment())
            for role, snapshot in (data or {}).items():
                if snapshot.statistics:
                    told = {column: dict(numbers) for column, numbers in snapshot.statistics.items()}
                    run.log_artifact(f"data.{role}.statistics.json", told)
            run.flush()
        except BaseException:
            run.end("FAILED")
            raise
        return run

    def take_over(self, row: Mapping[str, Any], tags: Mapping[str, str]) -> int:
        """Finds the experiment of another store here, by its name, or makes it; returns its number here.

        Args:
            row: Its row in the other store, with the address that its files have here.
            tags: Its tags.

        Raises:
            InvalidInput: If it is deleted here.
            StoreError: If the store cannot be written.
        """
        with store_errors(f"experiment {row['name']!r} cannot be made"):
            found = self._client().get_experiment_by_name(row["name"])
            if found is None:
                made = self._client().create_experiment(row["name"], row["artifact_location"], dict(tags))
                return int(made)
            return int(self._experiment(row["name"]))

    def runs(self, *, experiment: str | None = None, matching: str = "", most: int = 100) -> RunList:
        """Returns the runs of the store, latest first, also those that plain MLflow code logged.

        Args:
            experiment: Name of an experiment; None for all.
            matching: A condition in MLflow's words, such as `"metrics.auc > 0.9 and params.leaves = '31'"`.
            most: How many at most, from 1.

        Raises:
            NotFound: If there is no such experiment.
            InvalidInput: If MLflow does not understand the condition.
            StoreError: If the store cannot be read.
        """
        if most < 1:
            raise InvalidInput("most", most, "be at least 1")
        names = self._experiment_names()
        if experiment is not None and experiment not in names.values():
            raise NotFound("experiment", experiment, sorted(names.values()))
        wanted = [key for key, name in names.items() if experiment in (None, name)]
        return RunList(tuple(self._search(wanted, names, matching, most)))

    def recorded(self, run_id: str) -> RunRecord:
        """Returns one run.

        Args:
            run_id: Its id, or the first characters of it, from 4.

        Raises:
            NotFound: If no run has that id, or the runs of several begin so.
        """
        names = self._experiment_names()
        kept: list[RunRecord] = []
        if _RUN_ID.fullmatch(run_id):
            kept = self._search(list(names), names, f"attributes.run_id LIKE '{run_id}%'", 12)
        if len(kept) != 1:
            known = [run.run_id for run in kept] or [run.run_id for run in self._search(list(names), names, "", 12)]
            raise NotFound("run", run_id, known)
        return kept[0]

    def history(self, run: str | RunRecord, metric: str) -> MetricHistory:
        """Returns all points of a metric of a run, by step.

        Args:
            run: The run, or its id.
            metric: Name of the metric.

        Raises:
            NotFound: If there is no such run, or it has no such metric.
            StoreError: If the store cannot be read.
        """
        found = self.recorded(run) if isinstance(run, str) else run
        if metric not in found.metrics:
            raise NotFound(f"metric of run {found.short_id}", metric, sorted(found.metrics))
        with store_errors(f"metric {metric!r} of run {found.run_id} cannot be read"):
            store = opened(self.uri)
            if store is None:
                points = [
                    (point.step, point.timestamp, point.value)
                    for point in self._client().get_metric_history(found.run_id, metric)
                ]
            else:
                with contextlib.closing(store):
                    points = store.read(found.run_id, metric)
        return history(found.run_id, metric, points)

    def _experiment_names(self) -> dict[str, str]:
        """Gives the experiments that are not deleted; none, and no store made, where nothing was ever tracked."""
        if not self._is_made():
            return {}
        names: dict[str, str] = {}
        client, token = self._client(), None
        with store_errors(f"MLflow store {self._shown} cannot be read"):
            while True:
                page = client.search_experiments(max_results=_RUNS_A_PAGE, page_token=token)
                names |= {found.experiment_id: found.name for found in page}
                token = page.token
                if not token:
                    return names

    def _search(self, experiments: list[str], names: Mapping[str, str], matching: str, most: int) -> list[RunRecord]:
        if not experiments:
            return []
        from mlflow.exceptions import MlflowException

        found: list[RunRecord] = []
        token = None
        with store_errors(f"MLflow store {self._shown} cannot be read"):
            while len(found) < most:
                try:
                    page = self._client().search_runs(
                        experiments,
                        matching,
                        max_results=min(_RUNS_A_PAGE, most - len(found)),
                        order_by=["attributes.start_time DESC"],
                        page_token=token,
                    )
                except MlflowException as error:
                    if error.error_code != "INVALID_PARAMETER_VALUE":
                        raise
                    raise InvalidInput("matching", matching, f"be a condition that MLflow knows ({error})") from None
                found += [record(run, names[run.info.experiment_id]) for run in page]
                token = page.token
                if not token:
                    break
        return found

    def mirror(self, state: ModelState, *, packages: str | Path) -> None:
        """Shows a model's versions and stages in MLflow's registry; repeating it changes nothing.

        The version in Production gets the alias `champion`; the canary, or else the newest in Staging, gets
        `challenger`. Each MLflow version carries the tags `vitok.version`, `vitok.stage` and `vitok.digest`.

        Args:
            state: The model's state, from the ledger.
            packages: Where the packages are (`Registry.location`): a folder, or an address.

        Raises:
            StoreError: If the store cannot be written.
        """
        check_model_name(state.model)
        challenger = state.canary if state.canary is not None else max(state.staging, default=None)
        client = self._client()
        # Two mirrors at once would each add the versions that are missing.
        with self._alone(), store_errors(f"model {state.model} cannot be mirrored"):
            present = _mirrored(client, state.model)
            for version in state.versions:
                tags = {"vitok.stage": version.stage, "vitok.digest": version.digest}
                found = present.get(version.version)
                if found is None:
                    found = present[version.version] = self._add_version(client, version, packages)
                for name, value in tags.items():
                    if found.tags.get(name) != value:
                        client.set_model_version_tag(state.model, str(found.version), name, value)
            aliases = client.get_registered_model(state.model).aliases if state.versions else {}
            for alias, wanted in ((CHAMPION, state.production), (CHALLENGER, challenger)):
                if wanted is not None and aliases.get(alias) != str(present[wanted].version):
                    client.set_registered_model_alias(state.model, alias, str(present[wanted].version))
                elif wanted is None and alias in aliases:
                    client.delete_registered_model_alias(state.model, alias)

    def _add_version(self, client: Any, version: Version, packages: str | Path) -> Any:
        if isinstance(packages, str) and "://" in packages:
            source = f"{packages}/{version.path}"
        else:
            source = (Path(packages).resolve() / version.path).as_uri()
        return client.create_model_version(
            version.model,
            source,
            run_id=version.run_id if version.run_id and self._has_run(client, version.run_id) else None,
            tags={"vitok.version": str(version.version)},
        )

    def _has_run(self, client: Any, run_id: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            client.get_run(run_id)
        except MlflowException:
            return False
        return True

    def _client(self) -> Any:
        if self._opened is None:
            if self.database is None:
                self.prepare(self.home)
            else:
                self._prepare_database()
            mlflow = import_mlflow()
            fix = f"If another MLflow made the store, run: mlflow db upgrade {self._shown}"
            with quiet(), store_errors(f"MLflow store {self._shown} cannot be opened. {fix}"):
                client = mlflow.MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
                client.search_experiments(max_results=1)
            self._opened = client
        return self._opened

    @property
    def _shown(self) -> str:
        return self.uri if self.database is None else hidden(self.uri)

    def _is_made(self) -> bool:
        if self.database is None:
            return (self.home / "mlflow.db").exists()
        with (
            store_errors_of_postgres(f"MLflow store {self._shown}"),
            contextlib.closing(connect(self.database)) as found,
        ):
            return found.execute("SELECT to_regclass('alembic_version')").fetchone()[0] is not None

    def _alone(self) -> contextlib.AbstractContextManager[None]:
        return exclusive(self.home / "mlflow.lock") if self.database is None else alone(self.database, "mlflow")

    def _prepare_database(self) -> None:
        assert self.database is not None  # noqa: S101
        import_mlflow()
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        if self._is_made():
            return
        # MLflow's own lock is a file of one machine.
        with self._alone(), quiet(), store_errors(f"MLflow store {self._shown} cannot be made"):
            SqlAlchemyStore(self.uri, self._artifacts).engine.dispose()

    def _experiment(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        client = self._client()
        found = client.get_experiment_by_name(name)
        if found is None:
            try:
                return client.create_experiment(name, artifact_location=self._artifacts)
            except MlflowException:
                # Another process made it between the two lines above; else the second look raises as well.
                found = client.get_experiment_by_name(name)
                if found is None:
                    raise
        if found.lifecycle_stage != "active":
            fix = f"Restore it with: mlflow experiments restore -x {found.experiment_id}"
            raise InvalidInput("experiment", name, "not be deleted", fix)
        return found.experiment_id

    def _now_ms(self) -> int:
        return self._clock.now() // 1000


def _artifact_root(address: str) -> str:
    """Gives the address that MLflow takes, and its endpoint to where MLflow looks for it."""
    if not is_s3(address):
        return address
    parts = bucket_address(address)
    endpoint = parts.options.get("endpoint")
    if endpoint is not None:
        if os.environ.setdefault("MLFLOW_S3_ENDPOINT_URL", endpoint) != endpoint:
            other = os.environ["MLFLOW_S3_ENDPOINT_URL"]
            raise InvalidInput("artifacts", address, f"have the endpoint of MLFLOW_S3_ENDPOINT_URL, which is {other}")
        os.environ.setdefault("MLFLOW_BOTO_CLIENT_ADDRESSING_STYLE", "path")
    return f"s3://{parts.hosts[0][0]}/{parts.path}".rstrip("/")


def _origin_tags(origin: Provenance) -> dict[str, str]:
    tags = {
        "vitok.python": origin.python,
        "vitok.platform": origin.platform,
        "vitok.packages_digest": origin.packages_digest,
        "vitok.hardware": json.dumps(origin.hardware),
        "vitok.git": "none" if origin.commit is None else ("changed" if origin.dirty else "clean"),
    }
    if origin.lock_digest is not None:
        tags["vitok.lock_digest"] = origin.lock_digest
    if origin.commit is not None:
        tags["mlflow.source.git.commit"] = origin.commit
    if origin.branch is not None:
        tags["mlflow.source.git.branch"] = origin.branch
    return tags


def _mirrored(client: Any, model: str) -> dict[int, Any]:
    if not client.search_registered_models(filter_string=f"name = '{model}'"):
        client.create_registered_model(model)
    found = {}
    token = None
    while True:
        page = client.search_model_versions(f"name = '{model}'", max_results=1000, page_token=token)
        for version in page:
            number = version.tags.get("vitok.version", "")
            if number.isdecimal():
                found[int(number)] = version
        token = page.token
        if not token:
            return found
