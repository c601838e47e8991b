"""Tensors of the protocol: round trips of every data type, and what is refused. The oracle is numpy itself."""

import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from vitok.errors import InvalidInput
from vitok.serving.tensors import DATATYPES, TensorSpec, datatype_of, from_bytes, from_values, to_bytes, to_json

SHAPES = arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
NUMBERS = sorted(set(DATATYPES) - {"BYTES"})


@pytest.mark.parametrize("name", NUMBERS)
@given(data=st.data())
def test_numbers_come_back_from_bytes_bit_by_bit(name: str, data: st.DataObject) -> None:
    tensor = data.draw(arrays.arrays(DATATYPES[name], SHAPES))
    back = from_bytes("x", name, tensor.shape, to_bytes(tensor))
    assert (back.dtype, back.shape) == (tensor.dtype, tensor.shape)
    assert back.tobytes() == tensor.tobytes()
    turned = tensor.T
    again = from_bytes("x", name, turned.shape, to_bytes(turned))
    assert again.tobytes() == np.ascontiguousarray(turned).tobytes()


@pytest.mark.parametrize("name", NUMBERS)
@given(data=st.data())
def test_numbers_come_back_from_json(name: str, data: st.DataObject) -> None:
    tensor = data.draw(arrays.arrays(DATATYPES[name], SHAPES))
    text = to_json(tensor)
    back = from_values("x", name, tensor.shape, json.loads(text))
    expected = tensor
    if tensor.dtype.kind == "f":
        # JSON has no infinities: they leave as null, which is NaN.
        expected = np.where(np.isfinite(tensor), tensor, np.nan).astype(tensor.dtype)
    np.testing.assert_array_equal(back, expected)
    assert back.dtype == tensor.dtype
    if tensor.ndim:
        nested = np.array(json.loads(text), object).reshape(tensor.shape).tolist()
        np.testing.assert_array_equal(from_values("x", name, tensor.shape, nested), expected)


@given(texts=st.lists(st.binary(max_size=300), max_size=8))
def test_bytes_come_back_from_bytes(texts: list[bytes]) -> None:
    tensor = np.empty(len(texts), object)
    tensor[:] = texts
    assert from_bytes("x", "BYTES", [len(texts)], to_bytes(tensor)).tolist() == texts


@given(texts=st.lists(st.text(max_size=50), max_size=8))
def test_texts_come_back_from_json(texts: list[str]) -> None:
    tensor = from_values("x", "BYTES", [len(texts)], texts)
    assert [item.decode("utf-8", "surrogatepass") for item in tensor] == texts
    if all(text.isprintable() for text in texts):
        assert json.loads(to_json(tensor)) == texts


@given(values=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=6))
def test_large_whole_numbers_lose_no_digit(values: list[int]) -> None:
    assert from_values("x", "UINT64", [len(values)], values).tolist() == values


def test_short_texts_of_float32() -> None:
    assert to_json(np.array([0.1, np.inf, -0.0], np.float32)) == b"[0.1,null,-0.0]"
    assert to_json(np.array([0.1], np.float16)) == b"[0.1]"
    assert to_json(np.array([True, False])) == b"[true,false]"
    assert to_json(np.array([1, -2], np.int8)) == b"[1,-2]"
    assert to_json(np.array(["a", "ä"])) == '["a","ä"]'.encode()


def test_numbers_beyond_a_narrow_float_are_infinite() -> None:
    assert from_values("x", "FP32", [2], [1e39, -1e39]).tolist() == [np.inf, -np.inf]
    assert from_values("x", "FP16", [1], [1e6]).tolist() == [np.inf]


def test_elements_lie_row_by_row_and_little_endian() -> None:
    tensor = np.array([[1, 2], [3, 4]], ">i4")
    assert to_bytes(tensor) == struct.pack("<4i", 1, 2, 3, 4)
    assert to_bytes(tensor.T) == struct.pack("<4i", 1, 3, 2, 4)
    assert from_bytes("x", "BOOL", [3], b"\x00\x01\x07").tolist() == [False, True, True]


@pytest.mark.parametrize(
    ("datatype", "shape", "values", "message"),
    [
        ("FP8", [1], [1], "x.datatype: got 'FP8', must be one of BOOL"),
        ("FP32", [-1], [1], "x.shape: got [-1], must have lengths of 0 or more"),
        ("FP32", [1] * 33, [1], "x.shape: got '33 axes', must have at most 32"),
        ("FP32", [0, 1 << 62], [], "must hold at most"),
        ("FP32", [1 << 70], [], "must hold at most"),
        ("FP32", [2], [1], "x.data: got '1 values', must be 2, as the shape [2] says"),
        ("FP32", [2], [[1], [1, 2]], "x.data: got '[[1], [1, 2]]', must be rows of one length"),
        ("FP32", [1], ["1"], "must be numbers"),
        ("FP32", [2], [1, "x" * 1000], "must be numbers"),
        ("FP32", [1, 2], [[1, "x"]], "must be numbers"),
        ("FP32", [1], [{"a": 1}], "must be numbers"),
        ("FP32", [1], [True], "must be numbers"),
        ("FP64", [1], [10**400], "must be numbers that a float64 holds"),
        ("FP64", [1], None, "must be 1"),
        ("BOOL", [1], [1], "must be truth values"),
        ("BOOL", [1], ["true"], "must be truth values"),
        ("INT8", [1], [128], "x.data: got 128, must fit INT8"),
        ("INT8", [1], [-129], "must fit INT8"),
        ("UINT8", [1], [-1], "must fit UINT8"),
        ("UINT64", [2], [2**64, 0], "must fit UINT64"),
        ("UINT64", [2], [2**63 + 1, -1], "x.data: got -1, must fit UINT64"),
        ("INT32", [1], [1.5], "must be a whole number, as INT32 holds"),
        ("INT32", [1], [None], "must be a whole number"),
        ("INT32", [1], [True], "must be a whole number"),
        ("INT32", [1], [float("inf")], "must be a whole number"),
        ("BYTES", [1], [1], "must be texts"),
        ("BYTES", [2], ["a"], "must be 2"),
    ],
)
def test_values_that_are_refused(datatype: str, shape: list[int], values: Any, message: str) -> None:
    with pytest.raises(InvalidInput) as failed:
        from_values("x", datatype, shape, values)
    assert message in str(failed.value)


@pytest.mark.parametrize(
    ("datatype", "shape", "data", "message"),
    [
        ("FP32", [2], b"1234", "x.parameters.binary_data_size: got 4, must be 8 for 2 of FP32"),
        ("FP32", [0], b"1", "must be 0 for 0 of FP32"),
        ("FP32", [1 << 41], b"", "must hold at most"),
        ("BYTES", [1], b"", "got 0, must hold 1 elements of BYTES"),
        ("BYTES", [1 << 39], b"1234", "must hold 549755813888 elements of BYTES"),
        ("BYTES", [1], b"\xff\xff\xff\xffa", "must hold 1 elements of BYTES"),
        ("BYTES", [1], b"\x01\x00\x00\x00ab", "got 6, must be 5, which 1 elements take"),
    ],
)
def test_bytes_that_are_refused(datatype: str, shape: list[int], data: bytes, message: str) -> None:
    with pytest.raises(InvalidInput) as failed:
        from_bytes("x", datatype, shape, data)
    assert message in str(failed.value)
    with pytest.raises(InvalidInput) as failed:
        from_bytes("x", datatype, shape, memoryview(data), field="raw[0]")
    assert str(failed.value).startswith(("raw[0]", "x.shape"))


def test_specs() -> None:
    with pytest.raises(InvalidInput, match="datatype"):
        TensorSpec("x", "FP8", (1,))
    with pytest.raises(InvalidInput, match="shape"):
        TensorSpec("x", "FP32", (-2,))
    assert not TensorSpec("x", "FP32", ()).batched
    assert datatype_of(np.dtype("<U5")) == datatype_of(np.dtype(object)) == "BYTES"
    assert datatype_of(np.dtype(">f8")) == "FP64"
    with pytest.raises(InvalidInput, match="dtype"):
        datatype_of(np.dtype(np.complex64))
    with pytest.raises(InvalidInput, match="Ask for binary data"):
        to_json(np.array([b"\xff"], object))
