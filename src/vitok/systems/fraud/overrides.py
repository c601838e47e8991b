"""What the loop or a person has changed for a while: thresholds that are raised, or rules in the model's place.

Whoever acts writes an override into the home; the service follows it without a restart. Each has an end that the
service keeps by its own clock, so that one whose writer has died does not stay.
"""

import dataclasses
import json
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

from vitok.clock import DAY, isoformat
from vitok.errors import Conflict, InvalidInput, StoreError
from vitok.policies import BLOCK, REVIEW, TierPolicy, Tiers
from vitok.registry.files import exclusive, sync_folder, write_durable
from vitok.stats.results import Result

if TYPE_CHECKING:
    import polars as pl

Action = Literal["raise_threshold", "use_rules"]
MOST, LONGEST = 0.5, 7 * DAY
_MARK = "+raised-"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Override(Result):
    """Something that is other than the version in force says, for a while.

    Attributes:
        key: Its name; the same key again changes nothing.
        action: `"raise_threshold"` or `"use_rules"`.
        by: By how much the probability from which a transaction is blocked is raised, in (0, 0.5]; 0 for rules.
        who: Who made it.
        why: Why, in words.
        since: From when, in microseconds.
        until: Until when, in microseconds, not included; at most 7 days after `since`.
        ended: When it was taken back, in microseconds; None where it was not.
        ended_by: Who took it back; empty where nobody did.
    """

    key: str
    action: Action
    by: float = 0.0
    who: str
    why: str
    since: int
    until: int
    ended: int | None = None
    ended_by: str = ""

    def __post_init__(self) -> None:
        for name in ("key", "who", "why"):
            if not getattr(self, name).strip():
                raise InvalidInput(f"override: {name}", getattr(self, name), "not be empty")
        if self.action not in ("raise_threshold", "use_rules"):
            raise InvalidInput("override: action", self.action, "be raise_threshold or use_rules")
        if not (0 < self.by <= MOST if self.action == "raise_threshold" else self.by == 0):
            raise InvalidInput("override: by", self.by, f"be in (0, {MOST:g}] for thresholds, and 0 for rules")
        if not self.since < self.until <= self.since + LONGEST:
            rule = f"be at most {LONGEST // DAY} days after {isoformat(self.since)}"
            raise InvalidInput("override: until", isoformat(self.until), rule)

    def holds(self, now: int) -> bool:
        """Says whether it is in force at a time."""
        return self.ended is None and now < self.until

    def __str__(self) -> str:
        what = "rules answer" if self.action == "use_rules" else f"thresholds of blocking raised by {self.by:g}"
        end = f", taken back {isoformat(self.ended)} by {self.ended_by}" if self.ended is not None else ""
        return f"{what} from {isoformat(self.since)} until {isoformat(self.until)} by {self.who}: {self.why}{end}"


class Overrides:
    """The overrides of a home, in `home/loop/overrides.json`, those that are over too; for any number of processes.

    Args:
        home: The service's home folder.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as home:
        ...     overrides = Overrides(Path(home))
        ...     _ = overrides.add(Override(key="a", action="raise_threshold", by=0.1, who="ann", why="many blocks",
        ...                                since=0, until=DAY))
        ...     print(overrides.standing(1)[0])
        ...     overrides.standing(DAY), overrides.end("a", who="ann", now=2).ended
        thresholds of blocking raised by 0.1 from 1970-01-01T00:00:00Z until 1970-01-02T00:00:00Z by ann: many blocks
        ((), 2)
    """

    def __init__(self, home: Path) -> None:
        self._path = home / "loop" / "overrides.json"
        self._read: tuple[tuple[int, int, int] | None, tuple[Override, ...]] = (None, ())

    def add(self, override: Override) -> Override:
        """Puts an override in force; one whose key is there already is returned as it is.

        Raises:
            Conflict: If the key was given to something else.
            StoreError: If it cannot be written; nothing was changed then.
        """
        with self._changing():
            known = {one.key: one for one in self.history()}
            if override.key in known:
                if known[override.key].action != override.action:
                    raise Conflict(f"override {override.key!r} is another one: {known[override.key]}")
                return known[override.key]
            self._write((*known.values(), override))
        return override

    def end(self, key: str, *, who: str, now: int) -> Override:
        """Takes an override back, also where its time is over by a clock that is ahead of the service's.

        One that was taken back stays as it is.

        Raises:
            Conflict: If there is none of that key.
            StoreError: If it cannot be written.
        """
        with self._changing():
            known = {one.key: one for one in self.history()}
            if key not in known:
                raise Conflict(f"there is no override {key!r} to take back")
            if known[key].ended is None:
                known[key] = dataclasses.replace(known[key], ended=now, ended_by=who)
                self._write(tuple(known.values()))
            return known[key]

    def standing(self, now: int) -> tuple[Override, ...]:
        """Returns what is in force at a time, in the order in which it was made.

        The file is read only where it has changed, so this may be asked many times a second.

        Raises:
            StoreError: If the file is damaged.
        """
        return tuple(one for one in self.history() if one.holds(now))

    def history(self) -> tuple[Override, ...]:
        """Returns all overrides, in the order in which they were made.

        Raises:
            StoreError: If the file is damaged.
        """
        try:
            status = self._path.stat()
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise StoreError(f"{self._path} cannot be read: {error}") from error
        stamp = (status.st_ino, status.st_mtime_ns, status.st_size)
        if self._read[0] != stamp:
            try:
                found = tuple(Override(**one) for one in json.loads(self._path.read_bytes()))
            except (OSError, ValueError, TypeError) as error:
                raise StoreError(f"{self._path} cannot be read: {error}") from error
            self._read = (stamp, found)
        return self._read[1]

    def _changing(self) -> Any:
        return exclusive(self._path.with_name(".overrides.lock"))

    def _write(self, overrides: Sequence[Override]) -> None:
        new = self._path.with_name(f".overrides.{uuid.uuid4().hex[:8]}")
        try:
            write_durable(new, json.dumps([one.to_dict() for one in overrides], indent=1).encode())
            new.replace(self._path)
            sync_folder(self._path.parent)
        except OSError as error:
            new.unlink(missing_ok=True)
            raise StoreError(f"{self._path} cannot be written: {error}") from error


@dataclasses.dataclass(frozen=True, kw_only=True)
class RaisedPolicy(TierPolicy):
    """Tiers that block only what they would block at a probability lower by `by`; the rest of it goes to people.

    What is reviewed and what is allowed stays as it was, so this costs reviewers' time and no customer an honest
    payment; reviews are not kept within their capacity meanwhile.

    Args:
        by: By how much the threshold of blocking is raised, in (0, 0.5].

    Example:
        >>> policy = TierPolicy()
        >>> raised = RaisedPolicy.of(policy, 0.1)
        >>> policy.thresholds(300.0), raised.thresholds(300.0)
        ((0.0111, 0.45), (0.0111, 0.55))
        >>> p, amount = np.array([0.01, 0.5, 0.9]), np.full(3, 300.0)
        >>> raised.decide(p, amount, ["a", "b", "c"]).actions
        ['allow', 'review', 'block']
        >>> raised.version == policy.version + "+raised-0.1"
        True
    """

    by: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.by <= MOST:
            raise InvalidInput("policy: by", self.by, f"be in (0, {MOST:g}]")

    @classmethod
    def of(cls, policy: TierPolicy, by: float) -> Self:
        """Raises the threshold of a policy that is not raised yet."""
        given = {field.name: getattr(policy, field.name) for field in dataclasses.fields(TierPolicy)}
        return cls(**given, by=by)

    @property
    def version(self) -> str:
        """Version of the policy as it was released, and by how much it is raised."""
        return f"{self.released.version}{_MARK}{self.by:g}"

    @property
    def released(self) -> TierPolicy:
        """The policy as it was released."""
        return TierPolicy(**{field.name: getattr(self, field.name) for field in dataclasses.fields(TierPolicy)})

    def decide(self, probability: np.ndarray, amount: np.ndarray, units: Sequence[str]) -> Tiers:
        """Chooses an action for each row, as `TierPolicy.decide`."""
        usual = super().decide(probability, amount, units)
        lower = super().decide(np.maximum(probability - self.by, 0.0), amount, units)
        # Where a block was let pass by lot, the propensity shows it.
        stopped, still = (np.array([a == BLOCK for a in one.actions]) | (one.propensity < 1) for one in (usual, lower))
        moved = stopped & ~still
        actions = [REVIEW if row else action for action, row in zip(usual.actions, moved.tolist(), strict=True)]
        return Tiers(actions, np.where(moved, 1.0, usual.propensity))

    def thresholds(self, amount: float) -> tuple[float, float]:
        """Returns the probabilities from which an amount is reviewed and blocked, as `TierPolicy.thresholds`."""
        review, block = super().thresholds(amount)
        return review, round(min(block + self.by, 1.0), 4)

    def describe(self) -> dict[str, Any]:
        """Returns the policy ready for JSON."""
        return {**super().describe(), "raised": self.by}


def policy_under(policy: TierPolicy, overrides: Sequence[Override]) -> TierPolicy:
    """Returns what a policy becomes under overrides: all raises together, but never by more than a half."""
    by = round(min(sum(one.by for one in overrides if one.action == "raise_threshold"), MOST), 4)
    return RaisedPolicy.of(policy, by) if by else policy


def policy_as_logged(policy: TierPolicy, version: str) -> TierPolicy:
    """Returns the policy that a decision was made by, from the released one and the version in the log.

    Args:
        policy: The policy of the model version.
        version: `policy_version` of the decision.

    Example:
        >>> policy_as_logged(TierPolicy(), "tiers-0a1b2c3d+raised-0.1").thresholds(300.0)
        (0.0111, 0.55)
    """
    _, mark, by = version.partition(_MARK)
    return RaisedPolicy.of(policy, float(by)) if mark else policy


def as_released(rows: "pl.DataFrame", policy_of: Callable[[str], TierPolicy]) -> "pl.DataFrame":
    """Returns rows of the log with the actions that their versions would have taken without an override.

    Two versions are compared by what was released of them: an override counts for whichever acted, not for the other.

    Args:
        rows: Rows of the decision log.
        policy_of: Gives the released policy of a version.
    """
    import polars as pl

    raised = rows["policy_version"].str.contains(_MARK, literal=True).fill_null(value=False)
    if not raised.any():
        return rows
    actions = rows["action"].to_list()
    for (version,), own in rows.with_row_index("_row").filter(raised).group_by("model_version"):
        tiers = policy_of(str(version)).decide(
            own["probability"].to_numpy(), own["amount"].to_numpy(), own["request_id"].to_list()
        )
        for row, action in zip(own["_row"].to_list(), tiers.actions, strict=True):
            actions[row] = action
    return rows.with_columns(action=pl.Series(actions, dtype=pl.String))
