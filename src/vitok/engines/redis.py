"""Redis, or Valkey, as a store of feature rows: one server or a cluster, one round trip a read.

Versions are compared where the rows are, by a script, so that writers in any number of processes cannot set a row
back. A row is one string: 16 bytes of version, then the value.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from vitok.engines import address
from vitok.engines.redis_servers import OPTIONS, Command, Servers, Word, slot_of
from vitok.engines.row_store import Row, packed
from vitok.errors import InvalidInput

# Byte by byte, as `<` on strings follows the locale of the server.
_WRITE = """
local applied = 0
for i, key in ipairs(KEYS) do
  local row, expires = ARGV[2 * i - 1], ARGV[2 * i]
  local kept = redis.call('GETRANGE', key, 0, 15)
  local newer = #kept < 16
  if not newer then
    for j = 1, 16 do
      local a, b = string.byte(row, j), string.byte(kept, j)
      if a ~= b then
        newer = a > b
        break
      end
    end
  end
  if newer then
    if expires == '0' then
      redis.call('SET', key, row)
    else
      redis.call('SET', key, row, 'PXAT', expires)
    end
    applied = applied + 1
  end
end
return applied
"""
_DIGEST = hashlib.sha1(_WRITE.encode(), usedforsecurity=False).hexdigest()
_ROWS = 256  # a script stops the server while it runs: some hundred microseconds
_BYTES = 1 << 18
_ROUND_TRIP = 1 << 20


class RedisRows:
    """Rows in Redis 6.2 or later, Valkey, or a cluster of them, as a `RowStore`.

    In a cluster keys are sent to the server of their slot, all servers at once; keys with the same `{...}` share a
    slot, so the views of one entity are best given one. Connections are made when needed, shared by threads, and
    made anew after a fork. A call waits at most some times `timeout_ms` for a server, then raises.

    Args:
        url: `redis://user:password@host:port/db`, `rediss://` for TLS, `redis-cluster://host:port,host:port` or
            `rediss-cluster://`. Options: `timeout_ms` of each wait for the network (500), and for TLS the files
            `ca`, `cert` and `key`.

    Raises:
        InvalidInput: If the address is wrong.
        MissingExtra: If the client is not installed.
    """

    def __init__(self, url: str) -> None:
        place = address.remote(url, 6379, OPTIONS)
        is_cluster = place.scheme.endswith("-cluster")
        if place.path and (not place.path.isascii() or not place.path.isdigit() or (is_cluster and place.path != "0")):
            rule = "be empty or 0 for a cluster" if is_cluster else "be the number of a database"
            raise InvalidInput("database of the address", place.path, rule)
        if len(place.hosts) > 1 and not is_cluster:
            raise InvalidInput("address", address.hidden(url), "name one server", "Use redis-cluster:// for several")
        self._servers = Servers(place, _WRITE)

    def read(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Returns version and value of each key, None where there is none; one round trip to each server asked.

        Raises:
            StoreError: If a server cannot be reached, does not answer in time, or refuses.
        """
        found: list[bytes | None] = [None] * len(keys)

        def words(items: Sequence[int]) -> Sequence[Word]:
            return ["MGET", *(keys[item] for item in items)]

        def accept(items: Sequence[int], values: list[bytes | None]) -> None:
            for item, value in zip(items, values, strict=True):
                found[item] = value

        self._servers.run(list(self._commands(keys, words, accept, most=len(keys))))
        return found

    def write(self, rows: Iterable[Row]) -> int:
        """Keeps each row whose version is newer than the one kept.

        Rows reach the server some hundred at a time, each such part whole; after an error some may have been written,
        and writing all of them again is harmless.

        Returns:
            How many rows were applied; fewer where a lost connection made a part be sent twice.

        Raises:
            InvalidInput: If a key, version or expiry breaks its rule; then nothing was written.
            StoreError: If a server cannot be reached, does not answer in time, is full, or refuses.
        """
        checked = packed(rows)
        keys = [key for key, _, _ in checked]
        applied = 0

        def words(items: Sequence[int]) -> Sequence[Word]:
            line: list[Word] = ["EVALSHA", _DIGEST, len(items), *(keys[item] for item in items)]
            for item in items:
                _, row, expires = checked[item]
                line += (row, max(1, expires // 1000) if expires else 0)
            return line

        def accept(_: Sequence[int], answer: int) -> None:
            nonlocal applied
            applied += answer

        sizes = [len(key) + len(row) for key, row, _ in checked]
        trip, size = list[Command](), 0
        for command in self._commands(keys, words, accept, most=_ROWS, sizes=sizes):
            weight = sum(sizes[item] for item in command.items)
            if trip and size + weight > _ROUND_TRIP:
                self._servers.run(trip)
                trip, size = [], 0
            trip.append(command)
            size += weight
        self._servers.run(trip)
        return applied

    def erase(self, keys: Sequence[bytes]) -> int:
        """Removes keys; returns how many were there.

        Raises:
            StoreError: If a server cannot be reached, does not answer in time, or refuses.
        """
        erased = 0

        def words(items: Sequence[int]) -> Sequence[Word]:
            return ["UNLINK", *(keys[item] for item in items)]

        def accept(_: Sequence[int], answer: int) -> None:
            nonlocal erased
            erased += answer

        self._servers.run(list(self._commands(keys, words, accept, most=10_000)))
        return erased

    def close(self) -> None:
        """Closes the connections; the next call opens new ones."""
        self._servers.close()

    def _commands(
        self, keys: Sequence[bytes], words: Any, accept: Any, *, most: int, sizes: Sequence[int] = ()
    ) -> Iterator[Command]:
        # One command for the keys of a slot, as a cluster demands; one for all where there is no cluster.
        groups: dict[int, Sequence[int]] = {-1: range(len(keys))} if keys else {}
        if self._servers.is_cluster:
            slots: dict[int, list[int]] = {}
            for item, key in enumerate(keys):
                slots.setdefault(slot_of(key), []).append(item)
            groups = dict(slots)
        for slot, items in groups.items():
            start, size = 0, 0
            for position, item in enumerate(items) if sizes else ():
                if position - start >= most or (position > start and size + sizes[item] > _BYTES):
                    yield Command(slot=slot, items=items[start:position], words=words, accept=accept)
                    start, size = position, 0
                size += sizes[item]
            step = most if not sizes else len(items)
            for begin in range(start, len(items), step):
                yield Command(slot=slot, items=items[begin : begin + step], words=words, accept=accept)
