"""Budgets: periods that never go back, leases that add up to no more than the budget, kills, alerts, letting out."""

import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from vitok.clock import DAY, HOUR, MINUTE, SECOND, EventClock, isoformat, parse_time
from vitok.errors import InvalidInput, NotFound, StoreError
from vitok.guard import Key
from vitok.serving import HotRequest, Later, Reply
from vitok.serving.budgets import NS, BudgetAlert, BudgetBook, SpendingBudget, period_of
from vitok.serving.holders import holder_name, holding
from vitok.serving.spending import Budgeted, BudgetGate, Spending, Unaffordable, teams_of

NOW = parse_time("2026-03-10T10:30:00Z")


class MovingClock:
    def __init__(self, now: int = NOW) -> None:
        self.time = now

    def now(self) -> int:
        return self.time


@pytest.fixture
def book(tmp_path: Path) -> Iterator[BudgetBook]:
    made = BudgetBook(tmp_path / "budgets.sqlite")
    yield made
    made.close()


def give(book: BudgetBook, amount: float = 10.0, **options: object) -> None:
    book.set(SpendingBudget(team="a", amount=amount, **options), actor="ann", now=NOW)  # type: ignore[arg-type]


def refused(found: Unaffordable | None) -> Unaffordable:
    assert found is not None
    return found


def spend_all(spending: Spending, each: int, most: int = 10_000) -> tuple[int, Unaffordable]:
    """Runs batches of one cost until one is refused; returns their number and why."""
    for n in range(most):
        refusal = spending.admit("a", each)
        if refusal is not None:
            return n, refusal
        spending.spend("a", each)
        spending.release("a", each)
    raise AssertionError("nothing was refused")


@pytest.mark.parametrize(
    ("period", "now", "start", "end"),
    [
        ("hour", "2026-03-10T10:59:59.999999Z", "2026-03-10T10:00:00Z", "2026-03-10T11:00:00Z"),
        ("day", "2026-03-10T00:00:00Z", "2026-03-10T00:00:00Z", "2026-03-11T00:00:00Z"),
        ("month", "2024-02-29T12:00:00Z", "2024-02-01T00:00:00Z", "2024-03-01T00:00:00Z"),
        ("month", "2026-12-31T23:59:59Z", "2026-12-01T00:00:00Z", "2027-01-01T00:00:00Z"),
        ("month", "2026-01-31T00:00:00Z", "2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z"),
    ],
)
def test_periods_in_utc(period: str, now: str, start: str, end: str) -> None:
    found = period_of(period, parse_time(now))  # type: ignore[arg-type]
    assert tuple(map(isoformat, found)) == (start, end)


def test_a_budget_is_spent_to_the_last_batch_and_no_further(book: BudgetBook) -> None:
    give(book, 10.0, period="day")
    spending = Spending(book, clock=MovingClock(), on_alert=lambda alert: None)
    n, refusal = spend_all(spending, NS // 100)
    assert n == 1000
    assert (refusal.then, refusal.reply().status) == ("block", 402)
    assert "2026-03-11T00:00:00Z" in refusal.message
    assert refusal.retry_after == pytest.approx(13.5 * 3600)
    assert book.state("a", now=NOW).spent == pytest.approx(10.0)
    assert spending.admit("nobody's", 10**15) is None
    spending.close()


def test_what_is_set_aside_is_not_given_twice(book: BudgetBook) -> None:
    give(book, 1.0)
    spending = Spending(book, clock=MovingClock())
    assert spending.admit("a", 6 * NS // 10) is None
    assert spending.admit("a", 6 * NS // 10) is not None
    spending.release("a", 6 * NS // 10)
    clock = spending._clock
    assert isinstance(clock, MovingClock)
    clock.time += SECOND
    assert spending.admit("a", 6 * NS // 10) is None
    spending.close()


def test_a_batch_that_costs_more_than_expected_is_known_to_others_at_once(book: BudgetBook) -> None:
    give(book, 1.0)
    one, other = (Spending(book, clock=MovingClock(), on_alert=lambda alert: None) for _ in range(2))
    assert one.admit("a", 1) is None
    one.spend("a", 9 * NS // 10)
    assert other.admit("a", 2 * NS // 10) is not None
    assert other.admit("a", NS // 20) is None
    one.close()
    other.close()


def test_a_new_period_begins_anew_and_a_clock_that_goes_back_does_not(book: BudgetBook) -> None:
    give(book, 1.0, period="hour")
    clock = MovingClock()
    spending = Spending(book, clock=clock, on_alert=lambda alert: None)
    assert spend_all(spending, NS // 10)[0] == 10
    clock.time += HOUR
    assert spend_all(spending, NS // 10)[0] == 10
    clock.time -= HOUR
    # Back in the hour before: neither that one nor the one that was begun gives anything.
    assert spending.admit("a", 1) is not None
    fresh = Spending(book, clock=clock, on_alert=lambda alert: None)
    refusal = refused(fresh.admit("a", 1))
    assert refusal.message.endswith("2026-03-10T12:00:00Z")
    assert book.state("a", now=clock.time).start == parse_time("2026-03-10T11:00:00Z")
    # Who sets the budget anew says that the clock is right.
    book.set(SpendingBudget(team="a", amount=2.0, period="hour"), actor="ann", now=clock.time)
    clock.time += 2 * SECOND
    assert fresh.admit("a", NS // 10) is None
    spending.close()
    fresh.close()


def test_a_batch_over_the_end_of_a_period_stays_set_aside(book: BudgetBook) -> None:
    give(book, 1.0, period="hour")
    clock = MovingClock()
    spending = Spending(book, clock=clock, on_alert=lambda alert: None)
    assert spending.admit("a", NS // 2) is None
    clock.time += HOUR
    assert spending.admit("a", 6 * NS // 10) is not None
    assert spending.admit("a", 4 * NS // 10) is None
    spending.close()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_killed_process_has_spent_its_lease_and_a_closed_one_gives_it_back(book: BudgetBook, tmp_path: Path) -> None:
    give(book, 10.0)
    context = multiprocessing.get_context("fork")
    lost = context.Process(target=_lease_and_wait, args=(tmp_path / "budgets.sqlite", tmp_path / "ready"))
    os.mkfifo(tmp_path / "ready")
    lost.start()
    (tmp_path / "ready").read_bytes()
    held = book.state("a", now=NOW)
    assert held.held == pytest.approx(0.1)
    assert held.lost == 0
    assert lost.pid is not None
    os.kill(lost.pid, signal.SIGKILL)
    lost.join()
    state = book.state("a", now=NOW)
    assert (state.lost, state.held) == (pytest.approx(0.1), 0)
    spending = Spending(book, clock=MovingClock(), on_alert=lambda alert: None)
    assert spending.admit("a", NS // 100) is None
    spending.spend("a", NS // 100)
    spending.close()
    state = book.state("a", now=NOW)
    assert (state.spent, state.held, state.left) == (pytest.approx(0.01), 0, pytest.approx(9.89))
    assert "0.1 lost to killed processes" in str(state)


def _lease_and_wait(path: Path, ready: Path) -> None:
    spending = Spending(BudgetBook(path), clock=MovingClock())
    assert spending.admit("a", NS // 100) is None
    ready.write_bytes(b"leased")
    signal.pause()


FORKING = """
import os, sys
from tests.serving.test_budgets import NS, BudgetBook, MovingClock, Spending, give, spend_all
book = BudgetBook(sys.argv[1])
give(book, 1.0)
spending = Spending(book, clock=MovingClock(), on_alert=lambda alert: None)
assert spending.admit("a", NS // 2) is None
child = os.fork()
if not child:
    print(spend_all(spending, NS // 10)[0], flush=True)
    spending.close()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
spending.close()
"""


def test_a_child_of_a_fork_has_leases_of_its_own(tmp_path: Path) -> None:
    # In a process of its own, whose other threads do not come in between.
    command = [sys.executable, "-c", FORKING, str(tmp_path / "budgets.sqlite")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    assert done.stdout == "5\n"


def test_many_threads_and_books_never_take_more_than_there_is(tmp_path: Path) -> None:
    path = tmp_path / "budgets.sqlite"
    book = BudgetBook(path)
    give(book, 1.0)
    books = [BudgetBook(path) for _ in range(2)]
    spendings = [Spending(each, clock=MovingClock(), on_alert=lambda alert: None) for each in books]
    taken: list[int] = []

    def run(spending: Spending) -> None:
        taken.append(spend_all(spending, NS // 500)[0])

    threads = [threading.Thread(target=run, args=(spending,)) for spending in spendings for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(taken) * (NS // 500) <= NS
    assert sum(taken) >= 450
    for each in [*spendings, *books, book]:
        each.close()


def test_who_asks_for_nothing_keeps_nothing_from_the_others(book: BudgetBook) -> None:
    give(book, 10.0)
    clock = MovingClock()
    quiet, other = (Spending(book, clock=clock, idle="1m", on_alert=lambda alert: None) for _ in range(2))
    assert quiet.admit("a", NS // 20) is None
    clock.time += 2 * MINUTE
    # A batch in work is not idle, however long it takes.
    assert quiet.give_back_idle() == 1
    quiet.spend("a", NS // 20)
    quiet.release("a", NS // 20)
    assert quiet.give_back_idle() == 1
    assert book.state("a", now=clock.time).held == pytest.approx(0.1)
    clock.time += MINUTE - 1
    assert quiet.give_back_idle() == 1
    clock.time += 1
    assert quiet.give_back_idle() == 0
    state = book.state("a", now=clock.time)
    assert (state.spent, state.held, state.left) == (pytest.approx(0.05), 0, pytest.approx(9.95))
    assert spend_all(other, NS // 100)[0] == 995
    clock.time += DAY
    # It goes on as if nothing had been: in the same period and in the next.
    assert spend_all(quiet, NS // 100)[0] == 1000
    clock.time -= 3 * DAY
    quiet.close()
    other.close()


def test_a_clock_that_went_back_keeps_no_lease_for_ever(book: BudgetBook) -> None:
    give(book, 10.0)
    clock = MovingClock()
    spending = Spending(book, clock=clock)
    assert spending.admit("a", NS // 100) is None
    spending.release("a", NS // 100)
    clock.time -= DAY
    assert spending.give_back_idle() == 0
    assert book.state("a", now=NOW).left == pytest.approx(10.0)
    with pytest.raises(InvalidInput, match="longer than zero"):
        Spending(book, idle=0)


def test_a_thread_gives_back_what_is_idle_and_then_ends(tmp_path: Path) -> None:
    book = BudgetBook(tmp_path / "budgets.sqlite")
    give(book, 10.0, period="month")
    spending = Spending(book, clock=MovingClock(), idle=20_000)
    assert spending.admit("a", NS // 100) is None
    thread = spending._thread
    assert thread is not None
    spending.release("a", NS // 100)
    assert isinstance(spending._clock, MovingClock)
    spending._clock.time += SECOND
    thread.join(30)
    assert not thread.is_alive()
    assert spending._thread is None
    assert book.state("a", now=NOW).held == 0
    assert spending.admit("a", NS // 100) is None
    again = spending._thread
    assert again is not None
    spending.close()
    again.join(30)
    assert not again.is_alive()
    book.close()


def test_alerts_once_a_period_among_all(book: BudgetBook) -> None:
    give(book, 1.0, alerts=(0.5, 1.0))
    raised: list[BudgetAlert] = []
    spendings = [Spending(book, clock=MovingClock(), on_alert=raised.append) for _ in range(2)]
    for spending in spendings:
        spend_all(spending, NS // 100)
    assert [alert.share for alert in raised] == [0.5, 1.0]
    assert raised[0].spent >= 0.5
    assert [alert.share for alert in book.state("a", now=NOW).alerts] == [0.5, 1.0]
    assert "over 50 %" in str(raised[0])


def test_alert_alone_refuses_nothing(book: BudgetBook) -> None:
    give(book, 1.0, then="alert")
    raised: list[BudgetAlert] = []
    spending = Spending(book, clock=MovingClock(), on_alert=raised.append)
    for _ in range(300):
        assert spending.admit("a", NS // 100) is None
        spending.spend("a", NS // 100)
        spending.release("a", NS // 100)
    assert [alert.share for alert in raised] == [0.8]
    spending.close()
    assert book.state("a", now=NOW).left == pytest.approx(-2.0)


def test_throttle_lets_out_what_is_left_evenly(book: BudgetBook) -> None:
    # 10 s an hour, 8 of them at once; half of the hour is left, so that 2 s come in 30 minutes: 0.1 s in 90 s.
    give(book, 10.0, period="hour", then="throttle")
    clock = MovingClock()
    spending = Spending(book, clock=clock, on_alert=lambda alert: None)
    n, refusal = spend_all(spending, NS // 10)
    assert n == 80
    assert refusal.reply().status == 429
    assert refusal.retry_after == pytest.approx(90.0)
    assert b"retry-after: 90\r\n" in refusal.reply().headers
    clock.time += 89 * SECOND
    assert refused(spending.admit("a", NS // 10)).retry_after == pytest.approx(1.0)
    clock.time += SECOND
    assert spend_all(spending, NS // 10)[0] == 1
    clock.time += 15 * MINUTE
    assert spend_all(spending, NS // 10)[0] == 10
    clock.time += 13 * MINUTE
    n, refusal = spend_all(spending, NS // 10)
    assert n == 8  # 29.5 minutes of 30 let out 19 in all
    assert refusal.reply().status == 429
    clock.time += HOUR
    assert spend_all(spending, NS // 10)[0] == 80


def test_throttle_without_alerts_is_even_from_the_first_use(book: BudgetBook) -> None:
    give(book, 3.6, period="hour", then="throttle", alerts=())
    clock = MovingClock(NOW - 30 * MINUTE)
    spending = Spending(book, clock=clock)
    assert refused(spending.admit("a", NS // 100)).retry_after == pytest.approx(10.0)
    clock.time += 10 * SECOND
    assert spending.admit("a", NS // 100) is None


def test_changes_are_seen_and_on_record(book: BudgetBook) -> None:
    clock = MovingClock()
    spending = Spending(book, clock=clock, on_alert=lambda alert: None)
    assert spending.admit("a", 10**12) is None
    give(book, 1.0)
    clock.time += SECOND
    assert spending.admit("a", 10**12) is not None
    book.remove("a", actor="bob", now=NOW, reason="moved")
    clock.time += SECOND
    assert spending.admit("a", 10**12) is None
    assert [line.split()[1:4] for line in book.changes()] == [["a", "by", "ann:"], ["a", "by", "bob:"]]
    with pytest.raises(NotFound):
        book.remove("a", actor="bob", now=NOW)
    with pytest.raises(NotFound):
        book.state("a", now=NOW)
    with pytest.raises(NotFound):
        book.lease("a", "me", spent=0, needed=1, now=NOW)


def test_a_book_that_fails(book: BudgetBook, monkeypatch: pytest.MonkeyPatch) -> None:
    give(book, 1.0)
    book.set(SpendingBudget(team="b", amount=1.0, then="alert"), actor="ann", now=NOW)
    spending = Spending(book, clock=MovingClock(), on_alert=lambda alert: None)
    assert spending.admit("a", NS // 1000) is None

    def broken(*_: object, **__: object) -> None:
        raise StoreError("the disk is full")

    monkeypatch.setattr(book, "lease", broken)
    # What is at hand is spent, and no more.
    spending.release("a", NS // 1000)
    assert spending.admit("a", NS // 1000) is None
    refusal = refused(spending.admit("a", NS // 2))
    assert refusal.reply().status == 503
    assert spending.admit("b", NS // 2) is None
    spending.spend("a", NS)


def test_what_is_no_book(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("this is no database, and long enough to be looked at as one " * 20)
    with pytest.raises(StoreError):
        BudgetBook(tmp_path / "text")
    other = sqlite3.connect(tmp_path / "other.sqlite")
    other.execute("CREATE TABLE lamp (x)")
    other.close()
    with pytest.raises(StoreError, match="does not hold budgets"):
        BudgetBook(tmp_path / "other.sqlite")


@pytest.mark.parametrize(
    "wrong",
    [
        {"team": ""},
        {"team": "a\n"},
        {"amount": 0.0},
        {"amount": float("nan")},
        {"amount": float("inf")},
        {"period": "week"},
        {"then": "shout"},
        {"alerts": (0.0,)},
        {"alerts": (1.2,)},
    ],
)
def test_budgets_that_cannot_be(wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidInput):
        SpendingBudget(**({"team": "a", "amount": 1.0} | wrong))  # type: ignore[arg-type]


def test_holders() -> None:
    name = holder_name()
    assert holding(name) == "live"
    assert holder_name() != name
    host, pid, _, number = name.rsplit(":", 3)
    assert holding(f"{host}:{pid}:1:{number}") == "killed"
    assert holding("elsewhere:1:1:1") == "live"
    assert holding("me") == "live"


class Model:
    """Costs so many nanoseconds a byte; owes its replies where it is told to."""

    path = "/model"

    def __init__(self, spending: Spending, each: int, *, owing: bool = False) -> None:
        self.spending = spending
        self.each = each
        self.owing = owing
        self.later: list[Later] = []
        self.seen: list[int] = []

    def handle(self, requests: Sequence[HotRequest]) -> list[Reply | Later]:
        self.seen.append(len(requests))
        for request in requests:
            self.spending.spend(request.tenant, self.each)
        if self.owing:
            self.later = [Later() for _ in requests]
            return list(self.later)
        return [Reply(200, b"model") for _ in requests]


def asked(endpoint: object, *tenants: str) -> list[int]:
    replies = endpoint.handle([HotRequest(b"{}", 0, [], "", tenant) for tenant in tenants])  # type: ignore[attr-defined]
    return [reply.status for reply in replies]


def test_before_an_endpoint(book: BudgetBook) -> None:
    give(book, 1.0)
    spending = Spending(book, clock=MovingClock(), on_alert=lambda alert: None)
    model = Model(spending, NS // 10)
    budgeted = Budgeted(model, spending)
    assert budgeted.path == "/model"
    assert asked(budgeted, "a", "b", "a") == [200, 200, 200]
    # What it cost is known now: of twelve more requests eight are affordable, and another team's always.
    statuses = asked(budgeted, *["a"] * 6, "b", *["a"] * 6)
    assert statuses == [200] * 9 + [402] * 4
    assert model.seen == [3, 9]
    assert budgeted.refused == {"a": 4}
    assert asked(budgeted, "a") == [402]
    spending.close()
    assert book.state("a", now=NOW).spent == pytest.approx(1.0)


def test_something_else_answers_instead(book: BudgetBook) -> None:
    class Rules:
        path = "/rules"

        def handle(self, requests: Sequence[HotRequest]) -> list[Reply | Later]:
            return [Reply(200, b"rules") for _ in requests]

    give(book, 0.1)
    spending = Spending(book, clock=MovingClock(), on_alert=lambda alert: None)
    gate = BudgetGate(spending, instead=lambda _: Rules())
    budgeted = gate.before(Model(spending, NS // 10), "infer:m")
    request = HotRequest(b"{}", 0, [], "", "a")
    found = [reply.body for _ in range(3) for reply in budgeted.handle([request]) if isinstance(reply, Reply)]
    assert found == [b"model", b"rules", b"rules"]


def test_replies_that_are_owed_keep_what_was_set_aside(book: BudgetBook) -> None:
    give(book, 0.05)
    spending = Spending(book, clock=MovingClock(), on_alert=lambda alert: None)
    model = Model(spending, 0, owing=True)
    budgeted = Budgeted(model, spending)
    request = HotRequest(b"{}", 0, [], "", "a")
    owed = budgeted.handle([request] * 3)
    given: list[int] = []
    for reply in owed:
        assert isinstance(reply, Later)
        reply.headers = b"x: y\r\n"
        reply.then(lambda: given.append(1))
    assert spending._purses["a"].reserved > 0
    for later in model.later:
        later.give(Reply(200, b"late"))
    assert len(given) == 3
    assert isinstance(owed[0], Later)
    assert owed[0].reply is not None
    assert (owed[0].reply.body, owed[0].reply.headers) == (b"late", b"x: y\r\n")
    assert spending._purses["a"].reserved == 0


def test_an_endpoint_that_raises_gives_back_what_was_set_aside(book: BudgetBook) -> None:
    class Broken:
        path = "/broken"

        def handle(self, requests: Sequence[HotRequest]) -> list[Reply | Later]:
            raise RuntimeError(str(len(requests)))

    give(book, 1.0)
    spending = Spending(book, clock=MovingClock())
    budgeted = Budgeted(Broken(), spending)
    with pytest.raises(RuntimeError):
        budgeted.handle([HotRequest(b"{}", 0, [], "", "a")])
    assert spending._purses["a"].reserved == 0


def test_teams_of_tenants() -> None:
    def key(tenant: str, team: str) -> Key:
        return Key(key_id="k", name="k", tenant=tenant, team=team, scopes=frozenset(["admin"]), created=0, not_before=0)

    keys = [key("web", "checkout"), key("web", "checkout"), key("web", ""), key("bare", "")]
    team_of = teams_of(keys)
    assert [team_of(tenant) for tenant in ("web", "bare", "new", "")] == ["checkout", "bare", "new", ""]
    with pytest.raises(InvalidInput, match="another key of web"):
        teams_of([*keys, key("web", "risk")])
    assert teams_of([*keys, key("web", "risk")], {"web": "shop"})("web") == "shop"


def test_an_event_clock_and_a_day(book: BudgetBook) -> None:
    give(book, 1.0, period="day")
    clock = EventClock(NOW)
    spending = Spending(book, clock=clock, on_alert=lambda alert: None)
    assert spend_all(spending, NS // 10)[0] == 10
    clock.advance(NOW + DAY)
    assert spend_all(spending, NS // 10)[0] == 10
