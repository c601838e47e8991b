"""A model that learned online, asked with one matrix of numbers: nothing is hashed and no column is made.

Every bucket has its token beforehand, so that a row costs a search in the edges and a look at the weights for each
feature. The answer is that of `OnlineModel.predict` on the same columns, in every bit.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vitok.errors import InvalidInput
from vitok.models import online_kernels as kernels
from vitok.models.online import OnlineModel
from vitok.models.online_features import Buckets, Number

_Floats = NDArray[np.float64]


class MatrixScorer:
    """Scores rows of a matrix with a model; it follows the model where that goes on learning.

    Args:
        model: The model.
        names: The columns of the matrix; each feature's must be among them. A category is a whole number in it, and
            then, or where a number may come to more than 1e75, rows take the way through `HashedFeatures.encode`.

    Attributes:
        model: As given.
        names: As given.
        direct: Whether rows take the short way.

    Raises:
        InvalidInput: If a column of the features is not among the names.

    Example:
        >>> from vitok.models.online_features import HashedFeatures
        >>> features = HashedFeatures(features=(Buckets("amount", (10.0, 100.0)), Number("age", 40.0, 10.0)), bits=10)
        >>> model = OnlineModel(features)
        >>> _ = model.learn_many([{"amount": 500.0, "age": 20.0}, {"amount": 5.0, "age": 50.0}] * 9, [1, 0] * 9)
        >>> scorer = MatrixScorer(model, ("age", "amount"))
        >>> scorer(np.array([[20.0, 500.0]])) == model.predict([{"amount": 500.0, "age": 20.0}])
        array([ True])
    """

    def __init__(self, model: OnlineModel, names: Sequence[str]) -> None:
        features = model.features
        lacking = [name for name in features.columns if name not in names]
        if lacking:
            raise InvalidInput("names", list(names), f"hold every column of the features; {lacking[0]!r} is not")
        self.model = model
        self.names = tuple(names)
        self._at = {name: self.names.index(name) for name in features.columns}
        buckets = [item for item in features.ordered if isinstance(item, Buckets)]
        numbers = [item for item in features.ordered if isinstance(item, Number)]
        self.direct = not features.texts and all(item.limit <= kernels.LARGEST for item in numbers)
        if not self.direct:
            return
        named = [item.name for item in buckets] + [item.name for item in numbers]
        seeds, parts, ends = features.plan
        sizes = [len(item.edges) for item in buckets]
        starts = np.array([0, *np.cumsum(np.array(sizes, np.int64) + 2)], np.int64)
        tokens, pairs = np.empty(starts[-1], np.uint64), np.empty((len(numbers), 2), np.uint64)
        kernels.bucket_tokens(seeds[: len(buckets)], starts, tokens)
        kernels.number_tokens(seeds[len(buckets) : len(buckets) + len(numbers)], pairs)
        self._plan = (
            np.array([self._at[name] for name in named], np.int64),
            np.array([edge for item in buckets for edge in item.edges], np.float64),
            np.array([0, *np.cumsum(sizes)], np.int64),
            tokens,
            np.array([(item.centre, item.scale, item.limit) for item in numbers], np.float64).reshape(-1, 3),
            pairs,
            np.ascontiguousarray(seeds[len(buckets) + len(numbers) :]),
            parts,
            ends,
            features.bits,
            int(features.constant),
        )

    def __call__(self, matrix: NDArray[np.floating]) -> _Floats:
        """Returns the calibrated probability of each row, shape (n,).

        Args:
            matrix: Shape (n, names), numbers; NaN where there is no value.

        Raises:
            InvalidInput: If the shape does not fit, or a category is a number with a fraction.
        """
        if matrix.ndim != 2 or matrix.shape[1] != len(self.names) or matrix.dtype.kind not in "biuf":
            raise InvalidInput("matrix", (matrix.shape, str(matrix.dtype)), f"be numbers of (n, {len(self.names)})")
        model = self.model
        if not self.direct:
            return model.predict({name: matrix[:, at] for name, at in self._at.items()})
        p = np.empty(len(matrix))
        rows = np.ascontiguousarray(matrix, dtype=np.float64)
        kernels.score_matrix(model.ftrl.state, model.ftrl.coefficients, rows, *self._plan, p)
        return p if model.calibrator is None else model.calibrator(p)
