"""A model that learned online, served as any other: as a package of its own, or from the snapshots of a learner.

    files = package_files(model, rows)
    registry.register("fraud", files, now=now(), actor="online")      # Runtime.load takes the package as it is

A package is a version and never changes. A shadow that goes on learning is another thing: one process learns and
writes snapshots, and a `SnapshotFollower` in each process that serves takes the newest.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitok.errors import Conflict, InvalidInput, StoreError
from vitok.models.online import OnlineModel
from vitok.models.online_matrix import MatrixScorer
from vitok.models.online_state import content_name, read_content

MODEL_ONLINE = "model.online"
_INPUT, _OUTPUT = "input", "output"
_FACTORY = "vitok.models.online_scoring:open_packaged"
_Floats = NDArray[np.float64]


def package_files(
    model: OnlineModel, examples: Any, *, names: Sequence[str] | None = None, n_examples: int = 64
) -> dict[str, Any]:
    """Returns the files of a package: the snapshot, how to open it, its signature, and examples with their scores.

    Args:
        model: What is packaged, as it is now; a learner that goes on does not change the package.
        examples: Rows as `HashedFeatures.encode` takes them; a sequence of dicts, or columns.
        names: Order of the columns of one float64 matrix that the model is to take, as a service with a fixed list
            of numeric features has it; each feature must be among them and categories be whole numbers in it. None: an
            input for each column, texts for categories.
        n_examples: How many rows are recorded.

    Raises:
        InvalidInput: If a feature is not among `names`, or the examples cannot be read.

    Example:
        >>> from vitok.models.online_features import Category, HashedFeatures
        >>> model = OnlineModel(HashedFeatures(features=(Category("country"),), bits=8))
        >>> files = package_files(model, [{"country": "FR"}])
        >>> sorted(files), files["signature.json"]["inputs"]
        (['callable.json', 'examples.json', 'model.online', 'signature.json'], ['country'])
    """
    columns = model.features.columns
    lacking = [name for name in columns if names is not None and name not in names]
    if lacking:
        raise InvalidInput("names", list(names or ()), f"hold every column of the features; {lacking[0]!r} is not")
    order = tuple(names) if names is not None else columns
    recorded = _recorded(model, examples, order, as_matrix=names is not None, n_examples=n_examples)
    if names is not None:
        inputs = [{"name": _INPUT, "datatype": "FP64", "shape": [-1, len(order)]}]
    else:
        texts = model.features.texts
        inputs = [{"name": name, "datatype": "BYTES" if name in texts else "FP64", "shape": [-1]} for name in order]
    return {
        MODEL_ONLINE: model.to_bytes(),
        "callable.json": {
            "factory": _FACTORY,
            "inputs": inputs,
            "outputs": [{"name": _OUTPUT, "datatype": "FP64", "shape": [-1]}],
        },
        "signature.json": {
            "inputs": list(order),
            "dtype": "float64",
            "output": "probability",
            "engine": "callable",
            "library": "vitok",
            "model": "OnlineModel",
        },
        "examples.json": recorded,
    }


def open_packaged(folder: Path) -> Callable[[Mapping[str, Any]], dict[str, _Floats]]:
    """Opens the model of a package's folder as the function that `callable.json` names.

    Raises:
        StoreError: If a file is missing or damaged.
    """
    import json

    model = OnlineModel.load(folder / MODEL_ONLINE)
    try:
        order = tuple(json.loads((folder / "signature.json").read_bytes())["inputs"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{folder}: signature.json cannot be read: {error!r}") from error

    of_matrix = MatrixScorer(model, order)

    def score(tensors: Mapping[str, Any]) -> dict[str, _Floats]:
        matrix = tensors.get(_INPUT) if set(tensors) == {_INPUT} else None
        if matrix is None or matrix.ndim != 2:
            return {_OUTPUT: model.predict(tensors)}
        return {_OUTPUT: of_matrix(matrix)}

    return score


def columns_of(matrix: NDArray[Any], names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Returns the columns of a matrix of shape (n, names) by name.

    Raises:
        InvalidInput: If the shape does not fit.
    """
    if matrix.ndim != 2 or matrix.shape[1] != len(names):
        raise InvalidInput("matrix", matrix.shape, f"have the shape (n, {len(names)})")
    return {name: matrix[:, i] for i, name in enumerate(names)}


class SnapshotFollower:
    """The newest model that a learner has saved, for a process that serves.

    The file is looked at (one `stat`) at each call and read when it is another; what cannot be read leaves the model
    as it was. Reading takes some milliseconds: where answers have a deadline, call `refresh` from another thread and
    use `model`.

    Args:
        path: Where the learner saves.

    Attributes:
        model: The newest that could be read.
        name: What its snapshot is called by its contents, as `content_name` says.
        failures: How many snapshots could not be read, or were of other features.

    Raises:
        StoreError: If there is no snapshot yet, or it cannot be read.

    Example:
        >>> import tempfile
        >>> from vitok.models.online_features import Category, HashedFeatures
        >>> model = OnlineModel(HashedFeatures(features=(Category("country"),), bits=8))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "shadow.online"
        ...     model.save(path)
        ...     follower = SnapshotFollower(path)
        ...     _ = model.learn_many([{"country": "FR"}] * 9, [1] * 9)
        ...     model.save(path)
        ...     follower.refresh(), follower.model.ftrl.n_learned, follower.refresh()
        (True, 9, False)
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._seen = self._stamp()
        content = read_content(self._path)
        self.model = OnlineModel.from_bytes(content, where=str(path))
        self.name = content_name(content)
        self.failures = 0

    def refresh(self) -> bool:
        """Takes the newest snapshot, and says whether it was a new one."""
        stamp = self._stamp()
        if stamp is None or stamp == self._seen:
            return False
        self._seen = stamp
        try:
            content = read_content(self._path)
            self.model = OnlineModel.from_bytes(content, where=str(self._path), features=self.model.features)
        except (Conflict, StoreError):
            self.failures += 1
            return False
        self.name = content_name(content)
        return True

    def predict(self, rows: Any) -> _Floats:
        """Returns the calibrated probability of each row by the newest snapshot, shape (n,)."""
        self.refresh()
        return self.model.predict(rows)

    def _stamp(self) -> tuple[int, int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size


def _recorded(
    model: OnlineModel, examples: Any, order: Sequence[str], *, as_matrix: bool, n_examples: int
) -> dict[str, Any]:
    texts = model.features.texts
    if isinstance(examples, (list, tuple)):
        columns = {name: [row.get(name) for row in examples[:n_examples]] for name in order}
    elif as_matrix and isinstance(examples, np.ndarray):
        columns = {name: column[:n_examples].tolist() for name, column in columns_of(examples, order).items()}
    else:
        columns = {name: list(examples[name][:n_examples]) for name in order}
    for name, column in columns.items():
        text = name in texts and not as_matrix
        columns[name] = [_text(value) if text else _number(value) for value in column]
    scores = model.predict({name: columns[name] for name in model.features.columns}).tolist()
    if not as_matrix:
        return {"inputs": columns, "outputs": {_OUTPUT: scores}}
    return {"inputs": [list(row) for row in zip(*columns.values(), strict=True)], "outputs": scores}


def _text(value: Any) -> str:
    value = value.as_py() if hasattr(value, "as_py") else value
    return "" if value is None else str(value)


def _number(value: Any) -> float | None:
    value = value.as_py() if hasattr(value, "as_py") else value
    return None if value is None or not np.isfinite(value) else float(value)
