"""The fastest and the cheapest target, and what happens when they are so no longer."""

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tests.serving.backends import MS, Scripted, always, in_virtual_time

from vitok.errors import InvalidInput
from vitok.serving.breaker import BreakerRules
from vitok.serving.selection import CostAware, LowestLatency
from vitok.serving.targets import Batch, Choice, LocalModel, Scored, TargetFailed

ONE = Batch(np.zeros((1, 2)))
DOWN = TargetFailed("it is down")


def test_the_cheapest_that_is_good_enough_and_in_time() -> None:
    async def main(clock: Callable[[], int]) -> list[str]:
        targets = [
            Scripted("large", always(0.100, 0.9), cost=9.0, quality=0.97),
            Scripted("middle", always(0.015, 0.9), cost=4.0, quality=0.95),
            Scripted("small", always(0.005, 0.9), cost=1.0, quality=0.80),
        ]
        route = CostAware(targets, least_quality=0.9, expected=[0.1, 0.05, 0.005], clock=clock)
        best = CostAware(targets, least_quality=0.99, clock=clock)
        told = []
        for asked, milliseconds in ((route, 1000), (route, 70), (route, 20), (best, 1000)):
            scored = await asked.call(ONE, clock() + milliseconds * MS)
            told.append(f"{scored.choice(0).target}: {scored.choice(0).reason}")
        anyway = await CostAware(targets, clock=clock).call(ONE)
        assert (route.cost, route.quality) == (4.0, 0.95)
        return [*told, anyway.choice(0).reason]

    assert in_virtual_time(main) == [
        "middle: the cheapest of 2 with a quality of at least 0.9 and in time",
        "middle: the cheapest of 1 with a quality of at least 0.9 and in time",
        "middle: the fastest with a quality of at least 0.9, since none is expected within 20 ms",
        "large: the best, since none has a quality of at least 0.99",
        "the cheapest of 3 and in time",
    ]


def test_what_has_become_slow_is_no_longer_in_time() -> None:
    async def main(clock: Callable[[], int]) -> list[str]:
        cheap = Scripted("cheap", lambda call: (0.001 if call < 30 else 0.2, 0.5), cost=1.0)
        route = CostAware([cheap, Scripted("dear", always(0.01, 0.5), cost=5.0)], clock=clock)
        return [(await route.call(ONE, clock() + 50 * MS)).choice(0).target for _ in range(80)]

    names = in_virtual_time(main)
    assert names[:30] == ["cheap"] * 30
    assert names[-1] == "dear"


def test_a_target_that_is_well_again_gets_its_calls_back() -> None:
    async def main(clock: Callable[[], int]) -> tuple[list[str], list[str], str]:
        slow = True
        cheap = Scripted("cheap", lambda call: (0.2 if slow and call % 3 else 0.001, 0.5), cost=1.0)
        never = BreakerRules(error_share=1.0, min_calls=1000)
        route = CostAware([cheap, Scripted("dear", always(0.01, 0.5), cost=5.0)], breaker=never, clock=clock)

        async def ask(n: int) -> list[Choice]:
            choices = []
            for _ in range(n):
                await asyncio.sleep(0.1)
                choices.append((await route.call(ONE, clock() + 50 * MS)).choice(0))
            return choices

        await ask(60)
        bad = await ask(60)
        slow = False
        good = await ask(400)
        back = next(choice for choice in good if choice.target == "cheap")
        return [choice.target for choice in bad], [choice.target for choice in good[-100:]], back.reason

    bad, good, reason = in_virtual_time(main)
    assert bad == ["dear"] * 60
    assert good == ["cheap"] * 100
    assert reason.startswith("the cheapest of 2 and in time, tried again after ")


def test_a_try_that_fails_at_once_says_nothing_of_speed() -> None:
    async def main(clock: Callable[[], int]) -> str:
        # Slow where it answers, and one call in three fails at once.
        cheap = Scripted("cheap", lambda call: (0.0, DOWN) if call % 3 else (0.2, 0.5), cost=1.0)
        route = CostAware(
            [cheap, Scripted("dear", always(0.01, 0.5), cost=5.0)],
            quantile=0.5,
            breaker=BreakerRules(error_share=1.0, min_calls=1000),
            clock=clock,
        )
        for _ in range(100):
            scored = await route.call(ONE, clock() + 50 * MS)
        return scored.choice(0).reason

    # It has answered too slowly in a third of its calls; the others took no time and would have hidden it.
    assert in_virtual_time(main) == "the cheapest of 1 and in time"


def test_of_those_not_good_enough_the_best_that_is_in_time() -> None:
    async def main(clock: Callable[[], int]) -> list[str]:
        targets = [
            Scripted("large", always(0.2, 0.9), quality=0.97),
            Scripted("small", always(0.005, 0.9), quality=0.80),
        ]
        route = CostAware(targets, least_quality=0.99, expected=[0.2, 0.005], clock=clock)
        return [(await route.call(ONE, clock() + budget * MS)).choice(0).target for budget in (500, 50)]

    assert in_virtual_time(main) == ["large", "small"]


@pytest.mark.parametrize(
    "more", [{"again": 0.0}, {"again": float("nan")}, {"least_quality": float("nan")}, {"tries": 0}]
)
def test_wrong_numbers(more: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=next(iter(more))):
        CostAware([Scripted("a", always(0.1, 0.5))], **more)
    with pytest.raises(InvalidInput, match=r"targets\[0\].quality"):
        CostAware([Scripted("a", always(0.1, 0.5), quality=float("nan"))])


def test_the_cheapest_that_fails_is_not_asked_for_ever() -> None:
    async def main(clock: Callable[[], int]) -> tuple[list[Scored], Scripted, CostAware]:
        cheap, dear = Scripted("cheap", always(0.001, DOWN)), Scripted("dear", always(0.002, 0.5), cost=5.0)
        route = CostAware([cheap, dear], breaker=BreakerRules(min_calls=5), clock=clock)
        return [await route.call(ONE, clock() + 50 * MS) for _ in range(20)], cheap, route

    found, cheap, route = in_virtual_time(main)
    assert [scored.choice(0).target for scored in found] == ["dear"] * 20
    assert cheap.calls == 5
    first = found[0].choice(0)
    assert first.reason == "the cheapest of 1 and in time; after it is down"
    assert ([attempt.target for attempt in first.attempts], first.waited) == (["cheap", "dear"], 1000)
    assert route.breakers[0].state == "open"


def test_nobody_may_be_asked() -> None:
    def broken(rows: np.ndarray) -> np.ndarray:
        raise OSError("no")

    route = CostAware([LocalModel("a", broken, cost=1.0)], breaker=BreakerRules(min_calls=1))
    with pytest.raises(TargetFailed, match=r"cheapest: a: OSError\('no'\)"):
        route.score(ONE)
    with pytest.raises(TargetFailed, match="no target may be asked"):
        route.score(ONE)
    with pytest.raises(TargetFailed, match="no time was left"):
        asyncio.run(route.call(ONE, 0))


def test_the_lowest_latency() -> None:
    async def main(clock: Callable[[], int]) -> list[str]:
        route = LowestLatency([Scripted("far", always(0.08, 0.5)), Scripted("near", always(0.01, 0.5))], clock=clock)
        return [(await route.call(ONE)).choice(0).target for _ in range(50)]

    assert in_virtual_time(main).count("near") == 49
