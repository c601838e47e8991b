"""What every function of this room returns: frozen results that print themselves and become JSON."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from vitok.errors import InvalidInput


def jsonable(value: object) -> object:
    """Turns a result's field into what JSON can hold: NaN and infinities become None, tuples become lists.

    Example:
        >>> jsonable((1.0, float("nan")))
        [1.0, None]
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (tuple, list)):
        return [jsonable(item) for item in value]
    if isinstance(value, Result):
        return value.to_dict()
    return value


@dataclass(frozen=True, kw_only=True)
class Result:
    """Base of the results: gives `to_dict`."""

    def to_dict(self) -> dict[str, object]:
        """Returns the fields as a dict that `json.dumps` accepts, in the order of declaration."""
        return {field.name: jsonable(getattr(self, field.name)) for field in fields(self)}


@dataclass(frozen=True, kw_only=True)
class Estimate(Result):
    """A number with its meaning: what it is, its interval, and what it rests on.

    Where the data cannot answer (one class only, no rows), `value` is NaN, the interval is the whole range that the
    quantity can have, and `definition` says why.

    Attributes:
        name: Name of the quantity, such as `"average_precision"`.
        value: The point estimate.
        lower: Lower end of the interval.
        upper: Upper end of the interval.
        n_obs: How many observations the interval rests on.
        confidence_level: Level of the interval, in (0, 1).
        definition: How value and interval are computed, in a sentence.

    Example:
        >>> print(Estimate(name="rate", value=0.25, lower=0.1, upper=0.5, n_obs=40, definition="share of errors"))
        rate 0.25 (95 % interval 0.1 to 0.5, n = 40)
    """

    name: str
    value: float
    lower: float
    upper: float
    n_obs: int
    confidence_level: float = 0.95
    definition: str = ""

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Reads what `to_dict` wrote: no value is NaN, no end is an infinity.

        Raises:
            InvalidInput: If a field is missing.

        Example:
            >>> Estimate.from_dict(Estimate(name="x", value=0.1, lower=0.0, upper=math.inf, n_obs=1).to_dict()).upper
            inf
        """
        ends = {"value": math.nan, "lower": -math.inf, "upper": math.inf}
        try:
            return cls(**{**data, **{name: none for name, none in ends.items() if data[name] is None}})
        except (KeyError, TypeError) as error:
            raise InvalidInput("estimate", data, f"be what Estimate.to_dict wrote ({error})") from None

    def __str__(self) -> str:
        if math.isnan(self.value):
            return f"{self.name} undefined ({self.definition}, n = {self.n_obs:,})"
        level = f"{100 * self.confidence_level:.6g}"
        interval = f"{level} % interval {self.lower:.4g} to {self.upper:.4g}"
        return f"{self.name} {self.value:.4g} ({interval}, n = {self.n_obs:,})"


@dataclass(frozen=True, kw_only=True)
class NullTest(Result):
    """A test of a null hypothesis.

    Attributes:
        name: Name of the test.
        statistic: The test statistic.
        p_value: Probability of a statistic at least as extreme where the null hypothesis holds.
        n_obs: Number of observations.
        definition: The null hypothesis and the law of the statistic.

    Example:
        >>> print(NullTest(name="spiegelhalter", statistic=1.96, p_value=0.05, n_obs=100, definition=""))
        spiegelhalter 1.96 (p = 0.05, n = 100)
    """

    name: str
    statistic: float
    p_value: float
    n_obs: int
    definition: str

    def __str__(self) -> str:
        return f"{self.name} {self.statistic:.4g} (p = {self.p_value:.4g}, n = {self.n_obs:,})"
