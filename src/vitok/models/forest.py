"""Tree models from any library as flat arrays, scored by kernels of our own, exactly as the library would.

    forest = Forest.of(booster)        # or a classifier, a model text, a path
    forest.predict(X)                  # probabilities or values
    forest.save("model.forest")        # one file; Forest.load maps it into memory

The raw scores equal the library's to the last bit. Values after the link (probabilities) are computed with the C
library's `exp`; LightGBM's and XGBoost's equal theirs to the last bit where they use the same one, scikit-learn's and
CatBoost's may differ in the last place, because these have exponentials of their own.
"""

import dataclasses
import hashlib
import json
import mmap
import os
import struct
import tempfile
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from vitok.errors import InvalidInput, StoreError
from vitok.models.boosting import BoostedTrees

_MAGIC = b"VTKTREES"
_VERSION = 1
_FIRST = struct.Struct("<8sIIQ")  # magic, version, bytes of the description, bytes in all
_DIGEST = 32  # bytes, of all before and after it
_HEAD = _FIRST.size + _DIGEST
_ALIGNMENT = 64
_ARRAYS = ("nodes", "values", "columns", "plan", "numbers", "bits")
_LINKS = ("identity", "sigmoid", "softmax", "exp", "log1p_exp", "signed_square", "step")
_RAW = -1
_FLOAT64 = np.dtype(np.float64)
_Floats = NDArray[np.float64]


@dataclasses.dataclass(frozen=True, repr=False, eq=False, kw_only=True)
class Forest:
    """The trees of one model.

    A row is a row of numbers in the order of the features it was trained on. What a missing value, a zero, an infinity
    or an unknown category means is what it means to the library that trained the model; a row with a value that the
    library refuses scores NaN. The arrays are those of `forest_kernels.score` and cannot be written.

    Attributes:
        library: Where the trees come from: lightgbm, xgboost, catboost or sklearn.
        feature_names: In the order of the columns; `f0`, `f1`, … where the model has none.

    Example:
        >>> from sklearn.tree import DecisionTreeRegressor
        >>> tree = DecisionTreeRegressor().fit([[0.0], [1.0], [2.0]], [5.0, 6.0, 8.0])
        >>> forest = Forest.of(tree)
        >>> forest
        Forest(sklearn, 1 tree, 1 feature, 1 output, identity)
        >>> forest.predict(np.array([[0.2], [7.0]]))
        array([5., 8.])
    """

    library: str
    feature_names: tuple[str, ...]
    nodes: np.ndarray
    values: np.ndarray
    columns: np.ndarray
    plan: np.ndarray
    numbers: np.ndarray
    bits: np.ndarray

    @classmethod
    def of(cls, model: Any) -> Self:
        """Takes the trees out of a model.

        Args:
            model: A fitted object of LightGBM (`Booster`, `LGBMClassifier`, …), XGBoost (`Booster`, `XGBClassifier`,
                …), CatBoost or scikit-learn (decision trees, random forests, extra trees, gradient boosting, also by
                histograms); `BoostedTrees`; LightGBM's model text; XGBoost's or CatBoost's JSON as a dict, text or
                bytes; XGBoost's UBJSON; or the path of a file with one of these, or of one that `save` wrote.
                Iterations after the best one, where early stopping named one, are left out where the object's own
                `predict` leaves them out.

        Raises:
            InvalidInput: If it is none of these, or holds what cannot be scored exactly: linear trees, several targets
                in one tree, features made from texts or from target statistics of categories.
            StoreError: If the file cannot be read, or is damaged.
        """
        from vitok.models.forest_reading import read_model

        if isinstance(model, cls):
            return model
        if isinstance(model, BoostedTrees):
            from vitok.models.forest_lightgbm import read_lightgbm_text

            arrays, _ = read_lightgbm_text(model.text, narrow=True)
            return cls._build("lightgbm", model.names, dataclasses.asdict(arrays))
        if isinstance(model, Path) or (isinstance(model, str) and "\n" not in model and not model.startswith("{")):
            content = _read(Path(model))
            if content[: len(_MAGIC)] == _MAGIC:
                return cls.load(model)
            model = content
        library, arrays, names = read_model(model)
        return cls._build(library, names, dataclasses.asdict(arrays))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Maps a file that `save` wrote into memory; processes that load the same file share it.

        The checksum is verified, so the whole file is read once. It guards against damage, not against malice: load
        files from whom you would take a model.

        Raises:
            StoreError: If the file cannot be read, is cut off, damaged, of a later version, or no such file.
        """
        path = Path(path)
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                content: Any = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
        except OSError as error:
            raise StoreError(f"{path}: cannot be read: {error.strerror}") from error
        return cls._unpack(content, str(path))

    @property
    def n_features(self) -> int:
        """How many columns a row has."""
        return int(self.plan[7])

    @property
    def n_outputs(self) -> int:
        """How many numbers a row gets: 1, or the number of classes where there are more than two."""
        return int(self.plan[1])

    @property
    def n_trees(self) -> int:
        """How many trees there are, over all iterations and classes."""
        return int(self.plan[0])

    @property
    def link(self) -> str:
        """What turns raw scores into predictions, such as identity, sigmoid, softmax or exp."""
        return _LINKS[int(self.plan[6])]

    @property
    def symmetric(self) -> bool:
        """Whether each level of each tree asks all its nodes the same, as CatBoost's do; then batches are faster."""
        from vitok.models.forest_kernels import score

        return self._how[0] is not score

    @property
    def input_dtype(self) -> np.dtype[Any]:
        """The precision that the library reads rows in; rows in 64 bits are rounded to it before they are scored."""
        return np.dtype(np.float32 if self.plan[4] else np.float64)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(getattr(self, name).nbytes for name in _ARRAYS)

    def __repr__(self) -> str:
        def some(n: int, what: str) -> str:
            return f"{n} {what}{'' if n == 1 else 's'}"

        counts = (some(self.n_trees, "tree"), some(self.n_features, "feature"), some(self.n_outputs, "output"))
        return f"Forest({self.library}, {', '.join(counts)}, {self.link})"

    def predict(self, X: Any, *, out: _Floats | None = None) -> _Floats:
        """Scores rows and applies the link.

        Args:
            X: Numbers of shape (n, features). A C-contiguous float64 matrix is read where it lies; others are copied.
            out: Where to write, C-contiguous float64 of the shape that is returned; a new array where None.

        Returns:
            Shape (n,): the probability of class 1, or the value; shape (n, classes) with more than two classes.

        Raises:
            InvalidInput: If X or `out` has another shape or holds no numbers.
        """
        return self._score(X, out, self._link)

    def raw(self, X: Any, *, out: _Floats | None = None) -> _Floats:
        """Adds the trees up and applies no link: log-odds, logarithms or, where trees are averaged, sums.

        Takes and returns what `predict` does.
        """
        return self._score(X, out, _RAW)

    def warm(self) -> Self:
        """Compiles the kernels, or reads them from the cache on disk, and scores one row; returns the forest."""
        self.predict(np.zeros((1, self.n_features)))
        return self

    def save(self, path: str | Path) -> None:
        """Writes one file, in place of what was there; after a crash there is the old or the new one, whole.

        Raises:
            StoreError: If it cannot be written.
        """
        path = Path(path)
        content = self.to_bytes()
        try:
            descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                Path(name).chmod(0o644)
                Path(name).replace(path)
            except BaseException:
                Path(name).unlink(missing_ok=True)
                raise
        except OSError as error:
            raise StoreError(f"{path}: cannot be written: {error.strerror}") from error

    @cached_property
    def _link(self) -> int:
        return int(self.plan[6])

    @cached_property
    def _shape(self) -> tuple[int, int]:
        return self.n_features, self.n_outputs

    @cached_property
    def _how(self) -> tuple[Callable[..., None], tuple[np.ndarray, ...]]:
        from vitok.models.forest_kernels import score
        from vitok.models.forest_layout import Arrays
        from vitok.models.forest_symmetric import symmetric_parts

        arrays = tuple(getattr(self, name) for name in _ARRAYS)
        parts = symmetric_parts(Arrays(**dict(zip(_ARRAYS, arrays, strict=True))))
        if parts is None:
            return score, arrays
        # Not before it is wanted: where no cache is on the disk, to import it is to compile it.
        from vitok.models.forest_symmetric_kernels import score_symmetric

        return score_symmetric, parts

    def _score(self, X: Any, out: _Floats | None, link: int) -> _Floats:
        n_features, k = self._shape
        if not (type(X) is np.ndarray and X.dtype is _FLOAT64 and X.flags.c_contiguous):
            X = _rows(X)
        if X.ndim != 2 or X.shape[1] != n_features:
            raise InvalidInput("X", X.shape, f"have shape (n, {n_features})", "One row is a matrix of one row")
        n = len(X)
        if out is None:
            out = np.empty(n if k == 1 else (n, k))
        elif (
            type(out) is not np.ndarray
            or out.dtype != np.float64
            or out.shape != ((n,) if k == 1 else (n, k))
            or not (out.flags.c_contiguous and out.flags.writeable)
        ):
            shape = f"({n},)" if k == 1 else f"({n}, {k})"
            raise InvalidInput("out", getattr(out, "shape", out), f"be writable, float64, contiguous, of shape {shape}")
        kernel, parts = self._how
        kernel(X, out if k == 1 else out.reshape(-1), link, *parts)
        return out

    @classmethod
    def _build(cls, library: str, names: Sequence[str], arrays: dict[str, np.ndarray]) -> Self:
        n = int(arrays["plan"][7])
        for array in arrays.values():
            array.flags.writeable = False
        named = tuple(names) or tuple(f"f{i}" for i in range(n))
        if len(named) != n:
            raise InvalidInput("feature_names", len(named), f"be the names of {n} features")
        return cls(library=library, feature_names=named, **arrays)

    def to_bytes(self) -> bytes:
        """Returns what `save` writes."""
        arrays = {name: np.ascontiguousarray(getattr(self, name)) for name in _ARRAYS}
        about: dict[str, Any] = {"library": self.library, "feature_names": self.feature_names, "arrays": {}}
        place = 0
        for name, array in arrays.items():
            about["arrays"][name] = [place, len(array)]
            place += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
        text = json.dumps(about).encode()
        text += b" " * (-(_HEAD + len(text)) % _ALIGNMENT)
        body = b"".join([text, *(_padded(array.tobytes()) for array in arrays.values())])
        first = _FIRST.pack(_MAGIC, _VERSION, len(text), _HEAD + len(body))
        return first + _digest(first, body) + body

    @classmethod
    def _unpack(cls, content: Any, path: str) -> Self:
        from vitok.models.forest_kernels import COLUMN, NODE
        from vitok.models.forest_layout import Arrays, fit_together

        if len(content) < _HEAD or content[: len(_MAGIC)] != _MAGIC:
            raise StoreError(f"{path}: is no forest that Forest.save wrote; Forest.of reads the libraries' own files")
        first = content[: _FIRST.size]
        _, version, n_text, size = _FIRST.unpack(first)
        if version != _VERSION:
            raise StoreError(f"{path}: has version {version}, and this vitok reads version {_VERSION}; save it anew")
        body = memoryview(content)[_HEAD:]
        if size != len(content) or _digest(first, body) != content[_FIRST.size : _HEAD]:
            raise StoreError(f"{path}: is cut off or damaged ({len(content)} of {size} bytes); save it anew")
        about = json.loads(bytes(body[:n_text]))
        kinds: tuple[Any, ...] = (NODE, np.float64, COLUMN, np.int64, np.float64, np.uint64)
        arrays = {}
        for name, kind in zip(_ARRAYS, kinds, strict=True):
            place, length = about["arrays"][name]
            arrays[name] = np.frombuffer(content, kind, length, _HEAD + n_text + place)
        if not fit_together(Arrays(**arrays)):
            raise StoreError(f"{path}: its arrays do not fit together; save it anew")
        return cls._build(about["library"], about["feature_names"], arrays)


def _digest(first: bytes, body: bytes | memoryview) -> bytes:
    digest = hashlib.blake2b(first, digest_size=_DIGEST)
    digest.update(body)
    return digest.digest()


def _padded(content: bytes) -> bytes:
    return content + b"\0" * (-len(content) % _ALIGNMENT)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror}") from error


def _rows(X: Any) -> _Floats:
    try:
        given = np.asarray(X)
    except ValueError:
        raise InvalidInput("X", X, "be a matrix of numbers") from None
    if given.dtype.kind not in "biuf":
        raise InvalidInput("X", given.dtype, "hold numbers", "Code categories as the model was trained on them")
    return np.ascontiguousarray(given, dtype=np.float64)
