"""Message boundaries; oracle: pyarrow's own reader of IPC messages."""

import random

import pyarrow as pa
import pytest

from vitok.decisions.framing import frames, torn


def stream(rows: list[int]) -> bytes:
    batches = [pa.record_batch({"a": list(range(n)), "s": ["x" * i for i in range(n)]}) for n in rows]
    schema = pa.record_batch({"a": [1], "s": ["x"]}).schema
    return b"".join([schema.serialize().to_pybytes(), *(b.cast(schema).serialize().to_pybytes() for b in batches)])


def test_same_boundaries_as_pyarrow():
    rows = [1, 32, 7, 1000, 2]
    data = stream(rows)
    reader = pa.BufferReader(data)
    ends = []
    while reader.tell() < len(data):
        pa.ipc.read_message(reader)
        ends.append(reader.tell())
    found = list(frames(data))
    assert [frame.end for frame in found] == ends
    assert [frame.rows for frame in found] == [0, *rows]
    assert [frame.end for frame in frames(data, ends[1])] == ends[2:]


def test_stops_before_a_message_that_is_not_whole():
    data = stream([3, 5])
    ends = [frame.end for frame in frames(data)]
    for size in range(len(data)):
        assert [frame.end for frame in frames(data[:size])] == [end for end in ends if end <= size]
        whole = max((end for end in ends if end <= size), default=0)
        assert torn(data[:size], whole)


def test_zeros_after_a_power_cut_end_the_list():
    data = stream([3])
    assert len(list(frames(data + bytes(4096)))) == 2
    assert torn(data + bytes(4096), len(data))
    assert not torn(data + b"something else entirely", len(data))


@pytest.mark.parametrize("seed", range(5))
def test_noise_never_raises(seed):
    generator = random.Random(seed)
    data = stream([3, 5])
    for _ in range(200):
        noisy = bytearray(data)
        for _ in range(3):
            noisy[generator.randrange(len(data))] = generator.randrange(256)
        ends = [frame.end for frame in frames(bytes(noisy))]
        assert ends == sorted(ends)
        torn(bytes(noisy), ends[-1] if ends else 0)
        torn(b"\xff\xff\xff\xff" + generator.randbytes(60), 0)
