"""Runs what vitok is compared with: each peer in an environment of its own, measured from outside.

    python = environment("feast", ["feast[redis,duckdb]==0.67.0"])    # made once, under .venv/peers/feast
    found = run(python, Path("bench/features/peers/feast_offline.py"), {"rows": 20_000})
    found["cpu_seconds"], found["peak_mib"]                            # of the child and its children

A peer's script imports nothing of ours: it reads one JSON object from stdin and prints one JSON object as its last
line. Our own side is run by the same function, with `sys.executable`, wherever CPU or memory are compared.

Run as a program, this file is the small process between the two: it starts the measured one and waits for it. On
Linux a process begins with the peak memory of the one it was started from, so that a child of a benchmark that holds
data would be charged with that data.
"""

import fcntl
import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PEERS = ROOT / ".venv" / "peers"
LIMIT_SECONDS = 1500.0
MEASURED = ("wall_seconds", "cpu_seconds", "peak_mib")
TAIL = 2_000


class PeerError(RuntimeError):
    """A peer's environment could not be made, or its script failed, took too long or printed no JSON object."""


def environment(name: str, requirements: Sequence[str]) -> Path:
    """Makes the environment `.venv/peers/<name>` where it is missing or was made from other requirements.

    Two processes that ask for the same one wait for each other; one that was not finished is made again.

    Args:
        name: Folder under `.venv/peers/`.
        requirements: What pip installs, each pinned with `==`.

    Returns:
        The environment's Python.

    Raises:
        ValueError: If a requirement is not pinned.
        PeerError: If the environment cannot be made; the message ends with what pip said.
    """
    loose = [requirement for requirement in requirements if "==" not in requirement]
    if loose:
        raise ValueError(f"a peer's requirements are pinned with ==, but these are not: {', '.join(loose)}")
    folder = PEERS / name
    python = folder / "bin" / "python"
    base = getattr(sys, "_base_executable", sys.executable)
    wanted = hashlib.sha256(json.dumps([sys.version, sorted(requirements)]).encode()).hexdigest()
    stamp = folder / ".requirements"
    PEERS.mkdir(parents=True, exist_ok=True)
    with (PEERS / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if stamp.exists() and stamp.read_text(encoding="utf-8").strip() == wanted and python.exists():
            return python
        shutil.rmtree(folder, ignore_errors=True)
        install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements]
        for command in ([base, "-m", "venv", str(folder)], install):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise PeerError(f"{' '.join(command)} left with {done.returncode}: {done.stderr[-TAIL:].strip()}")
        stamp.write_text(wanted + "\n", encoding="utf-8")
    return python


def version(python: Path, package: str) -> str:
    """Says which version of `package` is installed for `python`.

    Raises:
        PeerError: If there is none.
    """
    code = f"import importlib.metadata; print(importlib.metadata.version({package!r}))"
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise PeerError(f"no {package} for {python}: {done.stderr[-TAIL:].strip()}")
    return done.stdout.strip()


def run(
    python: Path | str,
    script: Path | str,
    payload: Mapping[str, Any],
    *,
    arguments: Sequence[str] = (),
    limit_seconds: float = LIMIT_SECONDS,
    variables: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Runs `script` with `payload` as JSON on stdin, in a process group of its own.

    Args:
        python: The interpreter, as `environment` returns it.
        script: The file to run.
        payload: What the script reads.
        arguments: Command-line arguments of the script.
        limit_seconds: After which the script and what it started are killed.
        variables: Environment variables on top of ours.

    Returns:
        The object that the script printed as its last line, and `wall_seconds`, `cpu_seconds` (user and system time
        of the process and of the children it waited for) and `peak_mib` (the largest resident set of any of them),
        from its start to its end: import of the libraries included.

    Raises:
        PeerError: If the script leaves with another status than 0, passes the limit or prints no JSON object.
    """
    called = f"{Path(python).name} {Path(script).name}"
    with tempfile.TemporaryDirectory(prefix="vitok-peer-") as folder:
        given, printed, complained, usage = (Path(folder, name) for name in ("in", "out", "err", "usage"))
        given.write_text(json.dumps(payload), encoding="utf-8")
        command = [str(python), str(script), *arguments]
        order = [command, str(given), str(printed), str(complained), str(usage), limit_seconds]
        # The measuring process needs nothing but the standard library, and every MiB of it is charged to the peer.
        measurer = [sys.executable, "-I", "-S", __file__, json.dumps(order)]
        done = subprocess.run(
            measurer, capture_output=True, text=True, check=False, env={**os.environ, **(variables or {})}
        )
        error = complained.read_text(encoding="utf-8", errors="replace") if complained.exists() else ""
        if done.returncode != 0 or not usage.exists():
            raise PeerError(f"{called} could not be measured: {done.stderr[-TAIL:].strip()}")
        measured = json.loads(usage.read_text(encoding="utf-8"))
        lines = printed.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    if measured.pop("timed_out"):
        raise PeerError(f"{called} took more than {limit_seconds:g} s: {error[-TAIL:].strip()}")
    status = measured.pop("status")
    if status != 0:
        raise PeerError(f"{called} left with {status}: {error[-TAIL:].strip()}")
    try:
        found = json.loads(lines[-1])
    except (IndexError, json.JSONDecodeError):
        raise PeerError(
            f"{called}: its last line must be a JSON object, and was {lines[-1:]}: {error[-TAIL:].strip()}"
        ) from None
    if not isinstance(found, dict) or set(found) & set(MEASURED):
        raise PeerError(f"{called}: its last line must be a JSON object without the keys {', '.join(MEASURED)}")
    return {**found, **measured}


def alternate(*sides: tuple[Path | str, Path | str, Mapping[str, Any], Sequence[str]], runs: int) -> list[list[Any]]:
    """Runs several sides in turn, `runs` times, so that a busy minute of the machine falls on all of them.

    Args:
        sides: (python, script, payload, arguments) of each, as `run` takes them.
        runs: How often each is run.

    Returns:
        For each side the list of what `run` returned.
    """
    results: list[list[Any]] = [[] for _ in sides]
    for _ in range(runs):
        for kept, (python, script, payload, arguments) in zip(results, sides, strict=True):
            kept.append(run(python, script, payload, arguments=arguments))
    return results


def _measure(command: list[str], given: str, printed: str, complained: str, usage: str, limit_seconds: float) -> None:
    """Runs `command`, waits for it, and writes what it used to the file `usage`.

    The command is killed, with all that it started, at the limit and when the benchmark itself is gone.
    """
    finished, timed_out, parent = threading.Event(), threading.Event(), os.getppid()

    def watch() -> None:
        deadline = time.monotonic() + limit_seconds
        while not finished.wait(0.2):
            if time.monotonic() > deadline or os.getppid() != parent:
                timed_out.set()
                os.killpg(process.pid, signal.SIGKILL)
                return

    with Path(given).open("rb") as stdin, Path(printed).open("wb") as out, Path(complained).open("wb") as err:
        began = time.monotonic()
        process = subprocess.Popen(command, stdin=stdin, stdout=out, stderr=err, start_new_session=True)
        threading.Thread(target=watch, daemon=True).start()
        # Not process.wait(): only wait4 says what this one child used.
        try:
            _, status, used = os.wait4(process.pid, 0)
        except KeyboardInterrupt:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        wall = time.monotonic() - began
        finished.set()
        process.returncode = os.waitstatus_to_exitcode(status)
    measured = {
        "status": process.returncode,
        "timed_out": timed_out.is_set(),
        "wall_seconds": wall,
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "peak_mib": used.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 2**20,
    }
    Path(usage).write_text(json.dumps(measured), encoding="utf-8")


def timed_usage() -> tuple[float, float]:
    """Reads the wall clock and the CPU seconds of this process and its children: subtract two readings."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.perf_counter(), time.process_time() + children.ru_utime + children.ru_stime


if __name__ == "__main__":
    _measure(*json.loads(sys.argv[1]))
