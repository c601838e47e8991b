import functools
import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from tests.contracts.conftest import CORPUS, NOW, TEXT, frame
from tests.contracts.versions import BASE, CHANGES, CONSUMER, NOBODY, PRODUCER

from vitok import contracts
from vitok.clock import DAY, isoformat, parse_time
from vitok.contracts.changes import View
from vitok.contracts.notice import missing_version, notice_period
from vitok.errors import InvalidInput


def change(old: str, new: str, *, view: View = "both", **more: object) -> contracts.Change:
    return contracts.diff(contracts.load(old), contracts.load(new), now=NOW, view=view, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(("old", "new", "where", "kind", "breaks"), CHANGES)
def test_each_kind_of_change(old: str, new: str, where: str, kind: str, breaks: tuple[str, ...]) -> None:
    assert BASE.count(old) == 1
    found = {(item.where, item.kind): item for item in change(BASE, BASE.replace(old, new)).differences}
    assert (where, kind) in found, list(found)
    item = found[where, kind]
    assert item.breaks == breaks
    assert item.reason.endswith(".")
    assert (item.verdict == "breaking") == bool(breaks)
    # Seen from the side that it does not break it is none of its business.
    for view in ("consumer", "producer"):
        seen = {(one.where, one.kind): one for one in change(BASE, BASE.replace(old, new), view=view).differences}
        assert (seen[where, kind].verdict == "breaking") == (view in breaks)


def test_nothing_changed() -> None:
    found = change(BASE, BASE.replace("status: active", "status: active  # in force"))
    assert found.differences == ()
    assert not found.refused
    assert "0 breaking" in str(found)


def test_every_change_is_told_the_other_way_round_too() -> None:
    for old, new, *_, breaks in CHANGES:
        forth, back = change(BASE, BASE.replace(old, new)), change(BASE.replace(old, new), BASE)
        assert back.differences, (old, new)
        assert bool(forth.differences) == bool(back.differences)
        if breaks in (CONSUMER, PRODUCER) and len(forth.differences) == len(back.differences) == 1:
            (one,), (two,) = forth.differences, back.differences
            opposite = PRODUCER if breaks == CONSUMER else CONSUMER
            # What is retired or turns personal can be taken back without breaking anybody.
            assert two.breaks in (opposite, NOBODY), (one.kind, two.kind)


RULES = ["minimum: 0, ", "exclusiveMaximum: 1e6", "maxLength: 8", 'minimum: "2018-01-01"', "exclusiveMinimum: 0, "]


@functools.cache
def looser(dropped: frozenset[str]) -> tuple[contracts.Contract, list[bool]]:
    """A contract without some of its rules, and which rows of the corpus it refuses."""
    text = TEXT
    for rule in dropped:
        text = text.replace(rule, "" if rule.endswith(", ") or "2018" in rule else f"{rule}0")
    contract = contracts.load(text)
    data = frame(*({"id": f"long-id-{place}", **row} for place, (row, _) in enumerate(CORPUS))).with_row_index("place")
    rejected = set(contract.check(data, now=NOW).rejected["place"])
    return contract, [place in rejected for place in range(len(CORPUS))]


@given(st.frozensets(st.sampled_from(RULES)), st.frozensets(st.sampled_from(RULES)))
def test_verdicts_hold_of_data(dropped: frozenset[str], also: frozenset[str]) -> None:
    """Oracle: the checks. A row that only one version refuses breaks the side that the comparison names."""
    (old, before), (new, after) = looser(dropped), looser(also)
    sides = {side for item in contracts.diff(old, new, now=NOW, view="both").differences for side in item.breaks}
    for was_refused, is_refused in zip(before, after, strict=True):
        assert not (was_refused and not is_refused) or "consumer" in sides
        assert not (is_refused and not was_refused) or "producer" in sides


def told(**custom: str) -> str:
    lines = "".join(f"\n  - {{property: {name}, value: {value}}}" for name, value in custom.items())
    text = BASE.replace("version: 1.4.0", "version: 2.0.0").replace("maximum: 100", "maximum: 200")
    return text + ("customProperties:" + lines if custom else "")


@pytest.mark.parametrize(
    ("custom", "published", "refused", "earliest"),
    [
        ({}, None, True, "2018-05-02T00:00:00Z"),
        ({"announced": "2018-03-03"}, None, False, "2018-04-02T00:00:00Z"),
        ({"announced": "2018-03-04"}, None, True, "2018-04-03T00:00:00Z"),
        ({"announced": "2018-04-01", "effectiveFrom": "2018-05-01"}, None, False, "2018-05-01T00:00:00Z"),
        ({"announced": "2018-04-01", "effectiveFrom": "2018-04-30"}, None, True, "2018-05-01T00:00:00Z"),
        ({"effectiveFrom": "2018-05-02"}, None, False, "2018-05-02T00:00:00Z"),
        # The time of the commit is better evidence than what the file says.
        ({"announced": "2018-01-01"}, "2018-04-01", True, "2018-05-01T00:00:00Z"),
        ({}, "2018-03-03T00:00:00Z", False, "2018-04-02T00:00:00Z"),
    ],
)
def test_notice(custom: dict[str, str], published: str | None, refused: bool, earliest: str) -> None:
    when = None if published is None else parse_time(published)
    found = change(BASE, told(**custom), published=when)
    assert found.refused is refused
    assert isoformat(found.notice.earliest) == earliest
    assert found.notice.period == 30 * DAY
    if refused:
        assert f"it may take effect on {earliest} at the earliest" in str(found)


def test_when_a_contract_was_first_written_says_nothing_of_this_version() -> None:
    created = "contractCreatedTs: 2018-01-01T00:00:00Z\n"
    same = change(BASE + created, told() + created)
    assert (same.refused, same.notice.announced_by) == (True, "not said, so now")
    own = change(BASE + created, told() + created.replace("01-01", "03-01"))
    assert (own.refused, own.notice.announced_by) == (False, "contractCreatedTs")


def test_nobody_relies_on_a_draft() -> None:
    for status in ("draft", "proposed"):
        found = change(BASE.replace("active", status), told())
        assert found.breaking
        assert not found.refused
        assert "no notice is needed" in str(found)


def test_without_a_promise_only_the_version_counts() -> None:
    silent = BASE.replace("  - {property: noticePeriod, value: 30, unit: d}\n", "")
    assert not change(silent, told()).refused
    minor = change(silent, told().replace("2.0.0", "1.5.0"))
    assert minor.problems == ("a breaking change needs version 2.0.0 or higher; this is 1.5.0",)


@pytest.mark.parametrize(
    ("written", "days"),
    [
        ("slaProperties: [{property: noticePeriod, value: 6, unit: w}]", 42),
        ("slaProperties: [{property: NoticePeriod, value: 1.5, unit: days}]", 1.5),
        ("slaProperties: [{property: changeNotice, value: P2M}]", 60),
        ("customProperties: [{property: noticePeriod, value: 14d}, {property: changeNotice, value: 2 weeks}]", 14),
        ("slaProperties: [{property: noticePeriod, value: 0, unit: d}]", 0),
        ("slaProperties: []", 0),
    ],
)
def test_words_for_a_notice_period(written: str, days: float) -> None:
    assert notice_period(yaml.safe_load(written)) == days * DAY


@pytest.mark.parametrize("value", ["soon", "30", "-1 d", "P1H"])
def test_a_notice_period_that_is_none(value: str) -> None:
    text = BASE.replace("noticePeriod, value: 30, unit: d", f"noticePeriod, value: {value!r}")
    with pytest.raises(InvalidInput, match="slaProperties"):
        change(text, told())


def test_times_that_are_none() -> None:
    with pytest.raises(InvalidInput, match="effectiveFrom"):
        change(BASE, told(effectiveFrom="soon"))
    with pytest.raises(InvalidInput, match="announced"):
        change(BASE, told(announced="[1]"))
    with pytest.raises(InvalidInput, match="consumer, producer, both"):
        change(BASE, BASE, view="none")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("old", "new", "missing"),
    [
        ("1.2.3", "2.0.0", ""),
        ("v1.2.3", "v2", ""),
        ("1.2.3", "1.9.0", "2.0.0 or higher"),
        ("2.0.0", "1.0.0", "3.0.0 or higher"),
        ("0.1.0", "0.1.1", "0.2.0 or higher"),
        ("0.9.0", "1.0.0", ""),
        ("2.0.0-rc.1", "3.0.0+build", ""),
        ("spring", "summer", ""),
        ("spring", "spring", "other than spring"),
    ],
)
def test_versions(old: str, new: str, missing: str) -> None:
    assert missing_version(old, new) == missing


def test_what_breaks_downstream_is_named() -> None:
    impact = {
        "orders.amount": ["feature spend_7d", "model fraud/3"],
        "orders.count": ["feature items"],
        "users.user": ["feature age"],
        "users": ["report members"],
    }
    found = change(BASE, told(), impact=impact)
    assert found.affected == ("feature spend_7d", "model fraud/3")
    assert "touches feature spend_7d, model fraud/3" in str(found)
    removed = BASE.replace(
        "  - name: users\n    properties:\n      - {name: user, logicalType: string, unique: true}\n", ""
    )
    assert change(BASE, removed, impact=impact).affected == ("feature age", "report members")
    everything = change(BASE, BASE.replace("id: shop", "id: store"), impact=impact)
    assert len(everything.affected) == 5
    # What breaks nobody names nobody.
    assert change(BASE, BASE.replace("[1]", "[2]"), impact=impact).affected == ()


def test_one_table_needs_no_name_in_the_impact() -> None:
    wider = TEXT.replace("maximum: 10}", "maximum: 20}")
    assert change(TEXT, wider, impact={"count": ["a"], "amount": ["b"]}).affected == ("a",)


def test_for_machines() -> None:
    found = change(BASE, told(), impact={"orders.amount": ["model fraud/3"]})
    read = json.loads(json.dumps(found.to_dict()))
    assert (read["breaking"], read["refused"], read["affected"]) == (1, True, ["model fraud/3"])
    assert read["notice"]["earliest"] == "2018-05-02T00:00:00Z"
    (item,) = read["differences"]
    assert (item["where"], item["verdict"], item["breaks"]) == ("orders.amount", "breaking", ["consumer"])
