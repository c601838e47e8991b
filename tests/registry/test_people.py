from collections.abc import Callable
from typing import Any, cast

import pytest

from vitok.errors import Conflict, GateRefused, InvalidInput
from vitok.registry import Ledger, ModelState, Version
from vitok.registry.people import check_person, person

Add = Callable[..., int]
# Spellings of one person that may be given; and such as nobody can tell apart on a page.
SPELLED = ("ANN LEE", " ann lee", "ann lee ", "Ann  Lee", "ann\u00a0lee", "annlee", "\uff21nn lee", "a\u2007nn lee")
HIDDEN = (
    "ann\u200b lee",
    "\u200eann lee",
    "ann\u00ad lee",
    "a\u034fnn lee",
    "ann lee\ufe0f",
    "ann\tlee",
    "ann lee\x00",
)


@pytest.mark.parametrize("name", SPELLED + HIDDEN)
def test_one_name_spelled_in_two_ways_is_one_person(name: str) -> None:
    assert person(name) == person("ann lee")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Jos\u00e9", "JOSE\u0301", True),
        ("stra\u00dfe", "STRASSE", True),
        ("\u1e9e", "ss", True),
        ("e\u200b\u0301ve", "\u00e9ve", True),
        ("\ufb01n", "fin", True),
        ("Jos\u00e9", "Jose", False),
        ("ann", "anna", False),
        # Cyrillic.
        ("ann", "\u0430nn", False),
    ],
)
def test_encodings_are_the_same_and_letters_are_not(one: str, other: str, same: bool) -> None:
    assert (person(one) == person(other)) == same
    assert person(person(one)) == person(one)


@pytest.mark.parametrize("name", [*HIDDEN, "\u3164", "\u2800", "\u200b", "\ue000", "\u00a0", " \u2003 "])
def test_a_name_that_cannot_be_read_is_refused(ledger: Ledger, add: Add, name: str) -> None:
    add()
    for field, check in (
        ("who", lambda: check_person("who", name)),
        ("actor", lambda: ledger.propose("fraud", 1, reason="r", actor=name, now=1)),
    ):
        with pytest.raises(InvalidInput, match=field):
            check()
    assert [entry.kind for entry in ledger.history("fraud")].count("proposed") == 0


@pytest.mark.parametrize("name", SPELLED)
def test_nobody_approves_by_spelling_a_name_otherwise(ledger: Ledger, add: Add, name: str) -> None:
    add()
    who: dict[str, Any] = {"reason": "r", "now": 1}
    ledger.require_approvals("fraud", 2, actor="ann lee", **who)
    ledger.propose("fraud", 1, actor="ann lee", **who)
    with pytest.raises(Conflict, match="somebody else has to approve"):
        ledger.approve("fraud", 1, actor=name, **who)
    ledger.approve("fraud", 1, actor="Bob", **who)
    with pytest.raises(Conflict, match="counts once"):
        ledger.approve("fraud", 1, actor="BOB ", **who)
    # What is kept is what was given.
    assert ledger.state("fraud").version(1).approvers == ("Bob",)


@pytest.mark.parametrize("name", SPELLED)
def test_nobody_lowers_the_number_alone_by_spelling_a_name_otherwise(ledger: Ledger, name: str) -> None:
    who: dict[str, Any] = {"reason": "r", "now": 1}
    ledger.require_approvals("fraud", 2, actor="ann lee", **who)
    assert ledger.require_approvals("fraud", 0, actor="ann lee", **who).details["waits"]
    with pytest.raises(Conflict, match="somebody else has to confirm"):
        ledger.require_approvals("fraud", 0, actor=name, **who)
    assert ledger.state("fraud").approvals == 2
    assert not ledger.require_approvals("fraud", 0, actor="bob", **who).details["waits"]


def test_approvals_on_record_count_people_and_not_spellings(
    ledger: Ledger, add: Add, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = Version(model="m", version=1, stage="None", registered=0, digest="d", path="p", proposed_by="ann")
    assert version.n_approvers == 0
    # A ledger of before spellings were compared.
    add()
    who: dict[str, Any] = {"reason": "r", "now": 1}
    ledger.require_approvals("fraud", 2, actor="ann", **who)
    with monkeypatch.context() as before:
        before.setattr("vitok.registry.ledger.person", lambda name: name)
        ledger.propose("fraud", 1, actor="ann", **who)
        for name in ("ANN", "bob", "BOB"):
            ledger.approve("fraud", 1, actor=name, **who)
    assert ledger.state("fraud").version(1).n_approvers == 1
    with pytest.raises(GateRefused, match="1 of 2 given"):
        ledger.promote("fraud", 1, "Production", actor="eve", override="sure", **who)


@pytest.mark.parametrize("time", ["2020", "2020-01-01", 1.5, True, 2**63, b"1"])
def test_a_time_that_is_no_number_is_refused(ledger: Ledger, add: Add, time: Any) -> None:
    add()
    ledger.promote("fraud", 1, "Production", actor="ann", reason="r", now=1)
    with pytest.raises(InvalidInput, match=r"time_us: got .*must be microseconds since 1970.*parse_time"):
        ledger.at("fraud", time)
    with pytest.raises(InvalidInput, match="at: got"):
        ledger.state("fraud", at=time)


def test_a_time_may_be_any_whole_number(ledger: Ledger, add: Add) -> None:
    import numpy as np

    add()
    ledger.promote("fraud", 1, "Production", actor="ann", reason="r", now=1)
    assert ledger.at("fraud", cast("int", np.int64(1))) == 1
    assert ledger.at("fraud", -1) is None
    assert ledger.state("fraud", at=-1) == ModelState(model="fraud")
