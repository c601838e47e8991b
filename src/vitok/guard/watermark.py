"""A watermark for classifiers: keyed trigger rows with keyed answers, and a test of whose model it is. Off by default.

The owner adds the trigger rows to the training data before fitting. Their answers are drawn by a secret and have
nothing to do with the rows, so a model that was made without them agrees with each by chance alone, and the number of
agreements has a binomial law whatever that model is (Adi et al., Turning Your Weakness Into a Strength, USENIX
Security 2018).

What it costs: nothing a request; the triggers are rows of training that are wrong, so some accuracy, which the gate
has to see: compare both fits. What it does not do: it shows that *this* model, or a copy of its file, is the owner's.
A student trained on its answers has hardly seen the triggers and mostly does not carry them (docs/guard.md has the
figures); whoever fine-tunes, prunes or retrains can wash them out; and who sees the triggers asked can answer them by
chance, so ask them from elsewhere and once.
"""

import hashlib
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vitok.errors import InvalidInput
from vitok.stats import NullTest

_TRIES = 20


@dataclass(frozen=True, kw_only=True, eq=False)
class Watermark:
    """Trigger rows and the answers that only a marked model gives.

    Attributes:
        X: Shape (n, f), the triggers; secret.
        answers: Shape (n,), the class of each, in [0, n_classes); secret.
        n_classes: How many classes there are.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> mark = Watermark.make(b"a secret of sixteen bytes", rng.normal(size=(500, 4)), n_triggers=60)
        >>> mark.test(mark.answers).p_value < 1e-15, mark.test(np.zeros(60)).p_value > 0.01
        (True, True)
    """

    X: NDArray[np.float64]
    answers: NDArray[np.int64]
    n_classes: int

    @classmethod
    def make(cls, key: bytes, X: ArrayLike, *, n_triggers: int = 100, n_classes: int = 2) -> "Watermark":
        """Draws triggers and answers by a secret.

        Each value of a trigger is that of another row of X, so every feature looks ordinary and the combination
        hardly ever occurs: then being wrong about it harms little.

        Args:
            key: A secret of 16 to 64 bytes; the same key and X give the same watermark.
            X: Shape (n, f), rows of the training data.
            n_triggers: How many; 100 right answers have a chance of 2 ** -100.
            n_classes: How many classes the model tells apart, at least 2.

        Raises:
            InvalidInput: If a value is out of range, or X has too few combinations to make rows that are new.
        """
        matrix = np.asarray(X, dtype=np.float64)
        if matrix.ndim != 2 or len(matrix) < 2 or not matrix.shape[1]:
            raise InvalidInput("X", matrix.shape, "have at least two rows and one feature")
        if not 16 <= len(key) <= 64:
            raise InvalidInput("key", f"{len(key)} bytes", "have 16 to 64 bytes")
        if n_triggers < 20:
            raise InvalidInput("n_triggers", n_triggers, "be at least 20", "Fewer prove little")
        if n_classes < 2:
            raise InvalidInput("n_classes", n_classes, "be at least 2")
        rng = np.random.default_rng(int.from_bytes(blake2b(b"watermark", key=key).digest(), "big"))
        taken = {row.tobytes() for row in matrix + 0.0}
        rows: list[NDArray[np.float64]] = []
        for _ in range(_TRIES * n_triggers):
            if len(rows) == n_triggers:
                break
            places = rng.integers(len(matrix), size=matrix.shape[1])
            row = matrix[places, np.arange(matrix.shape[1])] + 0.0
            if row.tobytes() not in taken:
                taken.add(row.tobytes())
                rows.append(row)
        else:
            fix = "Give rows of more features or of more values"
            raise InvalidInput("X", matrix.shape, f"have combinations for {n_triggers} new rows", fix)
        return cls(X=np.array(rows), answers=rng.integers(n_classes, size=n_triggers), n_classes=n_classes)

    @property
    def commitment(self) -> str:
        """SHA-256 of triggers and answers: deposit it dated before a dispute, and show the triggers in it."""
        parts = (np.ascontiguousarray(self.X, dtype="<f8").tobytes(), self.answers.astype("<i8").tobytes())
        return hashlib.sha256(b"".join((*parts, str((self.X.shape, self.n_classes)).encode()))).hexdigest()

    def test(self, answers: ArrayLike) -> NullTest:
        """Tests whether a model carries the watermark.

        Args:
            answers: Shape (n,), the classes that the model in question gives to the triggers.

        Returns:
            The share of agreements and the chance of at least as many where the model was made without the key:
            binomial with 1 / n_classes, exact for any such model.

        Raises:
            InvalidInput: If the shape does not fit.
        """
        from scipy.stats import binom

        given = np.asarray(answers)
        if given.shape != self.answers.shape:
            raise InvalidInput("answers", given.shape, f"have the shape {self.answers.shape}")
        agreed, n = int((given == self.answers).sum()), len(self.answers)
        return NullTest(
            name="watermark",
            statistic=agreed / n,
            p_value=float(binom.sf(agreed - 1, n, 1 / self.n_classes)),
            n_obs=n,
            definition="a model made without the key agrees with each keyed answer by chance; binomial, one-sided",
        )
