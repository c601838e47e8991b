"""Judging a canary on split traffic: some requests go to the candidate, the others to the incumbent at the same time.

Nothing is scored twice here, so what is compared are two groups of requests drawn by a hash: their rates of failures,
of slow answers, of an action, and what their decisions cost once outcomes are in.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from vitok.clock import isoformat
from vitok.errors import Conflict, InvalidInput
from vitok.loop.judge import State
from vitok.loop.release_evidence import Look, Seen, kept_ids
from vitok.stats import Estimate, RateComparison, mean_sequence

if TYPE_CHECKING:
    import polars as pl

_LEAST_COSTS = 200


@dataclasses.dataclass(frozen=True, kw_only=True)
class RateRule:
    """What a rate of the candidate may be, compared with the incumbent's at the same time.

    Attributes:
        tolerated: Rise that is no reason to refuse, in [0, 1).
        margin: Rise that would be harm: the candidate is accepted once less is proven; above `tolerated`, below 1.
    """

    tolerated: float = 0.0
    margin: float = 0.01

    def __post_init__(self) -> None:
        """Checks the ranges."""
        if not 0 <= self.tolerated < 1:
            raise InvalidInput("tolerated", self.tolerated, "be in [0, 1)")
        if not self.tolerated < self.margin < 1:
            raise InvalidInput("margin", self.margin, f"be above tolerated = {self.tolerated:g} and below 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CostRule:
    """What a decision of the candidate may cost, compared with the incumbent's at the same time.

    Attributes:
        margin: Rise of the cost of a decision that would be harm, in the unit of the costs, above 0.
        tuned_for: Number of decisions with a known cost at which the interval is tightest.
    """

    margin: float
    tuned_for: int = 20_000

    def __post_init__(self) -> None:
        """Checks the ranges."""
        if not 0 < self.margin < math.inf:
            raise InvalidInput("margin", self.margin, "be above 0")
        if self.tuned_for < 1:
            raise InvalidInput("tuned_for", self.tuned_for, "be at least 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrafficVerdict:
    """What split traffic says about a candidate by now.

    Attributes:
        state: `"continue"`, `"accept"` or `"refuse"`.
        reason: Why, in words, with the numbers.
        candidate: Version under judgement, such as `"ranker/2"`.
        incumbent: Version it is compared with.
        time_us: When it was judged, in microseconds.
        differences: Candidate less incumbent of each rate, and of the cost, with intervals over all looks.
        n_candidate: Requests of the candidate that were counted.
        n_incumbent: Requests of the incumbent that were counted.
    """

    state: State
    reason: str
    candidate: str
    incumbent: str
    time_us: int
    differences: tuple[Estimate, ...]
    n_candidate: int
    n_incumbent: int

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as a dict that `json.dumps` accepts; NaN and infinities become None."""
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return plain | {"differences": [found.to_dict() for found in self.differences]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Reads what `to_dict` wrote.

        Raises:
            InvalidInput: If a field is missing.
        """
        try:
            return cls(**{**data, "differences": tuple(map(Estimate.from_dict, data["differences"]))})
        except (KeyError, TypeError) as error:
            raise InvalidInput("verdict", data, f"be what TrafficVerdict.to_dict wrote ({error})") from None

    def __str__(self) -> str:
        return f"{isoformat(self.time_us)} {self.candidate} against {self.incumbent}: {self.state}: {self.reason}"


class TrafficJudge:
    """Compares a candidate with the incumbent of the same moments, and judges at every look.

    The chance that a candidate is refused although no rate and no cost rose beyond what is tolerated is at most
    `1 - confidence_level` over all looks together, shared evenly by the rules (union bound); so is the chance that
    one is accepted although something rose by its margin. The intervals that are shown are two-sided, and so of a
    level of `1 - 2 * (1 - confidence_level) / rules`. A common cause, such as an outage of a store that both use,
    is no evidence against either. No traffic is no evidence: the state stays "continue". "accept" and "refuse" stay.

    The promise needs requests that do not hang together. Where one user sends many, name the column of the hash's
    unit: then each unit counts once for each rate, with what came of it first. The interval of the cost is
    asymptotic (`vitok.stats.mean_sequence`).

    Args:
        candidate: Version under judgement, such as `"ranker/2"`.
        incumbent: Version it is compared with.
        rates: Rule of each rate, by the name of its boolean column.
        costs: Rule of each cost, by the name of its column of numbers.
        confidence_level: Level of the whole judgement, in (0.5, 1).
        unit: Column of the unit that the traffic is split by, where units send more than one request.

    Raises:
        InvalidInput: If there is no rule, both versions are the same, or a name stands for a rate and a cost.

    Example:
        >>> import polars as pl
        >>> judge = TrafficJudge(candidate="ranker/2", incumbent="ranker/1", rates={"failed": RateRule()})
        >>> for _ in range(5):
        ...     judge.see(pl.DataFrame({
        ...         "version": ["ranker/1"] * 900 + ["ranker/2"] * 100,
        ...         "failed": [False] * 890 + [True] * 10 + [False] * 90 + [True] * 10,
        ...     }), share=0.1)
        >>> judge.verdict(0).state
        'refuse'
    """

    def __init__(
        self,
        *,
        candidate: str,
        incumbent: str,
        rates: Mapping[str, RateRule] | None = None,
        costs: Mapping[str, CostRule] | None = None,
        confidence_level: float = 0.95,
        unit: str | None = None,
    ) -> None:
        self._rates, self._costs = dict(rates or {}), dict(costs or {})
        rules = len(self._rates) + len(self._costs)
        if candidate == incumbent:
            raise InvalidInput("candidate", candidate, "be another version than the incumbent")
        if not rules:
            raise InvalidInput("rates", {}, "have at least one rule", "Give rates={'failed': RateRule()}")
        if both := sorted(set(self._rates) & set(self._costs)):
            raise InvalidInput("costs", both, "have other names than the rates")
        if not 0.5 < confidence_level < 1:
            raise InvalidInput("confidence_level", confidence_level, "be in (0.5, 1)")
        self.candidate, self.incumbent = candidate, incumbent
        self._unit = unit
        # Refusing rests on one side of each interval and accepting on the other: each side gets the whole error.
        self._level = 1 - 2 * (1 - confidence_level) / rules
        self._compared = {
            name: RateComparison([rule.tolerated, rule.margin], confidence_level=self._level)
            for name, rule in self._rates.items()
        }
        self._sums = {name: _Scores() for name in self._costs}
        self._units = {name: Seen() for name in (*self._rates, *self._costs)}
        self._final: TrafficVerdict | None = None

    def take(self, look: Look, *, now: int) -> TrafficVerdict:
        """Takes in a look's split traffic, and judges."""
        for split in look.splits:
            self.see(split.requests, share=split.share)
        return self.verdict(now)

    def see(self, requests: "pl.DataFrame", *, share: float | None = None) -> None:
        """Takes one look's requests; a request comes once for each of its columns.

        Args:
            requests: A column `version`, and any of the columns of the rules: booleans for rates, numbers for costs.
                A null counts for neither side (an outcome not known yet comes in a later look, in a frame of its
                own). Rows of other versions are passed over.
            share: Probability that a unit went to the candidate in this look, in (0, 1); needed where there are
                costs.

        Raises:
            InvalidInput: If a column is missing or of another kind, a cost is not finite, or the share is missing;
                then nothing is taken in.
        """
        import polars as pl

        if "version" not in requests.columns:
            raise InvalidInput("requests", requests.columns, "have a column 'version'")
        known = [name for name in (*self._rates, *self._costs) if name in requests.columns]
        if not known:
            raise InvalidInput("requests", requests.columns, f"have a column of a rule: {', '.join(self._units)}")
        if self._unit is not None and self._unit not in requests.columns:
            raise InvalidInput("requests", requests.columns, f"have the column {self._unit!r} of the unit")
        for name in known:
            kind = requests.schema[name]
            fits = kind == pl.Boolean if name in self._rates else kind.is_numeric()
            if not (fits or kind == pl.Null):
                raise InvalidInput(name, str(kind), "be boolean" if name in self._rates else "be a number")
        mine = requests.filter(pl.col("version").is_in([self.candidate, self.incumbent]))
        # Everything is checked before anything counts: a look that is refused can be given again.
        fresh = {name: self._first(name, mine.filter(pl.col(name).is_not_null())) for name in known}
        for name in self._costs:
            if name in fresh and len(fresh[name]):
                self._check_cost(name, fresh[name][name].cast(pl.Float64).to_numpy(), share)
        for name, rows in fresh.items():
            if self._unit is not None:
                self._units[name].add(rows[self._unit].to_list())
            candidate = (rows["version"] == self.candidate).to_numpy()
            if name in self._rates:
                bad = rows[name].cast(pl.Boolean).to_numpy()
                self._compared[name].add(
                    control_successes=float((bad & ~candidate).sum()),
                    control_n=float((~candidate).sum()),
                    treatment_successes=float((bad & candidate).sum()),
                    treatment_n=float(candidate.sum()),
                )
            elif len(rows) and share is not None:
                self._sums[name].add(rows[name].cast(pl.Float64).to_numpy(), candidate, share)

    def verdict(self, now: int) -> TrafficVerdict:
        """Judges on all that was taken in so far; call it as often as you like.

        Args:
            now: The present, in microseconds.

        Returns:
            The verdict. Refuse: something rose by more than is tolerated. Accept: everything is proven to have risen
            by less than its margin. Once it is one of the two, it stays.
        """
        if self._final is not None:
            return self._final
        found = {name: self._compared[name].estimate(name) for name in self._rates}
        found |= {name: self._cost(name) for name in self._costs}
        worse = [name for name, rule in self._rates.items() if self._compared[name].above(rule.tolerated)]
        worse += [name for name in self._costs if found[name].lower > 0]
        fine = [name for name, rule in self._rates.items() if self._compared[name].below(rule.margin)]
        fine += [name for name, rule in self._costs.items() if found[name].upper < rule.margin]
        counts = [self._compared[name].counts() for name in self._rates]
        n_incumbent = max([n for _, n, _, _ in counts] + [self._sums[name].n_incumbent for name in self._costs])
        n_candidate = max([n for _, _, _, n in counts] + [self._sums[name].n_candidate for name in self._costs])
        state: State = "continue"
        if worse:
            state, reason = "refuse", f"worse: {self._told(found, worse)}"
        elif len(fine) == len(found):
            state, reason = "accept", f"no worse by a margin: {self._told(found, fine)}"
        elif not (n_candidate and n_incumbent):
            silent = self.incumbent if n_candidate else self.candidate
            reason = f"inconclusive: nothing is known of {silent} yet"
        else:
            reason = f"not decided: {self._told(found, [name for name in found if name not in fine])}"
        verdict = TrafficVerdict(
            state=state,
            reason=reason,
            candidate=self.candidate,
            incumbent=self.incumbent,
            time_us=now,
            differences=tuple(found.values()),
            n_candidate=n_candidate,
            n_incumbent=n_incumbent,
        )
        if state != "continue":
            self._final = verdict
        return verdict

    def to_state(self) -> dict[str, Any]:
        """Returns all that was taken in, as a dict that `json.dumps` accepts; of units 11 bytes each and rule."""
        return self.sums() | {"units": {name: units.to_state() for name, units in self._units.items()}}

    @property
    def ids(self) -> Mapping[str, Seen]:
        """The units that were counted, by rule; empty where no unit is named."""
        return dict(self._units)

    def sums(self) -> dict[str, Any]:
        """Returns what `to_state` does without the `ids`, for who keeps those apart; it stays small."""
        return {
            "about": self._about(),
            "compared": {name: compared.to_dict() for name, compared in self._compared.items()},
            "sums": {name: dict(vars(sums)) for name, sums in self._sums.items()},
            "final": None if self._final is None else self._final.to_dict(),
        }

    def restore(self, state: Mapping[str, Any], *, ids: Mapping[str, Seen] | None = None) -> None:
        """Goes on from what `to_state` returned, in place of all that this judge took in.

        Args:
            state: That; or what `sums` returned, with `ids`.
            ids: The units that were kept apart; those in the state count before them.

        Raises:
            Conflict: If that was a judge of other versions or rules.
            InvalidInput: If a part is missing.
        """
        try:
            if state["about"] != self._about():
                raise Conflict(f"the state is of a judge of {state['about']}, not of {self._about()}")
            compared = {name: RateComparison.from_dict(state["compared"][name]) for name in self._rates}
            sums = {name: _Scores(**state["sums"][name]) for name in self._costs}
            inside = state["units"] if "units" in state or ids is None else {}
            units = {name: kept_ids(inside, ids, name) for name in self._units}
            final = None if state["final"] is None else TrafficVerdict.from_dict(state["final"])
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidInput("state", sorted(state), f"be what TrafficJudge.to_state returned ({error})") from None
        self._compared, self._sums, self._units, self._final = compared, sums, units, final

    def _about(self) -> dict[str, Any]:
        rules = {name: dataclasses.asdict(rule) for name, rule in self._rates.items()}
        rules |= {name: dataclasses.asdict(rule) for name, rule in self._costs.items()}
        versions = {"candidate": self.candidate, "incumbent": self.incumbent}
        return {**versions, "rules": rules, "unit": self._unit, "level": self._level}

    def _first(self, name: str, rows: "pl.DataFrame") -> "pl.DataFrame":
        """Leaves each unit's first row, of those that were not counted before."""
        import polars as pl

        if self._unit is None:
            return rows
        rows = rows.unique(self._unit, keep="first", maintain_order=True)
        return rows.filter(pl.Series(self._units[name].new(rows[self._unit].to_list()), dtype=pl.Boolean))

    def _check_cost(self, name: str, cost: np.ndarray, share: float | None) -> None:
        if share is None or not 0 < share < 1:
            raise InvalidInput("share", share, f"be in (0, 1) where there is a cost ({name})")
        if not np.isfinite(cost).all():
            raise InvalidInput(name, float(cost[~np.isfinite(cost)][0]), "be finite")

    def _cost(self, name: str) -> Estimate:
        sums = self._sums[name]
        n = sums.n_candidate + sums.n_incumbent
        if min(sums.n_candidate, sums.n_incumbent) < _LEAST_COSTS:
            return Estimate(
                name=name,
                value=math.nan,
                lower=-math.inf,
                upper=math.inf,
                n_obs=n,
                confidence_level=self._level,
                definition=f"fewer than {_LEAST_COSTS} known costs of a version",
            )
        return mean_sequence(
            n_obs=n,
            mean=sums.mean,
            variance=sums.scatter / n,
            tuned_for=self._costs[name].tuned_for,
            confidence_level=self._level,
            name=name,
        )

    def _told(self, found: Mapping[str, Estimate], names: list[str]) -> str:
        parts = []
        for name in names:
            estimate = found[name]
            if name in self._rates:
                bad_i, n_i, bad_c, n_c = self._compared[name].counts()
                parts.append(
                    f"{name} {bad_c:,} of {n_c:,} against {bad_i:,} of {n_i:,} ({100 * estimate.lower:+.3g} to "
                    f"{100 * estimate.upper:+.3g} points, tolerated {100 * self._rates[name].tolerated:g}, margin "
                    f"{100 * self._rates[name].margin:g})"
                )
            else:
                parts.append(
                    f"{name} {estimate.value:+.4g} a decision ({estimate.lower:+.4g} to {estimate.upper:+.4g}, margin "
                    f"{self._costs[name].margin:g}, n = {estimate.n_obs:,})"
                )
        return "; ".join(parts)


@dataclasses.dataclass
class _Scores:
    """Running mean of a score whose expectation is the difference of the two means, whatever the shares were.

    Inverse-propensity weighting of the cost less what a request cost on average before this look: the centre is known
    before the look, so it takes variance away and no bias comes in.
    """

    n_candidate: int = 0
    n_incumbent: int = 0
    mean: float = 0.0
    scatter: float = 0.0
    total: float = 0.0

    def add(self, cost: np.ndarray, candidate: np.ndarray, share: float) -> None:
        before = self.n_candidate + self.n_incumbent
        centre = self.total / before if before else 0.0
        scores = (cost - centre) * np.where(candidate, 1 / share, -1 / (1 - share))
        n, total = len(scores), before + len(scores)
        mean = float(scores.mean())
        moved = mean - self.mean
        self.scatter += float(((scores - mean) ** 2).sum()) + moved * moved * before * n / total
        self.mean += moved * n / total
        self.total += float(cost.sum())
        self.n_candidate += int(candidate.sum())
        self.n_incumbent += int((~candidate).sum())
