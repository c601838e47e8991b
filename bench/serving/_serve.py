"""Starts a server in a process of its own, warms it up, drives it with our load client, and reads what it has used."""

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from bench._server import free_port, started

from vitok.serving.load import Target, run_load
from vitok.serving.load_report import LoadReport

SCALE = min(float(os.environ.get("VITOK_BENCH_SCALE", "1")), 1.0)
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Served:
    """A server that answers.

    Attributes:
        pid: Its first process.
        target: Where requests go.
    """

    pid: int
    target: Target

    def load(self, rate: float | None, seconds: float, *, connections: int = 32, **options: float) -> LoadReport:
        """Loads it, for a shorter time where VITOK_BENCH_SCALE says so."""
        length = max(seconds * SCALE, 1.0)
        return run_load(self.target, rate=rate, seconds=length, connections=connections, **options)  # type: ignore[arg-type]

    def cpu_us_a_request(self, seconds: float, *, connections: int = 32) -> tuple[float, LoadReport]:
        """Returns processor microseconds of its process tree a request at the highest rate, and that run."""
        before = cpu_seconds(self.pid)
        report = self.load(None, seconds, connections=connections)
        used = cpu_seconds(self.pid) - before
        if report.failed:
            raise RuntimeError(f"{self.target.url}: {report}")
        return 1e6 * used / report.answered, report


@contextlib.contextmanager
def served(
    command: Sequence[str],
    path: str,
    bodies: Sequence[bytes],
    *,
    variables: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> Iterator[Served]:
    """Runs a server while the block runs, from the time that it has answered for a second.

    Args:
        command: How it is started; `{port}` in a part becomes the port.
        path: Path of the requests.
        bodies: Their bodies.
        variables: Environment variables on top of ours.
        folder: Its working folder.

    Raises:
        RuntimeError: If it does not start or fails requests of the warm-up.
    """
    port = free_port()
    parts = [part.replace("{port}", str(port)) for part in command]
    given = {
        "OMP_NUM_THREADS": "1",
        **{name: value.replace("{port}", str(port)) for name, value in (variables or {}).items()},
    }
    with started(parts, port, folder=folder, variables=given) as process:
        target = Target(url=f"http://127.0.0.1:{port}{path}", bodies=bodies)
        for _ in range(3):
            warm = run_load(target, rate=50, seconds=2, connections=4)
            if not warm.failed:
                break
        else:
            raise RuntimeError(f"{parts[0]} fails: {warm}")
        run_load(target, rate=None, seconds=1, connections=16)
        yield Served(pid=process.pid, target=target)


def cpu_seconds(pid: int) -> float:
    """Returns the processor seconds of a process and all below it that live, and of those that have ended."""
    children: dict[int, list[int]] = {}
    ticks: dict[int, int] = {}
    for item in Path("/proc").iterdir():
        if not item.name.isdigit():
            continue
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            # The name is in parentheses and may hold blanks.
            fields = (item / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
            ticks[int(item.name)] = sum(int(part) for part in fields[11:15])
            children.setdefault(int(fields[1]), []).append(int(item.name))
    total, waiting = 0, [pid]
    while waiting:
        at = waiting.pop()
        total += ticks.get(at, 0)
        waiting += children.get(at, [])
    return total / _TICKS
