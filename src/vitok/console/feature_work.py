"""`vitok features`: the commands that compute features, keep them, serve them, forget and rebuild them."""

import dataclasses
import json as codec
import sys
import time as timing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitok import settings
from vitok.clock import SystemClock, duration, isoformat, parse_time
from vitok.console.exits import FAILED, REFUSED, plain_errors
from vitok.console.feature_options import (
    all_views,
    chosen,
    files_of,
    filled,
    grouped,
    indexes_of,
    known,
    numbers,
    single,
    sources_of,
    streams_of,
)
from vitok.errors import InvalidInput, StoreError

if TYPE_CHECKING:
    from vitok.features import FeatureSet, Vectors
    from vitok.features.materialise import Progress

app = typer.Typer(no_args_is_help=True, help="Computes features, keeps them, serves them, forgets and rebuilds them.")

Definitions = Annotated[
    str | None, typer.Option(help="Python file with a FeatureSet, or FILE:NAME; the fraud system's by default.")
]
Sources = Annotated[
    list[str] | None,
    typer.Option("--source", help="Where a source's events are, as NAME=PATH; by default its location. Repeatable."),
]
Keys = Annotated[list[str], typer.Option("--key", help="Key column and key, as customer_id=7. Repeatable.")]
Store = Annotated[str, typer.Option(help="Online store: lmdb://FOLDER, redis://HOST, redis-cluster://HOST,HOST.")]
Json = Annotated[bool, typer.Option("--json", help="Writes JSON for a machine.")]
Lateness = Annotated[str, typer.Option(help="How far behind the newest event of its key a question may come.")]
State = Annotated[Path, typer.Option(help="Folder of the windows; one process at a time has it.")]
Contract = Annotated[Path | None, typer.Option(help="Contract that events must keep, in ODCS YAML.")]
Table = Annotated[
    str | None, typer.Option("--table", help="Table of the contract; that of the source's name, or the only one.")
]
Checkpoint = Annotated[str, typer.Option("--checkpoint-every", help="How often a checkpoint is saved.")]
Patience = Annotated[str, typer.Option(help="How long a stream or store may fail in a row before this gives up.")]
Unit = Annotated[str, typer.Option("--time-unit", help="What whole numbers that stand for times count: us, ms or s.")]


@app.command("table")
def table_(
    spine: Annotated[str, typer.Option(help="Rows to compute features for: Parquet or CSV, a folder or a pattern.")],
    out: Annotated[Path, typer.Option(help="The Parquet file to write.")],
    *,
    definitions: Definitions = None,
    source: Sources = None,
    memory_limit: Annotated[str, typer.Option(help="About how much memory to use.")] = "2GB",
    json: Json = False,
) -> None:
    """Writes the value of each feature as of each row's event_time, as far as it was known then."""
    with plain_errors():
        import pyarrow.parquet as pq

        from vitok.console.definition_files import load_feature_sets
        from vitok.features import table

        loaded = load_feature_sets(definitions)
        _, features = loaded.only()
        if out.suffix != ".parquet":
            raise InvalidInput("--out", str(out), "end in .parquet")
        began = timing.perf_counter()
        indexes = indexes_of(features, loaded.indexes)
        table(spine, features, sources_of(features, source), into=out, memory_limit=memory_limit, indexes=indexes)
        seconds = timing.perf_counter() - began
        n_rows = pq.read_metadata(out).num_rows
    if json:
        told = {"out": str(out), "rows": n_rows, "features": list(features.names), "version": features.version}
        _write({**told, "seconds": seconds})
    else:
        typer.echo(f"{out}: {n_rows:,} rows with {len(features.names)} features {features.version}, {seconds:.2f} s")


@app.command("materialise")
def materialise_(
    store: Store,
    *,
    definitions: Definitions = None,
    source: Sources = None,
    view: Annotated[list[str] | None, typer.Option(help="Only this view; all by default. Repeatable.")] = None,
    until: Annotated[str | None, typer.Option(help="What became known until then, ISO 8601; now by default.")] = None,
    since: Annotated[
        str | None, typer.Option(help="Takes it up again from then on; by default where the last run ended.")
    ] = None,
    every: Annotated[
        str | None, typer.Option(help="Goes on until stopped, and looks so often which views are due by their refresh.")
    ] = None,
    keep: Annotated[str, typer.Option(help="How long after its event a row stays; '' for ever.")] = "",
    lateness: Lateness = "10m",
    json: Json = False,
) -> None:
    """Takes views to the online store; goes on where the last run ended, also where that was killed."""
    with plain_errors():
        from vitok.console.definition_files import load_feature_sets
        from vitok.engines import open_rows
        from vitok.features import materialise

        loaded = load_feature_sets(definitions)
        _, whole = loaded.only()
        features = chosen(whole, view)
        sources, indexes = sources_of(features, source, among=whole), indexes_of(features, loaded.indexes)
        rows = open_rows(store)
        options: dict[str, Any] = {"indexes": indexes, "keep": keep, "lateness": lateness}
        if every is not None:
            if until is not None or since is not None:
                raise InvalidInput("--every", every, "come without --until and --since")
            _keep_materialising(features, sources, rows, every, options)
            return
        moment = SystemClock().now() if until is None else parse_time(until)
        began = None if since is None else parse_time(since)
        with _progress() as progress:
            report = materialise(features, sources, rows, until=moment, since=began, progress=progress, **options)
    _write({"views": [dataclasses.asdict(item) for item in report.views]}) if json else typer.echo(str(report))


@app.command("follow")
def follow_(
    source: Annotated[str, typer.Option(help="Name of the source that the stream carries.")],
    stream: Annotated[str, typer.Option(help="Address of the stream: kafka://HOST:9092/TOPIC, with ?group= to share.")],
    state: State,
    *,
    definitions: Definitions = None,
    publish: Annotated[
        str | None, typer.Option(help="Store that windows are published to, for other processes: redis://HOST.")
    ] = None,
    publish_every: Annotated[str, typer.Option(help="How often windows that changed are published.")] = "1s",
    contract: Contract = None,
    table: Table = None,
    lateness: Lateness = "10m",
    checkpoint_every: Checkpoint = "1m",
    patience: Patience = "5m",
    time_unit: Unit = "us",
    until_idle: Annotated[str | None, typer.Option(help="Ends when nothing came for so long, such as 5s.")] = None,
    json: Json = False,
) -> None:
    """Keeps windows up to date from a stream until it is stopped; a process that is killed goes on where it was."""
    with plain_errors():
        from vitok.console.definition_files import load_feature_sets
        from vitok.console.feature_running import Following, follow, newest_of

        loaded = load_feature_sets(definitions)
        following = Following(
            state=state,
            contract=contract,
            table=table,
            lateness=lateness,
            publish_every=publish_every,
            checkpoint_every=checkpoint_every,
            patience=patience,
            time_unit=time_unit,
        )
        idle = None if until_idle is None else duration(until_idle) / 1e6
        with following.follower(tuple(loaded.sets.values()), source, stream, publish=publish, tell=_say) as follower:
            _say(f"following {source} into {follower.folder}; stop with Ctrl-C")
            report = follow(follower, idle_seconds=idle, say=_say if sys.stderr.isatty() else None)
            newest = newest_of(follower)
            rejected = follower.rejected
    if json:
        _write({**dataclasses.asdict(report), "newest_event": newest or None, "rejected_file": str(rejected)})
        return
    typer.echo(f"{report}" + (f"; newest event {newest}" if newest else ""))
    if report.n_rejected:
        typer.echo(f"what was rejected is in {rejected}")


@app.command("serve")
def serve_(
    *,
    definitions: Definitions = None,
    store: Annotated[str | None, typer.Option(help="Online store that vectors are read from.")] = None,
    stream: Annotated[
        list[str] | None,
        typer.Option(help="Follows a stream itself, exact to its last event: NAME=kafka://HOST/TOPIC. Repeatable."),
    ] = None,
    state: Annotated[Path | None, typer.Option(help="Folder of the windows of the streams.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port of HTTP; 0 takes a free one.")] = 8300,
    grpc_port: Annotated[int | None, typer.Option(help="Port of gRPC; 0 takes a free one. None by default.")] = None,
    home: Annotated[
        Path | None, typer.Option(help="Folder where what is served is counted by the hour; .vitok/fraud by default.")
    ] = None,
    sketches: Annotated[bool, typer.Option(help="Whether what is served is counted and kept.")] = True,
    keep_sketches: Annotated[str, typer.Option(help="How long each hour of it is kept.")] = "90d",
    most_behind: Annotated[
        str, typer.Option(help="How far a stream may be behind before /readyz says 503; '' for any distance.")
    ] = "1m",
    contract: Contract = None,
    table: Table = None,
    lateness: Lateness = "10m",
    checkpoint_every: Checkpoint = "1m",
    patience: Patience = "5m",
    time_unit: Unit = "us",
    json: Json = False,
) -> None:
    """Serves vectors over HTTP, and gRPC where asked for, until it is stopped."""
    with plain_errors():
        from vitok.console.definition_files import load_feature_sets
        from vitok.console.feature_running import Address, Following, Hooks, serve_features

        loaded = load_feature_sets(definitions)
        kept = home or settings.current().home / "fraud"
        hooks = Hooks(home=kept if sketches else None, keep=keep_sketches, most_behind=most_behind)
        following = None
        if state is not None:
            following = Following(
                state=state,
                contract=contract,
                table=table,
                lateness=lateness,
                checkpoint_every=checkpoint_every,
                patience=patience,
                time_unit=time_unit,
            )

        def ready(found: dict[str, Any]) -> None:
            if json:
                typer.echo(codec.dumps(found))
                sys.stdout.flush()
                return
            for path in found["paths"]:
                _say(f"vectors  POST {found['http']}{path}")
            if found["grpc"]:
                _say(f"gRPC     {found['grpc']}  vitok.features.v1.FeatureService, with reflection")
            _say(f"API      {found['http']}/openapi.json      stop with Ctrl-C")

        serve_features(
            loaded.sets,
            Address(host=host, port=port, grpc_port=grpc_port),
            store=store,
            streams=streams_of(tuple(loaded.sets.values()), stream or []),
            following=following,
            indexes=loaded.indexes,
            hooks=hooks,
            ready=ready,
            tell=_say,
        )


@app.command("read")
def read_(
    store: Store,
    key: Keys,
    *,
    definitions: Definitions = None,
    request: Annotated[
        list[str] | None, typer.Option(help="Request column and number, as amount=12.5. Repeatable.")
    ] = None,
    at: Annotated[
        str | None, typer.Option("--at", help="When the question is asked, ISO 8601; now by default.")
    ] = None,
    lateness: Lateness = "10m",
    json: Json = False,
) -> None:
    """Reads vectors from the online store: each value, how old it is, and where it comes from."""
    with plain_errors():
        from vitok.console.definition_files import load_feature_sets
        from vitok.features import FeatureReader

        loaded = load_feature_sets(definitions)
        _, features = loaded.only()
        filled(store)
        keys = grouped("--key", key)
        n = max(map(len, keys.values()))
        asked = numbers("--request", request or [], n)
        moment = SystemClock().now() if at is None else parse_time(at)
        with FeatureReader(features, store, indexes=indexes_of(features, loaded.indexes), lateness=lateness) as reader:
            vectors = reader.read(keys, time=moment, request=asked)
            error = reader.counters.last_error
        if error:
            raise StoreError(f"the store could not be read: {error}")
    if json:
        rows = [{"keys": {name: keys[name][row] for name in keys}} for row in range(n)]
        told = [{**row, **vector} for row, vector in zip(rows, vectors.to_dicts(), strict=True)]
        _write({"version": features.version, "at": isoformat(moment), "vectors": told})
        return
    for row in range(n):
        _show_vector(features, vectors, row, {name: keys[name][row] for name in keys}, moment)


@app.command("forget")
def forget_(
    entity: Annotated[str, typer.Option(help="Who is to be forgotten: name of the entity, such as customer.")],
    key: Keys,
    store: Store,
    *,
    definitions: Definitions = None,
    source: Annotated[
        list[str] | None,
        typer.Option("--source", help="Parquet files that hold its events, as NAME=PATH. Repeatable."),
    ] = None,
    state: Annotated[Path | None, typer.Option(help="Folder of the windows of a follower that is not running.")] = None,
    until: Annotated[
        str | None, typer.Option(help="Up to when runs refuse to bring it back, ISO 8601; for ever by default.")
    ] = None,
    lateness: Lateness = "10m",
    json: Json = False,
) -> None:
    """Deletes a subject online, in files and in windows, and prints the proof; goes on where it stopped, run again."""
    with plain_errors():
        from vitok.console.definition_files import load_feature_sets
        from vitok.features import forget
        from vitok.features.live import KeptWindows

        sets = tuple(load_feature_sets(definitions).sets.values())
        if state is not None and not state.is_dir():
            # What is not there holds nobody, and a proof that says so must not come of a name that was mistyped.
            raise InvalidInput("--state", str(state), "be a folder that exists", "Name the folder of the follower.")
        filled(store)
        keys = single("--key", key)
        files, skipped = files_of(sets, source)
        report = forget(
            all_views(sets),
            entity,
            keys,
            store=store,
            sources=files,
            holders=[] if state is None else [KeptWindows(sets, state, lateness=lateness)],
            until=None if until is None else parse_time(until),
        )
    if json:
        told = {**dataclasses.asdict(report), "rows_offline": report.rows_offline, "not_looked_into": skipped}
        _write({**told, "until": None if report.until is None else isoformat(report.until)})
        return
    typer.echo(str(report))
    for name in skipped:
        typer.echo(f"not looked into: {name}; name its files with --source, or delete there with what wrote them")


@app.command("flink")
def flink_(
    *,
    definitions: Definitions = None,
    stream: Annotated[
        list[str] | None, typer.Option(help="Where Flink reads a source, as NAME=kafka://HOST/TOPIC. Repeatable.")
    ] = None,
    column_type: Annotated[
        list[str] | None, typer.Option("--type", help="Flink's type of a column, as SOURCE.COLUMN=BIGINT. Repeatable.")
    ] = None,
    sink: Annotated[str, typer.Option(help="Where the tiles go: kafka://HOST/PREFIX or file:///FOLDER.")] = "",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Writes the job to this file.")] = None,
) -> None:
    """Prints a Flink SQL job that keeps the tiles of the windows; run it with sql-client.sh -f FILE."""
    with plain_errors():
        from vitok.console.definition_files import load_feature_sets
        from vitok.features.flink import Stream, job

        _, features = load_feature_sets(definitions).only()
        names = [item.name for item in features.sources]
        places = single("--stream", stream or [])
        types: dict[str, dict[str, str]] = {}
        for column, kind in single("--type", column_type or []).items():
            owner, mark, name = column.partition(".")
            if not mark:
                raise InvalidInput("--type", column, "look like SOURCE.COLUMN=TYPE")
            types.setdefault(owner, {})[name] = kind
        for name in (*places, *types):
            known("--stream" if name in places else "--type", name, names)
        streams = {name: Stream(location=places.get(name, ""), types=types.get(name, {})) for name in {*places, *types}}
        text = job(features, streams=streams, sink=sink)
        if out is not None:
            _write_file(out, text)
    typer.echo(f"wrote {out}" if out is not None else text, nl=out is not None)


@app.command("rebuild")
def rebuild_(
    decision_id: Annotated[str, typer.Argument(help="Id of a decision of the fraud system, as its answer had it.")],
    *,
    home: Annotated[
        Path | None, typer.Option(help="Folder of everything vitok writes; .vitok/fraud by default.")
    ] = None,
    transactions: Annotated[
        Path | None, typer.Option(help="CSV or Parquet of the history that the service was started with, if any.")
    ] = None,
    mapping: Annotated[
        list[str] | None, typer.Option(help="Our column name = the file's, such as amount=AMT. Repeatable.")
    ] = None,
    label_delay: Annotated[str, typer.Option(help="Assumed age of a label where the file has no label time.")] = "7d",
    json: Json = False,
) -> None:
    """Computes a decision's vector again; leaves with 1 where a feature differs, 2 where the history is missing."""
    with plain_errors():
        from vitok.console.decision_rebuild import DIFFERS, UNKNOWN, rebuild_decision

        history = None
        if transactions is not None:
            from vitok.systems.fraud import read

            names = single("--mapping", mapping or [])
            history = read(transactions, mapping=names or None, label_delay=label_delay)
        found = rebuild_decision(home or settings.current().home / "fraud", decision_id, history=history)
    _write(found.to_dict()) if json else typer.echo(str(found))
    if found.of_state(DIFFERS):
        raise typer.Exit(REFUSED)
    if found.of_state(UNKNOWN):
        raise typer.Exit(FAILED)


# What is shown


def _keep_materialising(
    features: "FeatureSet", sources: dict[str, list[str]], rows: Any, every: str, options: dict[str, Any]
) -> None:
    from vitok.console.feature_running import stopped_by_signals
    from vitok.features import Materialiser

    pause = duration(every) / 1e6
    job = Materialiser(features, sources, rows, **options)
    _say(f"materialising {', '.join(view.name for view in features.views)}; stop with Ctrl-C")
    with stopped_by_signals() as stop:
        while not stop.is_set():
            try:
                for outcome in job.run_due():
                    typer.echo(str(outcome))
                    sys.stdout.flush()
            except StoreError as error:
                _say(f"{error}; trying again in {every}")
            stop.wait(pause)


@contextmanager
def _progress() -> "Iterator[Callable[[Progress], None]]":
    """A line on a terminal that says how far each view is; nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:<24}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        tasks: dict[str, TaskID] = {}

        def show(done: Any) -> None:
            if done.view not in tasks:
                tasks[done.view] = bar.add_task(done.view, total=None)
            bar.update(tasks[done.view], completed=done.done, total=done.of if done.of >= 0 else None)

        yield show


def _show_vector(features: "FeatureSet", vectors: "Vectors", row: int, keys: dict[str, str], moment: int) -> None:
    from vitok.console.wording import length

    told = vectors.to_dicts()[row]
    named = ", ".join(f"{name} {value}" for name, value in keys.items())
    typer.echo(f"{named} at {isoformat(moment)}: {vectors.status_of(row)} from {vectors.source_of(row)}")
    owner = {name: view.name for view in features.views for name in view.feature_names}
    rows = [("feature", "value", "view", "status", "source", "newest event")]
    for name, value in told["values"].items():
        shown = "-" if value is None else f"{value:.10g}"
        view = owner.get(name)
        if view is None:
            rows.append((name, shown, "request" if name in features.request else "function", "", "", ""))
            continue
        place = vectors.views.index(view)
        time = int(vectors.event_times[row, place])
        age = f"{isoformat(time)}, {length(moment - time)} before" if time > 0 else "-"
        rows.append((name, shown, view, told["views"][view]["status"], told["views"][view]["source"], age))
    widths = [max(len(line[column]) for line in rows) for column in range(len(rows[0]))]
    for line in rows:
        cells = [
            cell.rjust(width) if place == 1 else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        typer.echo("  " + "  ".join(cells).rstrip())


def _write(value: object) -> None:
    typer.echo(codec.dumps(value, indent=1, ensure_ascii=False))


def _write_file(path: Path, text: str) -> None:
    draft = path.with_name(f".{path.name}.part")
    try:
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise StoreError(f"{path} cannot be written: {error}") from error


def _say(text: str) -> None:
    typer.echo(text, err=True)
