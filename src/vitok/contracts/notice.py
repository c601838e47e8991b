"""How long before a breaking change consumers must hear of it, and whether they did.

The standard has no word for a notice period. Its list of service levels is open, so a contract says it there, as
`{property: noticePeriod, value: 30, unit: d}`, which other tools keep and show. When a version was announced and when
it takes effect are `customProperties` of the contract, `announced` and `effectiveFrom`.
"""

import datetime as dt
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vitok.clock import DAY, HOUR, isoformat, parse_time
from vitok.contracts import document as read
from vitok.errors import InvalidInput

NAMES = frozenset({"noticeperiod", "changenotice"})
_UNITS = {
    HOUR: ("h", "hr", "hour", "hours"),
    DAY: ("d", "day", "days"),
    7 * DAY: ("w", "week", "weeks"),
    30 * DAY: ("mo", "month", "months"),
    365 * DAY: ("y", "yr", "year", "years"),
}
_AMOUNT = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]+)")
_ISO = re.compile(r"P([0-9]+)([DWMY])")
_ISO_UNITS = {"D": "d", "W": "w", "M": "mo", "Y": "y"}
_VERSION = re.compile(r"v?([0-9]+)(?:\.([0-9]+))?(?:\.([0-9]+))?(?:[-+].*)?")
_NOT_BINDING = frozenset({"draft", "proposed"})


@dataclass(frozen=True, kw_only=True)
class Notice:
    """What the old contract promises of a breaking change, and what the new one gives.

    Attributes:
        period: The notice that the old contract promises, in microseconds; 0 where it promises none.
        announced: When the new version was announced, in microseconds.
        announced_by: What says so, such as `"customProperties.announced"`.
        effective: When it takes effect, in microseconds.
        binding: False where the old version is a draft or a proposal, on which nobody relies yet.
    """

    period: int
    announced: int
    announced_by: str
    effective: int
    binding: bool

    @property
    def earliest(self) -> int:
        """The first moment at which a breaking change may take effect, in microseconds."""
        return self.announced + (self.period if self.binding else 0)

    @property
    def given(self) -> bool:
        """Whether the notice is long enough."""
        return self.effective >= self.earliest

    def to_dict(self) -> dict[str, object]:
        """Returns the notice as what JSON can hold; times in ISO 8601."""
        return {
            "period_days": self.period / DAY,
            "announced": isoformat(self.announced),
            "announced_by": self.announced_by,
            "effective": isoformat(self.effective),
            "earliest": isoformat(self.earliest),
            "binding": self.binding,
            "given": self.given,
        }

    def __str__(self) -> str:
        if not self.binding:
            return "the old version is a draft, on which nobody relies yet: no notice is needed"
        said = f"announced {isoformat(self.announced)} ({self.announced_by}), takes effect {isoformat(self.effective)}"
        if not self.period:
            return f"the old version promises no notice; {said}"
        return f"{self.period / DAY:g} days promised; {said}; earliest {isoformat(self.earliest)}"


def notice_of(old: Mapping[str, Any], new: Mapping[str, Any], *, now: int, published: int | None) -> Notice:
    """Reads the notice that the document `old` promises and `new` gives; see `changes.diff`."""
    announced, announced_by = _announced(old, new, now=now, published=published)
    effective = _time(custom(new, "contract").get("effectiveFrom"), "customProperties.effectiveFrom")
    return Notice(
        period=notice_period(old),
        announced=announced,
        announced_by=announced_by,
        effective=now if effective is None else effective,
        binding=str(old.get("status") or "").lower() not in _NOT_BINDING,
    )


def notice_period(document: Mapping[str, Any]) -> int:
    """Reads the notice that a contract promises, in microseconds; 0 where it promises none, the longest of several.

    `noticePeriod` among `slaProperties` is ours; `changeNotice`, and both words among the `customProperties`, are
    read too, as other teams write them.

    Raises:
        InvalidInput: If one is no length of time.

    Example:
        >>> notice_period({"slaProperties": [{"property": "noticePeriod", "value": 2, "unit": "w"}]}) // DAY
        14
    """
    found = [0]
    for position, item in enumerate(read.entries(document.get("slaProperties"), "slaProperties")):
        entry = read.mapping(item, f"slaProperties[{position}]")
        if str(entry.get("property", "")).lower() in NAMES:
            found.append(_length(entry.get("value"), entry.get("unit"), f"slaProperties[{position}]"))
    for name, value in custom(document, "contract").items():
        if name.lower() in NAMES:
            found.append(_length(value, None, f"customProperties.{name}"))
    return max(found)


def custom(element: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Returns the custom properties of a contract, table or property as names and values."""
    found = {}
    for item in read.entries(element.get("customProperties"), f"{where}.customProperties"):
        entry = read.mapping(item, f"{where}.customProperties")
        found[str(entry.get("property", ""))] = entry.get("value")
    return found


def missing_version(old: str, new: str) -> str:
    """Says which version a breaking change needs, or "" where `new` is one.

    By semantic versioning that is a greater first number; while it is 0, a greater second one. Of versions that are
    no such numbers only a change can be asked.

    Example:
        >>> missing_version("1.4.2", "1.5.0")
        '2.0.0 or higher'
        >>> missing_version("0.3.0", "0.4.0")
        ''
    """
    before, after = _numbers(old), _numbers(new)
    if before is None or after is None:
        return "" if old != new else f"other than {old}"
    if before[0]:
        return "" if after[0] > before[0] else f"{before[0] + 1}.0.0 or higher"
    return "" if after[:2] > before[:2] else f"0.{before[1] + 1}.0 or higher"


def _numbers(version: str) -> tuple[int, int, int] | None:
    match = _VERSION.fullmatch(version.strip())
    if match is None:
        return None
    major, minor, patch = (int(part or 0) for part in match.groups())
    return major, minor, patch


def _announced(old: Mapping[str, Any], new: Mapping[str, Any], *, now: int, published: int | None) -> tuple[int, str]:
    """The best evidence first: the caller's, who may know when the file was published, then what the file says."""
    if published is not None:
        return published, "published"
    stated = _time(custom(new, "contract").get("announced"), "customProperties.announced")
    if stated is not None:
        return stated, "customProperties.announced"
    created = _time(new.get("contractCreatedTs"), "contractCreatedTs")
    # The same time in both says when the contract was first written, not when this version was.
    if created is not None and created != _time(old.get("contractCreatedTs"), "contractCreatedTs"):
        return created, "contractCreatedTs"
    return now, "not said, so now"


def _time(value: object, where: str) -> int | None:
    if value is None:
        return None
    text = value.isoformat() if isinstance(value, dt.date) else value
    if isinstance(text, str):
        try:
            return parse_time(text)
        except InvalidInput:
            pass
    raise InvalidInput(where, value, "be an ISO 8601 time, such as 2026-03-01T00:00:00Z")


def _length(value: object, unit: object, where: str) -> int:
    if isinstance(value, str):
        iso = _ISO.fullmatch(value.strip())
        amount = _AMOUNT.fullmatch(value.strip())
        if iso is not None:
            value, unit = int(iso[1]), _ISO_UNITS[iso[2]]
        elif amount is not None:
            value, unit = float(amount[1]), amount[2]
    scale = next((size for size, names in _UNITS.items() if str(unit or "").lower() in names), None)
    known = ", ".join(names[0] for names in _UNITS.values())
    if scale is None:
        raise InvalidInput(f"{where}.unit", unit, f"be one of {known}", "Such as value: 30, unit: d")
    length = read.number(value, f"{where}.value")
    if length < 0:
        raise InvalidInput(f"{where}.value", value, "be at least 0")
    return round(length * scale)
