"""One limit for many processes: buckets in Redis or Valkey, changed by a script, one round trip for a whole batch."""

import hashlib
from collections.abc import Sequence
from typing import Literal

from vitok.clock import SECOND
from vitok.engines import address
from vitok.engines.redis_servers import OPTIONS, Command, Servers, Word, slot_of
from vitok.errors import InvalidInput, StoreError
from vitok.guard.limits import Allowance, Limit, Limiter

OnError = Literal["local", "admit", "refuse"]

# Numbers in Lua are doubles, exact below 2^53: a time is whole microseconds and, apart, how many 1/rate of one more.
# The clock is the server's, so that the processes need not agree on theirs.
_SCRIPT = """
local rate, size_us, size_part = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000000 + tonumber(clock[2])
local answer = {}
for i, key in ipairs(KEYS) do
  local cost_us, cost_part = tonumber(ARGV[2 * i + 2]), tonumber(ARGV[2 * i + 3])
  local us, part = now, 0
  local kept = redis.call('GET', key)
  if kept then
    local first, second = string.match(kept, '^(%d+):(%d+)$')
    if first then
      us, part = tonumber(first), tonumber(second)
    end
  end
  if us < now then
    us, part = now, 0
  elseif us - now > size_us or (us - now == size_us and part > size_part) then
    us, part = now + size_us, size_part
  end
  local later_us, later_part = us + cost_us, part + cost_part
  if later_part >= rate then
    later_us, later_part = later_us + 1, later_part - rate
  end
  local ahead = later_us - now
  if ahead < size_us or (ahead == size_us and later_part <= size_part) then
    us, part = later_us, later_part
    redis.call('SET', key, string.format('%.0f:%.0f', us, part), 'PX', math.floor((us - now) / 1000) + 2)
    answer[3 * i - 2] = 1
  else
    answer[3 * i - 2] = 0
  end
  answer[3 * i - 1] = us - now
  answer[3 * i] = part
end
return answer
"""
_DIGEST = hashlib.sha1(_SCRIPT.encode(), usedforsecurity=False).hexdigest()
_BATCH = 512  # a script stops the server while it runs: about a millisecond for so many


class SharedLimiter:
    """A limit that all processes of a service share.

    The clock is that of the server; keys end by themselves when their bucket is full. Where the server does not
    answer, `on_error` says what happens: `"local"` counts in this process meanwhile (n processes then admit up to n
    times the rate: the default, as the service goes on and stays limited), `"admit"` lets all pass (fail open),
    `"refuse"` lets nothing pass (fail closed). After an error the server is left alone for `pause`, so that not every
    request waits for its timeout. Each answer of that kind is marked `degraded`.

    It waits for the network: an event loop calls it in a thread, or once for all that came in one turn. Where a
    connection breaks after the server has counted, the batch is counted twice.

    Args:
        url: Address of the server, such as `redis://host:6379/0?timeout_ms=20`, or of a cluster.
        limit: The limit.
        prefix: What the names of its buckets begin with; one for each limit.
        on_error: What happens without the server.
        pause: How long the server is left alone after an error, in nanoseconds.

    Raises:
        InvalidInput: If the address is wrong or the limit too large for the server's arithmetic.
        MissingExtra: If the client is not installed.
    """

    def __init__(
        self,
        url: str,
        limit: Limit,
        *,
        prefix: str = "vitok:limit:",
        on_error: OnError = "local",
        pause: int = 1_000_000_000,
    ) -> None:
        if on_error not in ("local", "admit", "refuse"):
            raise InvalidInput("on_error", on_error, "be 'local', 'admit' or 'refuse'")
        place = address.remote(url, 6379, OPTIONS)
        if place.path and not (place.path.isascii() and place.path.isdigit()):
            raise InvalidInput("database of the address", place.path, "be the number of a database")
        self.limit = limit
        self.prefix = prefix
        self.on_error = on_error
        self.pause = pause
        self.problem = ""
        self._servers = Servers(place, _SCRIPT)
        self._local = Limiter(limit)
        self._again: int | None = None
        self._size = divmod(limit.microseconds * limit.size, limit.rate)

    def check(self, caller: str, now: int, n: int = 1) -> Allowance:
        """Takes `n` tokens of a caller if they are there; see `check_many`."""
        return self.check_many([caller], now, costs=[n])[0]

    def check_many(self, callers: Sequence[str], now: int, *, costs: Sequence[int] | None = None) -> list[Allowance]:
        """Decides about requests in order, those of one caller one after another, in one round trip.

        Args:
            callers: Whose bucket each request is for.
            now: Nanoseconds of `time.monotonic_ns`; only for the pause and the count in this process.
            costs: Tokens of each request, at least 1; None for 1 each.

        Returns:
            What the limit says about each.

        Raises:
            InvalidInput: If the costs are not as many as the callers, or one is below 1.
        """
        if costs is None:
            costs = [1] * len(callers)
        if len(costs) != len(callers) or any(cost < 1 for cost in costs):
            raise InvalidInput("costs", costs, f"be {len(callers)} whole numbers of at least 1")
        if self._again is not None and self._again - self.pause <= now < self._again:
            return self._without(callers, costs, now)
        try:
            found = self._asked(callers, costs)
        except StoreError as error:
            self.problem, self._again = str(error), now + self.pause
            return self._without(callers, costs, now)
        self.problem, self._again = "", None
        return found

    def close(self) -> None:
        """Closes the connections; the next call opens new ones."""
        self._servers.close()

    def _asked(self, callers: Sequence[str], costs: Sequence[int]) -> list[Allowance]:
        limit = self.limit
        keys = [(self.prefix + caller).encode() for caller in callers]
        # More than the burst is refused by the server whatever it is; so large numbers need not reach it.
        parts = [divmod(limit.microseconds * min(cost, limit.size + 1), limit.rate) for cost in costs]
        found: list[Allowance | None] = [None] * len(keys)

        def words(items: Sequence[int]) -> Sequence[Word]:
            line: list[Word] = ["EVALSHA", _DIGEST, len(items), *(keys[item] for item in items)]
            line += (limit.rate, *self._size)
            for item in items:
                line += parts[item]
            return line

        def accept(items: Sequence[int], answer: list[int]) -> None:
            for place, item in enumerate(items):
                admitted, us, part = answer[3 * place : 3 * place + 3]
                found[item] = _read(limit, bool(admitted), us * limit.rate + part, costs[item])

        groups: dict[int, list[int]] = {}
        for item, key in enumerate(keys):
            groups.setdefault(slot_of(key) if self._servers.is_cluster else -1, []).append(item)
        commands = [
            Command(slot=slot, items=items[start : start + _BATCH], words=words, accept=accept)
            for slot, items in groups.items()
            for start in range(0, len(items), _BATCH)
        ]
        self._servers.run(commands)
        return [one for one in found if one is not None]

    def _without(self, callers: Sequence[str], costs: Sequence[int], now: int) -> list[Allowance]:
        if self.on_error == "local":
            each = zip(callers, costs, strict=True)
            return [self._local.check(caller, now, cost)._replace(degraded=True) for caller, cost in each]
        if self.on_error == "admit":
            return [Allowance(self.limit, True, 0, 0, 0, degraded=True)] * len(callers)
        return [Allowance(self.limit, False, 0, self.pause, self.pause, degraded=True)] * len(callers)

    def __repr__(self) -> str:
        return f"SharedLimiter({self._servers.address.servers}, {self.limit}, {self.on_error} on error)"


def _read(limit: Limit, admitted: bool, ahead: int, cost: int) -> Allowance:  # noqa: FBT001
    """Reads an answer; `ahead` is how far the arrival time lies ahead, in units of 1/rate microseconds."""
    size = limit.microseconds * limit.size
    thousandth = SECOND // 1000
    wait = 0 if admitted else -(-max(1, ahead + cost * limit.microseconds - size) * thousandth // limit.rate)
    if cost > limit.size:
        wait = -1
    return Allowance(limit, admitted, (size - ahead) // limit.microseconds, -(-ahead * thousandth // limit.rate), wait)
