"""A shadow: nobody waits for it, what it says is compared, what does not fit is counted."""

import asyncio
import threading
import time

import numpy as np
import pytest
from tests.serving.backends import backends

from vitok.errors import InvalidInput
from vitok.serving.remote import RemoteModel
from vitok.serving.shadow import Difference, Mirror, Shadow
from vitok.serving.targets import Batch, LocalModel, Scored


def first(rows: np.ndarray) -> np.ndarray:
    return rows[:, 0]


def test_the_difference() -> None:
    values = [0.1, 0.5, np.nan, 0.9, np.inf]
    other = [0.2, 0.5, np.nan, np.nan, np.inf]
    pairs: list[tuple[Scored, Scored]] = []
    shadow = LocalModel("b", lambda rows: rows[:, 1])
    route = Shadow(LocalModel("a", first), shadow, tolerance=0.05, on_pair=lambda b, m, s: pairs.append((m, s)))
    scored = route.score(Batch(np.column_stack((values, other))))
    assert scored.choice(0).target == "a"
    route.drain()
    found = route.difference
    assert (found.n, found.apart, found.failed, found.dropped) == (5, 2, 0, 0)
    # Oracle: by hand; the pair with one NaN has no distance.
    assert found.mean == pytest.approx(0.1 / 4)
    assert found.mean_absolute == pytest.approx(0.1 / 4)
    assert found.largest == pytest.approx(0.1)
    assert pairs[0][1].choice(0).route == "shadow"
    route.close()


def test_nobody_waits_and_what_does_not_fit_is_counted() -> None:
    go_on, begun = threading.Event(), threading.Event()

    def stuck(rows: np.ndarray) -> np.ndarray:
        begun.set()
        go_on.wait(30)
        return rows[:, 0]

    route = Shadow(LocalModel("a", first), LocalModel("b", stuck), capacity=3)
    rows = np.ones((1, 1))
    route.score(Batch(rows))
    assert begun.wait(10)
    started = time.perf_counter()
    for _ in range(100):
        route.score(Batch(rows))
        rows[:] += 1
    assert time.perf_counter() - started < 5
    assert (route.difference.taken, route.difference.dropped) == (4, 97)
    go_on.set()
    route.drain()
    # The rows were copied: what the caller wrote into the array since does not show.
    assert (route.difference.n, route.difference.apart) == (4, 0)
    route.close()


def test_failures_of_the_shadow_are_its_own() -> None:
    def broken(rows: np.ndarray) -> np.ndarray:
        raise ValueError("no")

    route = Shadow(LocalModel("a", first), LocalModel("b", broken))
    wide = Shadow(LocalModel("a", first), LocalModel("b", lambda rows: rows))
    for each in (route, wide):
        assert asyncio.run(each.call(Batch(np.ones((2, 2))))).values.tolist() == [1.0, 1.0]
        each.drain()
        assert each.difference.failed == 1
        each.close()
        each.score(Batch(np.ones((2, 2))))
        assert each.difference.dropped == 1


def test_a_function_that_fails_does_not_end_the_thread() -> None:
    def on_pair(batch: Batch, main: Scored, shadow: Scored) -> None:
        raise RuntimeError("the log is full")

    route = Shadow(LocalModel("a", first), LocalModel("b", first), on_pair=on_pair)
    for _ in range(3):
        route.score(Batch(np.ones((1, 1))))
    route.drain()
    assert route.difference.n == 3
    assert route._mirror.broken == 3
    route.close()


def test_a_remote_shadow() -> None:
    with backends(1) as (backend,):
        remote = RemoteModel(backend.url, "sum")
        route = Shadow(LocalModel("a", first), remote)
        for _ in range(3):
            route.score(Batch(np.array([[1.0, 0.5]])))
            route.drain()
        backend.mode = "error"
        route.score(Batch(np.array([[1.0, 0.5]])))
        route.drain()
        assert (route.difference.n, route.difference.failed) == (3, 1)
        assert route.difference.mean == pytest.approx(0.5)
        route.close()


def test_what_waits_at_the_end_is_dropped() -> None:
    go_on, begun = threading.Event(), threading.Event()

    def stuck(rows: np.ndarray) -> np.ndarray:
        begun.set()
        go_on.wait(30)
        return rows[:, 0]

    answers: list[object] = []
    mirror = Mirror(LocalModel("b", stuck), lambda batch, beside, found: answers.append(beside))
    for k in range(3):
        mirror.put(Batch(np.ones((1, 1))), k)
    assert begun.wait(10)
    closer = threading.Thread(target=mirror.close)
    closer.start()
    while not mirror._closing:
        closer.join(0.001)
    go_on.set()
    closer.join()
    assert answers == [0]
    assert mirror.dropped == 2


def test_what_a_shadow_is() -> None:
    main = LocalModel("a", first, version="a/1", cost=1.0, quality=0.9)
    route = Shadow(main, LocalModel("b", first, cost=2.0))
    assert (route.name, route.version, route.cost, route.quality) == ("a", "a/1", 3.0, 0.9)
    assert np.isnan(route.difference.mean)
    with pytest.raises(InvalidInput, match="tolerance"):
        Shadow(main, main, tolerance=-1.0)
    with pytest.raises(InvalidInput, match="capacity"):
        Shadow(main, main, capacity=0)
    with pytest.raises(InvalidInput, match="seconds"):
        Shadow(main, main, seconds=0)
    assert isinstance(route.difference, Difference)


def test_nothing_is_left_in_the_queue_of_a_thread_that_ends() -> None:
    def put_many(mirror: Mirror) -> None:
        for _ in range(50):
            mirror.put(Batch(np.ones((1, 1))), None)

    for _ in range(30):
        mirror = Mirror(LocalModel("b", first), lambda batch, beside, found: None)
        threads = [threading.Thread(target=put_many, args=[mirror]), threading.Thread(target=mirror.close)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        # Would wait for ever on what was put after the last look.
        mirror.drain()
        assert mirror.taken + mirror.dropped >= 50


def test_columns_are_copied() -> None:
    seen: list[object] = []
    mirror = Mirror(LocalModel("b", first), lambda batch, beside, found: seen.append((batch.fields, batch.units)))
    amounts, units = [1.0], ["17"]
    mirror.put(Batch(np.ones((1, 1)), units, {"amount": amounts}), None)
    amounts[0], units[0] = 2.0, "18"
    mirror.drain()
    mirror.close()
    assert seen == [({"amount": [1.0]}, ["17"])]
