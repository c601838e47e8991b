"""A number in a PostgreSQL database that only grows, followed: told by NOTIFY, and asked for once a second."""

import contextlib
import os
import select
import threading
import time
import weakref
from typing import Any

from vitok.engines.postgres import connect

_ASK_SECONDS = 1.0
_GOOD_SECONDS = 3.0
_AGAIN_SECONDS = 0.5


class Follower:
    """Knows the latest value without asking for it each time.

    A thread listens on a channel and asks once a second besides, since a message may be lost. What it knows is good
    for three seconds after the last answer; then it knows nothing until the database answers again. A change of
    another process is seen when its message comes, after a millisecond or so, and after those three seconds at most.

    Args:
        url: Address, `postgresql://user@host/database`.
        channel: Name of the channel, of small letters and `_`; a message carries the number.
        query: A query whose one value is the number.
    """

    def __init__(self, url: str, *, channel: str, query: str) -> None:
        self._followed = (url, channel, query)
        self._pid = os.getpid()
        self._listening = self._start()
        self._lock = threading.Lock()

    def latest(self) -> int | None:
        """Returns the number, or None where it is not known at present."""
        listening = self._listening
        if self._pid != os.getpid():
            # The thread did not come over the fork.
            with self._lock:
                if self._pid != os.getpid():
                    self._listening, self._pid = self._start(), os.getpid()
            return None
        return listening.number if time.monotonic() < listening.good_until else None

    @property
    def lost(self) -> bool:
        """Whether the database has not answered for three seconds and more."""
        listening = self._listening
        return self._pid == os.getpid() and time.monotonic() >= max(
            listening.good_until, listening.began + _GOOD_SECONDS
        )

    @property
    def error(self) -> Exception | None:
        """What went wrong since the database answered last; None where nothing did, or it is still being waited for."""
        return self._listening.error

    def note(self, number: int) -> None:
        """Takes over a number that this process has written itself."""
        self._listening.note(number)

    def close(self) -> None:
        """Ends the thread."""
        if self._pid == os.getpid():
            self._listening.stop()
            self._listening.thread.join()

    def _start(self) -> "_Listening":
        listening = _Listening(*self._followed)
        weakref.finalize(self, listening.stop)
        listening.thread.start()
        return listening


class _Listening:
    """The thread and what it knows; it does not hold on to its follower, which may go without being closed."""

    def __init__(self, url: str, channel: str, query: str) -> None:
        self.number = 0
        self.good_until = 0.0
        self.began = time.monotonic()
        self.error: Exception | None = None
        self._url, self._channel, self._query = url, channel, query
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._ears, self._mouth = os.pipe()
        self.thread = threading.Thread(target=self._run, name="vitok-follower", daemon=True)

    def note(self, number: int) -> None:
        with self._lock:
            self.number = max(self.number, number)

    def stop(self) -> None:
        if not self._stopped.is_set():
            self._stopped.set()
            self.good_until = 0.0
            with contextlib.suppress(OSError):
                os.write(self._mouth, b"x")

    def _run(self) -> None:
        import psycopg

        try:
            while not self._stopped.is_set():
                try:
                    with contextlib.closing(connect(self._url)) as connection:
                        self._follow(connection)
                except (psycopg.Error, OSError) as error:
                    self.error = error
                self._stopped.wait(_AGAIN_SECONDS)
        finally:
            self.good_until = 0.0
            os.close(self._ears)
            os.close(self._mouth)

    def _follow(self, connection: Any) -> None:
        connection.add_notify_handler(lambda message: self.note(int(message.payload)))
        connection.execute(f"LISTEN {self._channel}")
        while not self._stopped.is_set():
            asked = time.monotonic()
            self.note(connection.execute(self._query).fetchone()[0])
            self.good_until = asked + _GOOD_SECONDS
            self.error = None
            select.select([connection.fileno(), self._ears], [], [], _ASK_SECONDS)
