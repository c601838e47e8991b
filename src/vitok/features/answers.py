"""Where the answers of a view wait until they are written, and where rows wait that do not fit into memory.

All of them are rows of 64-bit words, so that floats, whole numbers and packed columns are kept and moved alike.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from vitok.features.order_kernels import group, part_of

_CHUNK = 4 * 2**20  # bytes read at a time


class Answers(Protocol):
    """What a view answers to the rows of a spine."""

    def rows(self, first: int, last: int) -> np.ndarray:
        """Returns the answers to rows first up to last, shape (last - first, words), int64; asked for in order."""
        ...


class Matrix:
    """Answers as they are.

    Args:
        words: Shape (rows, words), int64.
    """

    def __init__(self, words: np.ndarray) -> None:
        self._words = words

    def rows(self, first: int, last: int) -> np.ndarray:
        """Returns the answers to some rows; a view of the whole."""
        return self._words[first:last]

    def put(self, places: np.ndarray, answers: Answers) -> None:
        """Takes the answers of one partition; `places` are their rows."""
        self._words[places] = answers.rows(0, len(places))

    def done(self) -> None:
        """Nothing is left to do."""


class Picked:
    """Answers that are rows of a source.

    Args:
        source: Shape (rows of the source, words), int64.
        places: Shape (rows,): which row answers.
    """

    def __init__(self, source: np.ndarray, places: np.ndarray) -> None:
        self._source, self._places = source, places

    def rows(self, first: int, last: int) -> np.ndarray:
        """Returns the answers to some rows."""
        # Clipping changes nothing here, and spares numpy a look at each index and a copy.
        return np.take(self._source, self._places[first:last], axis=0, mode="clip")


class Spilled:
    """Answers kept on disk by partition, and merged when they are read from the first row to the last.

    Args:
        folder: Where.
        empty: Shape (words,), int64: the answer to rows that no partition has.
    """

    def __init__(self, folder: Path, empty: np.ndarray) -> None:
        self._folder, self._empty = folder, empty
        folder.mkdir()
        self._files: list[Path] = []
        self._runs: list[_Run] = []

    def put(self, places: np.ndarray, answers: Answers) -> None:
        """Takes the answers of one partition; `places` are their rows, rising."""
        width = len(self._empty)
        step = max(1, _CHUNK // (8 * width))
        path = self._folder / str(len(self._files))
        with path.open("wb") as file:
            for first in range(0, len(places), step):
                chosen = answers.rows(first, min(first + step, len(places)))
                block = np.empty((len(chosen), 1 + width), np.int64)
                block[:, 0] = places[first : first + step]
                block[:, 1:] = chosen
                file.write(block.data)
        self._files.append(path)

    def done(self) -> None:
        """All partitions are there."""
        share = _CHUNK // max(1, len(self._files))
        self._runs = [_Run(path, 1 + len(self._empty), share) for path in self._files]

    def rows(self, first: int, last: int) -> np.ndarray:
        """Returns the answers to some rows."""
        out = np.empty((last - first, len(self._empty)), np.int64)
        out[:] = self._empty
        for run in self._runs:
            for block in run.until(last):
                out[block[:, 0] - first] = block[:, 1:]
        return out


class _Run:
    # One partition's answers, read once from begin to end.
    def __init__(self, path: Path, width: int, memory: int) -> None:
        self._path, self._width = path, width
        self._step = max(64, memory // (8 * width))
        self._at = 0
        self._block = np.empty((0, width), np.int64)

    def until(self, row: int) -> Iterator[np.ndarray]:
        while True:
            if not len(self._block):
                words = np.fromfile(self._path, np.int64, self._step * self._width, offset=self._at)
                self._block = words.reshape(-1, self._width)
                self._at += words.nbytes
                if not len(self._block):
                    return
            n = int(np.searchsorted(self._block[:, 0], row))
            if n:
                yield self._block[:n]
            self._block = self._block[n:]
            if len(self._block):
                return


class Partitions:
    """Rows on disk, in one file for each share of the keys.

    Args:
        folder: Where.
        parts: How many shares.
        width: Words a row.
    """

    def __init__(self, folder: Path, parts: int, width: int) -> None:
        self.parts, self._width = parts, width
        folder.mkdir()
        self._paths = [folder / str(part) for part in range(parts)]
        self._files = [path.open("wb") for path in self._paths]
        self.heights = np.zeros(parts, np.int64)

    def put(self, keys: np.ndarray, rows: np.ndarray) -> None:
        """Deals out rows, shape (n, words), by their keys, shape (n, 2); each share keeps their order."""
        share = np.empty(len(keys), np.int32)
        part_of(keys, self.parts, share)
        start, order = np.empty(self.parts + 1, np.int64), np.empty(len(keys), np.int64)
        group(share, start, order)
        ordered = np.take(rows, order, axis=0)
        for part in range(self.parts):
            if start[part] < start[part + 1]:
                self._files[part].write(ordered[start[part] : start[part + 1]].data)
        self.heights += np.diff(start)

    def done(self) -> None:
        """All rows are there."""
        self.close()

    def close(self) -> None:
        """Closes the files."""
        for file in self._files:
            file.close()

    def read(self, part: int) -> Iterator[np.ndarray]:
        """Yields the rows of one share in order, and removes them from the disk."""
        count = max(1, _CHUNK // (8 * self._width)) * self._width
        path = self._paths[part]
        with path.open("rb") as file:
            while len(words := np.fromfile(file, np.int64, count)):
                yield words.reshape(-1, self._width)
        path.unlink()


def joined(pieces: Sequence[np.ndarray], width: int) -> np.ndarray:
    """Puts pieces of rows together; no piece makes no rows."""
    return np.concatenate(pieces) if pieces else np.empty((0, width), np.int64)
