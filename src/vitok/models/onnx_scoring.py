"""Scores rows with an ONNX model that is held in memory, as a served package would: for checks and measurements."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitok.errors import InvalidInput, MissingExtra

_FLOATS = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16}
_TYPES = {**_FLOATS, "tensor(int64)": np.int64, "tensor(string)": np.object_}


class OnnxScorer:
    """Runs a model with ONNX Runtime on the processor, one thread, as `serving` does.

    Args:
        content: The model.
        threads: Threads of one run.

    Attributes:
        inputs: Name and numpy type of each input.
        output: The output that holds the scores: the last one of floating point.

    Raises:
        InvalidInput: If it is no model, has inputs of other kinds, or no output of floating point.
        MissingExtra: If the extra `serve` is not installed.
    """

    def __init__(self, content: bytes, *, threads: int = 1) -> None:
        try:
            import onnxruntime
            from onnxruntime.capi import onnxruntime_pybind11_state as state
        except ImportError:
            raise MissingExtra("serve", "running models") from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        refusals = (state.Fail, state.InvalidArgument, state.InvalidGraph, state.InvalidProtobuf, state.NotImplemented)
        try:
            self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except (*refusals, state.RuntimeException) as error:
            reason = " ".join(str(error).split())
            raise InvalidInput("model", f"{len(content)} bytes", f"be an ONNX model that runs: {reason}") from None
        strange = [item.name for item in self._session.get_inputs() if item.type not in _TYPES]
        floats = [item.name for item in self._session.get_outputs() if item.type in _FLOATS]
        if strange or not floats:
            rule = "take tensors of floats, 64-bit integers or texts, and give a tensor of floats"
            raise InvalidInput("model", [item.type for item in self._session.get_inputs()], rule)
        self.inputs: dict[str, Any] = {item.name: _TYPES[item.type] for item in self._session.get_inputs()}
        self.output = floats[-1]

    def feed(self, rows: NDArray[Any] | Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Returns the inputs as the model takes them.

        Args:
            rows: A matrix of shape (n, features) where there is one input; else each input by name.

        Raises:
            InvalidInput: If an input lacks.
        """
        if not isinstance(rows, Mapping):
            if len(self.inputs) != 1:
                raise InvalidInput("rows", np.shape(rows), f"be a mapping with {sorted(self.inputs)}")
            rows = dict.fromkeys(self.inputs, rows)
        lacking = sorted(set(self.inputs) - set(rows))
        if lacking:
            raise InvalidInput("rows", sorted(rows), f"hold {lacking}")
        with np.errstate(over="ignore"):  # what is too large for 32 bits is infinite there
            return {name: np.ascontiguousarray(rows[name], dtype=kind) for name, kind in self.inputs.items()}

    def run(self, feed: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """Returns the output of a run on what `feed` returned, as the model gives it."""
        return np.asarray(self._session.run([self.output], dict(feed))[0])

    def score(self, rows: NDArray[Any] | Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
        """Scores rows.

        Args:
            rows: As `feed` takes them.

        Returns:
            Shape (n,): the output itself, or its last column where there are at most two, as for a classifier the
            probability of class 1; shape (n, k) with more columns.
        """
        return flat(self.run(self.feed(rows)))


def flat(scores: NDArray[Any]) -> NDArray[np.float64]:
    """Returns scores of shape (n,) where they have one or two columns, else as they are, in 64 bits.

    Example:
        >>> flat(np.array([[0.25, 0.75]]))
        array([0.75])
    """
    scores = np.asarray(scores, dtype=np.float64)
    return scores[:, -1] if scores.ndim == 2 and scores.shape[1] <= 2 else scores
