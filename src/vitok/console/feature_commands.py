"""`vitok features`: what exists, what comes of what, what changed, what is stale, what nobody uses."""

import dataclasses
import json as codec
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from vitok import settings
from vitok.clock import SystemClock, duration, isoformat, parse_time
from vitok.console.exits import REFUSED, plain_errors
from vitok.console.feature_options import filled
from vitok.errors import InvalidInput, NotFound

app = typer.Typer(no_args_is_help=True, help="Says what features there are, who uses them, and how fresh they are.")

Home = Annotated[Path | None, typer.Option(help="Folder of everything vitok writes; .vitok/fraud by default.")]
Definitions = Annotated[
    str | None, typer.Option(help="Python file with a FeatureSet, or FILE:NAME; the fraud system's by default.")
]
At = Annotated[str | None, typer.Option("--at", help="Moment that ages are counted from: an ISO 8601 time, or 'now'.")]
Store = Annotated[str | None, typer.Option(help="Online store whose runs say how fresh views are: lmdb://, redis://.")]
Json = Annotated[bool, typer.Option("--json", help="Writes JSON for a machine.")]


@app.command("list")
@plain_errors()
def list_(
    *, home: Home = None, definitions: Definitions = None, at: At = None, store: Store = None, json: Json = False
) -> None:
    """Lists the views: owner, source, version, the models that use them, and how fresh they are."""
    from vitok.console.wording import plural

    seen = _survey(home, definitions, at, store)
    rows = []
    for features in seen.sets:
        for view in features.views:
            fresh = next(item for item in seen.freshness if item.view == view.name)
            users = seen.users(view.name)
            rows.append((features, view, fresh, users))
    if json:
        _write(
            {
                "as_of": isoformat(seen.moment.now),
                "as_of_reason": seen.moment.reason,
                "sets": [
                    {
                        "name": features.name,
                        "version": features.version,
                        "features": list(features.names),
                        "request": list(features.request),
                        "functions": [item.name for item in features.on_demand],
                    }
                    for features in seen.sets
                ],
                "views": [{"set": features.name, **_told(seen, view)} for features, view, _, _ in rows],
                "models": [_use(item) for item in seen.uses],
            }
        )
        return
    for features in seen.sets:
        typer.echo(f"{features.name} {features.version}: {plural(len(features.names), 'feature')}")
        table = [("view", "version", "owner", "source", "features", "newest event", "arrived", "state", "used by")]
        table += [
            (
                view.name,
                view.version,
                view.owner or "-",
                fresh.source,
                str(len(view.feature_names)),
                _ago(fresh.event_age),
                _ago(fresh.arrival_age),
                _state(fresh),
                _names(users, view),
            )
            for owner_set, view, fresh, users in rows
            if owner_set is features
        ]
        _table(table)
        if features.request:
            typer.echo(f"from the request: {', '.join(features.request)}")
        if features.on_demand:
            typer.echo(f"functions: {', '.join(item.name for item in features.on_demand)}")
    _foot(seen, home)


@app.command()
@plain_errors()
def show(
    name: Annotated[str, typer.Argument(help="A view, or a feature.")],
    *,
    home: Home = None,
    definitions: Definitions = None,
    at: At = None,
    store: Store = None,
    json: Json = False,
) -> None:
    """Shows a view with its features, or the view of a feature."""
    from vitok.features.described import features_of

    seen = _survey(home, definitions, at, store)
    named = [view.name for item in seen.sets for view in item.views if name in view.feature_names]
    known = [view.name for item in seen.sets for view in item.views]
    if not named and name not in known:
        raise NotFound("view or feature", name, [*known, *(one for item in seen.sets for one in item.computed)])
    view = seen.view(named[0] if named else name)
    if json:
        _write(_told(seen, view))
        return
    fresh = next(item for item in seen.freshness if item.view == view.name)
    typer.echo(f"{view.name} {view.version}")
    for title, text in (
        ("description", view.description),
        ("owner", view.owner),
        ("about", f"{view.entity.name} ({', '.join(view.entity.keys)})"),
        ("source", fresh.source),
        ("tags", ", ".join(view.tags)),
        ("freshness", str(fresh).partition(": ")[2]),
        ("used by", _names(seen.users(view.name), view)),
    ):
        if text:
            typer.echo(f"  {title:<12} {text}")
    shares, shares_of = _shares(seen, view, home)
    rows = [("feature", "what it is", "columns", "null", "used by")]
    for one in features_of(view):
        if name in (view.name, one.name):
            nulls = f"{100 * shares[one.name]:.3g} %" if one.name in shares else "-"
            users = _names(seen.users_of(one))
            rows.append((one.name, one.meaning, ", ".join(one.columns) or "-", nulls, users))
    _table(rows)
    if shares_of:
        typer.echo(f"null: {shares_of}", err=True)
    _foot(seen, home)


@app.command()
@plain_errors()
def served(
    name: Annotated[str, typer.Argument(help="A view, a feature or a set; all by default.")] = "",
    *,
    home: Home = None,
    definitions: Definitions = None,
    since: Annotated[str | None, typer.Option(help="From then on, ISO 8601; the last 24 hours by default.")] = None,
    until: Annotated[str | None, typer.Option(help="Up to then, ISO 8601; now by default.")] = None,
    by: Annotated[str | None, typer.Option(help="Length of each range of hours, such as 1h or 1d.")] = None,
    json: Json = False,
) -> None:
    """Shows what the feature service has served, by the hour: values, nulls, mean, spread, and how old views were."""
    from vitok.console.definition_files import load_definitions
    from vitok.console.served_reading import columns_of, served

    found = served(
        _home(home),
        now=SystemClock().now(),
        since=parse_time(since) if since else None,
        until=parse_time(until) if until else None,
        by=duration(by) if by else None,
    )
    if not found:
        typer.echo(f"nothing was served in that time, as far as {_home(home)} knows: see --since and --home", err=True)
    sets = load_definitions(definitions) if name else ()
    declared = {known for item in sets for known in (item.name, *item.computed, *(view.name for view in item.views))}
    if name and not found and name not in declared:
        raise NotFound("view, feature or set", name, sorted(declared))
    told = []
    for one in found:
        wanted = columns_of(one, name, sets)
        windows = [(window, [window.feature(column) for column in wanted]) for window in one.windows]
        if json:
            ranges = [_range(window, items) for window, items in windows]
            told.append({"set": one.name, "version": one.version, "ranges": ranges})
            continue
        typer.echo(str(one))
        rows: list[tuple[str, ...]] = [("from", "feature", "served", "null", "mean", "std", "least", "largest")]
        for window, items in windows:
            for item in items:
                figures = (f"{value:.5g}" for value in (item.mean, item.std, item.least, item.largest))
                share = f"{100 * item.null_share:.3g} %"
                rows.append((isoformat(window.start), item.name, f"{item.n:,}", share, *figures))
        _table(rows)
    if json:
        _write(told)


@app.command()
@plain_errors()
def lineage(
    name: Annotated[
        str | None, typer.Argument(help="A source, column, view, feature or model; all by default.")
    ] = None,
    *,
    home: Home = None,
    definitions: Definitions = None,
    json: Json = False,
) -> None:
    """Shows what a thing is made of and what comes of it."""
    seen = _survey(home, definitions, None, None)
    graph = seen.lineage
    if name is None:
        _write(graph.to_dict()) if json else typer.echo(str(graph.by_view()))
        return
    begin = graph.find(name)
    if json:
        _write(graph.around(*begin).to_dict())
        return
    typer.echo(", ".join(str(node) for node in begin[:6]) + (f" and {len(begin) - 6} more" if len(begin) > 6 else ""))
    for title, nodes in (("made of", graph.upstream(*begin)), ("goes into", graph.downstream(*begin))):
        typer.echo(f"  {title}")
        kinds = dict.fromkeys(node.kind for node in nodes)
        for kind in kinds:
            typer.echo(f"    {kind:<11} {', '.join(node.name for node in nodes if node.kind == kind)}")
        if not kinds:
            typer.echo("    nothing")


@app.command()
@plain_errors()
def diff(
    name: Annotated[str, typer.Argument(help="A view, or a feature set.")],
    old: Annotated[str, typer.Argument(help="A content hash, a model that uses it such as fraud/1, or 'declared'.")],
    new: Annotated[str, typer.Argument(help="The other one.")],
    *,
    home: Home = None,
    definitions: Definitions = None,
    json: Json = False,
) -> None:
    """Compares two versions of a view or feature set, and says whether served values change."""
    from vitok.console.feature_reading import definition_diff

    found = definition_diff(_survey(home, definitions, None, None), name, old, new)
    _write(found.to_dict()) if json else typer.echo(str(found))


@app.command()
@plain_errors()
def stale(
    *, home: Home = None, definitions: Definitions = None, at: At = None, store: Store = None, json: Json = False
) -> None:
    """Lists the views that are older than they promise; exit code 1 where there is one."""
    seen = _survey(home, definitions, at, store)
    late = seen.stale
    if json:
        _write(
            {
                "as_of": isoformat(seen.moment.now),
                "as_of_reason": seen.moment.reason,
                "stale": [item.to_dict() for item in late],
                "views": [item.to_dict() for item in seen.freshness],
            }
        )
    else:
        for item in late:
            typer.echo(f"{item} (owner {item.owner or 'nobody'})")
        if not late:
            without = [item.view for item in seen.freshness if item.state == "unpromised"]
            promised = len(seen.freshness) - len(without)
            typer.echo(f"nothing is stale: {promised} of {len(seen.freshness)} views have a promise to keep")
            if without:
                typer.echo(f"no promise: {', '.join(without)}; give a view fresh_within='1h' to have one")
        _foot(seen, home)
    if late:
        raise typer.Exit(REFUSED)


@app.command()
@plain_errors()
def unused(
    *,
    home: Home = None,
    definitions: Definitions = None,
    live: Annotated[bool, typer.Option("--live", help="Only versions in Production and canaries count.")] = False,
    json: Json = False,
) -> None:
    """Lists the features that no model version uses."""
    seen = _survey(home, definitions, None, None)
    found = seen.unused(live=live)
    if json:
        _write({"unused": [dataclasses.asdict(item) for item in found], "models": [_use(item) for item in seen.uses]})
        return
    for item in found:
        typer.echo(str(item))
    if not found:
        typer.echo("every feature reaches a model")
    _foot(seen, home)


def _survey(home: Path | None, definitions: str | None, at: str | None, store: str | None) -> Any:
    from vitok.console.definition_files import load_definitions
    from vitok.console.feature_reading import survey

    if store is not None:
        filled(store)
    now = SystemClock().now()
    moment = now if at == "now" else parse_time(at) if at else None
    return survey(_home(home), load_definitions(definitions), now=now, at=moment, store=store)


def _home(home: Path | None) -> Path:
    if home is not None and home.exists() and not home.is_dir():
        raise InvalidInput("--home", str(home), "be a folder", "It is where vitok serve and vitok demo wrote.")
    return home or settings.current().home / "fraud"


def _shares(seen: Any, view: Any, home: Path | None) -> tuple[dict[str, float], str]:
    from vitok.console.served_reading import last_day

    if seen.served is not None:
        return {name: seen.served.null_share(name) for name in seen.served.nulls}, ""
    for features in seen.sets:
        if features.pins.get(view.name) == view.version:
            found = last_day(_home(home), features, now=SystemClock().now())
            if found:
                n = next(iter(found.values())).n
                shares = {item.name: item.null_share for item in found.values()}
                return shares, f"share of {n:,} vectors that the feature service served in the last 24 hours"
    return {}, ""


def _range(window: Any, items: Sequence[Any]) -> dict[str, Any]:
    def number(value: float) -> float | None:
        return value if math.isfinite(value) else None

    return {
        "start": isoformat(window.start),
        "end": isoformat(window.end),
        "vectors": window.n,
        "hours": window.n_hours,
        "features": [
            {
                "name": item.name,
                "n": item.n,
                "null_share": number(item.null_share),
                "mean": number(item.mean),
                "std": number(item.std),
                "least": number(item.least),
                "largest": number(item.largest),
                "counts": item.counts.tolist(),
            }
            for item in items
        ],
    }


def _told(seen: Any, view: Any) -> dict[str, Any]:
    from vitok.features.described import features_of, words_of

    fresh = next(item for item in seen.freshness if item.view == view.name)
    shares = {name: seen.served.null_share(name) for name in seen.served.nulls} if seen.served else {}
    return {
        "name": view.name,
        "version": view.version,
        "entity": {"name": view.entity.name, "key": list(view.entity.keys)},
        "source": fresh.source,
        **{name: value for name, value in words_of(view).items() if name != "source"},
        "freshness": fresh.to_dict(),
        "used_by": [_use(item) for item in seen.users(view.name)],
        "features": [
            {
                "name": one.name,
                "meaning": one.meaning,
                "columns": list(one.columns),
                "fingerprint": one.fingerprint,
                "null_share": shares.get(one.name),
                "used_by": [item.name for item in seen.users_of(one)],
            }
            for one in features_of(view)
        ],
    }


def _use(item: Any) -> dict[str, Any]:
    features = item.use.features
    return {
        "model": item.name,
        "role": item.role,
        "definitions": features.version,
        "current": item.current,
        "pins": dict(features.pins),
    }


def _write(value: object) -> None:
    typer.echo(codec.dumps(value, indent=1, ensure_ascii=False))


def _table(rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        typer.echo("  " + "  ".join(cells).rstrip())


def _names(users: Sequence[Any], view: Any = None) -> str:
    first = [item for item in users if item.live] or list(users[:1])
    told = []
    for item in first:
        other = view is not None and item.use.pins[view.name] != view.version
        words = [word for word in (item.role, "another version" if other else "") if word]
        told.append(item.name + (f" ({', '.join(words)})" if words else ""))
    more = f" and {len(users) - len(first)} more" if len(users) > len(first) else ""
    return ", ".join(told) + more or "no model"


def _state(fresh: Any) -> str:
    return fresh.state if fresh.promised is not None or fresh.timeless else "no promise"


def _ago(age: int | None) -> str:
    from vitok.console.wording import length

    return "-" if age is None else f"{length(age)} ago"


def _foot(seen: Any, home: Path | None) -> None:
    if seen.moment.reason:
        typer.echo(f"as of {isoformat(seen.moment.now)}: {seen.moment.reason}", err=True)
    if not seen.uses:
        typer.echo(
            f"no model and no log in {_home(home)}: run vitok demo fraud, or name another folder with --home", err=True
        )
