"""A drawn sample of decisions as a file that goes to people who label it, and comes back."""

import csv
import io
import json
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from vitok.errors import InvalidInput
from vitok.monitoring.sampling import Population, estimate_from_draw, plan_labels, within
from vitok.stats import Estimate
from vitok.stats.arrays import numbers
from vitok.stats.results import Result

_COLUMNS = ("request_id", "label", "propensity", "probability", "flagged", "plan")
_YES, _NO, _NONE = ("1", "1.0", "true", "yes"), ("0", "0.0", "false", "no"), ("", "nan", "null", "none")
_NAMED = 3
_TABLE = f"be a table with the columns {', '.join(_COLUMNS)} and one plan in all rows, or its JSON"
# A spreadsheet rounds what it shows.
_ROUNDED = 1e-4


@dataclass(frozen=True, kw_only=True)
class LabelSample(Result):
    """Decisions to have labelled, with all that the estimate needs once they are: the log is not read again.

    Attributes:
        metric: What is to be known.
        rows: What they were drawn from, in words, such as a system and a span of time.
        request_ids: Which ones.
        propensities: Probability with which each was drawn, in (0, 1].
        probabilities: The calibrated probability of each.
        flags: Whether each was taken for a positive.
        labels: What people found, None where they have not looked.
        population: The sums over all rows drawn from.
        half_width: Half width of the interval to expect, if the probabilities are calibrated.
        uniform_half_width: The same for as many rows drawn all alike.
        confidence_level: Level of the interval.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> p = rng.beta(0.1, 5, 20_000)
        >>> fraud = rng.random(20_000) < p
        >>> sample = LabelSample.draw([f"t{i}" for i in range(20_000)], p, p > 0.3, metric="recall", budget=300)
        >>> back = LabelSample.read(sample.labelled(fraud[[int(one[1:]) for one in sample.request_ids]]).to_csv())
        >>> found = back.estimate()
        >>> bool(found.lower < (p > 0.3)[fraud].mean() < found.upper)
        True
    """

    metric: str
    rows: str
    request_ids: tuple[str, ...]
    propensities: tuple[float, ...]
    probabilities: tuple[float, ...]
    flags: tuple[bool, ...]
    labels: tuple[bool | None, ...]
    population: Population
    half_width: float
    uniform_half_width: float
    confidence_level: float

    @classmethod
    def draw(
        cls,
        request_ids: Sequence[str],
        probability: ArrayLike,
        flagged: ArrayLike,
        *,
        metric: str,
        budget: int | None = None,
        half_width: float | None = None,
        confidence_level: float = 0.95,
        seed: int = 0,
        rows: str = "",
    ) -> "LabelSample":
        """Draws the decisions whose labels say most about a metric; see `plan_labels`.

        Args:
            request_ids: Of all decisions, n of them, each once.
            probability: Their calibrated probabilities, shape (n,), in [0, 1].
            flagged: Which of them were taken for positives, shape (n,).
            metric: `"accuracy"`, `"precision"`, `"recall"` or `"positive_rate"`.
            budget: Labels to spend on average, at least 1; or give `half_width`.
            half_width: Half width of the interval to plan for, above 0.
            confidence_level: Level of the interval, in (0, 1).
            seed: Of the draw.
            rows: What the decisions are, in words.

        Raises:
            InvalidInput: If an argument is out of range, an id is there twice, or no row was drawn.
        """
        p, flags = numbers("probability", probability), np.asarray(flagged)
        if p.ndim != 1 or len(request_ids) != len(p) or len(set(request_ids)) != len(request_ids):
            raise InvalidInput("request_ids", len(request_ids), f"be {p.size} different ones, one for each probability")
        plan = plan_labels(
            p,
            flags,
            metric=metric,
            budget=budget,
            half_width=half_width,
            confidence_level=confidence_level,
            seed=seed,
        )
        if not len(plan.rows):
            fix = f"Where all or none are flagged, no label moves {metric}"
            raise InvalidInput("budget", budget, "be enough to draw a row that matters", fix)
        return cls(
            metric=metric,
            rows=rows,
            request_ids=tuple(request_ids[at] for at in plan.rows.tolist()),
            propensities=tuple(plan.propensity.tolist()),
            probabilities=tuple(p[plan.rows].tolist()),
            flags=tuple(flags[plan.rows].astype(np.bool_).tolist()),
            labels=(None,) * len(plan.rows),
            population=Population.of(p, flags),
            half_width=plan.half_width,
            uniform_half_width=plan.uniform_half_width,
            confidence_level=confidence_level,
        )

    def labelled(self, labels: Iterable[bool]) -> "LabelSample":
        """Returns the sample with the labels of its rows, in their order.

        Raises:
            InvalidInput: If there are more or fewer.
        """
        given = tuple(bool(one) for one in labels)
        if len(given) != len(self.request_ids):
            raise InvalidInput("labels", len(given), f"be one for each of the {len(self.request_ids)} rows")
        return replace(self, labels=given)

    def estimate(self) -> Estimate:
        """Estimates the metric of all rows drawn from; see `estimate_from_labels`.

        Raises:
            InvalidInput: If a row has no label: what is easy to label is not like the rest.
        """
        missing = [one for one, label in zip(self.request_ids, self.labels, strict=True) if label is None]
        if missing:
            some = ", ".join(missing[:_NAMED]) + (" and others" if len(missing) > _NAMED else "")
            rule = f"be 0 or 1 for each of the {len(self.labels)} rows; {len(missing)} have none: {some}"
            fix = "An estimate from those alone that were easy to label is bent"
            raise InvalidInput("label", None, rule, fix)
        return estimate_from_draw(
            self.metric,
            np.array(self.labels, dtype=np.float64),
            probability=self.probabilities,
            flagged=self.flags,
            propensity=self.propensities,
            population=self.population,
            half_width=self.half_width,
            confidence_level=self.confidence_level,
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns what JSON can hold: the plan, and its rows one by one."""
        return {
            "plan": self._plan(),
            "rows": [dict(zip(_COLUMNS[:-1], row, strict=True)) for row in self._rows()],
        }

    def to_csv(self) -> str:
        """Returns the sample as a table; the column `label` is to be filled in, `plan` is the same in each row."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(_COLUMNS)
        plan = json.dumps(self._plan())
        for name, label, propensity, probability, flag in self._rows():
            writer.writerow([name, label, propensity, probability, int(flag), plan])
        return text.getvalue()

    def _rows(self) -> Iterable[tuple[str, int | None, float, float, bool]]:
        known = (None if label is None else int(label) for label in self.labels)
        return zip(self.request_ids, known, self.propensities, self.probabilities, self.flags, strict=True)

    def _plan(self) -> dict[str, Any]:
        return {
            "metric": self.metric,
            "rows": self.rows,
            "drawn": len(self.request_ids),
            **_marks(self.request_ids, self.propensities),
            **vars(self.population),
            "half_width": self.half_width,
            "uniform_half_width": self.uniform_half_width,
            "confidence_level": self.confidence_level,
        }

    @classmethod
    def read(cls, text: str) -> "LabelSample":
        """Reads what `to_csv` wrote, or `to_dict` as JSON, with labels filled in: 0 and 1, no and yes, false and true.

        What a spreadsheet makes of it is read too: columns between semicolons or tabs, decimal commas, empty lines.

        Raises:
            InvalidInput: If it is neither, rows are missing, there twice or others than those drawn, or a label is
                something else.
        """
        plan, rows = _parsed(text)
        try:
            size, names = int(plan["drawn"]), [str(row["request_id"]) for row in rows]
            propensities = tuple(_number(row, "propensity") for row in rows)
            here = _marks(names, propensities)
            written = {name: float(plan.get(name, mark)) for name, mark in here.items()}
            sample = cls(
                metric=str(plan["metric"]),
                rows=str(plan["rows"]),
                request_ids=tuple(names),
                propensities=propensities,
                probabilities=tuple(_number(row, "probability") for row in rows),
                flags=tuple(_answer(row, "flagged") is True for row in rows),
                labels=tuple(_answer(row, "label") for row in rows),
                population=Population(
                    n_obs=int(plan["n_obs"]),
                    n_flagged=int(plan["n_flagged"]),
                    expected=float(plan["expected"]),
                    expected_flagged=float(plan["expected_flagged"]),
                ),
                half_width=float(plan["half_width"]),
                uniform_half_width=float(plan["uniform_half_width"]),
                confidence_level=float(plan["confidence_level"]),
            )
        except InvalidInput:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidInput("sample", f"{error}", "have the columns and numbers that it was written with") from None
        twice = [name for name in dict.fromkeys(names) if names.count(name) > 1] if len(set(names)) < len(names) else []
        if twice or len(names) != size:
            told = f"{len(names)} rows" + (f", {', '.join(twice[:_NAMED])} more than once" if twice else "")
            rule = f"have the {size} different rows that were drawn"
            raise InvalidInput("sample", told, rule, "Give back every row; one that is left out bends it")
        if written["ids"] != here["ids"]:
            raise InvalidInput("sample", "other request_ids", "be those that were drawn", "Let them be text")
        if not abs(written["tied"] - here["tied"]) <= _ROUNDED * written["tied"]:
            rule = "be those that each request_id was drawn with"
            raise InvalidInput("sample", "other propensities", rule, "Sort whole rows, never some of the columns")
        return sample

    def __str__(self) -> str:
        known = sum(label is not None for label in self.labels)
        drawn_from = f"{len(self.labels):,} of {self.population.n_obs:,} decisions"
        return (
            f"{drawn_from} to label for {self.metric}{f', {self.rows}' * bool(self.rows)}:"
            f" {within(self.half_width, self.uniform_half_width, self.confidence_level)}; {known:,} have their label"
        )


def _marks(request_ids: Sequence[str], propensities: Sequence[float]) -> dict[str, float]:
    """Returns what tells that rows are those drawn, in any order, each with its own propensity."""
    places = [zlib.crc32(name.encode()) for name in request_ids]
    tied = math.fsum(place / 2**32 * share for place, share in zip(places, propensities, strict=True))
    return {"ids": zlib.crc32(repr(sorted(places)).encode()), "tied": tied}


def _parsed(text: str) -> tuple[Mapping[str, Any], Sequence[Mapping[str, Any]]]:
    try:
        # A spreadsheet puts a mark of byte order before its text.
        given = text.lstrip("\ufeff \t\r\n")
        if given.startswith("{"):
            content = json.loads(given)
            return dict(content["plan"]), [dict(row) for row in content["rows"]]
        first = given.partition("\n")[0]
        between = max(",;\t", key=first.count)
        read = csv.DictReader(io.StringIO(given, newline=""), delimiter=between)
        rows = [row for row in read if any(row.values())]
        missing = [name for name in _COLUMNS if rows and name not in rows[0]]
        if missing:
            raise InvalidInput("sample", f"no column {', '.join(missing)}", _TABLE)
        for row in rows:
            if row["plan"] != rows[0]["plan"]:
                raise InvalidInput(f"sample: plan of {row['request_id']}", row["plan"], _TABLE)
        return dict(json.loads(rows[0]["plan"])), rows
    except InvalidInput:
        raise
    except (IndexError, KeyError, TypeError, ValueError, csv.Error):
        raise InvalidInput("sample", text[:40], _TABLE) from None


def _number(row: Mapping[str, Any], field: str) -> float:
    given = row[field]
    try:
        return float(str(given).replace(",", "."))
    except ValueError:
        raise InvalidInput(f"{field} of {row['request_id']}", given, "be the number that it was written with") from None


def _answer(row: Mapping[str, Any], field: str) -> bool | None:
    said = str(row[field]).strip().lower().replace(",", ".")
    if said in _NONE and field == "label":
        return None
    if said not in (*_YES, *_NO):
        raise InvalidInput(f"{field} of {row['request_id']}", row[field], "be 0 or 1")
    return said in _YES
