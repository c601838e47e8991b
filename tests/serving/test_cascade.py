"""A cascade: who answers what, who pays, what is seen of the small model where it is sure."""

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tests.serving.backends import MS, Scripted, always, in_virtual_time

from vitok.errors import InvalidInput, ServiceError
from vitok.serving.cascade import Cascade, Pairs
from vitok.serving.targets import Batch, LocalModel, Scored, TargetFailed

SMALL = LocalModel("small", lambda rows: rows[:, 0], version="s/1", cost=1.0)
LARGE = LocalModel("large", lambda rows: rows[:, 1], version="l/1", cost=9.0)
ROWS = np.array([[0.95, 0.5], [0.6, 0.1], [0.8, 0.2], [0.2, 0.3], [np.nan, 0.4], [0.21, 0.6]])


@pytest.mark.parametrize("way", ["score", "call"])
def test_who_answers(way: str) -> None:
    route = Cascade(SMALL, LARGE, threshold=0.8)
    batch = Batch(ROWS, units=list("abcdef"))
    scored = route.score(batch) if way == "score" else asyncio.run(route.call(batch))
    # Oracle: by hand. 0.8 and 1 - 0.2 are exactly at the threshold and stay; NaN and 0.79 go up.
    assert scored.values.tolist() == [0.95, 0.1, 0.8, 0.2, 0.4, 0.6]
    assert [scored.choice(k).target for k in range(6)] == ["small", "large", "small", "small", "large", "large"]
    assert scored.choice(0).reason == "the small model was sure, 0.8 or above"
    assert scored.choice(1).reason == "the small model was unsure, below 0.8"
    # The small one is always paid.
    assert scored.cost == 6 * 1.0 + 3 * 9.0
    assert (route.report.rows, route.report.escalated) == (6, 3)
    assert route.cost == 1.0 + 0.5 * 9.0


def test_all_and_none() -> None:
    everything = Cascade(SMALL, LARGE, threshold=np.inf).score(Batch(ROWS))
    assert everything.values.tolist() == ROWS[:, 1].tolist()
    assert everything.cost == 60.0
    nothing = Cascade(SMALL, LARGE, threshold=0.0).score(Batch(ROWS[:4]))
    assert nothing.values.tolist() == ROWS[:4, 0].tolist()
    assert nothing.cost == 4.0
    assert len(Cascade(SMALL, LARGE, threshold=0.8).score(Batch(np.empty((0, 2))))) == 0


def test_the_small_one_fails() -> None:
    async def main(clock: Callable[[], int]) -> Scored:
        small = Scripted("small", always(0.001, TargetFailed("no memory", cost=0.5)))
        return await Cascade(small, Scripted("large", always(0.001, 0.7)), threshold=0.8, clock=clock).call(Batch(ROWS))

    scored = in_virtual_time(main)
    assert scored.values.tolist() == [0.7] * 6
    assert scored.choice(0).route == "fallback"
    assert scored.choice(0).reason == "no memory"
    assert scored.cost == 6.5


def test_what_both_have_cost_goes_with_the_error() -> None:
    small = LocalModel("small", lambda rows: rows[:, 0] * np.nan, cost=1.0)

    def unsure(values: np.ndarray) -> np.ndarray:
        raise ValueError("no confidence")

    def broken(rows: np.ndarray) -> np.ndarray:
        raise ServiceError("no memory")

    here = Cascade(small, LocalModel("large", broken), threshold=0.8, confidence=unsure)
    with pytest.raises(TargetFailed, match="no memory") as caught:
        here.score(Batch(ROWS))
    assert caught.value.cost == len(ROWS)

    async def main(clock: Callable[[], int]) -> float:
        failing = [Scripted(name, always(0.001, TargetFailed(name, cost=0.5))) for name in ("small", "large")]
        with pytest.raises(TargetFailed) as caught:
            await Cascade(failing[0], failing[1], threshold=0.8, clock=clock).call(Batch(ROWS))
        return caught.value.cost

    assert in_virtual_time(main) == 1.0


def test_the_large_one_hangs() -> None:
    async def main(clock: Callable[[], int]) -> tuple[Scored, Cascade, int]:
        route = Cascade(
            Scripted("small", always(0.010, 0.6)), Scripted("large", always(9.0, 0.7)), threshold=0.8, clock=clock
        )
        started = clock()
        return await route.call(Batch(ROWS), started + 50 * MS), route, clock() - started

    scored, route, took = in_virtual_time(main)
    assert scored.values.tolist() == [0.6] * 6
    assert scored.choice(0).route == "fallback"
    assert scored.choice(0).reason == ("the small model was unsure, below 0.8, but large: no answer within 40 ms")
    assert took == pytest.approx(50 * MS, abs=1000)
    assert route.report.kept == 6


def test_both_fail() -> None:
    async def main(clock: Callable[[], int]) -> None:
        down = TargetFailed("it is down")
        route = Cascade(Scripted("s", always(0.0, down)), Scripted("l", always(0.0, down)), threshold=0.8, clock=clock)
        with pytest.raises(TargetFailed, match="it is down"):
            await route.call(Batch(ROWS))

    in_virtual_time(main)


def test_the_audit_shows_the_small_model_where_it_is_sure() -> None:
    generator = np.random.default_rng(7)
    rows = np.column_stack((generator.uniform(0.6, 1.0, 40_000), (generator.random(40_000) > 0.1).astype(float)))
    seen: list[Pairs] = []
    route = Cascade(SMALL, LARGE, threshold=0.8, audit=0.1, on_pairs=seen.append, capacity=1000)
    for start in range(0, len(rows), 200):
        route.score(Batch(rows[start : start + 200]))
    route.drain()
    route.close()
    report = route.report
    audited = sum(len(pairs.small) for pairs in seen if not pairs.escalated)
    sure = int((rows[:, 0] >= 0.8).sum())
    # Oracle: binomial, 5 standard deviations.
    assert abs(audited - 0.1 * sure) < 5 * np.sqrt(0.09 * sure)
    assert report.apart_above.n_obs == audited
    assert report.apart_above.lower < 0.1 < report.apart_above.upper
    assert report.audit_dropped == 0
    # Weighted by the inverse of their propensity, the pairs stand for all rows.
    weighted = sum(len(pairs.small) / pairs.propensity for pairs in seen)
    assert weighted == pytest.approx(len(rows), rel=0.05)
    apart = sum(((pairs.small >= 0.5) != (pairs.large >= 0.5)).sum() / pairs.propensity for pairs in seen)
    wanted = ((rows[:, 0] >= 0.5) != (rows[:, 1] >= 0.5)).mean()
    assert apart / weighted == pytest.approx(wanted, abs=0.02)
    assert "not escalated and decided otherwise" in str(report)


def test_an_audit_that_fails_is_counted() -> None:
    broken = LocalModel("large", lambda rows: 1 / 0)  # type: ignore[arg-type, return-value]
    route = Cascade(SMALL, LARGE, threshold=0.0, audit=1.0, auditor=broken)
    route.score(Batch(ROWS[:4]))
    route.drain()
    route.close()
    assert route.report.audit_failed == 1
    assert route.report.apart_above.n_obs == 0


def test_classes() -> None:
    small = LocalModel("small", lambda rows: rows, cost=1.0)
    large = LocalModel("large", lambda rows: rows[:, ::-1].copy(), cost=9.0)
    scored = Cascade(small, large, threshold=0.6).score(Batch(np.array([[0.1, 0.2, 0.7], [0.5, 0.3, 0.2]])))
    assert scored.values.tolist() == [[0.1, 0.2, 0.7], [0.2, 0.3, 0.5]]


def test_wrong_cascades() -> None:
    far = Scripted("far", always(0.0, 0.5))
    wrong: list[dict[str, Any]] = [{"threshold": float("nan")}, {"threshold": 0.8, "audit": 2.0}]
    for more in wrong:
        with pytest.raises(InvalidInput):
            Cascade(SMALL, LARGE, **more)
    with pytest.raises(InvalidInput, match="auditor"):
        Cascade(SMALL, far, threshold=0.8, audit=0.1)
    with pytest.raises(InvalidInput, match="of this process"):
        Cascade(SMALL, far, threshold=0.8).score(Batch(ROWS))


def test_a_confidence_that_nobody_can_read_escalates_all() -> None:
    crooked: Any = lambda values: np.ones(1)  # noqa: E731
    broken: Any = lambda values: values["score"]  # noqa: E731
    for confidence, told in ((crooked, "the confidence has the shape (1,) for 6 rows"), (broken, "IndexError")):
        scored = Cascade(SMALL, LARGE, threshold=0.8, confidence=confidence).score(Batch(ROWS))
        assert scored.values.tolist() == ROWS[:, 1].tolist()
        assert (scored.choice(0).route, scored.cost) == ("fallback", 60.0)
        assert told in scored.choice(0).reason


def test_who_keeps_the_pairs_must_not_fail_the_request() -> None:
    def full(pairs: Pairs) -> None:
        raise OSError("no space left")

    route = Cascade(SMALL, LARGE, threshold=0.8, audit=1.0, on_pairs=full)
    assert route.score(Batch(ROWS[:2])).values.tolist() == [0.95, 0.1]
    route.drain()
    route.close()
    assert route.report.broken == 2


def test_answers_that_are_texts() -> None:
    def said(word: str) -> Any:
        return lambda rows: np.array([word if row[0] < 0.7 else "yes" for row in rows], object)

    route = Cascade(
        LocalModel("small", said("no"), cost=1.0),
        LocalModel("large", said("perhaps"), cost=9.0),
        threshold=0.8,
        confidence=lambda texts: np.array([0.9 if text == "yes" else 0.1 for text in texts]),
        quality=0.9,
    )
    assert route.score(Batch(ROWS[:2])).values.tolist() == ["yes", "perhaps"]
    assert (route.report.apart_below.value, route.quality) == (1.0, 0.9)
