"""Who may act: per action, or for all of them, whether the loop acts by itself or only proposes."""

import json
import uuid
from dataclasses import dataclass
from pathlib import Path

from vitok.clock import isoformat
from vitok.errors import InvalidInput, StoreError
from vitok.registry.files import exclusive, sync_folder, write_durable
from vitok.stats.results import Result

ACTIONS = ("rollback", "raise_threshold", "use_rules", "recalibrate", "retrain")
ALL = "all"


@dataclass(frozen=True, kw_only=True)
class Switch(Result):
    """A decision of somebody about what the loop may do.

    Attributes:
        action: Which action, or `"all"`.
        propose_only: Whether it is only proposed.
        who: Who decided.
        why: Why, in words.
        time_us: When, in microseconds.
    """

    action: str
    propose_only: bool
    who: str
    why: str
    time_us: int

    def __str__(self) -> str:
        mode = "only proposed" if self.propose_only else "done by the loop"
        return f"{self.action}: {mode} since {isoformat(self.time_us)}, by {self.who}: {self.why}"


class Switches:
    """The switches of a home, in `home/records/switches.json`; what was decided before stays there.

    Args:
        home: Folder of everything vitok writes.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as home:
        ...     switches = Switches(home)
        ...     print(switches.set("rollback", propose_only=True, who="ann", why="audit", now=0))
        ...     switches.holds("rollback") is None, switches.holds("retrain") is None
        rollback: only proposed since 1970-01-01T00:00:00Z, by ann: audit
        (False, True)
    """

    def __init__(self, home: str | Path) -> None:
        self._path = Path(home) / "records" / "switches.json"

    def set(self, action: str, *, propose_only: bool, who: str, why: str, now: int) -> Switch:
        """Decides about an action, or about `"all"`, from now on.

        Raises:
            InvalidInput: If there is no such action, or a text is empty.
            StoreError: If it cannot be written.
        """
        if action not in (*ACTIONS, ALL):
            raise InvalidInput("action", action, f"be one of {', '.join((*ACTIONS, ALL))}")
        if not who.strip() or not why.strip():
            raise InvalidInput("who, why", (who, why), "not be empty", "Say who decides it, and why")
        switch = Switch(action=action, propose_only=propose_only, who=who, why=why, time_us=now)
        with exclusive(self._path.with_name(".switches.lock")):
            kept = [one.to_dict() for one in (*self.history(), switch)]
            new = self._path.with_name(f".switches.{uuid.uuid4().hex[:8]}")
            try:
                write_durable(new, json.dumps(kept, indent=1).encode())
                new.replace(self._path)
                sync_folder(self._path.parent)
            except OSError as error:
                new.unlink(missing_ok=True)
                raise StoreError(f"{self._path} cannot be written: {error}") from error
        return switch

    def holds(self, action: str) -> Switch | None:
        """Returns the switch by which an action is only proposed, its own or that for all; None where there is none."""
        latest = {switch.action: switch for switch in self.history()}
        found = [latest[name] for name in (ALL, action) if name in latest and latest[name].propose_only]
        return found[0] if found else None

    def history(self) -> tuple[Switch, ...]:
        """Returns all decisions, in the order in which they were made.

        Raises:
            StoreError: If the file is damaged.
        """
        if not self._path.exists():
            return ()
        try:
            return tuple(Switch(**one) for one in json.loads(self._path.read_bytes()))
        except (OSError, ValueError, TypeError) as error:
            raise StoreError(f"{self._path} cannot be read: {error}") from error
