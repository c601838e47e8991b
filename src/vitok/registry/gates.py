"""Gates: checks with a bound and a reason, and the verdict that follows from them.

A statistic comes with its interval; here it meets a bound. A check passes only where the whole interval is on the
right side, so that few observations cannot pass for good ones; pass `estimate.value` to judge the point alone.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeGuard, cast

from vitok.errors import InvalidInput

if TYPE_CHECKING:
    from vitok.stats.results import Estimate


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that a gate looked at.

    Attributes:
        name: What was checked, such as `"average_precision"`.
        passed: Whether it holds.
        value: What was found, or None where it could not be computed (NaN and infinities are stored as None).
        bound: What was asked for, or None for a yes or no.
        reason: Why it passed or not, in words.
        enough: Whether there was enough evidence to decide it; False where it did not pass and more rows may show
            that it does: the interval holds the bound, or a slice has too few rows.

    Example:
        >>> print(Check(name="signature", passed=False, value=None, bound=None, reason="an input is missing"))
        FAILED signature: an input is missing
    """

    name: str
    passed: bool
    value: float | None
    bound: float | None
    reason: str
    enough: bool = True

    def __post_init__(self) -> None:
        for field in ("value", "bound"):
            number = getattr(self, field)
            if number is not None:
                object.__setattr__(self, field, float(number) if math.isfinite(number) else None)
        object.__setattr__(self, "passed", bool(self.passed))
        object.__setattr__(self, "enough", bool(self.enough) or self.passed)

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as a dict that `json.dumps` accepts."""
        return {
            "name": self.name,
            "passed": self.passed,
            "value": self.value,
            "bound": self.bound,
            "reason": self.reason,
            "enough": self.enough,
        }

    @property
    def state(self) -> str:
        """`"passed"`, `"FAILED"`, or `"open"` where there was not enough evidence."""
        return "passed" if self.passed else "FAILED" if self.enough else "open"

    def __str__(self) -> str:
        return f"{self.state} {self.name}: {self.reason}"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a gate decided about one version, with every check that led to it.

    Attributes:
        accepted: True where every check passed, and there was at least one.
        checks: The checks, in the order they were made.
        reason: Why, in words.
    """

    accepted: bool
    checks: tuple[Check, ...]
    reason: str

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that did not pass."""
        return tuple(check for check in self.checks if not check.passed)

    @property
    def undecided(self) -> bool:
        """Whether it was refused only for want of evidence: no check has shown anything wrong."""
        return bool(self.failed) and not any(check.enough for check in self.failed)

    def table(self) -> str:
        """Writes the checks as a table: what was checked, its value, its bound, and why it passed or not.

        Example:
            >>> print(evaluate([at_least("roc_auc", 0.9, 0.8), at_most("latency_p99_ms", 12.0, 10.0)]).table())
            check           value  bound  state   reason
            roc_auc         0.9    0.8    passed  0.9 is at least 0.8
            latency_p99_ms  12     10     FAILED  12 is above 10
            refused: 1 of 2 checks failed: latency_p99_ms 12 is above 10
        """

        def number(value: float | None) -> str:
            return "" if value is None else f"{value:.4g}"

        rows = [("check", "value", "bound", "state", "reason")]
        rows += [(one.name, number(one.value), number(one.bound), one.state, one.reason) for one in self.checks]
        widths = [max(len(row[at]) for row in rows) for at in range(4)]
        lines = ["  ".join([*(row[at].ljust(widths[at]) for at in range(4)), row[4]]) for row in rows]
        return "\n".join([*lines, f"{'accepted' if self.accepted else 'refused'}: {self.reason}"])

    def to_dict(self) -> dict[str, Any]:
        """Returns the verdict as a dict that `json.dumps` accepts; `from_dict` reads it."""
        return {
            "accepted": self.accepted,
            "reason": self.reason,
            "checks": [check.to_dict() for check in self.checks],
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> "Verdict":
        """Reads what `to_dict` wrote.

        Raises:
            InvalidInput: If a field is missing.
        """
        try:
            checks = tuple(Check(**check) for check in document["checks"])
            return cls(accepted=bool(document["accepted"]), checks=checks, reason=str(document["reason"]))
        except (KeyError, TypeError) as error:
            raise InvalidInput("verdict", document, f"be what Verdict.to_dict wrote ({error})") from error

    def __str__(self) -> str:
        lines = [f"{'accepted' if self.accepted else 'refused'}: {self.reason}"]
        return "\n".join([*lines, *(f"  {check}" for check in self.checks)])


def evaluate(checks: Iterable[Check]) -> Verdict:
    """Turns checks into a verdict: accepted where all passed; with no check at all, nothing is accepted.

    Raises:
        InvalidInput: If two checks have one name.

    Example:
        >>> print(evaluate([at_least("roc_auc", 0.9, 0.8), at_most("latency_p99_ms", 12.0, 10.0)]))
        refused: 1 of 2 checks failed: latency_p99_ms 12 is above 10
          passed roc_auc: 0.9 is at least 0.8
          FAILED latency_p99_ms: 12 is above 10
    """
    made = tuple(checks)
    names = [check.name for check in made]
    for name in names:
        if names.count(name) > 1:
            raise InvalidInput("checks", name, "have a name of its own", "Name the slice or the metric in it")
    failed = [check for check in made if not check.passed]
    if not made:
        reason = "no check was made, and nothing is accepted without evidence"
    elif failed:
        told = "; ".join(f"{check.name} {check.reason}" for check in failed)
        reason = f"{len(failed)} of {len(made)} check{'s' if len(made) > 1 else ''} failed: {told}"
    else:
        reason = f"all {len(made)} checks passed" if len(made) > 1 else f"{made[0].name} {made[0].reason}"
    return Verdict(accepted=bool(made) and not failed, checks=made, reason=reason)


def at_least(name: str, value: "float | Estimate", bound: float) -> Check:
    """Checks that a quantity reaches a bound; of an estimate, the lower end of its interval must.

    Example:
        >>> from vitok.stats.results import Estimate
        >>> few = Estimate(name="precision", value=0.5, lower=0.2, upper=0.8, n_obs=10)
        >>> print(at_least("precision", few, 0.3))
        open precision: 0.5 (95 % interval 0.2 to 0.8): its lower end is below 0.3
    """
    point, lower, upper, shown = _parts(name, value)
    _finite("bound", bound)
    passed = lower >= bound
    if math.isnan(lower):
        told = "could not be computed"
    elif not is_estimate(value):
        told = f"{shown} is {'at least' if passed else 'below'} {bound:.4g}"
    else:
        told = f"{shown}: its lower end is {'at least' if passed else 'below'} {bound:.4g}"
    return Check(name=name, passed=passed, value=point, bound=bound, reason=told, enough=not upper >= bound)


def at_most(name: str, value: "float | Estimate", bound: float) -> Check:
    """Checks that a quantity stays within a bound; of an estimate, the upper end of its interval must.

    Example:
        >>> print(at_most("calibration_error", 0.01, 0.02))
        passed calibration_error: 0.01 is at most 0.02
    """
    point, lower, upper, shown = _parts(name, value)
    _finite("bound", bound)
    passed = upper <= bound
    if math.isnan(upper):
        told = "could not be computed"
    elif not is_estimate(value):
        told = f"{shown} is {'at most' if passed else 'above'} {bound:.4g}"
    else:
        told = f"{shown}: its upper end is {'at most' if passed else 'above'} {bound:.4g}"
    return Check(name=name, passed=passed, value=point, bound=bound, reason=told, enough=not lower <= bound)


def not_worse(
    name: str,
    *,
    candidate: float,
    incumbent: float,
    difference: "Estimate",
    margin: float = 0.0,
    better: Literal["higher", "lower"] = "higher",
) -> Check:
    """Checks that a candidate loses at most `margin` against the incumbent (a non-inferiority test).

    Args:
        name: The quantity, such as `"average_precision"`.
        candidate: Its value for the candidate.
        incumbent: Its value for the incumbent, on the same rows.
        difference: Candidate minus incumbent with its interval, from paired rows: the pairing takes away the noise
            that both share.
        margin: The loss that is still accepted, in units of the quantity, at least 0.
        better: Whether higher or lower values are better.

    Returns:
        A check whose value is the difference and whose bound is the loss (or, for lower, the rise) allowed.

    Example:
        >>> from vitok.stats.results import Estimate
        >>> gain = Estimate(name="difference", value=0.02, lower=-0.004, upper=0.044, n_obs=900)
        >>> print(not_worse("ap", candidate=0.62, incumbent=0.6, difference=gain, margin=0.01))
        passed ap: 0.62 against 0.6: difference 0.02 (95 % interval -0.004 to 0.044) excludes a loss above 0.01
    """
    _finite("margin", margin)
    if margin < 0:
        raise InvalidInput("margin", margin, "be at least 0")
    if better not in ("higher", "lower"):
        raise InvalidInput("better", better, "be 'higher' or 'lower'")
    point, lower, upper, shown = _parts(name, difference)
    passed = lower >= -margin if better == "higher" else upper <= margin
    if math.isnan(lower) or math.isnan(upper):
        told = "the difference could not be computed"
    else:
        verb = "excludes" if passed else "does not exclude"
        told = f"{candidate:.4g} against {incumbent:.4g}: difference {shown} {verb} a loss above {margin:.4g}"
    holds = upper >= -margin if better == "higher" else lower <= margin
    bound = -margin if better == "higher" else margin
    return Check(name=name, passed=passed, value=point, bound=bound, reason=told, enough=not holds)


def is_estimate(value: "float | Estimate") -> "TypeGuard[Estimate]":
    """Says whether a value comes with an interval."""
    return hasattr(value, "lower")


def _parts(name: str, value: "float | Estimate") -> tuple[float, float, float, str]:
    try:
        if not is_estimate(value):
            number = float(cast("float", value))
            return number, number, number, f"{number:.6g}"
        point, lower, upper = float(value.value), float(value.lower), float(value.upper)
        level = f"{100 * value.confidence_level:.6g}"
    except (AttributeError, TypeError, ValueError):
        raise InvalidInput(name, value, "be a number or an Estimate with value, lower and upper") from None
    if math.isnan(point):
        return point, math.nan, math.nan, "undefined"
    return point, lower, upper, f"{point:.4g} ({level} % interval {lower:.4g} to {upper:.4g})"


def _finite(field: str, value: float) -> None:
    if not math.isfinite(value):
        raise InvalidInput(field, value, "be a finite number")
