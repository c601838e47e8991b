"""Compares two versions of a contract: what changed, whom it breaks, and whether they were told in time."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from vitok.clock import DAY, isoformat
from vitok.contracts import document as read
from vitok.contracts.contract import Contract
from vitok.contracts.differences import Found
from vitok.contracts.notice import Notice, missing_version, notice_of
from vitok.contracts.versions import contract_level, tables
from vitok.errors import InvalidInput

Side = Literal["consumer", "producer"]
View = Literal["consumer", "producer", "both"]
Verdict = Literal["breaking", "review", "compatible"]

_WORDS: dict[str, str] = {"consumer": "consumers", "producer": "producers"}


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One thing that is not as it was.

    Attributes:
        where: What it is about, such as `"payments.amount"`; "" for the whole contract.
        kind: What happened in a few words, such as `"column removed"`.
        verdict: `"breaking"` where it breaks the side that is looked from, `"review"` where a person has to judge
            (a description, a physical type), else `"compatible"`.
        breaks: The sides it breaks, whichever is looked from.
        reason: Why, in a sentence.
        old: What it was, in short; "" where there was nothing.
        new: What it is.
        affected: What stands on it downstream, as the caller named it.
    """

    where: str
    kind: str
    verdict: Verdict
    breaks: tuple[Side, ...]
    reason: str
    old: str = ""
    new: str = ""
    affected: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, object]:
        """Returns the difference as what JSON can hold."""
        return {
            "where": self.where,
            "kind": self.kind,
            "verdict": self.verdict,
            "breaks": list(self.breaks),
            "reason": self.reason,
            "old": self.old,
            "new": self.new,
            "affected": list(self.affected),
        }

    def __str__(self) -> str:
        shown = f" ({self.old or 'nothing'} -> {self.new or 'nothing'})" if self.old or self.new else ""
        return f"{self.verdict:<10}  {self.where or 'contract'}: {self.kind}{shown}. {self.reason}"


@dataclass(frozen=True, kw_only=True)
class Change:
    """All that differs between two versions of a contract, and whether it may go ahead.

    Attributes:
        contract: Name of the contract, as the old version has it.
        old_version: Version it was.
        new_version: Version it is to be.
        view: The side that is looked from.
        differences: What differs, the breaking ones first.
        notice: The notice promised and given.
        problems: Why the change is refused, a sentence each; none where it may go ahead.
    """

    contract: str
    old_version: str
    new_version: str
    view: View
    differences: tuple[Difference, ...]
    notice: Notice
    problems: tuple[str, ...]

    @property
    def breaking(self) -> tuple[Difference, ...]:
        """The breaking differences."""
        return tuple(item for item in self.differences if item.verdict == "breaking")

    @property
    def refused(self) -> bool:
        """Whether the change must wait, for its notice or for a version that says what it is."""
        return bool(self.problems)

    @property
    def affected(self) -> tuple[str, ...]:
        """What breaks downstream, each once, in the order of the differences."""
        return tuple(dict.fromkeys(name for item in self.breaking for name in item.affected))

    def to_dict(self) -> dict[str, object]:
        """Returns the change as what JSON can hold."""
        return {
            "contract": self.contract,
            "old_version": self.old_version,
            "new_version": self.new_version,
            "view": self.view,
            "breaking": len(self.breaking),
            "refused": self.refused,
            "problems": list(self.problems),
            "notice": self.notice.to_dict(),
            "affected": list(self.affected),
            "differences": [item.to_dict() for item in self.differences],
        }

    def __str__(self) -> str:
        seen = "both sides see" if self.view == "both" else f"{_WORDS[self.view]} see"
        counts = dict.fromkeys(get_args(Verdict), 0)
        for item in self.differences:
            counts[item.verdict] += 1
        told = ", ".join(f"{count} {'to review' if name == 'review' else name}" for name, count in counts.items())
        lines = [f"{self.contract} {self.old_version} -> {self.new_version}, as {seen} it: {told}"]
        for item in self.differences:
            lines.append(str(item))
            if item.affected:
                lines.append(f"{'':<12}touches {', '.join(item.affected)}")
        if self.breaking:
            lines.append(f"notice: {self.notice}")
        lines.extend(f"refused: {problem}" for problem in self.problems)
        return "\n".join(lines)


def diff(
    old: Contract,
    new: Contract,
    *,
    now: int,
    published: int | None = None,
    view: View = "consumer",
    impact: Mapping[str, Iterable[str]] | None = None,
) -> Change:
    """Compares two versions of a contract.

    Consumers read what the contract promises: they break where data may come that the old version ruled out (a range
    widened, nulls allowed, a value added to a list) or no longer comes (a column removed, fresh only by noon).
    Producers write what it allows: they break where data that was good is refused now. A rule of severity `warn`
    refuses nothing, so a change of it breaks nobody. A change that breaks needs the notice that the old version
    promises, counted from the day the new one was announced, and a new major version.

    Args:
        old: The version in force.
        new: The version that is to follow.
        now: Present time in microseconds; a new version without `effectiveFrom` takes effect now.
        published: When the new version was published, in microseconds, such as the time of its commit; by default
            what it says of itself: the custom property `announced`, or a `contractCreatedTs` of its own, or now.
        view: Whose side to look from.
        impact: What stands downstream on a column, by `"table.column"` (or `"column"`, or `"table"` for all of it),
            such as `{"payments.amount": ["feature spend_7d", "model fraud/3"]}`.

    Returns:
        Every difference with its verdict and reason, and whether the change is refused.

    Raises:
        InvalidInput: If `view` is not one of the three words, or a time or a notice period in a contract is none.

    References:
        Semantic Versioning 2.0.0; Open Data Contract Standard v3.2.0, service-level agreement.

    Example:
        >>> from vitok import contracts
        >>> text = '''
        ... apiVersion: v3.1.0
        ... kind: DataContract
        ... id: payments
        ... version: 1.0.0
        ... status: active
        ... schema:
        ...   - name: payments
        ...     properties: [{name: amount, logicalType: number, logicalTypeOptions: {maximum: 10}}]
        ... slaProperties: [{property: noticePeriod, value: 30, unit: d}]
        ... '''
        >>> wider = text.replace("maximum: 10", "maximum: 20")
        >>> print(diff(contracts.load(text), contracts.load(wider), now=0))
        payments 1.0.0 -> 1.0.0, as consumers see it: 1 breaking, 0 to review, 0 compatible
        breaking    payments.amount: range widened (at most 10 -> at most 20). Breaks consumers: values beyond the
            old range may come.
        notice: 30 days promised; announced 1970-01-01T00:00:00Z (not said, so now), takes effect
            1970-01-01T00:00:00Z; earliest 1970-01-31T00:00:00Z
        refused: a breaking change needs 30 days of notice and has 0; it may take effect on 1970-01-31T00:00:00Z at
            the earliest
        refused: a breaking change needs version 2.0.0 or higher; this is 1.0.0
    """
    if view not in get_args(View):
        raise InvalidInput("view", view, f"be one of {', '.join(get_args(View))}")
    before, after = read.parse(old.text), read.parse(new.text)
    found = [*contract_level(old, new, before, after), *tables(old, new, before, after)]
    downstream = {key: tuple(names) for key, names in (impact or {}).items()}
    single = len(old.tables) == 1
    differences = [_judged(item, view, downstream, single=single) for item in found]
    order = get_args(Verdict)
    differences.sort(key=lambda item: order.index(item.verdict))
    notice = notice_of(before, after, now=now, published=published)
    broken = any(item.verdict == "breaking" for item in differences)
    return Change(
        contract=old.name,
        old_version=old.version,
        new_version=new.version,
        view=view,
        differences=tuple(differences),
        notice=notice,
        problems=tuple(_problems(old, new, notice)) if broken and notice.binding else (),
    )


def _problems(old: Contract, new: Contract, notice: Notice) -> list[str]:
    problems = []
    if not notice.given:
        given = max(0, notice.effective - notice.announced)
        problems.append(
            f"a breaking change needs {_days(notice.period)} days of notice and has {_days(given)}; it may take "
            f"effect on {isoformat(notice.earliest)} at the earliest"
        )
    wanted = missing_version(old.version, new.version)
    if wanted:
        problems.append(f"a breaking change needs version {wanted}; this is {new.version}")
    return problems


def _days(length: int) -> str:
    return f"{length / DAY:.4g}"


def _judged(item: Found, view: View, impact: Mapping[str, Sequence[str]], *, single: bool) -> Difference:
    reasons: dict[Side, str] = {"consumer": item.consumer, "producer": item.producer}
    sides = tuple(side for side, reason in reasons.items() if reason)
    broken = [side for side in sides if view in (side, "both")]
    verdict: Verdict = "breaking" if broken else "review" if item.review else "compatible"
    if sides:
        only = "" if broken else " only"
        told = "; ".join(f"{_WORDS[side]}{only}: {reasons[side]}" for side in broken or sides)
        reason = f"Breaks {told}."
    else:
        said = item.review or item.fine
        reason = f"{said[0].upper()}{said[1:]}."
    return Difference(
        where=item.where,
        kind=item.kind,
        verdict=verdict,
        breaks=sides,
        reason=reason,
        old=item.old,
        new=item.new,
        affected=_affected(item, impact, single=single) if verdict != "compatible" else (),
    )


def _affected(item: Found, impact: Mapping[str, Sequence[str]], *, single: bool) -> tuple[str, ...]:
    """What is named for the columns of a difference; for the whole table, or the whole contract, where it has none."""
    names: list[str] = []
    for key, things in impact.items():
        if not item.table:
            touched = True
        elif item.columns:
            touched = key == item.table or any(
                key == f"{item.table}.{column}" or (single and key == column) for column in item.columns
            )
        else:
            touched = single or key == item.table or key.startswith(f"{item.table}.")
        if touched:
            names.extend(things)
    return tuple(dict.fromkeys(names))
