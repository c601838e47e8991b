"""The outcomes that a learner has heard of. Oracle: a list a request, gone through in plain Python."""

import random

import numpy as np
import pytest

from vitok.features.fingerprints import fingerprint_texts
from vitok.models.online_heard import Heard
from vitok.models.online_order import Told

MEMORY = 500
NEVER = 2**62


class Lists:
    """What `Heard` keeps, as lists of (told, value, event, source, supersedes) by request."""

    def __init__(self) -> None:
        self.by_request: dict[str, list[tuple[int, float, int, str, bool]]] = {}
        self.queue: list[tuple[int, str]] = []

    def add(self, outcomes: list[Told], told: list[int]) -> None:
        for (_, request, _, event, value, source, supersedes), moment in zip(outcomes, told, strict=True):
            known, same = self.by_request.setdefault(request, []), (value, event, source, supersedes)
            if not any(item[1:] == same and item[0] >= moment - MEMORY for item in known):
                known.append((moment, *same))
                self.queue.append((moment, request))

    def first(self, request: str, seen: int) -> int:
        return next((item[0] for item in self.by_request.get(request, []) if seen <= item[0] + MEMORY), NEVER)

    def last(self, request: str, seen: int, until: int) -> float | None:
        found = [item[1] for item in self.by_request.get(request, []) if item[0] <= until and seen <= item[0] + MEMORY]
        return found[-1] if found else None


def came(rng: random.Random, n: int, clock: int) -> tuple[list[Told], list[int]]:
    outcomes: list[Told] = []
    told = []
    for _ in range(n):
        clock += rng.choice([0, 0, 1, 40])
        request, value, event = f"r{rng.randint(0, 30)}", float(rng.randint(0, 1)), rng.randint(0, 2)
        outcomes.append((clock, request, "fraud", event, value, rng.choice(["bank", "", "é"]), rng.random() < 0.2))
        told.append(clock)
    return outcomes, told


@pytest.mark.parametrize("seed", range(5))
def test_equals_lists_whatever_is_asked_and_when(seed: int) -> None:
    rng = random.Random(seed)
    heard, lists, clock = Heard(memory=MEMORY), Lists(), 0
    requests = [f"r{i}" for i in range(33)]
    keys = fingerprint_texts(requests)
    for _ in range(60):
        outcomes, told = came(rng, rng.choice([0, 1, 2, 70]), clock)
        clock = told[-1] if told else clock
        heard.add(outcomes, np.array(told, np.int64))
        lists.add(outcomes, told)
        seen = np.array([clock - rng.randint(-600, 600) for _ in requests])
        until = np.array([clock - rng.randint(0, 300) for _ in requests])
        assert heard.first_told(keys, seen, never=NEVER).tolist() == [
            lists.first(request, at) for request, at in zip(requests, seen.tolist(), strict=True)
        ]
        rows = heard.latest(keys, seen, until)
        assert [float(heard.values[row]) if row >= 0 else None for row in rows] == [
            lists.last(*asked) for asked in zip(requests, seen.tolist(), until.tolist(), strict=True)
        ]
        passing = heard.passing(clock - 100)
        assert [(int(heard.told[row]), heard.request(int(row))) for row in passing] == lists.queue[: len(passing)]
        assert all(moment > clock - 100 for moment, _ in lists.queue[len(passing) :])
        heard.go_on(len(passing))
        del lists.queue[: len(passing)]
        if rng.random() < 0.3:
            about, arrays = heard.to_parts()
            heard = Heard.from_parts(about, {name: array.copy() for name, array in arrays.items()}, memory=MEMORY)


def test_forgets_what_is_too_old_once_it_is_half() -> None:
    heard, rng = Heard(memory=MEMORY), random.Random(7)
    kept, clock = [], 0
    for _ in range(200):
        outcomes, told = came(rng, 50, clock)
        clock = told[-1]
        heard.add(outcomes, np.array(told))
        before = heard.first_told(fingerprint_texts(["r1", "r2"]), np.array([clock, clock]), never=NEVER)
        heard.go_on(len(heard.passing(clock - 1)))
        waiting = [heard.request(int(row)) for row in heard.passing(clock)]
        heard.forget_some(clock - MEMORY)
        assert [heard.request(int(row)) for row in heard.passing(clock)] == waiting
        after = heard.first_told(fingerprint_texts(["r1", "r2"]), np.array([clock, clock]), never=NEVER)
        assert after.tolist() == before.tolist()
        kept.append(len(heard))
    assert max(kept) < 1024 + 3 * 120
    assert min(kept[-40:]) < max(kept[-40:])


def test_nothing_was_heard() -> None:
    heard = Heard(memory=MEMORY)
    heard.add([], np.empty(0, np.int64))
    keys = fingerprint_texts(["a"])
    assert heard.first_told(keys, np.array([0]), never=NEVER).tolist() == [NEVER]
    assert heard.latest(keys, np.array([0]), np.array([9])).tolist() == [-1]
    assert len(heard.passing(9)) == len(Heard.from_parts(*heard.to_parts(), memory=1)) == 0
