"""`vitok replay` and `vitok log`: decisions taken again, and what a log keeps, merges and forgets."""

import contextlib
import json as codec
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from vitok import settings
from vitok.clock import SystemClock, isoformat
from vitok.console.exits import REFUSED, plain_errors
from vitok.console.shared_options import time_of
from vitok.errors import InvalidInput, NotFound

log_app = typer.Typer(
    no_args_is_help=True,
    help="Keeps a log: what stays and what goes, what is redacted, merging small files.",
)

Home = Annotated[Path | None, typer.Option(help="Folder of everything vitok writes; .vitok/fraud by default.")]
Json = Annotated[bool, typer.Option("--json", help="Writes JSON for a machine.")]
WhichLog = Annotated[str, typer.Option("--log", help="decisions or outcomes.")]
_KEY = "VITOK_LOG_KEY"
_LAST_TIME = 253_402_300_799_000_000


def replay(
    decision_id: Annotated[str | None, typer.Argument(help="Id of one decision; none for a period.")] = None,
    *,
    since: Annotated[str | None, typer.Option(help="Begin of a period, an ISO 8601 time.")] = None,
    until: Annotated[str | None, typer.Option(help="Its end, exclusive; the end of the log by default.")] = None,
    system: Annotated[
        str, typer.Option(help="System and version: fraud@candidate, fraud@production, fraud@3, fraud@rules.")
    ] = "fraud@candidate",
    as_of: Annotated[str | None, typer.Option(help="Labels known then are used; all by default.")] = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Takes decisions again: one, which must come out as it stands, or a period by another version.

    Leaves with 1 where the one decision differs from its record.
    """
    with plain_errors():
        if (decision_id is None) == (since is None):
            raise InvalidInput("DECISION_ID, --since", (decision_id, since), "be given one of the two")
        from vitok.console import stores
        from vitok.console.decision_replay import FraudReplay
        from vitok.decisions import replay_decision

        folder = _home(home)
        logs = stores.logs(folder)
        if logs is None:
            raise NotFound("decision log in", str(folder))
        fraud = FraudReplay(folder)
        if decision_id is not None:
            one = replay_decision(logs / "decisions", decision_id, fraud.recompute)
            _write(one.to_dict()) if json else typer.echo(str(one))
            if one.differences:
                raise typer.Exit(REFUSED)
            return
        found = _period(fraud, logs, system, str(since), until, as_of)
        _write(found.to_dict()) if json else typer.echo(str(found))


def _period(fraud: Any, logs: Path, system: str, since: str, until: str | None, as_of: str | None) -> Any:
    from vitok.decisions import replay_period
    from vitok.systems.fraud.messages import OUTCOME_KIND, SYSTEM

    name, mark, version = system.partition("@")
    if name != SYSTEM or not mark or not version:
        raise InvalidInput("--system", system, f"look like {SYSTEM}@candidate")
    begin = time_of("--since", since)
    end = _last(logs) + 1 if until is None else time_of("--until", until)
    if until is not None and end <= begin:
        raise InvalidInput("--until", until, f"be later than --since, {since}")
    known = 2**62 if as_of is None else time_of("--as-of", as_of)
    return replay_period(logs, fraud, fraud.named(version), since=begin, until=end, as_of=known, kind=OUTCOME_KIND)


@log_app.command("forget")
def forget_(
    subject: Annotated[str, typer.Argument(help="Column and value, such as customer_id=17.")],
    *,
    home: Home = None,
    json: Json = False,
) -> None:
    """Deletes one subject's decisions and outcomes, while no service writes the log, and prints the receipt.

    The key of the receipt is read from VITOK_LOG_KEY, in hex. What was shipped to a store follows with the next `ship`;
    rows that were too old for the log, and that only the store has, `decisions.shipping.forget_shipped` deletes there.
    """
    with plain_errors():
        from vitok.decisions import forget, verify

        column, value = _pair(subject)
        key = _key()
        receipt = forget(_home(home) / "log", column, value, key=key, now=SystemClock().now())
        checked = verify(_home(home) / "log", receipt, column, value, key=key)
    _write(receipt.to_dict()) if json else typer.echo(f"{receipt}\n{checked}")
    if not checked.good:
        raise typer.Exit(REFUSED)


@log_app.command("verify")
def verify_(
    subject: Annotated[str, typer.Argument(help="Column and value, such as customer_id=17.")], *, home: Home = None
) -> None:
    """Reads the logs again and checks every receipt of a subject; leaves with 1 where one does not hold."""
    with plain_errors():
        from vitok.decisions import receipts, verify
        from vitok.decisions.retention import keyed

        column, value = _pair(subject)
        key, logs = _key(), _home(home) / "log"
        own = [one for one in receipts(logs) if one.subject == keyed(key, f"{column}={value}")]
        if not own:
            raise NotFound("receipt of", subject)
        checked = [verify(logs, one, column, value, key=key) for one in own]
    for one in checked:
        typer.echo(str(one))
    if not all(one.good for one in checked):
        raise typer.Exit(REFUSED)


@log_app.command("retain")
def retain_(
    keep: Annotated[str, typer.Argument(help="How long rows stay, such as 400d.")],
    *,
    which: WhichLog = "decisions",
    home: Home = None,
) -> None:
    """Removes sealed rows that are older and that no hold keeps."""
    with plain_errors():
        from vitok.decisions import retain

        _check_log(which)
        done = retain(_home(home) / "log" / which, keep, now=SystemClock().now())
    typer.echo(str(done))


@log_app.command("merge")
def merge_(
    *,
    older_than: Annotated[str, typer.Option(help="For how long a day must have been over.")] = "1d",
    rows: Annotated[int, typer.Option(help="Most rows of a file.")] = 100_000,
    which: Annotated[str | None, typer.Option("--log", help="decisions or outcomes; both by default.")] = None,
    home: Home = None,
) -> None:
    """Makes the small sealed files of each day into few, so that reading a long span does not pay for each.

    Services may write and read meanwhile. `vitok serve fraud` does the same by itself, once a day.
    """
    with plain_errors(), contextlib.ExitStack() as until_done:
        from vitok.console import stores
        from vitok.decisions import merge
        from vitok.systems.fraud.sketching import hour_sealer

        _check_log(which or "decisions")
        folder = _home(home)
        logs = folder / "log"
        names = [which] if which else [name for name in ("decisions", "outcomes") if (logs / name).is_dir()]
        if not names:
            raise NotFound("log", str(logs))
        counted = None
        if "decisions" in names and stores.state(folder).versions:
            # What the service counts at its sealing.
            counted = hour_sealer(until_done.enter_context(stores.registry(folder)))
        done = {
            name: merge(
                logs / name,
                older_than=older_than,
                now=SystemClock().now(),
                rows=rows,
                on_seal=counted if name == "decisions" else None,
            )
            for name in names
        }
    for name, one in done.items():
        typer.echo(f"{name}: {one}")


@log_app.command("redact")
def redact_(
    columns: Annotated[list[str], typer.Argument(help="Columns and ways, such as customer_id=hash email=drop.")],
    *,
    age: Annotated[str, typer.Option(help="From which age on, such as 30d.")],
    which: WhichLog = "decisions",
    home: Home = None,
) -> None:
    """Hashes or drops columns of sealed rows that are old enough; rows under a hold wait until it ends."""
    with plain_errors():
        from vitok.decisions import redact

        _check_log(which)
        wanted: dict[str, Any] = dict(_pair(one, "COLUMNS", "customer_id=hash") for one in columns)
        n = redact(_home(home) / "log" / which, wanted, age=age, now=SystemClock().now(), key=_key())
    typer.echo(f"{n:,} sealed files redacted")


@log_app.command("hold")
def hold_(
    name: Annotated[str, typer.Argument(help="Names the hold; one of the name is replaced.")],
    *,
    reason: Annotated[str, typer.Option(help="Why, for people.")] = "",
    since: Annotated[str | None, typer.Option(help="Event time of the earliest row, ISO 8601.")] = None,
    until: Annotated[str | None, typer.Option(help="Event time at which it ends, exclusive.")] = None,
    where: Annotated[list[str] | None, typer.Option(help="Column and value, such as customer_id=17.")] = None,
    which: WhichLog = "decisions",
    home: Home = None,
) -> None:
    """Keeps rows whatever their age: neither retention nor a deletion takes them until the hold is released."""
    with plain_errors():
        from vitok.decisions import Hold, hold

        _check_log(which)
        every = Hold(name=name)
        held = Hold(
            name=name,
            reason=reason,
            since=every.since if since is None else time_of("--since", since),
            until=every.until if until is None else time_of("--until", until),
            where=dict(_pair(one, "--where") for one in where or ()),
        )
        hold(_home(home) / "log" / which, held)
    typer.echo(f"held: {name}")


@log_app.command("release")
def release_(
    name: Annotated[str, typer.Argument(help="Name of the hold.")], *, which: WhichLog = "decisions", home: Home = None
) -> None:
    """Ends a hold."""
    with plain_errors():
        from vitok.decisions import release

        _check_log(which)
        release(_home(home) / "log" / which, name)
    typer.echo(f"released: {name}")


@log_app.command("holds")
def holds_(*, which: WhichLog = "decisions", home: Home = None) -> None:
    """Lists the holds on a log."""
    with plain_errors():
        from vitok.decisions.retention import holds

        _check_log(which)
        found = holds(_home(home) / "log" / which)
    for one in found:
        rows = ", ".join(f"{column}={value}" for column, value in one.where.items()) or "all rows"
        end = "the end" if one.until > _LAST_TIME else isoformat(one.until)
        typer.echo(f"{one.name}: {rows} from {isoformat(one.since)} to {end}" + (f"; {one.reason}" * bool(one.reason)))


def _check_log(name: str) -> None:
    if name not in ("decisions", "outcomes"):
        raise InvalidInput("--log", name, "be decisions or outcomes")


def _home(home: Path | None) -> Path:
    return home or settings.current().home / "fraud"


def _last(logs: Path) -> int:
    from vitok.decisions import read

    return int(read(logs / "decisions", columns=["event_time"])["event_time"].to_physical().max() or 0)  # type: ignore[arg-type]  # of times it is a number


def _pair(text: str, name: str = "SUBJECT", example: str = "customer_id=17") -> tuple[str, str]:
    column, mark, value = text.partition("=")
    if not column or not mark or not value:
        raise InvalidInput(name, text, f"look like {example}")
    return column, value


def _key() -> bytes:
    text = os.environ.get(_KEY, "")
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise InvalidInput(_KEY, "***", "be hex digits, at least 32 of them") from None


def _write(content: dict[str, Any]) -> None:
    typer.echo(codec.dumps(content, indent=2))
