"""Quantising: an ONNX model in 8 or 16 bits, taken only where it stays as good and is faster as it is really run.

    found = quantise(content, calibration=X_past, held_out=(X_late, y_late), batch_sizes={1: 0.7, 16: 0.3})
    print(found)                      # each form, what it lost, what it saved, and why it was taken or refused
    found.chosen.content              # the model to serve; the full one where none was better

Three things are commonly overlooked. A static form may keep its AUC while its probabilities drift, so that log loss
is worse by a tenth: it is refused, or calibrated anew with `labels`. In 8 bits a small network is slower at a batch
of one, since packing costs more than multiplying saves: time is taken at the batch sizes that are seen. And dynamic
quantisation takes its scale from the whole batch, so that a row's score depends on who was in the batch with it: how
much is measured.
"""

import importlib
import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitok.errors import InvalidInput, MissingExtra
from vitok.models.calibrators import Calibrator, fit_best
from vitok.models.comparison import compare
from vitok.models.onnx_scoring import OnnxScorer
from vitok.models.tradeoffs import Bounds, Form, Run, check_batches, measure_form, time_in_turns

FULL = "full"
INT8_DYNAMIC, INT8_STATIC, FP16 = "int8_dynamic", "int8_static", "fp16"
VARIANTS = (INT8_DYNAMIC, INT8_STATIC, FP16)
_TOGETHER = 64
_Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Variant(Form):
    """One form of the model, measured; its name is `"full"` or one of `VARIANTS`.

    Attributes:
        content: The model; empty where it could not be made.
        calibrator: What makes its scores probabilities again, where it was calibrated anew.
        batch_spread: Largest difference between a row's score alone and in a batch.
    """

    content: bytes = field(repr=False)
    calibrator: Calibrator | None = None
    batch_spread: float = 0.0

    def files(self) -> dict[str, Any]:
        """Returns the files of a package that it replaces."""
        more = {"calibrator.json": self.calibrator.to_dict()} if self.calibrator is not None else {}
        return {"model.onnx": self.content, **more}

    def __str__(self) -> str:
        lines = [f"{self.name}: {'taken' if self.accepted else 'refused'}, {len(self.content):,} bytes"]
        if self.quality is not None:
            anew = ", calibrated anew" if self.calibrator is not None else ""
            lines.append(
                f"  AUC {self.quality.auc.value:.5f}, log loss {self.quality.log_loss.value:.5f}, "
                f"calibration error {self.quality.calibration.value:.4f}{anew}"
            )
        if self.loss is not None:
            lines.append(f"  against the full model: {self.loss.comparison}")
        if self.batch_spread > 0:
            lines.append(f"  a row's score depends on its batch, by at most {self.batch_spread:.3g}")
        lines += [f"  {timing}" for timing in self.timings]
        return "\n".join([*lines, *(f"  refused: {reason}" for reason in self.reasons)])


@dataclass(frozen=True, kw_only=True)
class Quantised:
    """What quantising found.

    Attributes:
        full: The model as it was given.
        variants: Its other forms, in the order tried.
        shares: Batch size to its share of the runs.
        bounds: What a form may lose and must save.
    """

    full: Variant
    variants: tuple[Variant, ...]
    shares: Mapping[int, float]
    bounds: Bounds

    @property
    def chosen(self) -> Variant:
        """The accepted form that takes least time, else the full model."""
        accepted = [item for item in self.variants if item.accepted]
        return min(accepted, key=lambda item: item.time_ratio, default=self.full)

    @property
    def fastest(self) -> dict[int, str]:
        """For each batch size the form that is good enough and certainly faster than the full one, else `"full"`."""
        out = {}
        for at, size in enumerate(self.shares):
            good = [v for v in self.variants if v.loss is not None and not self.bounds.broken_by(v.loss)]
            faster = [v for v in good if v.timings[at].faster]
            out[size] = min(faster, key=lambda v: v.timings[at].ratio).name if faster else self.full.name
        return out

    def __getitem__(self, name: str) -> Variant:
        for item in (self.full, *self.variants):
            if item.name == name:
                return item
        raise InvalidInput("variant", name, f"be one of {[item.name for item in (self.full, *self.variants)]}")

    def __str__(self) -> str:
        seen = ", ".join(f"{size:,} ({share:.0%})" for size, share in self.shares.items())
        gain = "" if self.chosen is self.full else f", {1 - self.chosen.time_ratio:.0%} of the time saved"
        fastest = ", ".join(f"{size:,}: {name}" for size, name in self.fastest.items())
        blocks = "\n".join(str(item) for item in (self.full, *self.variants))
        head = f"chosen: {self.chosen.name}{gain}; batch sizes seen: {seen}; fastest good one at each: {fastest}"
        return f"{head}\n{blocks}"


def quantise(
    model: bytes | str | Path,
    *,
    calibration: NDArray[Any],
    held_out: tuple[NDArray[Any], NDArray[Any]],
    batch_sizes: Mapping[int, float],
    thresholds: Sequence[float] = (0.5,),
    bounds: Bounds | None = None,
    variants: Sequence[str] = VARIANTS,
    labels: NDArray[Any] | None = None,
    op_types: Sequence[str] | None = None,
    rounds: int = 21,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> Quantised:
    """Makes other forms of a model, measures them on held-out rows, and judges each.

    Args:
        model: An ONNX model of two classes with one matrix as input, or its path.
        calibration: Rows as they are served, shape (n, features), from which static quantisation takes its scales;
            not the held-out ones.
        held_out: Rows and labels, shapes (n, features) and (n,), that nothing was fitted on.
        batch_sizes: Batch size to how many of the runs have it; the shares need not sum up to 1.
        thresholds: Where decisions are made.
        bounds: What a form may lose and must save.
        variants: Some of `VARIANTS`.
        labels: Labels of the calibration rows, shape (n,): every form, the full one too, is then calibrated anew on
            them before it is measured.
        op_types: Kinds of operators that are put into 8 bits, such as `["MatMul"]`; by default all that can be.
        rounds: How often each form is timed at each size.
        clock: Nanoseconds.

    Raises:
        InvalidInput: If the model is none that can be run, its scores are no probabilities, or rows and labels do not
            fit.
        MissingExtra: If ONNX Runtime or onnx is not installed.
    """
    unknown = [name for name in variants if name not in VARIANTS]
    if unknown:
        raise InvalidInput("variants", unknown, f"be of {', '.join(VARIANTS)}")
    shares = check_batches(batch_sizes)
    rows, y = np.asarray(held_out[0]), np.asarray(held_out[1])
    calibration = np.asarray(calibration)
    if rows.ndim != 2 or rows.shape[0] != len(y) or calibration.ndim != 2 or rows.shape[1] != calibration.shape[1]:
        shapes = (calibration.shape, rows.shape, y.shape)
        raise InvalidInput("calibration and held_out", shapes, "have shapes (m, features), (n, features) and (n,)")
    if len(calibration) == 0:
        raise InvalidInput("calibration", calibration.shape, "hold at least one row")
    if labels is not None and len(labels) != len(calibration):
        raise InvalidInput("labels", len(labels), f"be one for each of the {len(calibration)} calibration rows")
    bounds = bounds or Bounds()
    content = model if isinstance(model, bytes) else _read(Path(model))
    scorers = {FULL: OnnxScorer(content)}
    contents = {FULL: content}
    failed: dict[str, str] = {}
    for name in variants:
        try:
            contents[name] = make_variant(content, name, calibration=calibration, op_types=op_types)
            scorers[name] = OnnxScorer(contents[name])
        except InvalidInput as error:
            failed[name] = str(error)
    timings = time_in_turns(
        {name: _runs(scorer, rows) for name, scorer in scorers.items()}, list(shares), rounds=rounds, clock=clock
    )
    made = {}
    reference: _Floats | None = None
    for name, scorer in scorers.items():
        calibrator = None if labels is None else fit_best(scorer.score(calibration), labels).calibrator
        score = _in_batches(scorer, rows, calibrator, max(shares))
        measured = measure_form(
            y,
            score,
            reference,
            timings=(timings[name], timings[FULL]),
            shares=shares,
            thresholds=thresholds,
            bounds=bounds,
        )
        reference = score if reference is None else reference
        spread = _spread(scorer, rows)
        made[name] = Variant(name=name, content=contents[name], calibrator=calibrator, batch_spread=spread, **measured)
    missing = {name: Variant(name=name, content=b"", reasons=(text,)) for name, text in failed.items()}
    both = {**made, **missing}
    return Quantised(full=made[FULL], variants=tuple(both[name] for name in variants), shares=shares, bounds=bounds)


def make_variant(
    content: bytes, name: str, *, calibration: NDArray[Any], op_types: Sequence[str] | None = None
) -> bytes:
    """Makes one form of a model.

    Args:
        content: The ONNX model.
        name: One of `VARIANTS`.
        calibration: Rows of shape (n, features) for static quantisation.
        op_types: Kinds of operators that are put into 8 bits; by default all that can be.

    Raises:
        InvalidInput: If the model cannot be put into this form.
        MissingExtra: If ONNX Runtime or onnx is not installed.
    """
    try:
        onnx = importlib.import_module("onnx")
        quantization = importlib.import_module("onnxruntime.quantization")
        float16 = importlib.import_module("onnxruntime.transformers.float16")
    except ImportError:
        raise MissingExtra("models", "quantising") from None
    kinds = list(op_types) if op_types is not None else None
    # Behind scikit-learn's own operators onnx finds out no types.
    untyped = {"DefaultTensorType": onnx.TensorProto.FLOAT}
    with tempfile.TemporaryDirectory() as folder, _quiet():
        given, prepared, out = (Path(folder) / part for part in ("given.onnx", "prepared.onnx", "out.onnx"))
        given.write_bytes(content)
        try:
            if name == FP16:
                changed = float16.convert_float_to_float16(onnx.load(str(given)), keep_io_types=True)
                return bytes(changed.SerializeToString())
            kept = _plain_scalers(onnx, given)
            # Symbolic shapes need sympy, and matter for transformers only.
            quantization.quant_pre_process(str(given), str(prepared), skip_symbolic_shape=True)
            if name == INT8_DYNAMIC:
                quantization.quantize_dynamic(
                    str(prepared), str(out), op_types_to_quantize=kinds, extra_options=untyped
                )
            else:
                reader = _reader(quantization, OnnxScorer(content), calibration)
                quantization.quantize_static(
                    str(prepared),
                    str(out),
                    reader,
                    op_types_to_quantize=kinds,
                    nodes_to_exclude=kept,
                    extra_options=untyped,
                )
            return out.read_bytes()
        except Exception as error:  # the tools raise whatever their operators raise
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise InvalidInput("model", f"{len(content)} bytes", f"be one that {name} can hold: {reason}") from error


def _plain_scalers(onnx: Any, path: Path) -> list[str]:
    """Writes scikit-learn's scalers as subtractions and products, and returns the names of these.

    Nothing knows the shape of what `ai.onnx.ml.Scaler` gives, and without shapes the layers behind it are not fused.
    The scaling itself must stay in floats: raw features of one scale for all would lose the small ones in 8 bits.
    """
    model = onnx.load(str(path))
    nodes: list[Any] = []
    kept: list[str] = []
    for at, node in enumerate(model.graph.node):
        if node.op_type != "Scaler":
            nodes.append(node)
            continue
        for attribute in node.attribute:
            values = np.array(attribute.floats, dtype=np.float32)
            model.graph.initializer.append(onnx.numpy_helper.from_array(values, f"vitok_{attribute.name}_{at}"))
        kept += [f"vitok_centred_{at}", f"vitok_scaled_{at}"]
        make = onnx.helper.make_node
        nodes.append(make("Sub", [node.input[0], f"vitok_offset_{at}"], [kept[-2]], name=kept[-2]))
        nodes.append(make("Mul", [kept[-2], f"vitok_scale_{at}"], [node.output[0]], name=kept[-1]))
    if kept:
        del model.graph.node[:]
        model.graph.node.extend(nodes)
        onnx.save(model, str(path))
    return kept


def _reader(quantization: Any, scorer: OnnxScorer, rows: NDArray[Any]) -> Any:
    feeds: Iterator[dict[str, Any]] = (
        dict(scorer.feed(rows[start : start + 256])) for start in range(0, len(rows), 256)
    )

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, Any] | None:
            return next(feeds, None)

    return Reader()


@contextmanager
def _quiet() -> Iterator[None]:
    # The tools speak through the root logger, and set one up where there is none; their sessions speak to stderr.
    onnxruntime = importlib.import_module("onnxruntime")
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    onnxruntime.set_default_logger_severity(3)
    try:
        yield
    finally:
        onnxruntime.set_default_logger_severity(2)
        logging.disable(before)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidInput("model", str(path), f"be a readable file ({error.strerror})") from None


def _runs(scorer: OnnxScorer, rows: NDArray[Any]) -> Callable[[int], Run]:
    def prepared(size: int) -> Run:
        feed = scorer.feed(np.resize(rows, (size, rows.shape[1])))
        return lambda: scorer.run(feed)

    return prepared


def _in_batches(scorer: OnnxScorer, rows: NDArray[Any], calibrator: Calibrator | None, size: int) -> _Floats:
    # As they are served: a dynamic form scores a row by the company it is in.
    step = max(size, 1)
    score = np.concatenate([scorer.score(rows[i : i + step]) for i in range(0, len(rows), step)])
    return score if calibrator is None else calibrator(score)


def _spread(scorer: OnnxScorer, rows: NDArray[Any]) -> float:
    few = rows[:_TOGETHER]
    alone = np.concatenate([scorer.score(few[i : i + 1]) for i in range(len(few))])
    found = compare(scorer.score(few), alone).max_difference
    # In 32 bits sums are added up in another order for other shapes; that is no dependence on the others.
    return found if found > 1e-6 else 0.0
