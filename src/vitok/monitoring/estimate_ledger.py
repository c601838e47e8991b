"""What was estimated before the labels were in, beside what they later said, and whether to trust the next estimate."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from vitok.clock import isoformat
from vitok.engines.sqlite import Database
from vitok.errors import Conflict, InvalidInput, NotFound
from vitok.stats import Estimate, clopper_pearson, mean_interval
from vitok.stats.results import Result

_SCHEMA = """
CREATE TABLE estimate (
    subject TEXT NOT NULL,
    metric TEXT NOT NULL,
    start INTEGER NOT NULL,
    end INTEGER NOT NULL,
    made_at INTEGER NOT NULL,
    value REAL NOT NULL,
    lower REAL NOT NULL,
    upper REAL NOT NULL,
    n_obs INTEGER NOT NULL,
    confidence_level REAL NOT NULL,
    definition TEXT NOT NULL,
    PRIMARY KEY (subject, metric, start, end)
) STRICT;
CREATE TABLE realised (
    subject TEXT NOT NULL,
    metric TEXT NOT NULL,
    start INTEGER NOT NULL,
    end INTEGER NOT NULL,
    as_of INTEGER NOT NULL,
    value REAL NOT NULL,
    lower REAL NOT NULL,
    upper REAL NOT NULL,
    n_obs INTEGER NOT NULL,
    confidence_level REAL NOT NULL,
    labelled REAL NOT NULL,
    PRIMARY KEY (subject, metric, start, end, as_of)
) STRICT;
"""
_PAIRS = """
SELECT e.start, e.end, e.made_at, e.value, e.lower, e.upper, e.n_obs, e.confidence_level, e.definition,
       r.as_of, r.value, r.lower, r.upper, r.n_obs, r.confidence_level, r.labelled
FROM estimate e LEFT JOIN realised r
  ON r.subject = e.subject AND r.metric = e.metric AND r.start = e.start AND r.end = e.end
 AND r.as_of = (SELECT max(as_of) FROM realised l WHERE l.subject = e.subject AND l.metric = e.metric
                AND l.start = e.start AND l.end = e.end AND l.as_of <= ?3)
WHERE e.subject = ?1 AND e.metric = ?2 AND e.made_at <= ?3 ORDER BY e.start, e.end
"""
_ALWAYS = 2**62
TRUSTED, NOT_TRUSTED, TOO_EARLY = "trusted", "not trusted", "too early"


@dataclass(frozen=True, kw_only=True)
class EstimatePair(Result):
    """An estimate of one window and what its labels said.

    Attributes:
        start: When the window begins, in microseconds.
        end: When it ends, not included.
        made_at: When the estimate was made.
        estimated: The estimate.
        realised: The value from labels, as last known; None where there is none yet.
        labelled: Share of the window's rows that `realised` rests on; 0 where there is none.
        as_of: When those labels were looked at; None where there is none.
    """

    start: int
    end: int
    made_at: int
    estimated: Estimate
    realised: Estimate | None
    labelled: float
    as_of: int | None

    @property
    def error(self) -> float:
        """Estimated less realised; NaN where there is no realised value."""
        return math.nan if self.realised is None else self.estimated.value - self.realised.value

    @property
    def covered(self) -> bool | None:
        """Whether the realised value lies in the estimate's interval; None where it is not known.

        While labels are missing the realised value is itself a sample of the window: its half width counts by the
        share that is missing (finite population correction), so that a full window is held to the interval alone.
        """
        if self.realised is None:
            return None
        spare = 0.0
        if self.labelled < 1:
            half = (self.realised.upper - self.realised.lower) / 2
            spare = half * math.sqrt(1 - self.labelled)
        side = self.realised.value - self.estimated.value
        room = self.estimated.upper - self.estimated.value if side > 0 else self.estimated.value - self.estimated.lower
        return abs(side) <= math.hypot(room, spare) + 1e-12

    def __str__(self) -> str:
        window = f"{isoformat(self.start)} to {isoformat(self.end)}"
        if self.realised is None:
            return f"{window}: estimated {self.estimated.value:.4g}, no labels yet"
        verdict = "inside" if self.covered else "outside"
        return (
            f"{window}: estimated {self.estimated.value:.4g}, realised {self.realised.value:.4g} from"
            f" {100 * self.labelled:.3g} % of the labels, {verdict} the interval"
        )


@dataclass(frozen=True, kw_only=True)
class EstimateGrade(Result):
    """How good the estimates of one metric have been.

    Attributes:
        subject: Of what, such as a model version.
        metric: Which metric.
        n_windows: Windows with enough labels, on which all of this rests.
        coverage: Share of them whose realised value lay in the interval, with a Clopper-Pearson interval.
        nominal: Share that the intervals promise.
        mean_absolute_error: Mean of |estimated - realised|.
        bias: Mean of estimated - realised, with a t interval over windows.
        naive_error: Mean absolute error of answering with the mean of the earlier realised values instead; NaN
            without two windows.
        verdict: `"trusted"`, `"not trusted"` or `"too early"`.
        reason: Why.
    """

    subject: str
    metric: str
    n_windows: int
    coverage: Estimate
    nominal: float
    mean_absolute_error: float
    bias: Estimate
    naive_error: float
    verdict: str
    reason: str

    def __str__(self) -> str:
        return (
            f"{self.metric} of {self.subject}: {self.verdict} ({self.reason}); {self.n_windows} windows, mean absolute"
            f" error {self.mean_absolute_error:.4g} (naive {self.naive_error:.4g}), coverage {self.coverage.value:.3g}"
            f" of {self.nominal:g} promised, bias {self.bias.value:.3g}"
        )


class EstimateLedger:
    """Keeps estimates as they were made and realised values as they came, in a SQLite file for any process.

    An estimate is never rewritten: a window is graded by what was said of it before its labels were known.

    Args:
        path: The file; made where it does not exist.

    Raises:
        StoreError: If the file cannot be opened, or is something else.

    Example:
        >>> import tempfile
        >>> from vitok.clock import DAY
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     ledger = EstimateLedger(Path(folder) / "estimates.sqlite")
        ...     said = Estimate(name="precision", value=0.9, lower=0.85, upper=0.94, n_obs=500)
        ...     _ = ledger.record("fraud/3", [said], start=0, end=DAY, made_at=DAY)
        ...     known = Estimate(name="precision", value=0.88, lower=0.84, upper=0.91, n_obs=480)
        ...     _ = ledger.realise("fraud/3", [known], start=0, end=DAY, labelled=0.96, as_of=30 * DAY)
        ...     [pair] = ledger.pairs("fraud/3", "precision")
        ...     grade = ledger.grade("fraud/3", "precision")
        ...     ledger.close()
        >>> print(pair)
        1970-01-01T00:00:00Z to 1970-01-02T00:00:00Z: estimated 0.9, realised 0.88 from 96 % of the labels, inside
        the interval
        >>> grade.verdict
        'too early'
    """

    def __init__(self, path: str | Path) -> None:
        self._database = Database(path, schema=_SCHEMA, kind="estimates", version=1)

    def close(self) -> None:
        """Closes the file."""
        self._database.close()

    def record(self, subject: str, estimates: Iterable[Estimate], *, start: int, end: int, made_at: int) -> int:
        """Writes down what is estimated of a window, before its labels are known.

        Args:
            subject: Of what, such as a model version, or a version and a slice.
            estimates: The estimates, each of another metric; those that are NaN are left out.
            start: When the window begins, in microseconds.
            end: When it ends, after `start`.
            made_at: Now, in microseconds.

        Returns:
            How many were written; those that stood there already with the same numbers are not written again.

        Raises:
            InvalidInput: If the window is empty or a name is given twice.
            Conflict: If the window was estimated otherwise before, or its labels were looked at before.
            StoreError: If the file cannot be written; nothing was then.
        """
        given = _given(estimates, start, end)
        written = 0
        with self._database.writing() as transaction:
            for one in given:
                key = (subject, one.name, start, end)
                where = "subject = ? AND metric = ? AND start = ? AND end = ?"
                found = transaction.execute(f"SELECT value, lower, upper FROM estimate WHERE {where}", key).fetchone()  # noqa: S608
                if found is not None:
                    if found != (one.value, one.lower, one.upper):
                        raise Conflict(
                            f"{one.name} of {subject} was estimated as {found[0]:.6g} for this window before, not as"
                            f" {one.value:.6g}: an estimate is graded as it was first made"
                        )
                    continue
                if transaction.execute(f"SELECT 1 FROM realised WHERE {where}", key).fetchone():  # noqa: S608
                    raise Conflict(f"the labels of this window of {subject} were looked at before {one.name} was")
                transaction.execute(
                    "INSERT INTO estimate VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (*key, made_at, one.value, one.lower, one.upper, one.n_obs, one.confidence_level, one.definition),
                )
                written += 1
        return written

    def realise(
        self, subject: str, values: Iterable[Estimate], *, start: int, end: int, labelled: float, as_of: int
    ) -> int:
        """Writes down what the labels of a window say, as they are known at a time; may be repeated as they mature.

        Args:
            subject: As in `record`.
            values: Realised metrics with their intervals; those that are NaN are left out.
            start: As in `record`.
            end: As in `record`.
            labelled: Share of the window's rows whose labels are in, in (0, 1].
            as_of: When the labels were looked at, in microseconds.

        Returns:
            How many were written; the same time again replaces.

        Raises:
            InvalidInput: If the window is empty, a name is given twice, or the share is out of range.
            StoreError: If the file cannot be written; nothing was then.
        """
        if not 0 < labelled <= 1:
            raise InvalidInput("labelled", labelled, "be in (0, 1]")
        given = _given(values, start, end)

        def key_of(one: Estimate) -> tuple[str, str, int, int]:
            return subject, one.name, start, end

        with self._database.writing() as transaction:
            transaction.executemany(
                "INSERT OR REPLACE INTO realised VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (*key_of(one), as_of, one.value, one.lower, one.upper, one.n_obs, one.confidence_level, labelled)
                    for one in given
                ],
            )
        return len(given)

    def subjects(self) -> dict[str, tuple[str, ...]]:
        """Returns what there are estimates of, with their metrics, sorted."""
        rows = self._database.read("SELECT DISTINCT subject, metric FROM estimate ORDER BY subject, metric")
        found: dict[str, tuple[str, ...]] = {}
        for subject, metric in rows:
            found[subject] = (*found.get(subject, ()), metric)
        return found

    def pairs(self, subject: str, metric: str, *, as_of: int | None = None) -> tuple[EstimatePair, ...]:
        """Returns estimates with their realised values, by window, oldest first.

        Args:
            subject: Of what.
            metric: Which metric.
            as_of: As it was known at that time, in microseconds; None for all that is known.
        """
        rows = self._database.read(_PAIRS, (subject, metric, _ALWAYS if as_of is None else as_of))
        return tuple(_pair(metric, row) for row in rows)

    def grade(
        self,
        subject: str,
        metric: str,
        *,
        enough: int = 20,
        least_labelled: float = 0.5,
        slack: float = 0.05,
        last: int | None = None,
        as_of: int | None = None,
    ) -> EstimateGrade:
        """Grades the estimates of a metric by what labels said later.

        Args:
            subject: Of what.
            metric: Which metric.
            enough: Windows below which it is too early to say.
            least_labelled: Share of labels from which a window counts.
            slack: How far below their promise the intervals' coverage may be, in [0, 1).
            last: Only so many of the latest windows; None for all.
            as_of: As it was known at that time, in microseconds; None for all that is known.

        Returns:
            The grade. Estimates are trusted unless their coverage is refuted: the upper end of its 95 % interval
            lies below the promise less `slack`, or estimates are worse than the mean of the past and biased.

        Raises:
            NotFound: If the metric was never estimated.
            InvalidInput: If an argument is out of range.
        """
        if enough < 1 or not 0 <= slack < 1:
            raise InvalidInput("enough and slack", (enough, slack), "be at least 1 and in [0, 1)")
        pairs = self.pairs(subject, metric, as_of=as_of)
        if not pairs:
            raise NotFound("estimates", f"{metric} of {subject}", self.subjects())
        known = [pair for pair in pairs if pair.realised is not None and pair.labelled >= least_labelled]
        known = known[-last:] if last is not None else known
        errors = [pair.error for pair in known]
        n = len(known)
        coverage = clopper_pearson(sum(bool(pair.covered) for pair in known), n)
        bias = mean_interval(errors, name="bias")
        values = [pair.realised.value for pair in known if pair.realised is not None]
        naive = [abs(values[at] - math.fsum(values[:at]) / at) for at in range(1, n)]
        nominal = pairs[-1].estimated.confidence_level
        mae = math.fsum(abs(error) for error in errors) / n if n else math.nan
        naive_error = math.fsum(naive) / len(naive) if naive else math.nan
        # The first window has no past, so that both are compared on the others.
        ours = math.fsum(abs(error) for error in errors[1:]) / len(naive) if naive else math.nan
        biased = n > 1 and (bias.lower > 0 or bias.upper < 0)
        if n < enough:
            verdict, reason = TOO_EARLY, f"{n} of {enough} windows have their labels"
        elif coverage.upper < nominal - slack:
            verdict, reason = NOT_TRUSTED, "the intervals miss too often"
        elif biased and ours > naive_error:
            verdict, reason = NOT_TRUSTED, "biased, and the mean of the past would have been closer"
        else:
            verdict, reason = TRUSTED, "the intervals keep their promise"
        return EstimateGrade(
            subject=subject,
            metric=metric,
            n_windows=n,
            coverage=coverage,
            nominal=nominal,
            mean_absolute_error=mae,
            bias=bias,
            naive_error=naive_error,
            verdict=verdict,
            reason=reason,
        )


def _given(estimates: Iterable[Estimate], start: int, end: int) -> list[Estimate]:
    if not start < end:
        raise InvalidInput("start, end", (start, end), "be a window: start before end, in microseconds")
    given = [one for one in estimates if not math.isnan(one.value)]
    names = [one.name for one in given]
    if len(set(names)) != len(names):
        raise InvalidInput("estimates", names, "be of another metric each")
    return given


def _pair(metric: str, row: tuple[float, ...]) -> EstimatePair:
    start, end, made_at, value, lower, upper, n_obs, level, definition, *rest = row
    as_of, known, low, high, n_known, known_level, labelled = rest
    realised = None
    if known is not None:
        realised = Estimate(
            name=metric, value=known, lower=low, upper=high, n_obs=int(n_known), confidence_level=known_level
        )
    return EstimatePair(
        start=int(start),
        end=int(end),
        made_at=int(made_at),
        estimated=Estimate(
            name=metric,
            value=value,
            lower=lower,
            upper=upper,
            n_obs=int(n_obs),
            confidence_level=level,
            definition=str(definition),
        ),
        realised=realised,
        labelled=float(labelled or 0.0),
        as_of=None if as_of is None else int(as_of),
    )
