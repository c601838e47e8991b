"""Numbers for the keys of a table: which rows of a spine and of a source are about the same entity."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from vitok.errors import InvalidInput
from vitok.features.events import key_texts
from vitok.features.fingerprints import fingerprint_texts
from vitok.features.order_kernels import find_keys, move_keys, number_keys
from vitok.features.sources import SEPARATOR, Entity

if TYPE_CHECKING:
    import polars as pl


class KeyReader:
    """Reads the keys of one entity as pairs of words: whole numbers as they are, texts as their fingerprints.

    Args:
        entity: The entity.
        schemas: Types of all frames whose keys are compared: only where all of them are whole numbers the numbers
            themselves are compared, so that 7 and "7" are the same entity.
    """

    def __init__(self, entity: Entity, schemas: "Iterable[Mapping[str, pl.DataType]]") -> None:
        self.entity = entity
        self._are_numbers = len(entity.keys) <= 2 and all(
            is_number(schema[name]) for schema in schemas for name in entity.keys
        )

    def words(self, frame: "pl.DataFrame", where: str) -> np.ndarray:
        """Reads keys that must not be null, shape (rows, 2), int64.

        Raises:
            InvalidInput: If a part is null, empty, or neither text nor whole numbers.
        """
        if self._are_numbers:
            for name in self.entity.keys:
                if frame[name].null_count():
                    raise InvalidInput(f"{where}: {name}", None, "not be null", "Let the contract keep such rows out.")
            return self._numbers(frame)
        return self._fingerprints(frame, where)

    def words_or_none(self, frame: "pl.DataFrame", where: str) -> tuple[np.ndarray, np.ndarray]:
        """Reads keys of which some may be null or empty.

        Returns:
            The words, shape (rows, 2), int64, and which rows have a key, shape (rows,), bool.
        """
        there = has_key(frame, self.entity)
        if self._are_numbers:
            return self._numbers(frame), there
        words = np.zeros((len(frame), 2), np.int64)
        if there.all():
            words = self._fingerprints(frame, where)
        elif there.any():
            words[there] = self._fingerprints(frame.filter(there), where)
        return words, there

    def _numbers(self, frame: "pl.DataFrame") -> np.ndarray:
        import polars as pl

        words = np.zeros((len(frame), 2), np.int64)
        for place, name in enumerate(self.entity.keys):
            words[:, place] = frame[name].cast(pl.Int64).fill_null(0).to_numpy()
        return words

    def _fingerprints(self, frame: "pl.DataFrame", where: str) -> np.ndarray:
        import polars as pl

        if len(self.entity.keys) > 1:
            for name in self.entity.keys:
                column = frame[name]
                if column.dtype == pl.String and column.str.contains(SEPARATOR, literal=True).any():
                    raise InvalidInput(f"{where}: {name}", SEPARATOR, "hold no unit separator (U+001F)")
        return fingerprint_texts(key_texts(frame, self.entity, where)).view(np.int64)


def has_key(frame: "pl.DataFrame", entity: Entity) -> np.ndarray:
    """Returns which rows have a key: no part of it is null or an empty text; shape (rows,), bool."""
    import polars as pl

    there = np.ones(len(frame), bool)
    for name in entity.keys:
        column = frame[name]
        if column.null_count():
            there &= column.is_not_null().to_numpy()
        if column.dtype == pl.String:
            there &= (column != "").fill_null(value=False).to_numpy()
    return there


class KeyTable:
    """Numbers the different keys 0, 1, 2, ... in the order in which they come.

    Example:
        >>> table = KeyTable()
        >>> table.add(np.array([[7, 0], [9, 0], [7, 0]])).tolist()
        [0, 1, 0]
        >>> table.find(np.array([[9, 0], [8, 0]])).tolist(), len(table)
        ([1, -1], 2)
    """

    def __init__(self) -> None:
        self._words = np.zeros((1024, 2), np.int64)
        self._codes = np.full(1024, -1, np.int32)
        self._n = 0

    def __len__(self) -> int:
        """How many different keys."""
        return self._n

    def add(self, words: np.ndarray, there: np.ndarray | None = None) -> np.ndarray:
        """Returns the number of each key, shape (rows,), int32; -1 where there is no key.

        Args:
            words: Shape (rows, 2), int64.
            there: Shape (rows,), bool: which rows have a key; all of them by default.
        """
        size = len(self._codes)
        while 2 * (self._n + len(words)) > size:
            size *= 2
        if size > len(self._codes):
            larger = np.zeros((size, 2), np.int64), np.full(size, -1, np.int32)
            move_keys(self._words, self._codes, *larger)
            self._words, self._codes = larger
        out = np.zeros(len(words), np.int32) if there is None else np.where(there, np.int32(0), np.int32(-1))
        self._n = number_keys(self._words, self._codes, self._n, words, out)
        return out

    def find(self, words: np.ndarray) -> np.ndarray:
        """Returns the number of each key, shape (rows,), int32; -1 where it was never added."""
        out = np.empty(len(words), np.int32)
        find_keys(self._words, self._codes, words, out)
        return out


def is_number(kind: "pl.DataType") -> bool:
    """Returns whether a column holds whole numbers that fit 64 bits with a sign."""
    import polars as pl

    return kind in {pl.Int8, pl.Int16, pl.Int32, pl.Int64, pl.UInt8, pl.UInt16, pl.UInt32}
