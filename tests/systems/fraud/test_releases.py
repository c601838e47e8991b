"""A change of the world is remembered by the versions that were made after it."""

import json
from pathlib import Path
from typing import Any

import pytest

from vitok.clock import DAY
from vitok.errors import InvalidInput
from vitok.registry import Registry, Tracker
from vitok.systems.fraud.messages import SYSTEM
from vitok.systems.fraud.model import LEARNED
from vitok.systems.fraud.releases import Maker

WEEK = 7 * DAY


class Asked:
    """A workshop in which nothing can be made, and which says what it was told of the change."""

    def __init__(self) -> None:
        self.changed: list[int | None] = []

    def again(self, now: int, *, label_delay: int, changed: int | None, incumbent: Any) -> Any:
        """Makes nothing."""
        assert (label_delay, incumbent is not None) == (WEEK, True)
        self.changed.append(changed)
        raise InvalidInput("frauds", now, "be there")


@pytest.mark.parametrize(
    ("told", "champion", "days", "expected"),
    [
        (None, 100, 120, 100),  # what the version in force was told stands,
        (None, 100, 141, 100),  # to the last day of which a row is learned from,
        (None, 100, 142, None),  # and no longer;
        (None, None, 120, None),
        (110, 100, 120, 110),  # what the alerts say now comes first.
    ],
)
def test_a_change_is_remembered_while_there_are_rows_of_before(
    home: Path, told: int | None, champion: int | None, days: int, expected: int | None
) -> None:
    registry = Registry(home)
    package = registry.load(SYSTEM, 1)
    files = {name: package.bytes(name) for name in package.files}
    assert json.loads(files[LEARNED])["changed"] is None
    changed = None if champion is None else champion * DAY
    files[LEARNED] = json.dumps(json.loads(files[LEARNED]) | {"changed": changed}).encode()
    version = registry.register(SYSTEM, files, now=0, actor="test").version
    registry.ledger.promote(SYSTEM, version, "Production", reason="test", actor="ann", now=1, override="test")
    workshop: Any = Asked()
    maker = Maker(workshop, registry, Tracker(home), label_delay=WEEK)
    done = maker.again("again", reason="test", at=days * DAY, changed=None if told is None else told * DAY)
    assert "impossible" in done
    assert workshop.changed == [None if expected is None else expected * DAY]
    del files[LEARNED]
    older = registry.register(SYSTEM, files, now=2, actor="test").version
    registry.ledger.promote(SYSTEM, older, "Production", reason="test", actor="ann", now=3, override="test")
    maker.again("older", reason="test", at=days * DAY, changed=None)
    assert workshop.changed[1] is None
    registry.close()
