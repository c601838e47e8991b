"""Which row of a sealed segment may hold an id: one small file of sorted hashes beside each.

Without it, finding one decision by the caller's id would read a column of every segment. An entry only points at a
row to look at; whoever follows it compares the whole id. A missing index costs time, never an answer.
"""

import io
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from vitok.decisions.files import replace

Key = Literal["decision_id", "request_id"]
_KEYS: tuple[Key, ...] = ("decision_id", "request_id")
# FNV-1a, 32 bits (Fowler, Noll, Vo): simple enough to run over a whole column with numpy.
_OFFSET, _PRIME = 0x811C9DC5, 0x01000193


def index_path(sealed: Path) -> Path:
    """Returns where the index of a sealed segment lies."""
    return sealed.with_suffix(".ids.npy")


def write_index(sealed: Path, table: pa.Table) -> None:
    """Writes the index for the rows of `table`, which are or will be the rows of `sealed`."""
    rows = []
    for key in _KEYS:
        hashes = _hashes(table.column(key))
        order = np.argsort(hashes, kind="stable").astype(np.uint32)
        rows += [hashes[order], order]
    path = index_path(sealed)
    content = io.BytesIO()
    np.save(content, np.stack(rows))
    replace(path, content.getvalue())


def candidates(sealed: Path, key: Key, value: bytes) -> list[int] | None:
    """Returns the rows whose id has the hash of `value`, in order; None where there is no index."""
    try:
        index = np.load(index_path(sealed), mmap_mode="r")
    except (FileNotFoundError, ValueError):
        return None
    place = 2 * _KEYS.index(key)
    wanted = np.uint32(_hash(value))
    first = int(np.searchsorted(index[place], wanted, side="left"))
    last = int(np.searchsorted(index[place], wanted, side="right"))
    return sorted(int(row) for row in index[place + 1, first:last])


def _hash(value: bytes) -> int:
    found = _OFFSET
    for byte in value:
        found = (found ^ byte) * _PRIME & 0xFFFFFFFF
    return found


def _hashes(column: pa.ChunkedArray) -> npt.NDArray[np.uint32]:
    # Character by character over all ids at once: numpy lets other threads run meanwhile, a Python loop would not.
    ids = pa.concat_arrays(column.cast(pa.large_binary()).chunks)
    _, offset_buffer, data_buffer = ids.buffers()
    offsets = np.frombuffer(offset_buffer, dtype=np.int64)[ids.offset : ids.offset + len(ids) + 1]
    data = np.frombuffer(data_buffer, dtype=np.uint8)
    starts, lengths = offsets[:-1], np.diff(offsets)
    found = np.full(len(ids), _OFFSET, dtype=np.uint32)
    order = np.argsort(-lengths, kind="stable")
    left = np.searchsorted(-lengths[order], -np.arange(lengths.max(initial=0)), side="left")
    for at, count in enumerate(left):
        longer = order[:count]
        found[longer] = (found[longer] ^ data[starts[longer] + at]) * np.uint32(_PRIME)
    return found
