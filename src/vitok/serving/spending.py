"""Budgets at the door: before a batch runs its team must have enough left, else it is refused or answered otherwise.

What a batch will cost is not known before it has run. So the most that a batch has cost so far for its size is set
aside when it is admitted, and given back when it is answered; two threads cannot both pass on the same remainder. What
a batch costs beyond that is the one way to overspend.
"""

import logging
import math
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vitok.clock import MINUTE, SECOND, Clock, SystemClock, duration, isoformat
from vitok.errors import Conflict, InvalidInput, StoreError
from vitok.guard import Key
from vitok.serving.budgets import BudgetAlert, BudgetBook, SpendingBudget
from vitok.serving.guarded import Outer
from vitok.serving.holders import holder_name
from vitok.serving.inference_messages import error_reply
from vitok.serving.messages import Endpoint, HotRequest, Later, Reply
from vitok.serving.problems import problem

logger = logging.getLogger("vitok.serving")

_ASK_AGAIN = SECOND // 10
_HEAD_BYTES = 256  # what a request has besides its body
_FIRST_NS, _FIRST_NS_A_BYTE = 10_000_000, 1_000.0  # of a request, before any was answered
_FORGET = 0.999
_STATUS = {"throttle": (429, "Too Many Requests"), "block": (402, "Payment Required"), "": (503, "Service Unavailable")}


@dataclass(frozen=True, kw_only=True)
class Unaffordable:
    """Why a batch may not run.

    Attributes:
        team: Whose it is.
        then: `"throttle"`, `"block"`, or `""` where the budgets could not be read.
        retry_after: Seconds after which there is enough, as far as is known now.
        message: What to tell the caller.
    """

    team: str
    then: str
    retry_after: float
    message: str

    def reply(self) -> Reply:
        """Returns the answer: 429, 402, or 503, with `Retry-After`."""
        status, title = _STATUS[self.then]
        header = b"retry-after: %d\r\n" % max(1, math.ceil(self.retry_after))
        return error_reply(problem(status, title, self.message, headers=header))


class _Purse:
    # What this process holds of a team's budget. `start` of -1 is no period.
    __slots__ = ("end", "granted", "lacking", "next_ask", "refusal", "reserved", "seen", "spent", "start", "used")

    def __init__(self) -> None:
        self.start = self.end = -1
        self.granted = self.spent = self.reserved = 0
        self.refusal: Unaffordable | None = None
        self.lacking = 0  # what was refused; more will be too, until the next time to ask
        self.next_ask = 0
        self.used = self.seen = 0  # when something was set aside last, and what was spent when that was looked at

    @property
    def free(self) -> int:
        return self.granted - self.spent - self.reserved


class Spending:
    """What this process spends of the budgets of a book. For any number of threads; after a fork a child starts anew.

    Where the book cannot be used, the leases at hand are spent, and what needs more is refused: a budget that nobody
    can check is not to be overspent. A budget that only alerts refuses nothing then either.

    Args:
        book: The budgets.
        clock: Tells which period it is.
        refresh: How often changes of the budgets are looked for.
        idle: How long a team may ask for nothing until the rest of its lease goes back to the others; it takes a
            quarter more at most.
        on_alert: Gets each alert, once among all processes; by default they are logged as warnings.

    Example:
        >>> import tempfile
        >>> from vitok.clock import EventClock
        >>> from vitok.serving.budgets import NS
        >>> folder = tempfile.TemporaryDirectory()
        >>> book = BudgetBook(folder.name + "/budgets.sqlite")
        >>> book.set(SpendingBudget(team="checkout", amount=1.0, period="hour"), actor="ann", now=0)
        >>> spending = Spending(book, clock=EventClock(), on_alert=print)
        >>> spending.admit("checkout", NS) is None
        True
        >>> spending.spend("checkout", NS); spending.release("checkout", NS)
        >>> print(spending.admit("checkout", 1).message)
        1970-01-01T00:00:00Z checkout has spent 1 of 1 processor seconds, over 80 %
        the budget of checkout, 1 processor seconds a hour, is spent; it begins anew at 1970-01-01T01:00:00Z
        >>> spending.close(); book.close(); folder.cleanup()
    """

    def __init__(
        self,
        book: BudgetBook,
        *,
        clock: Clock | None = None,
        refresh: str | int = SECOND,
        idle: str | int = MINUTE,
        on_alert: Callable[[BudgetAlert], object] | None = None,
    ) -> None:
        self.book = book
        self._clock = clock or SystemClock()
        self._refresh = duration(refresh)
        self._idle = duration(idle)
        self._on_alert = on_alert or _warn
        self._lock = threading.RLock()
        self._pid = os.getpid()
        self._holder = holder_name()
        self._purses: dict[str, _Purse] = {}
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()
        self._budgets: dict[str, SpendingBudget] = {}
        self._looked = -1
        self._revision = -1
        self._look(self._clock.now())

    def admit(self, team: str, expected: int) -> Unaffordable | None:
        """Sets aside what a batch is expected to cost.

        Args:
            team: Whose batch it is.
            expected: Nanoseconds; at least 0.

        Returns:
            None where it may run, and then `release` has to follow; else why not.
        """
        now = self._clock.now()
        if not self._looked <= now < self._looked + self._refresh or self._pid != os.getpid():
            self._look(now)
        budget = self._budgets.get(team)
        if budget is None:
            return None
        with self._lock:
            purse = self._purses.setdefault(team, _Purse())
            purse.used = now
            if now < purse.end and purse.free >= expected:
                purse.reserved += expected
                return None
            asked = purse.next_ask - _ASK_AGAIN <= now < min(purse.next_ask, purse.end)
            if asked and purse.refusal is not None and expected - purse.free >= purse.lacking:
                return purse.refusal
            purse.refusal = self._more(budget, purse, expected, now)
            if purse.refusal is None:
                purse.reserved += expected
            else:
                purse.lacking, purse.next_ask = expected - purse.free, now + _ASK_AGAIN
            return purse.refusal

    def spend(self, team: str, ns: int) -> None:
        """Takes what was spent from what this process holds.

        Args:
            team: Who spent it.
            ns: Nanoseconds.
        """
        budget = self._budgets.get(team)
        if budget is None:
            return
        with self._lock:
            if self._pid != os.getpid():
                self._look(self._clock.now())
            purse = self._purses.setdefault(team, _Purse())
            purse.spent += ns
            if purse.spent > purse.granted:
                self._owe(budget, purse, self._clock.now())

    def release(self, team: str, expected: int) -> None:
        """Gives back what `admit` has set aside; what the batch did cost came by `spend`."""
        with self._lock:
            purse = self._purses.get(team)
            if purse is not None:
                purse.reserved = max(purse.reserved - expected, 0)

    def spent(self, team: str) -> int:
        """Returns the nanoseconds that this process has spent of a team's budget in the period."""
        purse = self._purses.get(team)
        return 0 if purse is None else purse.spent

    def give_back_idle(self) -> int:
        """Gives back what is left of the leases of teams that have asked for nothing for long; a thread calls it.

        Returns:
            How many leases this process still has something of.

        Raises:
            StoreError: If the book cannot be used; what was not given back is kept.
            Conflict: If others have been writing it all the time.
        """
        now = self._clock.now()
        held = 0
        with self._lock:
            if self._pid != os.getpid():
                return 0
            for team, purse in self._purses.items():
                if purse.spent != purse.seen:
                    purse.seen, purse.used = purse.spent, now
                if purse.start < 0 or purse.granted <= purse.spent:
                    continue
                # A clock that went back must not keep a lease for ever.
                if not purse.reserved and not purse.used <= now < purse.used + self._idle:
                    self.book.give_back(team, self._holder, start=purse.start, spent=purse.spent)
                    purse.granted = purse.spent
                else:
                    held += 1
        return held

    def close(self) -> None:
        """Gives back what is not spent. What is spent afterwards is a new lease."""
        with self._lock:
            purses, self._purses = self._purses, {}
            self._closed.set()
            self._thread, self._closed = None, threading.Event()
            if self._pid != os.getpid():
                return
            for team, purse in purses.items():
                if purse.start >= 0:
                    self.book.give_back(team, self._holder, start=purse.start, spent=purse.spent)

    def _watch(self) -> None:
        # It lives as long as there is something to give back, so that nobody has to end it.
        if self._thread is None:
            arguments = (self._closed,)
            self._thread = threading.Thread(target=self._tidy, args=arguments, name="vitok-budgets", daemon=True)
            self._thread.start()

    def _tidy(self, closed: threading.Event) -> None:
        while not closed.wait(self._idle / 4 / SECOND):
            try:
                held = self.give_back_idle()
            except (StoreError, Conflict) as error:
                logger.warning("%s", error)
                continue
            with self._lock:
                left = held or any(purse.granted > purse.spent for purse in self._purses.values())
                if not left and self._thread is threading.current_thread():
                    self._thread = None
                    return

    def _look(self, now: int) -> None:
        with self._lock:
            if self._pid != os.getpid():
                # The leases are the parent's.
                self._pid, self._holder, self._purses, self._revision = os.getpid(), holder_name(), {}, -1
                self._thread, self._closed = None, threading.Event()
            first = self._looked < 0
            self._looked = now
            try:
                revision = self.book.revision()
                if revision != self._revision:
                    self._budgets = self.book.budgets()
                    self._revision = revision
            except (StoreError, Conflict) as error:
                if first:
                    raise
                logger.warning("%s", error)

    def _owe(self, budget: SpendingBudget, purse: _Purse, now: int) -> None:
        # Beyond what it was granted: the others must know at once that there is less left.
        if purse.next_ask - _ASK_AGAIN <= now < purse.next_ask:
            return
        try:
            if self._ask(budget, purse, 1, now) is not None:
                purse.next_ask = now + _ASK_AGAIN
        except (StoreError, Conflict) as error:
            logger.warning("%s", error)
            purse.next_ask = now + _ASK_AGAIN

    def _more(self, budget: SpendingBudget, purse: _Purse, expected: int, now: int) -> Unaffordable | None:
        try:
            again = self._ask(budget, purse, expected, now)
            if again is None and purse.free < expected:
                # It was granted in a period that others have begun meanwhile, where nothing was set aside yet.
                again = self._ask(budget, purse, expected, now)
        except (StoreError, Conflict) as error:
            logger.warning("%s", error)
            if budget.then == "alert":
                return None
            told = f"the budget of {budget.team} cannot be read at present"
            return Unaffordable(team=budget.team, then="", retry_after=1.0, message=told)
        if again is None or budget.then == "alert":
            return None
        then = "throttle" if again < purse.end or budget.then == "throttle" else "block"
        amount = f"the budget of {budget.team}, {budget.amount:,g} processor seconds a {budget.period},"
        if again < purse.end:
            told = f"{amount} is nearly spent and let out slowly; there is enough at {isoformat(again)}"
        else:
            told = f"{amount} is spent; it begins anew at {isoformat(purse.end)}"
        return Unaffordable(team=budget.team, then=then, retry_after=(again - now) / SECOND, message=told)

    def _ask(self, budget: SpendingBudget, purse: _Purse, expected: int, now: int) -> int | None:
        # Reports, and asks for what lacks; returns None where there is enough then, else when there may be.
        team, start = budget.team, None if purse.start < 0 else purse.start
        rolled = now >= purse.end
        lacking = expected + purse.reserved if rolled else max(expected - purse.free, 0)
        grant = self.book.lease(team, self._holder, spent=purse.spent, needed=lacking, now=now, start=start)
        if grant.start != purse.start:
            early = purse.start < 0
            purse.start = grant.start
            purse.spent = purse.spent if early else 0
        purse.end, purse.granted = grant.end, grant.granted
        if purse.granted > purse.spent:
            self._watch()
        for alert in grant.alerts:
            self._on_alert(alert)
        return None if grant.enough else grant.again


class Budgeted:
    """An endpoint behind the budgets of the teams that call it. It stands behind the guard, which says who calls.

    Args:
        endpoint: What is asked where there is enough left; its meter must spend from `spending`.
        spending: The budgets.
        team_of: The team of a tenant; by default the tenant's own name.
        instead: What answers where there is not, such as rules or a smaller model; None refuses with 429 or 402.

    Attributes:
        refused: How many requests were refused, or answered by `instead`, by team.

    Example:
        >>> import tempfile
        >>> from vitok.clock import EventClock
        >>> from vitok.serving.budgets import NS
        >>> folder = tempfile.TemporaryDirectory()
        >>> book = BudgetBook(folder.name + "/budgets.sqlite")
        >>> book.set(SpendingBudget(team="shop", amount=1.0), actor="ann", now=0)
        >>> spending = Spending(book, clock=EventClock())
        >>> class Costly:
        ...     path = "/costly"
        ...
        ...     def handle(self, requests):
        ...         spending.spend("shop", NS * len(requests))
        ...         return [Reply(200, b"{}") for _ in requests]
        >>> budgeted = Budgeted(Costly(), spending)
        >>> request = HotRequest(b"{}", 0, [], "10.0.0.1", "shop")
        >>> [budgeted.handle([request])[0].status for _ in range(2)]
        [200, 402]
        >>> spending.close(); book.close(); folder.cleanup()
    """

    def __init__(
        self,
        endpoint: Endpoint,
        spending: Spending,
        *,
        team_of: Callable[[str], str] = str,
        instead: Endpoint | None = None,
    ) -> None:
        self.path = endpoint.path
        self.endpoint = endpoint
        self.spending = spending
        self.instead = instead
        self.refused: dict[str, int] = {}
        self._team_of = team_of
        self._ns_a_byte = _FIRST_NS_A_BYTE
        self._learned = False

    def handle(self, requests: Sequence[HotRequest]) -> Sequence[Reply | Later]:
        """Hands on what is affordable, and refuses the rest or has it answered otherwise."""
        places: dict[str, list[int]] = {}
        for place, request in enumerate(requests):
            places.setdefault(request.tenant, []).append(place)
        out: list[Reply | Later | None] = [None] * len(requests)
        holds: list[_Hold] = []
        passed: list[int] = []
        rest: list[int] = []
        for tenant, own in places.items():
            n, refusal = self._admit(self._team_of(tenant), [requests[place] for place in own], holds)
            passed += own[:n]
            if refusal is not None:
                reply = refusal.reply()
                for place in own[n:]:
                    out[place] = reply
                rest += own[n:]
        if passed:
            passed.sort()
            self._ask([requests[place] for place in passed], passed, holds, out)
        if rest and self.instead is not None:
            rest.sort()
            for place, other in zip(rest, self.instead.handle([requests[place] for place in rest]), strict=True):
                out[place] = other
        return out  # type: ignore[return-value]

    def _admit(
        self, team: str, requests: Sequence[HotRequest], holds: "list[_Hold]"
    ) -> tuple[int, Unaffordable | None]:
        # Returns how many of them may pass: all at once, or else the first ones that there is enough for.
        refusal = self._hold(team, requests, holds)
        if refusal is None:
            return len(requests), None
        n = 0
        while len(requests) > 1 and n < len(requests):
            refusal = self._hold(team, requests[n : n + 1], holds)
            if refusal is not None:
                break
            n += 1
        self.refused[team] = self.refused.get(team, 0) + len(requests) - n
        return n, refusal

    def _hold(self, team: str, requests: Sequence[HotRequest], holds: "list[_Hold]") -> Unaffordable | None:
        size = sum([_size(request) for request in requests]) + _HEAD_BYTES * len(requests)
        expected = int(size * self._ns_a_byte) + (0 if self._learned else _FIRST_NS * len(requests))
        refusal = self.spending.admit(team, expected)
        if refusal is None:
            holds.append(_Hold(team, expected, size, self.spending.spent(team)))
        return refusal

    def _ask(
        self,
        requests: Sequence[HotRequest],
        places: Sequence[int],
        holds: "list[_Hold]",
        out: list[Reply | Later | None],
    ) -> None:
        owed: list[tuple[int, Later]] = []
        try:
            for place, reply in zip(places, self.endpoint.handle(requests), strict=True):
                out[place] = reply
                if type(reply) is Later:
                    owed.append((place, reply))
        except BaseException:
            self._settle(holds)
            raise
        if not owed:
            self._settle(holds)
            return
        left = [len(owed)]

        def given(inner: Later, outer: Later) -> None:
            left[0] -= 1
            if not left[0]:
                self._settle(holds)
            assert inner.reply is not None  # noqa: S101 - it calls once it is given
            outer.give(inner.reply)

        for place, inner in owed:
            outer = Later()
            out[place] = outer
            inner.then(lambda inner=inner, outer=outer: given(inner, outer))  # type: ignore[misc]

    def _settle(self, holds: "list[_Hold]") -> None:
        # What others have spent meanwhile is in it too: then more is set aside for the next one than it needs.
        rate = 0.0
        for hold in holds:
            cost = self.spending.spent(hold.team) - hold.before
            rate = max(rate, cost / hold.size)
            self.spending.release(hold.team, hold.expected)
        if rate > 0 and not self._learned:
            self._learned, self._ns_a_byte = True, rate
        self._ns_a_byte = max(rate, self._ns_a_byte * _FORGET)


class _Hold:
    __slots__ = ("before", "expected", "size", "team")

    def __init__(self, team: str, expected: int, size: int, before: int) -> None:
        self.team = team
        self.expected = expected
        self.size = size
        self.before = before


class BudgetGate:
    """Puts budgets before every model of a host: `ModelHost(guard=BudgetGate(spending, guard=guard))`.

    Args:
        spending: The budgets.
        guard: What stands before them and says who calls; None where something else does.
        team_of: The team of a tenant.
        instead: Makes what answers in place of an endpoint; None refuses.
    """

    def __init__(
        self,
        spending: Spending,
        *,
        guard: Outer | None = None,
        team_of: Callable[[str], str] = str,
        instead: Callable[[Endpoint], Endpoint] | None = None,
    ) -> None:
        self.spending = spending
        self.guard = guard
        self._team_of = team_of
        self._instead = instead

    def before(self, endpoint: Endpoint, scope: str) -> Endpoint:
        """Returns the endpoint with the budgets before it, and the guard before those."""
        other = None if self._instead is None else self._instead(endpoint)
        budgeted = Budgeted(endpoint, self.spending, team_of=self._team_of, instead=other)
        return budgeted if self.guard is None else self.guard.before(budgeted, scope)


def teams_of(keys: Sequence[Key], given: Mapping[str, str] | None = None) -> Callable[[str], str]:
    """Returns what tells the team of a tenant: as given, else as its keys say, else the tenant's own name.

    Args:
        keys: Keys with their tenants and teams, such as `KeyStore.keys()`.
        given: Tenant to team; it goes before the keys.

    Raises:
        InvalidInput: If keys of a tenant name different teams and `given` does not say which.

    Example:
        >>> made = dict(key_id="a", name="a", scopes=frozenset(["admin"]), created=0, not_before=0)
        >>> team_of = teams_of([Key(tenant="web", team="checkout", **made)], {"app": "mobile"})
        >>> team_of("web"), team_of("app"), team_of("other")
        ('checkout', 'mobile', 'other')
    """
    found = dict(given or {})
    fixed = set(found)
    for key in keys:
        if not key.team or key.tenant in fixed:
            continue
        if found.setdefault(key.tenant, key.team) != key.team:
            raise InvalidInput(
                "team",
                key.team,
                f"be {found[key.tenant]!r}, as of another key of {key.tenant}",
                "Give a key of another team a tenant of its own, or say which team pays for the tenant",
            )
    return lambda tenant: found.get(tenant, tenant)


def _size(request: Any) -> int:
    # One of gRPC has no body of bytes.
    size: int = len(request.body) if type(request) is HotRequest else request.size
    return size


def _warn(alert: BudgetAlert) -> None:
    logger.warning("%s", alert)
