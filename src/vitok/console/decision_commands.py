"""`vitok replay` and `vitok log`: decisions taken again, and what a log keeps, holds and forgets."""

import json as codec
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from vitok import settings
from vitok.clock import SystemClock, parse_time
from vitok.console.exits import REFUSED, plain_errors
from vitok.errors import InvalidInput, NotFound

log_app = typer.Typer(no_args_is_help=True, help="Keeps a log of decisions: retention, holds, and deleting a subject.")

Home = Annotated[Path | None, typer.Option(help="Folder of everything vitok writes; .vitok/fraud by default.")]
Json = Annotated[bool, typer.Option("--json", help="Writes JSON for a machine.")]
_KEY = "VITOK_LOG_KEY"


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
    return replay_period(
        logs,
        fraud,
        fraud.named(version),
        since=parse_time(since),
        until=_last(logs) + 1 if until is None else parse_time(until),
        as_of=2**62 if as_of is None else parse_time(as_of),
        kind=OUTCOME_KIND,
    )


@log_app.command("forget")
def forget_(
    subject: Annotated[str, typer.Argument(help="Column and value, such as customer_id=17.")],
    *,
    home: Home = None,
    json: Json = False,
) -> None:
    """Deletes one subject's decisions and outcomes, while no service writes the log, and prints the receipt.

    The key of the receipt is read from VITOK_LOG_KEY, in hex.
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
    which: Annotated[str, typer.Option("--log", help="decisions or outcomes.")] = "decisions",
    home: Home = None,
) -> None:
    """Removes sealed rows that are older and that no hold keeps."""
    with plain_errors():
        from vitok.decisions import retain

        if which not in ("decisions", "outcomes"):
            raise InvalidInput("--log", which, "be decisions or outcomes")
        done = retain(_home(home) / "log" / which, keep, now=SystemClock().now())
    typer.echo(str(done))


def _home(home: Path | None) -> Path:
    return home or settings.current().home / "fraud"


def _last(logs: Path) -> int:
    from vitok.decisions import read

    return int(read(logs / "decisions", columns=["event_time"])["event_time"].to_physical().max() or 0)  # type: ignore[arg-type]  # of times it is a number


def _pair(text: str) -> tuple[str, str]:
    column, mark, value = text.partition("=")
    if not column or not mark or not value:
        raise InvalidInput("SUBJECT", text, "look like customer_id=17")
    return column, value


def _key() -> bytes:
    text = os.environ.get(_KEY, "")
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise InvalidInput(_KEY, "***", "be hex digits, at least 32 of them") from None


def _write(content: dict[str, Any]) -> None:
    typer.echo(codec.dumps(content, indent=2))
