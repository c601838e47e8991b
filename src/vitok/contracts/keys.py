"""Remembers which keys of a table were accepted, for a period, in the process or in a folder."""

import fcntl
import hashlib
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import msgspec

from vitok.clock import DAY, EventClock, duration
from vitok.engines.lmdb import LmdbRows
from vitok.engines.row_store import HEADER, LONGEST_KEY, Row
from vitok.errors import Conflict, InvalidInput, StoreError

_encode = msgspec.msgpack.Encoder().encode
_KEY, _DIGEST, _STATE = b"k", b"d", b"s"
_SWEEPS_A_PERIOD: Final = 4


class KeyMemory:
    """The keys that were accepted during a period, and what a stream has counted.

    Keys are kept whole, so that two different ones are never taken for the same (those longer than 500 bytes by their
    SHA-256). All that belongs to one commit appears at once: a process that is killed has remembered a batch wholly
    or not at all. A folder belongs to one process at a time.

    Args:
        folder: Where they are kept; made if it is not there. Without one they end with the process.
        period: How long a key is remembered after it was accepted, such as `"30d"`, and over how long a stream counts
            its rows: one that fits into 365 days.

    Raises:
        Conflict: If another memory has the folder open, or it was kept with another period.
        StoreError: If the folder cannot be used.

    Example:
        >>> memory = KeyMemory(period="1d")
        >>> key = memory.encoded("payments", ("id",), ["a"])
        >>> memory.known([key], now=0)
        [False]
        >>> memory.write([key], "payments", b"", now=0)
        >>> memory.known([key], now=1), memory.known([key], now=DAY)
        ([True], [False])
    """

    def __init__(self, folder: str | Path | None = None, *, period: str | int = "1d") -> None:
        self.period = duration(period)
        if self.period > 365 * DAY:
            raise InvalidInput("period", period, "be at most 365 days")
        self._clock = EventClock()
        self._swept = 0
        self._kept: dict[bytes, tuple[int, bytes]] = {}
        self._rows: LmdbRows | None = None
        if folder is None:
            return
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = (self.folder / "owner").open("ab")
        except OSError as error:
            raise StoreError(f"the memory of keys at {self.folder} cannot be opened: {error}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise Conflict(
                f"the memory of keys at {self.folder} is open elsewhere: two that accept rows at once would each miss "
                "what the other accepts. Close the other one, or give each a part of the keys and its own folder"
            ) from None
        try:
            self._rows = LmdbRows(self.folder, clock=self._clock)
            kept = self.state("")
            if kept is None:
                self._rows.write([Row(_STATE, (0, 1), str(self.period).encode())])
            elif int(kept) != self.period:
                fix = "Open it with that one, or begin with another folder"
                raise Conflict(
                    f"the memory of keys at {self.folder} was kept with a period of {int(kept)} microseconds, "
                    f"not {self.period}. {fix}"
                )
        except BaseException:
            self.close()
            raise

    def encoded(self, table: str, fields: Sequence[str], values: Iterable[Any]) -> bytes:
        """Writes a key as bytes; equal keys give equal bytes, and no others do.

        Args:
            table: The table it is of.
            fields: The fields.
            values: Their values, none of them null; times as microseconds, dates as days.
        """
        plain = [_canonical(value) if type(value) is float else value for value in values]
        key = _KEY + _encode((table, fields, plain))
        return key if len(key) <= LONGEST_KEY else _DIGEST + hashlib.sha256(key).digest()

    def known(self, keys: Sequence[bytes], *, now: int) -> list[bool]:
        """Says of each key whether it was accepted during the period that ends now.

        Args:
            keys: As `encoded` writes them.
            now: Present time in microseconds; it never goes back.

        Raises:
            StoreError: If they cannot be read.
        """
        self._clock.advance(now)
        if self._rows is not None:
            return [found is not None for found in self._rows.read(keys)]
        present = self._clock.now()
        return [key in self._kept and self._kept[key][0] > present for key in keys]

    def state(self, table: str) -> bytes | None:
        """Returns what was written beside the keys of a table, or None."""
        key = _STATE + table.encode()
        if self._rows is None:
            return self._kept[key][1] if key in self._kept else None
        (found,) = self._rows.read([key])
        return None if found is None else found[HEADER:]

    def write(self, keys: Iterable[bytes], table: str, state: bytes, *, now: int, sequence: int = 1) -> None:
        """Remembers keys and what belongs to them, all at once.

        Args:
            keys: As `encoded` writes them.
            table: The table whose state is written.
            state: Any bytes.
            now: Present time in microseconds, from 0 on.
            sequence: Grows with each state of a table.

        Raises:
            InvalidInput: If a time is before 1970.
            StoreError: If they cannot be written; then nothing was.
        """
        self._clock.advance(now)
        present = self._clock.now()
        expires = present + self.period
        place = _STATE + table.encode()
        if self._rows is None:
            self._kept.update((key, (expires, b"")) for key in keys)
            self._kept[place] = ((1 << 63) - 1, state)
        else:
            rows = [Row(key, (present, 0), b"", expires) for key in keys]
            self._rows.write([*rows, Row(place, (sequence, 0), state)])
        if present - self._swept >= self.period // _SWEEPS_A_PERIOD:
            self._sweep(present)

    def _sweep(self, present: int) -> None:
        self._swept = present
        if self._rows is not None:
            self._rows.sweep()
        else:
            self._kept = {key: kept for key, kept in self._kept.items() if kept[0] > present}

    def sync(self) -> None:
        """Forces what was written to the disk, for what must survive a power cut and not only a killed process."""
        if self._rows is not None:
            self._rows.sync()

    def close(self) -> None:
        """Lets go of the folder."""
        if self._rows is not None:
            self._rows.close()
            self._rows = None
        lock = getattr(self, "_lock", None)
        if lock is not None:
            lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _canonical(value: float) -> float | str:
    """One form for each value: zero has two signs and NaN many bits."""
    return "nan" if math.isnan(value) else value + 0.0
