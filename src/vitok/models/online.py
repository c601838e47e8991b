"""A model that learns while it serves: hashed features, FTRL-Proximal, progressive validation, a calibration layer.

    features = HashedFeatures(features=(Category("merchant"), Number("amount", 50.0, 25.0)), bits=18)
    model = OnlineModel(features, rates=Rates(alpha=0.1, l1=1.0))
    p = model.learn_many(rows, labels)      # what was predicted before each row was learned
    print(model.validation.score())         # how good that was
    model.save("fraud.online")              # OnlineModel.load gives the same model, to the last bit

When to learn, from which outcomes and in which order is the matter of `vitok.models.online_learning`. What resets a
model is never decided here: see `warm_restart`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vitok.errors import Conflict, InvalidInput, StoreError
from vitok.models.calibrators import Calibrator, calibrator_from_dict
from vitok.models.online_calibration import PowerCalibrator
from vitok.models.online_features import HashedFeatures
from vitok.models.online_ftrl import Ftrl, Rates
from vitok.models.online_sampling import NegativeSampling
from vitok.models.online_state import pack_state, read_content, unpack_state, write_state
from vitok.models.online_validation import ProgressiveValidation

_Floats = NDArray[np.float64]


class OnlineModel:
    """Logistic regression on hashed features that learns one row after another.

    One thread learns at a time; another that predicts meanwhile may see a row half learned, as in every lock-free
    learner. A process that only serves follows snapshots instead: `vitok.models.online_scoring.SnapshotFollower`.

    Args:
        features: What a row is made of.
        rates: What FTRL-Proximal is told.
        validation: Counts progressive predictions; by default over 20,000 rows of half-life and over all rows.

    Attributes:
        features: As given.
        ftrl: The weights.
        validation: As given.
        calibrator: Comes after the weights in `predict` unless it is None. `recalibrate` fits it.

    Example:
        >>> from vitok.models.online_features import Category
        >>> model = OnlineModel(HashedFeatures(features=(Category("country"),), bits=10), rates=Rates(alpha=1.0))
        >>> rows = [{"country": "FR"}, {"country": "DE"}] * 50
        >>> p = model.learn_many(rows, [1, 0] * 50)
        >>> float(p[0]), model.predict([{"country": "FR"}, {"country": "DE"}]).round(2).tolist()
        (0.5, [0.95, 0.07])
    """

    def __init__(
        self,
        features: HashedFeatures,
        *,
        rates: Rates | None = None,
        validation: ProgressiveValidation | None = None,
    ) -> None:
        self.features = features
        self.ftrl = Ftrl(bits=features.bits, rates=rates)
        self.validation = validation or ProgressiveValidation()
        self.calibrator: Calibrator | PowerCalibrator | None = None

    def predict(self, rows: Any) -> _Floats:
        """Returns the calibrated probability of each row, shape (n,); rows as `HashedFeatures.encode` takes them."""
        p = self.ftrl.predict(*self.features.encode(rows))
        return p if self.calibrator is None else self.calibrator(p)

    def uncertainty(self, rows: Any) -> _Floats:
        """Returns how far one more look at each row could move its own log odds, shape (n,); see `Ftrl.uncertainty`."""
        return self.ftrl.uncertainty(*self.features.encode(rows))

    def learn_many(
        self,
        rows: Any,
        labels: ArrayLike,
        *,
        weights: ArrayLike | None = None,
        slices: Sequence[str] | None = None,
    ) -> _Floats:
        """Predicts each row with what the rows before it taught, counts that in `validation`, and learns the row.

        It equals a loop over `learn_one`, in every bit of the weights, the predictions and the counts.

        Args:
            rows: As `HashedFeatures.encode` takes them, n of them.
            labels: Shape (n,), 0 or 1.
            weights: Importance, shape (n,); 1 by default.
            slices: One name a row, for `validation`.

        Returns:
            What was predicted before the calibrator, shape (n,).

        Raises:
            InvalidInput: If a row, a label or a weight breaks its rule; then nothing is learned.
        """
        return self.learn_encoded(*self.features.encode(rows), labels, weights=weights, slices=slices)

    def learn_one(self, row: Mapping[str, Any], label: float, *, weight: float = 1.0, slice_name: str = "") -> float:
        """Predicts one row, counts that in `validation`, and learns the row; see `learn_many`.

        Args:
            row: Column to value.
            label: 0 or 1.
            weight: Importance, finite and at least 0.
            slice_name: The row's slice, for `validation`; empty where it has none.
        """
        named = [slice_name] if slice_name else None
        return float(self.learn_many([row], [label], weights=[weight], slices=named)[0])

    def learn_encoded(
        self,
        slots: NDArray[np.uint32],
        values: _Floats,
        labels: ArrayLike,
        *,
        weights: ArrayLike | None = None,
        slices: Sequence[str] | None = None,
    ) -> _Floats:
        """Does what `learn_many` does with rows that were encoded before."""
        if slices is not None and len(slices) != len(slots):
            raise InvalidInput("slices", len(slices), f"be {len(slots)} names")
        p = self.ftrl.learn_many(slots, values, labels, weights=weights)
        self.validation.update(p, labels, weights=weights, slices=slices)
        return p

    def learn_sampled(
        self, rows: Any, labels: ArrayLike, *, ids: Sequence[str], sampling: NegativeSampling
    ) -> tuple[NDArray[np.bool_], _Floats]:
        """Learns the positives and a share of the negatives, weighted so that the expected gradient stays the same.

        Args:
            rows: As `HashedFeatures.encode` takes them.
            labels: Shape (n,), 0 or 1.
            ids: n texts, from which follows which negatives are kept.
            sampling: How many are kept.

        Returns:
            Which rows were learned, shape (n,), and what was predicted for those, shape (rows learned,).
        """
        y = np.asarray(labels, dtype=np.float64)
        kept, weights = sampling.keep(ids, y)
        slots, values = self.features.encode(rows)
        if len(slots) != len(y):
            raise InvalidInput("labels", len(y), f"be {len(slots)}, one a row")
        return kept, self.learn_encoded(slots[kept], values[kept], y[kept], weights=weights[kept])

    def recalibrate(self, *, window: int = 0, least_positives: int = 100) -> PowerCalibrator | None:
        """Fits gamma p^kappa to the progressive predictions of a decayed window and takes it from now on.

        The predictions were made before their rows were learned, so they are held out.

        Args:
            window: Place of the window among `validation.half_lives`.
            least_positives: Weight of positives below which nothing is changed: two numbers want some data.

        Returns:
            The calibrator, or None where there were too few positives and the one before was kept.
        """
        table = self.validation.table(window=window)
        if len(table[0]) == 0 or table[1].sum() < least_positives:
            return None
        self.calibrator = PowerCalibrator.fit_counts(*table)
        return self.calibrator

    def warm_restart(self, start: "OnlineModel | str | Path", *, memory: float = 1.0) -> None:
        """Goes on from the weights of an earlier snapshot, or of another model of the same features.

        A restart throws away what was learned since. Do it for a reason that lies outside of this model: a detector
        that saw the error rise, data found to be poisoned, a batch model that was trained anew. A detector that fires
        because the error fell has seen the model get better. Progressive validation starts anew, since what it
        counted was of other weights; the calibrator is the start's.

        Args:
            start: A model, or the path of a snapshot.
            memory: Share of the start's squared gradients that is kept, 0 to 1. Below 1 rates are larger, and the
                model moves away from the start faster; the weights themselves are the start's.

        Raises:
            Conflict: If the start has other features or rates.
            InvalidInput: If `memory` is outside its range.
            StoreError: If the snapshot cannot be read.
        """
        other = start if isinstance(start, OnlineModel) else OnlineModel.load(start)
        self.check_same(other)
        state = other.ftrl.state.copy()
        kept, self.ftrl.state = self.ftrl.state, state
        try:
            self.ftrl.forget(memory)
        except InvalidInput:
            self.ftrl.state = kept
            raise
        self.ftrl.n_learned = other.ftrl.n_learned
        self.calibrator = other.calibrator
        self.validation = ProgressiveValidation(half_lives=self.validation.half_lives)

    def start_from_batch(self, weights: Mapping[str | tuple[str, str], float]) -> None:
        """Gives weights a start that a batch model found; rates are left as they are.

        A linear model on the same standardised numbers gives its coefficients. Any other model gives its log odds:
        declare `Number("champion_log_odds")` and start it at 1; then this model begins by saying what the champion
        says, and learns what has changed since the champion was trained.

        Args:
            weights: By a number's name, by (category's name, value), or by `"constant"`.

        Raises:
            InvalidInput: If there is no such feature, or a weight is not finite.

        Example:
            >>> from vitok.models.online_features import Number
            >>> model = OnlineModel(HashedFeatures(features=(Number("champion_log_odds"),), bits=8))
            >>> model.start_from_batch({"champion_log_odds": 1.0})
            >>> model.predict([{"champion_log_odds": 0.0}, {"champion_log_odds": -2.0}]).round(3).tolist()
            [0.5, 0.119]
        """
        places = [self.features.slot(*key) if isinstance(key, tuple) else self.features.slot(key) for key in weights]
        if len(set(places)) < len(places):
            raise InvalidInput("weights", list(weights), "be of different slots", "Take more bits")
        self.ftrl.put_weights(places, list(weights.values()))

    def to_bytes(self) -> bytes:
        """Returns what `save` writes."""
        return pack_state(*self.to_parts())

    def save(self, path: str | Path) -> None:
        """Writes a snapshot in the place of the one before, as a whole or not at all.

        Raises:
            StoreError: If it cannot be written.
        """
        write_state(path, self.to_bytes())

    @classmethod
    def load(cls, path: str | Path, *, features: HashedFeatures | None = None) -> Self:
        """Reads a snapshot.

        Args:
            path: The file.
            features: What the caller means by a row; None takes what the snapshot says.

        Raises:
            StoreError: If it cannot be read, is cut off or damaged.
            Conflict: If the snapshot is of other features.
        """
        return cls.from_bytes(read_content(path), where=str(path), features=features)

    @classmethod
    def from_bytes(cls, content: bytes, *, where: str = "snapshot", features: HashedFeatures | None = None) -> Self:
        """Reads what `to_bytes` gave.

        Args:
            content: The bytes.
            where: What errors call them.
            features: What the caller means by a row; None takes what the snapshot says.

        Raises:
            StoreError: If it is cut off or damaged.
            Conflict: If the snapshot is of other features.
        """
        made = cls.from_parts(*unpack_state(content, where), where=where)
        if features is not None and features.content_hash != made.features.content_hash:
            raise Conflict(
                f"{where}: is of the features {made.features.content_hash}, and {features.content_hash} are wanted; "
                "weights of other features mean nothing: start a model of its own"
            )
        return made

    def to_parts(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """Returns what JSON can hold, and the arrays, for a snapshot."""
        state = self.ftrl.state
        used = np.flatnonzero(state.any(axis=1))
        about, arrays = self.validation.to_parts()
        described = {
            "features": self.features.to_dict(),
            "features_hash": self.features.content_hash,
            "rates": self.ftrl.rates.to_dict(),
            "n_learned": self.ftrl.n_learned,
            "calibrator": None if self.calibrator is None else self.calibrator.to_dict(),
            "validation": about,
        }
        # What no row has touched is 0.
        return described, {"used": used.astype(np.uint32), "state": state[used], **arrays}

    @classmethod
    def from_parts(cls, about: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], *, where: str) -> Self:
        """Reads what `to_parts` gave.

        Raises:
            StoreError: If a part is missing or the features are not those of the snapshot's own hash.
        """
        try:
            features = HashedFeatures.from_dict(about["features"])
            if features.content_hash != about["features_hash"]:
                raise StoreError(f"{where}: its features have not the hash that stands beside them; save it anew")
            made = cls(
                features,
                rates=Rates.from_dict(about["rates"]),
                validation=ProgressiveValidation.from_parts(about["validation"], arrays),
            )
            made.ftrl.n_learned = int(about["n_learned"])
            made.ftrl.state[arrays["used"]] = arrays["state"]
            made.calibrator = _calibrator(about["calibrator"])
        except (KeyError, TypeError, IndexError) as error:
            raise StoreError(f"{where}: is no snapshot of an online model ({error!r})") from None
        return made

    def check_same(self, other: "OnlineModel") -> None:
        """Checks that another model has the same features and rates, so that its weights mean the same.

        Raises:
            Conflict: If it has not.
        """
        if other.features.content_hash != self.features.content_hash or other.ftrl.rates != self.ftrl.rates:
            raise Conflict(
                f"start: has the features {other.features.content_hash} and {other.ftrl.rates}, must have "
                f"{self.features.content_hash} and {self.ftrl.rates}. Start a model of its own"
            )

    def __str__(self) -> str:
        return (
            f"online model: {len(self.features.features)} features in {self.features.n_slots:,} slots, "
            f"{self.ftrl.n_weights:,} weights after {self.ftrl.n_learned:,} rows\n  {self.validation.score()}"
        )


def _calibrator(data: Mapping[str, Any] | None) -> Calibrator | PowerCalibrator | None:
    if data is None:
        return None
    return PowerCalibrator.from_dict(data) if data.get("kind") == PowerCalibrator.kind else calibrator_from_dict(data)
