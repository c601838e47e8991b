"""What of a model's scores leaves: rounded, with noise, or withheld where the model is not sure; the log keeps all.

Off by default, and then nothing is looked at; what each costs a row is measured by bench/serving/guard_on.py. Why
none of them stops the extraction of a model is told in `vitok.guard.noise`.
"""

from collections.abc import Mapping

import numpy as np

from vitok.errors import InvalidInput, ServiceError
from vitok.guard import ConfidenceFloor, KeyedNoise, confidence_of, rounded
from vitok.serving.inference import ROUTE, Hosted


class Disclosure:
    """Changes the scores of a model on their way out: noise first, then rounding; what is withheld becomes null.

    All outputs of floating point are taken for probabilities, in (0, 1): one a row, or a column for each class. The
    decision log keeps what the model gave. Rounding may carry a score over a threshold at which somebody decides;
    noise does not, where it knows the threshold.

    Args:
        decimals: How many digits after the point leave; None for all.
        noise: Noise, the same for the same input; for one probability a row or two classes.
        floor: Withholds the answer to rows of less confidence.

    Attributes:
        rows: How many rows have passed.
        withheld: How many of them were withheld.

    Raises:
        InvalidInput: If nothing is to be changed, or `decimals` is not from 1 to 15.

    Example:
        >>> outputs = {"score": np.array([0.12345, 0.51])}
        >>> floor = ConfidenceFloor(
        ...     floor=0.8, coverage=0.5, error=0.1, error_bound=0.2, max_error=0.2, n_obs=100, confidence_level=0.95
        ... )
        >>> Disclosure(decimals=2, floor=floor)(np.zeros((2, 3)), outputs)["score"].tolist()
        [0.12, nan]
    """

    def __init__(
        self,
        *,
        decimals: int | None = None,
        noise: KeyedNoise | None = None,
        floor: ConfidenceFloor | None = None,
    ) -> None:
        if decimals is None and noise is None and floor is None:
            raise InvalidInput("disclosure", "nothing", "change something", "Give decimals, noise or floor")
        if decimals is not None:
            rounded(0.5, decimals)
        self.decimals = decimals
        self.noise = noise
        self.floor = floor
        self.rows = 0
        self.withheld = 0

    def dress(self, hosted: Hosted) -> None:
        """Sets it before what a model answers.

        Raises:
            InvalidInput: If the model takes no matrix of rows, or gives something that cannot be withheld.
        """
        runtime = hosted.runtime
        # A route hands over its matrix, whatever columns stand beside it.
        if not runtime.takes_rows and runtime.platform != ROUTE:
            raise InvalidInput("model", hosted.name, "take one matrix of rows")
        whole = [spec.name for spec in runtime.outputs if spec.datatype not in ("FP32", "FP64")]
        if whole:
            raise InvalidInput("outputs", whole, "be of FP32 or FP64", "A label would tell what the score shall not")
        hosted.disclose = self

    def __call__(self, X: np.ndarray, outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns what leaves.

        Args:
            X: The rows, shape (n, n_features).
            outputs: What the model gave for them.

        Raises:
            ServiceError: If an output is no probability.
        """
        self.rows += len(X)
        unsure = np.zeros(len(X), np.bool_)
        try:
            found = {name: self._changed(X, tensor, unsure) for name, tensor in outputs.items()}
        except InvalidInput as error:
            # Whoever asked has done nothing wrong.
            raise ServiceError(f"the model gives no probabilities: {error}") from None
        if self.floor is not None and unsure.any():
            self.withheld += int(unsure.sum())
            for name, tensor in found.items():
                # What was not changed is the model's own.
                found[name] = kept = tensor.copy()
                kept[unsure] = np.nan
        return found

    def _changed(self, X: np.ndarray, tensor: np.ndarray, unsure: np.ndarray) -> np.ndarray:
        if self.floor is not None:
            true = tensor[:, 0] if tensor.ndim == 2 and tensor.shape[1] == 1 else tensor
            unsure |= ~self.floor.answers(confidence_of(true))
        p = tensor.astype(np.float64, copy=False)
        if self.noise is not None:
            p = self._noisy(self.noise, p, X)
        if self.decimals is not None:
            p = rounded(p, self.decimals)
        return p.astype(tensor.dtype, copy=False)

    @staticmethod
    def _noisy(noise: KeyedNoise, p: np.ndarray, X: np.ndarray) -> np.ndarray:
        if p.ndim == 1:
            return noise.apply(p, X)
        if p.ndim != 2 or p.shape[1] > 2:
            raise InvalidInput("outputs", p.shape, "have one or two columns where there is noise")
        positive = noise.apply(p[:, -1], X)
        return np.column_stack([1 - positive, positive]) if p.shape[1] == 2 else positive.reshape(-1, 1)
