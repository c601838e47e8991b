"""Small files of the logs merged beside a live service: once a day, in a process of its own, a little at a time."""

import contextlib
import logging
import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from vitok import decisions
from vitok.clock import DAY, HOUR
from vitok.decisions.merging import may_merge
from vitok.errors import Conflict, VitokError
from vitok.registry import Registry
from vitok.registry.files import exclusive
from vitok.systems.fraud.sketching import hour_sealer

LOCK = "merging.lock"
"""Lies above the logs: whoever holds it keeps the operators of a home from merging."""
_LOGS = ("decisions", "outcomes")
_NICE = 10
_LOG = logging.getLogger("vitok.fraud")


class MergingApart:
    """Merges the small files of a home's logs, as `vitok log merge` does.

    Nobody waits for it: a tick begins a process, or takes up what one has done that has ended. A process works for a
    few seconds, in which nothing can be deleted or held, and where that was not enough the next tick begins another.
    Once all is merged it rests for a day. While another service's operator merges it does nothing; while rows are
    deleted, and where merging fails, it says so once and tries again an hour later.

    Args:
        home: The service's home folder.
        tell: Gets (time, text) for what was merged.
        seconds: For how long a process begins further files of a log.
    """

    def __init__(self, home: Path, *, tell: Callable[[int, str], None], seconds: float = 5.0) -> None:
        self._home, self._tell, self._seconds = home, tell, seconds
        self._running: tuple[BaseProcess, Connection] | None = None
        self._since = self._rest = 0
        self._said = ""

    def tick(self, now: int) -> None:
        """Takes up what has ended, and begins what is due; whatever is wrong with it is told and keeps nobody.

        Args:
            now: The present, in microseconds.
        """
        try:
            if self._running is not None:
                if not self._running[1].poll():
                    return
                self._since, self._rest = now, self._took_up(now)
            # A clock that was set back does not make it rest for longer.
            if not self._since <= now < self._since + self._rest:
                self._since, self._rest = now, self._begun(now)
        except OSError as error:
            self._since, self._rest = now, self._failed(str(error))

    def close(self) -> None:
        """Ends the process that runs: what it has not done is done by a later one."""
        if self._running is not None:
            process, inbox = self._running
            self._running = None
            process.terminate()
            process.join()
            inbox.close()

    def _begun(self, now: int) -> int:
        if not any(may_merge(self._home / "log" / name, now=now) for name in _LOGS):
            return HOUR
        context = multiprocessing.get_context("spawn")
        inbox, outbox = context.Pipe(duplex=False)
        with outbox:
            # A daemon ends with this process; one that is killed leaves the logs whole.
            process = context.Process(target=_run, args=(outbox, self._home, now, self._seconds), daemon=True)
            process.start()
        self._running = process, inbox
        return 0

    def _took_up(self, now: int) -> int:
        # Gives for how long to rest.
        assert self._running is not None  # noqa: S101 - the caller has asked
        process, inbox = self._running
        try:
            found: dict[str, Any] = inbox.recv()
        except EOFError:
            process.join()
            found = {"failed": f"the process that merges ended with code {process.exitcode}"}
        self.close()
        if "failed" in found:
            return self._failed(found["failed"])
        self._said = ""
        for name, done in found["done"].items():
            if done.segments_before:
                self._tell(now, f"log of {name}: {done}")
        return 0 if any(done.stopped for done in found["done"].values()) else HOUR if found["busy"] else DAY

    def _failed(self, why: str) -> int:
        if why != self._said:
            _LOG.warning("small files of the log in %s are not merged, tried again each hour: %s", self._home, why)
        self._said = why
        return HOUR


def _run(outbox: Connection, home: Path, now: int, seconds: float) -> None:
    os.nice(_NICE)
    # Ctrl-C reaches all processes of a terminal; the service ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        outbox.send(_merged(home, now, seconds))
    except VitokError as error:
        outbox.send({"failed": str(error)})


def _merged(home: Path, now: int, seconds: float) -> dict[str, Any]:
    done: dict[str, decisions.Merged] = {}
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(exclusive(home / "log" / LOCK, wait_s=0.0))
        except Conflict:
            return {"done": done, "busy": True}
        registry = stack.enter_context(contextlib.closing(Registry(home)))
        for name in _LOGS:
            folder = home / "log" / name
            if may_merge(folder, now=now):
                counted = hour_sealer(registry) if name == "decisions" else None
                done[name] = decisions.merge(folder, now=now, on_seal=counted, seconds=seconds)
    return {"done": done, "busy": False}
