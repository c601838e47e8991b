"""Routes that choose for each request: who gets what and why."""

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.serving.backends import MS, Scripted, always, in_virtual_time

from vitok.errors import InvalidInput, ServiceError
from vitok.serving.cascade import Cascade
from vitok.serving.chains import Fallback
from vitok.serving.retries import NO_DEADLINE
from vitok.serving.routes import Route
from vitok.serving.routing import Canary, ContentRules, Split, Weighted
from vitok.serving.selection import CostAware, LowestLatency
from vitok.serving.shadow import Shadow
from vitok.serving.targets import Batch, Constant, LocalModel, LocalTarget, Scored, Target, TargetFailed, TimedOut

ONE = Batch(np.zeros((1, 2)))
DOWN = TargetFailed("it is down")


def local(name: str, value: float, **more: Any) -> LocalModel:
    return LocalModel(name, lambda rows: np.full(len(rows), value), version=f"{name}/1", **more)


@given(st.lists(st.integers(0, 4), max_size=80))
def test_groups_are_all_of_a_batch(places: list[int]) -> None:
    groups = Split(np.array(places, np.intp), [("champion", "", 1.0)] * 5).groups()
    assert [k for k, _ in groups] == sorted(set(places))
    for k, at in groups:
        assert at.tolist() == [row for row, place in enumerate(places) if place == k]


def test_weights() -> None:
    targets = [local("a", 0.0, cost=1.0, quality=0.5), local("b", 1.0, cost=9.0, quality=0.9), local("c", 2.0, cost=5)]
    route = Weighted(targets, weights=[3, 1, 0])
    scored = route.score(Batch(np.zeros((20_000, 1))))
    # Oracle: binomial; 5 standard deviations of 20,000 draws at 0.25 are 0.0153.
    assert abs((scored.values == 1.0).mean() - 0.25) < 0.0153
    assert not (scored.values == 2.0).any()
    one = scored.choice(int(np.argmax(scored.values)))
    assert (one.target, one.route, one.propensity, one.reason) == (
        "b",
        "champion",
        0.25,
        "drawn by its weight of 1 in 4",
    )
    assert route.cost == 3.0
    assert route.quality == pytest.approx(0.6)
    assert scored.cost == pytest.approx(20_000 - (scored.values == 1).sum() + 9 * (scored.values == 1).sum())
    same = Weighted(targets, weights=[3, 1, 0]).score(Batch(np.zeros((20_000, 1))))
    assert (same.values == scored.values).all()


def test_propensities_multiply() -> None:
    inner = Weighted([local("a", 0.0), local("b", 1.0)], weights=[1, 1])
    scored = Weighted([inner, local("c", 2.0)], weights=[1, 3]).score(Batch(np.zeros((1000, 1))))
    assert {choice.target: choice.propensity for choice in scored.choices} == {"a": 0.125, "b": 0.125, "c": 0.75}


def test_groups_are_asked_at_the_same_time_and_errors_come_out_plain() -> None:
    async def main(clock: Callable[[], int]) -> int:
        targets = [Scripted(name, always(0.1, 0.5)) for name in "abc"]
        started = clock()
        await Weighted(targets, weights=[1, 1, 1]).call(Batch(np.zeros((100, 1))))
        took = clock() - started
        broken = Weighted([*targets[:2], Scripted("d", always(0.05, DOWN))], weights=[1, 1, 1])
        with pytest.raises(TargetFailed, match="it is down"):
            await broken.call(Batch(np.zeros((100, 1))))
        return took

    assert in_virtual_time(main) == pytest.approx(100 * MS, abs=1000)


def test_targets_that_keep_no_promise() -> None:
    class Short(Constant):
        def score(self, batch: Batch, deadline: int = NO_DEADLINE) -> Scored:
            return super().score(Batch(batch.rows[:1]))

    batch = Batch(np.zeros((100, 1)))
    route = Weighted([local("a", 0.0), Short(1.0, name="short")], weights=[1, 1])
    # One answer would else be spread over all rows of its group.
    with pytest.raises(TargetFailed, match="short: 1 answers for"):
        route.score(batch)
    with pytest.raises(TargetFailed, match="short: 1 answers for"):
        asyncio.run(route.call(batch))
    with pytest.raises(TargetFailed, match="short: 1 answers for 100 rows"):
        Weighted([Short(1.0, name="short")], weights=[1]).score(batch)

    async def main(clock: Callable[[], int]) -> int:
        deaf = Weighted(
            [Scripted("deaf", always(9.0, 0.5)), Scripted("b", always(0.01, 0.5))], weights=[1, 1], clock=clock
        )
        started = clock()
        with pytest.raises(TimedOut, match="deaf: no answer within 50 ms"):
            await deaf.call(batch, started + 50 * MS)
        with pytest.raises(TargetFailed, match="odd: KeyError"):
            await Weighted([Scripted("odd", always(0.0, KeyError("x")))], weights=[1], clock=clock).call(batch)
        return clock() - started

    assert in_virtual_time(main) < 60 * MS


def test_what_all_targets_have_cost_goes_with_the_error() -> None:
    async def main(clock: Callable[[], int]) -> float:
        targets = [
            Scripted("a", always(0.01, 0.5), cost=0.25),
            Scripted("b", always(0.01, TargetFailed("no answer", cost=3.0))),
            Scripted("c", always(0.01, ServiceError("down"))),
        ]
        route = Weighted(targets, weights=[1, 1, 1], clock=clock)
        with pytest.raises(TargetFailed) as caught:
            await route.call(Batch(np.zeros((100, 1))))
        n = 0.25 * 100 / 3
        assert 0.5 * n < caught.value.cost - 3.0 < 1.5 * n
        return caught.value.cost

    assert in_virtual_time(main) % 0.25 == 0


def test_a_canary_is_that_of_the_route() -> None:
    split = Route(champion="a/1", canary="b/1", share=0.3, salt="s")
    route = Canary(split, local("a", 0.0), local("b", 1.0))
    units = [str(unit) for unit in range(3000)]
    scored = route.score(Batch(np.zeros((3000, 1)), units=units))
    for k, unit in enumerate(units):
        assigned, choice = split.assign(unit), scored.choice(k)
        assert (choice.version, choice.route, choice.reason) == (
            assigned.version,
            assigned.route,
            f"{assigned.reason}",
        )
    assert route.cost == pytest.approx(0.0, abs=1e-3)
    with pytest.raises(InvalidInput, match="units"):
        route.score(ONE)
    with pytest.raises(InvalidInput, match="champion: got 'b/1', must be of the version a/1"):
        Canary(split, local("b", 0.0), local("b", 0.0))
    none = Canary(Route(champion="a/1", canary="b/1"), local("a", 0.0), local("b", 1.0))
    assert none.score(Batch(np.zeros((1, 1)), units=["x"])).choice(0).reason == "there is no canary"


CONTENT = [
    ("amount > 1000 AND country IN ('NG', 'RU')", local("thorough", 2.0)),
    ("amount IS NULL OR vip", local("careful", 1.0)),
]
TYPES = {"amount": "number", "country": "string", "vip": "boolean"}
FIELDS = st.tuples(
    st.one_of(st.none(), st.sampled_from([1.0, 1000.0, 1000.5, float("nan"), float("inf")])),
    st.sampled_from([None, "NG", "DE"]),
    st.sampled_from([None, True, False]),
)


@given(st.lists(FIELDS, min_size=1, max_size=20), st.booleans())
def test_content(rows: list[tuple[float | None, str | None, bool | None]], many: bool) -> None:
    rows = rows * 10 if many else rows
    route = ContentRules(CONTENT, otherwise=local("quick", 0.0), types=TYPES)
    amount, country, vip = (list(column) for column in zip(*rows, strict=True))
    batch = Batch(np.zeros((len(rows), 1)), fields={"amount": amount, "country": country, "vip": vip})
    # Oracle: the conditions by hand, in SQL's logic of three values.
    wanted = []
    for a, c, v in rows:
        missing = a is None or a != a
        first = not missing and a is not None and a > 1000 and c == "NG"
        wanted.append(2.0 if first else 1.0 if missing or v else 0.0)
    assert route.score(batch).values.tolist() == wanted


def test_content_by_rows_and_by_columns_is_the_same() -> None:
    generator = np.random.default_rng(2)
    fields = {
        "amount": generator.normal(900, 300, 400),
        "country": generator.choice(["NG", "DE"], 400),
        "vip": generator.random(400) < 0.2,
    }
    route = ContentRules(CONTENT, otherwise=local("quick", 0.0), types=TYPES)
    batch = Batch(np.zeros((400, 1)), fields=fields)
    whole = route.choose(batch).places
    parts = [route.choose(batch.take(np.arange(k, k + 40))).places for k in range(0, 400, 40)]
    assert whole.tolist() == np.concatenate(parts).tolist()
    assert route.score(batch).choice(int(np.argmax(whole == 2))).reason == "it meets no condition"


def test_wrong_content() -> None:
    with pytest.raises(InvalidInput, match=r"rules\[0\]: got 'colour = 1', must be a condition on the fields"):
        ContentRules([("colour = 1", ONE)], otherwise=Constant(0.0), types={})  # type: ignore[list-item]
    route = ContentRules(CONTENT, otherwise=local("quick", 0.0), types=TYPES)
    with pytest.raises(InvalidInput, match="must hold 'amount'"):
        route.score(ONE)
    for n in (1, 100):
        wrong: dict[str, Any] = {"amount": ["much"] * n, "country": ["DE"] * n, "vip": [True] * n}
        with pytest.raises(InvalidInput, match="fields"):
            route.score(Batch(np.zeros((n, 1)), fields=wrong))
    short: dict[str, Any] = {"amount": [1.0], "country": ["DE"], "vip": [True]}
    with pytest.raises(InvalidInput, match="be 2 values"):
        route.score(Batch(np.zeros((2, 1)), fields=short))


def test_a_chain_inside_a_group_keeps_its_failure_there() -> None:
    split = Route(champion="a/1", canary="b/1", share=0.5)
    champion = local("a", 0.1)

    def broken(rows: np.ndarray) -> np.ndarray:
        raise OSError("no")

    trial = Fallback([LocalModel("b", broken, version="b/1"), champion, Constant(0.5)])
    scored = Canary(split, champion, trial).score(Batch(np.zeros((50, 1)), units=[str(k) for k in range(50)]))
    assert scored.values.tolist() == [0.1] * 50
    assert {(choice.version, choice.route) for choice in scored.choices} == {("a/1", "champion"), ("a/1", "fallback")}


def test_routes_stand_inside_routes() -> None:
    split = Route(champion="a/1", canary="b/1", share=0.5)
    small, large = local("a", 0.9), local("b", 0.55)
    sure = Cascade(large, local("c", 0.3), threshold=0.8)
    chain = Fallback([Canary(split, small, large), Constant(0.5)])
    route = Shadow(ContentRules([("n > 5", sure)], otherwise=chain, types={"n": "integer"}), local("d", 0.0))
    batch = Batch(np.zeros((10, 1)), units=list("0123456789"), fields={"n": np.arange(10)})
    assert isinstance(route, LocalTarget)
    for scored in (route.score(batch), asyncio.run(route.call(batch))):
        assert scored.values[6:].tolist() == [0.3] * 4
        assert set(scored.values[:6].tolist()) <= {0.9, 0.55}
        assert scored.choice(9).reason == "it meets 'n > 5'; the small model was unsure, below 0.8"
        assert scored.choice(0).reason.startswith("it meets no condition; hash of the unit is ")
    route.close()


def test_what_is_remote_needs_a_loop() -> None:
    far = Scripted("far", always(0.0, 0.5))
    for route in (
        Weighted([far], weights=[1]),
        CostAware([far]),
        LowestLatency([far]),
        Fallback([far, Constant(0.5)]),
        Cascade(far, far, threshold=0.5),
        Shadow(far, local("a", 0.5)),
    ):
        assert isinstance(route, Target)
        with pytest.raises(InvalidInput, match="of this process"):
            route.score(ONE)


def test_an_empty_batch() -> None:
    empty = Batch(np.empty((0, 2)), units=[], fields={"n": []})
    for route in (
        Weighted([local("a", 0.5), local("b", 0.5)], weights=[1, 1]),
        Canary(Route(champion="a/1", canary="b/1", share=0.5), local("a", 0.5), local("b", 0.5)),
        ContentRules([("n > 5", local("a", 0.5))], otherwise=local("b", 0.5), types={"n": "integer"}),
        CostAware([local("a", 0.5)]),
        Fallback([local("a", 0.5), Constant(0.5)]),
    ):
        assert len(route.score(empty)) == 0


def test_wrong_routes() -> None:
    with pytest.raises(InvalidInput, match="targets"):
        Weighted([], weights=[])
    with pytest.raises(InvalidInput, match="not all be 0"):
        Weighted([local("a", 0.5)], weights=[0])
    with pytest.raises(InvalidInput, match="quality"):
        CostAware([local("a", 0.5)], least_quality=0.5)
    with pytest.raises(InvalidInput, match="expected"):
        CostAware([local("a", 0.5)], expected=[-1.0])
    assert Weighted([local("a", 0.5), local("b", 0.5, quality=1.0)], weights=[1, 1]).quality is None
    assert Weighted([local("a", 0.5), local("b", 0.5)], weights=[1, 1]).version == "a/1 | b/1"
