"""What is installed, which stores are in use, and whether they answer."""

import dataclasses
import importlib.metadata
import platform
import shutil
import sqlite3
from pathlib import Path

from vitok import __version__
from vitok.errors import VitokError

_EXTRAS = {
    "models": ("lightgbm", "scikit-learn", "onnx", "onnxmltools"),
    "mlflow": ("mlflow-skinny", "sqlalchemy", "alembic"),
    "serve": ("starlette", "uvicorn", "uvloop", "httptools", "onnxruntime", "jinja2"),
    "durable": ("dbos",),
    "torch": ("torch",),
}
_BASE = ("numpy", "scipy", "numba", "polars", "duckdb", "pyarrow", "msgspec", "lmdb")
_LEAST_FREE = 1 << 30


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing looked at.

    Attributes:
        part: What it is.
        state: `"ok"`, `"absent"` (not there, and nothing needs it), or `"bad"`.
        detail: What was found, and what to do where it is bad.
    """

    part: str
    state: str
    detail: str


@dataclasses.dataclass(frozen=True)
class Examination:
    """All findings."""

    findings: tuple[Finding, ...]

    @property
    def good(self) -> bool:
        """True where nothing is bad."""
        return all(finding.state != "bad" for finding in self.findings)

    def __str__(self) -> str:
        """Writes a line a finding."""
        width = max(len(finding.part) for finding in self.findings)
        return "\n".join(f"{item.part:<{width}}  {item.state:<6}  {item.detail}" for item in self.findings)


def examine(home: Path) -> Examination:
    """Looks at the installation and at the stores of a home folder; changes nothing."""
    findings = [Finding("vitok", "ok", f"{__version__} on Python {platform.python_version()}, {platform.platform()}")]
    findings.append(_packages("base", _BASE, needed=True))
    findings += [_packages(f"extra {name}", names, needed=False) for name, names in _EXTRAS.items()]
    findings.append(_home(home))
    if home.is_dir():
        findings += [_registry(home), _online(home), _log(home, "decisions"), _log(home, "outcomes"), _mlflow(home)]
        findings.append(_service(home))
    return Examination(tuple(findings))


def _packages(part: str, names: tuple[str, ...], *, needed: bool) -> Finding:
    versions, missing = [], []
    for name in names:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    if not missing:
        return Finding(part, "ok", ", ".join(versions))
    extra = part.removeprefix("extra ")
    fix = "pip install vitok" if needed else f"pip install 'vitok[{extra}]'"
    if extra == "torch":
        fix = "nothing here needs it; CONTRIBUTING.md says how to get a build without CUDA"
    return Finding(part, "bad" if needed else "absent", f"missing {', '.join(missing)}; {fix}")


def _home(home: Path) -> Finding:
    if not home.exists():
        return Finding("home", "absent", f"{home} is not there yet; `vitok demo fraud` makes it")
    free = shutil.disk_usage(home).free
    state = "ok" if free > _LEAST_FREE else "bad"
    return Finding("home", state, f"{home}, {free / 2**30:.1f} GiB free" + ("" if state == "ok" else "; make room"))


def _registry(home: Path) -> Finding:
    from vitok.console import stores
    from vitok.registry import attachment_of

    try:
        attached = attachment_of(home)
        with stores.ledger(home) as ledger:
            if ledger is None:
                return Finding("registry", "absent", "no version was registered yet")
            verification = ledger.verify()
            states = [ledger.state(model) for model in ledger.models()]
    except VitokError as error:
        return Finding("registry", "bad", str(error))
    told = ", ".join(
        f"{state.model}: {len(state.versions)} versions, Production {state.production}" for state in states
    )
    where = "" if attached is None else f"in {attached}: "
    state = "ok" if verification.intact else "bad"
    return Finding("registry", state, f"{where}{told or 'no model yet'}; {verification}")


def _online(home: Path) -> Finding:
    if not (home / "online").exists():
        return Finding("online store", "absent", "nothing was backfilled yet")
    import lmdb

    try:
        with lmdb.open(str(home / "online"), readonly=True, max_dbs=64, lock=True) as environment:
            size = environment.info()["last_pgno"] * environment.stat()["psize"]
    except lmdb.Error as error:
        return Finding("online store", "bad", f"lmdb://{home / 'online'}: {error}")
    return Finding("online store", "ok", f"lmdb://{home / 'online'}, {size / 2**20:.0f} MiB")


def _log(home: Path, name: str) -> Finding:
    folder = home / "log" / name
    if not folder.exists():
        return Finding(f"log of {name}", "absent", "nothing was logged yet")
    size = sum(file.stat().st_size for file in folder.iterdir())
    damaged = [file.name for file in folder.glob("*.damaged")]
    if damaged:
        return Finding(f"log of {name}", "bad", f"damaged parts are kept in {folder}: {', '.join(damaged)}")
    return Finding(f"log of {name}", "ok", f"{folder}, {size / 2**20:.0f} MiB")


def _mlflow(home: Path) -> Finding:
    path = home / "mlflow.db"
    if not path.exists():
        return Finding("tracking", "absent", "no run was tracked yet")
    try:
        connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        with connection:
            [[runs]] = connection.execute("select count(*) from runs").fetchall()
        connection.close()
    except sqlite3.Error as error:
        return Finding("tracking", "bad", f"sqlite:///{path}: {error}")
    return Finding("tracking", "ok", f"{runs} runs; mlflow ui --backend-store-uri sqlite:///{path}")


def _service(home: Path) -> Finding:
    import json

    from vitok.errors import ServiceError
    from vitok.serving import PipelinedClient

    path = home / "service.json"
    if not path.exists():
        return Finding("service", "absent", "not running; vitok serve fraud")
    try:
        port = int(json.loads(path.read_text())["port"])
        reply = PipelinedClient("127.0.0.1", port, "/healthz", timeout=2.0).get("/readyz")
    except (ServiceError, ValueError, KeyError):
        return Finding("service", "bad", f"{path} says it runs, but it does not answer; start it again")
    state = "ok" if reply.status == 200 else "bad"
    return Finding("service", state, f"http://127.0.0.1:{port}/ {reply.body.decode(errors='replace')}")
