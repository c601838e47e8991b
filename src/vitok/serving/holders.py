"""Names of processes that hold something in a file that others read, and whether they still live."""

import itertools
import os
import socket
from pathlib import Path
from typing import Literal

Holding = Literal["live", "killed"]

_numbers = itertools.count(1)


def holder_name() -> str:
    """Returns a name that nobody else has: of the host, of this process and when it started, and a number in it."""
    pid = os.getpid()
    return f"{socket.gethostname()}:{pid}:{_started(pid)}:{next(_numbers)}"


def holding(holder: str) -> Holding:
    """Says whether a process lives; one of another host is taken to."""
    host, pid, started, _ = holder.rsplit(":", 3) if holder.count(":") >= 3 else ("", "", "", "")
    if host != socket.gethostname() or not pid.isdecimal():
        return "live"
    return "live" if _started(int(pid)) == started else "killed"


def _started(pid: int) -> str:
    # In ticks since the machine started; the name before it is in parentheses and may hold blanks.
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    fields = text.rpartition(")")[2].split()
    return "" if fields[0] in "ZX" else fields[19]
