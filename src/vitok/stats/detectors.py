"""Detectors of change in a stream: what they share, and what they answer.

A detector takes observations in their order, one by one or in batches, and says where it sees a change, and in which
direction. `ADWIN`, `DDM`, `EDDM`, `HDDMA`, `HDDMW`, `KSWIN` and `PageHinkley` find what River 0.26.1 finds, at the same
observations. None of them promises a rate of false alarms: `calibrate` sets it.
"""

import abc
import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, Self, TypeAlias

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from vitok.errors import InvalidInput
from vitok.stats.arrays import Floats, vector
from vitok.stats.results import Result

Direction: TypeAlias = Literal["higher", "lower", "unclear"]
"""Where the monitored quantity went; unclear where its shape changed, and not its place."""

_MAGIC = b"vitok-detector"
_VERSION = 1
_CHANGE, _WARNING, _UP, _DOWN = 1, 2, 4, 8
_FLOAT = np.dtype(np.float64)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a detector says after one observation; true where there is an alarm.

    Attributes:
        change: It sees a change, in whatever direction; it begins anew with the next observation.
        warning: It suspects one. Only the detectors of error rates warn.
        alarm: A change that is not for the better.
        direction: Where the quantity went; None without change and warning.

    Example:
        >>> print(Verdict(change=True, warning=False, alarm=False, direction="lower"))
        change, lower (no alarm)
    """

    change: bool
    warning: bool
    alarm: bool
    direction: Direction | None

    def __bool__(self) -> bool:
        return self.alarm

    def __str__(self) -> str:
        if self.change:
            return f"change, {self.direction}" + ("" if self.alarm else " (no alarm)")
        return f"warning, {self.direction}" if self.warning else "no change"


def _direction(code: int) -> Direction | None:
    if not code & (_CHANGE | _WARNING):
        return None
    return "higher" if code & _UP else "lower" if code & _DOWN else "unclear"


def _verdicts(worse: str | None) -> tuple[Verdict, ...]:
    better = {"higher": "lower", "lower": "higher"}.get(worse or "")
    return tuple(
        Verdict(
            change=bool(code & _CHANGE),
            warning=bool(code & _WARNING),
            alarm=bool(code & _CHANGE) and _direction(code) != better,
            direction=_direction(code),
        )
        for code in range(16)
    )


_VERDICTS = {worse: _verdicts(worse) for worse in ("higher", "lower", None)}


@dataclass(frozen=True, kw_only=True)
class Detections(Result):
    """What a detector saw in a batch. Places count from 0 at the start of the batch.

    Attributes:
        n_obs: Observations in the batch.
        changes: Places of the changes.
        directions: Of each change, where the quantity went.
        alarms: Places of the changes that are not for the better.
        warnings: Places where it warned.
    """

    n_obs: int
    changes: tuple[int, ...]
    directions: tuple[Direction, ...]
    alarms: tuple[int, ...]
    warnings: tuple[int, ...]

    def __str__(self) -> str:
        shown = ", ".join(f"{at} {way}" for at, way in zip(self.changes[:8], self.directions[:8], strict=True))
        more = ", ..." if len(self.changes) > 8 else ""
        return f"{len(self.changes)} changes in {self.n_obs:,}" + (f": {shown}{more}" if shown else "")


class Detector(abc.ABC):
    """Base of the detectors: one code for one observation and for many, and a state that can be put away.

    Not made for several threads. A copy, a pickle and the bytes of a detector go on exactly as it does.

    Attributes:
        parameters: As given to the constructor, `worse` included.
        threshold_name: The parameter that `calibrate` turns.
        needs: What an observation must be.
    """

    threshold_name: ClassVar[str]
    needs: str = "be a finite number"
    parameters: Mapping[str, Any]

    _kinds: ClassVar[dict[str, type["Detector"]]] = {}
    _lowest: ClassVar[float] = -math.inf
    _highest: ClassVar[float] = math.inf
    _directions: ClassVar[tuple[str | None, ...]] = (None, "higher", "lower")

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        Detector._kinds[cls.__name__] = cls

    def __init__(self, parameters: Mapping[str, Any], start: Floats) -> None:
        worse = parameters["worse"]
        if worse not in self._directions:
            rule = " or ".join(repr(known) for known in self._directions)
            raise InvalidInput("worse", worse, f"be {rule} for {type(self).__name__}")
        # Numbers of numpy would not go into bytes.
        self.parameters = {
            name: value.item() if isinstance(value, np.generic) else value for name, value in parameters.items()
        }
        self._start = start
        self._state = start.copy()
        self._address = float(self._state.ctypes.data)
        self._verdicts = _VERDICTS[worse]
        # Nothing is compiled before an observation comes: many a detector is only looked at.
        self._one: Callable[..., int] = self._first_one
        self._many: Callable[..., None] = self._first_many
        self._within: Callable[..., bool] | None = None

    def _compile(self) -> None:
        from vitok.stats.detectors_kernels import MANY, ONE, WITHIN, all_within

        one, many = self._kernels()
        one.compile(ONE)
        many.compile(MANY)
        all_within.compile(WITHIN)
        # numba's dispatcher looks for the signature at every call, which takes as long as the step itself.
        self._one = one.overloads[ONE].entry_point
        self._many = many.overloads[MANY].entry_point
        self._within = all_within.overloads[WITHIN].entry_point

    def _first_one(self, address: float, x: float) -> int:
        self._compile()
        return self._one(address, x)

    def _first_many(self, address: float, xs: Floats, codes: NDArray[np.uint8]) -> None:
        self._compile()
        self._many(address, xs, codes)

    @abc.abstractmethod
    def _kernels(self) -> tuple[Any, Any]:
        """Returns the compiled functions for one observation and for a batch."""

    def update(self, x: float) -> Verdict:
        """Takes one observation.

        Args:
            x: The observation: see `needs`.

        Returns:
            What the detector sees now. After a change it begins anew with the next observation.

        Raises:
            InvalidInput: If the observation is not what it must be, NaN above all; it is not taken then.
        """
        try:
            # A refused one has no verdict. Nothing else is done here: the call itself is most of the time.
            return self._verdicts[self._one(self._address, x)]
        except (TypeError, ValueError, OverflowError, IndexError):
            raise InvalidInput("x", x, self.needs, "Leave out or impute what is missing") from None

    def update_many(self, xs: ArrayLike, *, compiled: bool = True) -> Detections:
        """Takes a batch, exactly as `update` would take one after the other.

        Args:
            xs: Observations of shape (n,), any n: see `needs`.
            compiled: False to go through them in Python, which takes some microseconds for each and finds the same:
                for a few thousand observations that must not wait until a process has compiled, some seconds where
                no earlier one has.

        Returns:
            Where in the batch the detector saw something.

        Raises:
            InvalidInput: If one is not what it must be; then none is taken.
        """
        codes = self.codes(xs, compiled=compiled)
        found = codes.nonzero()[0]
        if not len(found):
            return Detections(n_obs=len(codes), changes=(), directions=(), alarms=(), warnings=())
        kinds = codes[found]
        changed = (kinds & _CHANGE).nonzero()[0]
        verdicts = [self._verdicts[code] for code in kinds[changed].tolist()]
        changes = found[changed].tolist()
        return Detections(
            n_obs=len(codes),
            changes=tuple(changes),
            directions=tuple([verdict.direction or "unclear" for verdict in verdicts]),
            alarms=tuple([at for at, verdict in zip(changes, verdicts, strict=True) if verdict.alarm]),
            warnings=tuple(found[(kinds & _WARNING).nonzero()[0]].tolist()),
        )

    def codes(self, xs: ArrayLike, *, compiled: bool = True) -> NDArray[np.uint8]:
        """Takes a batch as `update_many` does, and returns one number for each observation.

        Args:
            xs: As of `update_many`.
            compiled: As of `update_many`.

        Returns:
            Shape (n,): the sum of 1 for a change, 2 for a warning, 4 for higher and 8 for lower.

        Raises:
            InvalidInput: If one is not what it must be; then none is taken.
        """
        if compiled and self._within is None:
            self._compile()
        batch = self._read(xs)
        if not batch.flags.c_contiguous:
            batch = np.ascontiguousarray(batch)
        codes = np.zeros(len(batch), dtype=np.uint8)
        if compiled:
            self._many(self._address, batch, codes)
        else:
            self._many_interpreted(batch, codes)
        return codes

    def _many_interpreted(self, xs: Floats, codes: NDArray[np.uint8]) -> None:
        from vitok.stats.detectors_kernels import view
        from vitok.stats.interpreted import interpreted

        many = interpreted(self._kernels()[1], {view: lambda state: state})
        # Compiled code says nothing where a square is too large for a float.
        with np.errstate(all="ignore"):
            many(self._state, xs, codes)

    def _read(self, xs: ArrayLike) -> Floats:
        if self._within is not None and isinstance(xs, np.ndarray) and xs.dtype == _FLOAT and xs.ndim == 1:
            # One look instead of one for each question. Where it fails, what follows says which item it is.
            batch = np.ascontiguousarray(xs)
            if self._within(batch, self._lowest, self._highest):
                return batch
        batch = vector("xs", xs, finite=True)
        if self._lowest > -math.inf:
            bad = (batch < self._lowest) | (batch > self._highest)
            if bad.any():
                at = int(np.argmax(bad))
                raise InvalidInput(f"xs[{at}]", float(batch[at]), self.needs)
        return batch

    @cached_property
    def _alarm_codes(self) -> NDArray[np.bool_]:
        return np.array([verdict.alarm for verdict in self._verdicts])

    def alarms(self, xs: ArrayLike) -> NDArray[np.intp]:
        """Takes a batch as `update_many` does, and returns only the places of the alarms.

        Raises:
            InvalidInput: If one is not what it must be; then none is taken.
        """
        codes = self.codes(xs)
        found = np.flatnonzero(codes)
        return found[self._alarm_codes[codes[found]]]

    def reset(self) -> None:
        """Forgets everything but the parameters."""
        self._state[:] = self._start

    @property
    def threshold(self) -> float:
        """The parameter that `calibrate` turns."""
        return float(self.parameters[self.threshold_name])

    def with_threshold(self, value: float) -> Self:
        """Returns a new detector with another threshold; that of warnings keeps its proportion."""
        return type(self)(**{**self.parameters, self.threshold_name: value, **self._warning_at(value)})

    def _warning_at(self, threshold: float) -> dict[str, float]:
        """Returns the warning's parameter that goes with a threshold; nothing where there are no warnings."""
        del threshold
        return {}

    @classmethod
    def strictness(cls, threshold: float) -> float:
        """Returns the threshold as a number above 0 that grows with the run length to a false alarm."""
        return threshold

    @classmethod
    def from_strictness(cls, strictness: float) -> float:
        """Returns the threshold of a strictness."""
        return strictness

    def to_bytes(self) -> bytes:
        """Returns kind, parameters and state, with a version and a checksum."""
        body = msgspec.msgpack.encode([type(self).__name__, dict(self.parameters), self._state.tobytes()])
        return _MAGIC + bytes([_VERSION]) + zlib.crc32(body).to_bytes(4, "little") + body

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Reads what `to_bytes` wrote; the detector goes on exactly where it was.

        Raises:
            InvalidInput: If it is damaged, of a newer version, or of another kind than asked for; `Detector` itself
                reads all kinds.

        Example:
            >>> from vitok.stats.detectors_page_hinkley import PageHinkley
            >>> detector = PageHinkley(threshold=5.0)
            >>> _ = detector.update_many([0.0] * 50 + [1.0] * 3)
            >>> again = Detector.from_bytes(detector.to_bytes())
            >>> again.update_many([1.0] * 9) == detector.update_many([1.0] * 9)
            True
        """
        head = len(_MAGIC) + 1
        if not data.startswith(_MAGIC) or len(data) < head:
            raise InvalidInput("data", data[:16], "be what Detector.to_bytes returned")
        if data[len(_MAGIC)] != _VERSION:
            rule = f"be of version {_VERSION}"
            raise InvalidInput("data", data[len(_MAGIC)], rule, "Read it with the vitok that wrote it, or a newer one")
        body = data[head + 4 :]
        if zlib.crc32(body).to_bytes(4, "little") != data[head : head + 4]:
            raise InvalidInput("data", f"{len(data)} bytes", "have the checksum it was written with", "Begin anew")
        name, parameters, state = msgspec.msgpack.decode(body)
        kind = Detector._kinds.get(name)
        if kind is None or not issubclass(kind, cls):
            raise InvalidInput("data", name, f"hold a {cls.__name__}")
        detector = kind(**parameters)
        detector._put_back(state)  # noqa: SLF001 - its own class
        return detector

    def _put_back(self, state: bytes) -> None:
        self._state[:] = np.frombuffer(state, dtype=np.float64)

    def __reduce__(self) -> tuple[Any, tuple[bytes]]:
        return type(self).from_bytes, (self.to_bytes(),)

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self.parameters.items())
        return f"{type(self).__name__}({shown})"


class ConfidenceDetector(Detector):
    """Base of the detectors whose threshold is an error probability in (0, 1): smaller is stricter."""

    @classmethod
    def strictness(cls, threshold: float) -> float:
        """Returns minus the logarithm."""
        return -math.log(threshold)

    @classmethod
    def from_strictness(cls, strictness: float) -> float:
        """Returns the probability; at least the smallest normal number."""
        return math.exp(-min(strictness, 700.0))


def not_negative(field: str, value: float) -> float:
    """Returns the value if it is finite and at least 0.

    Raises:
        InvalidInput: If it is not.

    Example:
        >>> not_negative("delta", 0.005)
        0.005
    """
    if not 0.0 <= value < math.inf:
        raise InvalidInput(field, value, "be finite and at least 0")
    return float(value)
