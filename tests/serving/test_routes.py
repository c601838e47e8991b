"""The split between champion and canary."""

import hashlib
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitok.errors import InvalidInput
from vitok.serving import Route
from vitok.serving.routes import CACHED_UNITS


def route(share: float, salt: str = "a") -> Route:
    return Route(champion="fraud/3", canary="fraud/4", share=share, salt=salt)


def test_without_a_canary() -> None:
    assignment = Route(champion="fraud/3").assign("17")
    assert assignment == ("fraud/3", "champion", "there is no canary")


@given(st.text(), st.text())
def test_the_place_is_blake2b(unit: str, salt: str) -> None:
    # Oracle: hashlib of Python, spelled out from the docstring.
    digest = hashlib.blake2b(salt.encode() + b"\0" + unit.encode(), digest_size=8).hexdigest()
    assert route(0.5, salt).position(unit) == (int(digest, 16) // 2**11) / 2**53


def test_the_share_is_kept() -> None:
    # Oracle: binomial, 20,000 units; 5 standard deviations are 0.0106.
    canary = sum(route(0.1).assign(str(unit)).route == "canary" for unit in range(20_000))
    assert abs(canary / 20_000 - 0.1) < 0.0106


def test_ends_of_the_share() -> None:
    assert all(route(1.0).assign(str(unit)).version == "fraud/4" for unit in range(1000))
    assert all(route(0.0).assign(str(unit)).version == "fraud/3" for unit in range(1000))


@given(st.text(), st.floats(0, 1), st.floats(0, 1))
def test_a_unit_only_joins_as_the_share_grows(unit: str, one: float, other: float) -> None:
    low, high = sorted((one, other))
    if route(low).assign(unit).route == "canary":
        assert route(high).assign(unit).route == "canary"


def test_sticky_and_independent_by_salt() -> None:
    units = [str(unit) for unit in range(4000)]
    first, again, other = route(0.5), route(0.5), route(0.5, "b")
    assert [first.assign(unit) for unit in units] == [again.assign(unit) for unit in units]
    both = sum(first.assign(unit).route == other.assign(unit).route for unit in units)
    assert abs(both / 4000 - 0.5) < 0.04


def test_the_cache_has_an_end_and_changes_nothing() -> None:
    split = route(0.5)
    before = split.assign("0")
    for unit in range(CACHED_UNITS + 10):
        split.assign(str(unit))
    assert len(split._cache) <= CACHED_UNITS
    assert split.assign("0") == before
    assert split == route(0.5)
    assert "_cache" not in repr(split)


def test_odd_keys() -> None:
    for unit in ("", "\0", "ä", "\ud800", "x" * 10_000):
        assert route(0.5).assign(unit) == route(0.5).assign(unit)


def test_two_threads() -> None:
    split = route(0.5)
    wrong: list[str] = []
    expected = {str(unit): route(0.5).assign(str(unit)) for unit in range(2000)}

    def work() -> None:
        wrong.extend(unit for unit, wanted in expected.items() if split.assign(unit) != wanted)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert wrong == []


def test_wrong_arguments() -> None:
    with pytest.raises(InvalidInput, match=r"share: got 10, must be in \[0, 1\]. For 10 % write 0.1"):
        route(10)
    with pytest.raises(InvalidInput, match="share"):
        route(float("nan"))
    with pytest.raises(InvalidInput, match="where there is no canary"):
        Route(champion="fraud/3", share=0.1)
    with pytest.raises(InvalidInput, match="champion"):
        Route(champion="")
