"""What `vitok demo fraud` shows: the turn with a progress bar, and one screen of what happened."""

import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from vitok import settings
from vitok.clock import DAY, duration, isoformat
from vitok.errors import Conflict, InvalidInput
from vitok.loop.playbook_actions import VERBS
from vitok.systems.fraud.replay import running
from vitok.systems.fraud.report import METRICS, Report
from vitok.systems.fraud.transactions import Transactions

_OWNED = (
    "features",
    "log",
    "loop",
    "loop.lock",
    "loop.sqlite",
    "mlartifacts",
    "mlflow.db",
    "monitoring",
    "online",
    "quarantine",
    "records",
    "registry",
    "report.json",
    "service.json",
    "service.log",
)
_STEPS = ("data", "contract and features", "training", "online store", "replay", "comparison")
_WEIGHTS = {"data": 0.06, "contract and features": 0.1, "training": 0.12, "online store": 0.05, "replay": 0.62}
_DAYS_TO_CHANGE = 10
_COLUMNS = ("", "ROC AUC", "average precision", "card precision@100", "calibration error", "saved")
_NARROW = ("", "ROC AUC", "avg precision", "CP@100", "calibration", "saved")


def run_demo(
    *,
    home: Path,
    transactions: Path | None = None,
    mapping: Mapping[str, str] | None = None,
    label_delay: str = "7d",
    n_customers: int = 2500,
    days: int = 121,
    concept_change: bool = True,
    protocol: str | None = None,
    json_file: Path | None = None,
    fresh: bool = False,
    console: Console | None = None,
) -> Report:
    """Runs the turn, or shows the last one where nothing has changed.

    Args:
        home: Folder for everything that is written; what an earlier run left there is removed.
        transactions: File or folder with transactions; None simulates them.
        mapping: Our column name to the file's.
        label_delay: Assumed age of a label where the file has no label time.
        n_customers: Customers to simulate.
        days: Days to simulate.
        concept_change: Whether fraud changes its ways ten days into the replay of simulated data.
        protocol: `"handbook"` evaluates with the published features, split and metric instead.
        json_file: Where to write the numbers.
        fresh: Runs again also where nothing has changed.
        console: Where to show it.

    Raises:
        InvalidInput: If an argument breaks its rule.
        Conflict: If a service is still running in the home folder.
    """
    from vitok.systems.fraud.turn import fingerprint

    console = console or Console(stderr=True)
    if protocol not in (None, "handbook"):
        raise InvalidInput("--protocol", protocol, "be handbook")
    if transactions is not None and not transactions.exists():
        raise InvalidInput("--transactions", str(transactions), "name a file or folder that exists")
    if not next(one for one in (home, *home.absolute().parents) if one.exists()).is_dir():
        raise InvalidInput("--home", str(home), "be a folder, or one that can be made")
    if json_file is not None and json_file.is_dir():
        raise InvalidInput("--json", str(json_file), "be a file, and not a folder")
    arguments: dict[str, Any] = {
        "transactions": _stamp(transactions) if transactions else None,
        "mapping": dict(mapping or {}),
        "label_delay": duration(label_delay),
        "n_customers": n_customers,
        "days": days,
        "concept_change": concept_change,
        "seed": settings.current().seed,
        "protocol": protocol,
    }
    key = fingerprint(arguments)
    if protocol == "handbook":
        return _handbook(console, _data(arguments, transactions, mapping)[0], json_file)
    last, stamp = home / "report.json", home / "report.key"
    if not fresh and last.exists() and stamp.exists() and stamp.read_text() == key:
        report = Report.read(last)
        console.print("Nothing has changed since the last run; here is what it found (--fresh runs again).")
    else:
        _clear(home)
        report = _run(console, home, arguments, transactions, mapping)
        report.write(last)
        stamp.write_text(key)
    show(report, home, console)
    if json_file is not None:
        report.write(json_file)
    return report


def _stamp(path: Path) -> list[tuple[str, int, int]]:
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]


def _clear(home: Path) -> None:
    # Only what the demo itself writes is removed, so that a folder named by mistake keeps what is in it.
    pid = running(home)
    if pid is not None:
        raise Conflict(f"a service runs in {home} (process {pid}); stop it first, or give another --home")
    for name in (*_OWNED, "report.key", "mlflow.lock"):
        target = home / name
        if target.is_dir():
            shutil.rmtree(target)
        else:
            target.unlink(missing_ok=True)
    for leftover in home.glob("mlflow.db*") if home.exists() else ():
        leftover.unlink()
    for leftover in home.glob("loop.sqlite*") if home.exists() else ():
        leftover.unlink()
    home.mkdir(parents=True, exist_ok=True)


def _data(
    arguments: Mapping[str, Any], transactions: Path | None, mapping: Mapping[str, str] | None
) -> tuple[Transactions, int | None]:
    if transactions is not None:
        from vitok.systems.fraud.transactions import read

        return read(transactions, mapping=mapping or None, label_delay=arguments["label_delay"]), None
    from vitok.systems.fraud.simulator import simulate
    from vitok.systems.fraud.training import Timeline

    delay = 7 * DAY
    change_day = None
    if arguments["concept_change"] and arguments["protocol"] is None:
        timeline = Timeline.plan(0, arguments["days"] * DAY, label_delay=delay)
        change_day = timeline.replay_start // DAY + _DAYS_TO_CHANGE
    data = simulate(
        n_customers=arguments["n_customers"],
        n_terminals=2 * arguments["n_customers"],
        days=arguments["days"],
        seed=arguments["seed"],
        change_day=change_day,
    )
    if change_day is None:
        return data, None
    start, _ = data.span()
    return data, start // DAY * DAY + change_day * DAY


def _run(
    console: Console,
    home: Path,
    arguments: Mapping[str, Any],
    transactions: Path | None,
    mapping: Mapping[str, str] | None,
) -> Report:
    from vitok.systems.fraud.turn import Turn

    # MLflow takes seconds to make its store; another process does it while data are read.
    prepare = f"from vitok.registry import Tracker; Tracker.prepare({str(home)!r})"
    store = subprocess.Popen([sys.executable, "-c", prepare], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    columns = (TextColumn("{task.description:<24}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("data", total=1.0)

        def progress(what: str, share: float) -> None:
            _advance(bar, task, what, share)

        def tell(moment: int | None, text: str) -> None:
            when = isoformat(moment)[:10] if moment is not None else " " * 10
            bar.console.print(f"[dim]{when}[/dim]  {text}", highlight=False, soft_wrap=True)

        try:
            data, change = _data(arguments, transactions, mapping)
            if change is not None:
                tell(change, "here the simulated fraud changes its ways (--no-concept-change leaves it as it is)")
            return Turn(home, data, change=change, tell=tell, progress=progress).run()
        finally:
            store.wait()


def _advance(bar: Progress, task: TaskID, what: str, share: float) -> None:
    known = what if what in _STEPS else None
    if known is None:
        bar.update(task, description=what)
        return
    before = sum(_WEIGHTS.get(step, 0.0) for step in _STEPS[: _STEPS.index(known)])
    bar.update(task, description=what, completed=before + share * _WEIGHTS.get(known, 0.05))


def show(report: Report, home: Path, console: Console) -> None:
    """Prints one screen: who did how well, what the service did, and where to look next."""
    found = report.numbers
    after, before = found["after_retraining"], found["before_change"]
    for name, part in (("before the change", before), ("after the retraining", after)):
        if not part["scorers"]:
            continue
        day = " to ".join(text[:10] for text in part["period"])
        title = f"{name}: {part['n']:,} decisions with {part['frauds']:,} frauds, {day}"
        sheet = Table(
            title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False
        )
        wide = console.width >= 116
        for column in _COLUMNS if wide else _NARROW:
            sheet.add_column(column, justify="left" if not column else "right", no_wrap=True)
        for role, values in part["scorers"].items():
            cells = [_interval(values[metric], wide=wide) for metric in METRICS]
            error = values.get("calibration_error")
            cells.append(f"{error['value']:.4f}" if error and error["value"] is not None else "")
            sheet.add_row(_role(role, values["version"]), *cells, f"{values['money_saved']:,.0f}")
        console.print(sheet)
    facts = Table.grid(padding=(0, 2))
    latency = found["latency_ms"]
    rate = found["decisions_per_second"]
    facts.add_row("decisions", f"{found['decisions']:,} logged, {found['feature_mismatches']} differ from the table")
    facts.add_row(
        "latency", f"P50 {latency['p50']:.2f} ms, P99 {latency['p99']:.2f} ms, P99.9 {latency['p99.9']:.2f} ms"
    )
    facts.add_row("throughput", f"{rate:,.0f} decisions/s" if rate else "not measured")
    told = f"{len(found['alerts'])} raised"
    if found["false_alerts_before_change"] is not None:
        told += f", {found['false_alerts_before_change']} before the change"
    facts.add_row("alerts", told)
    acted = Counter(action for one in found["incidents"] for action in one["done"])
    done = ", ".join(f"{VERBS[action]} {n} times" if n > 1 else VERBS[action] for action, n in acted.items())
    facts.add_row("playbook", f"{len(found['incidents'])} incidents; done: {done or 'nothing'}")
    if found["days_from_change_to_alert"] is not None:
        promoted = found["days_from_change_to_promotion"]
        told = f"first alert after {found['days_from_change_to_alert']:.1f} days"
        facts.add_row("change", told + (f", new version promoted after {promoted:.1f} days" if promoted else ""))
    hours = found["hours_from_bad_release_to_rollback"]
    for place, entry in enumerate(found["rollbacks"], start=1):
        # The drill comes last; what was rolled back before it says of its incident after how long.
        last = place == len(found["rollbacks"]) and hours is not None
        after = f"found bad after {hours:.0f} h of traffic, " if last else ""
        facts.add_row("roll back", f"{entry['version']} {after}pointer moved back in {entry['seconds']:.3f} s")
    console.print(facts)
    option = "" if home == settings.current().home / "fraud" else f" --home {home}"
    lines = (
        f"console   vitok serve fraud{option}   then open http://127.0.0.1:8200/",
        f"runs      mlflow ui --backend-store-uri sqlite:///{home / 'mlflow.db'}   (after pip install mlflow)",
        f"records   {home / 'records'}",
        f"numbers   {home / 'report.json'}",
    )
    console.print("\nWhere to look and how to go on:")
    for line in lines:
        console.print(f"  {line}", soft_wrap=True, highlight=False)


def _role(role: str, version: str) -> str:
    return role if role == version else f"{role} ({version})"


def _interval(estimate: Mapping[str, Any], *, wide: bool) -> str:
    if estimate["value"] is None:
        return "n/a"
    if not wide:
        return f"{estimate['value']:.3f}"
    return f"{estimate['value']:.3f} [dim]({estimate['lower']:.3f}-{estimate['upper']:.3f})[/dim]"


def _handbook(console: Console, data: Transactions, json_file: Path | None) -> Report:
    from vitok.systems.fraud.handbook import protocol_report

    report = protocol_report(data, tell=lambda text: console.print(text, highlight=False))
    if json_file is not None:
        report.write(json_file)
    return report
