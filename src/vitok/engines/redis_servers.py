"""Commands to one Redis server or to all of a cluster: sent to each server at once, answered in bounded time.

What a cluster may answer instead of an answer (the slot has moved, is moving, the script is not known) is followed
here a fixed number of times; everything else becomes a `StoreError` that names the server and what to do.
"""

import binascii
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from vitok.engines.address import Address
from vitok.errors import MissingExtra, StoreError

SLOTS = 16384
OPTIONS = ("timeout_ms", "ca", "cert", "key")
_ROUNDS = 5

Server = tuple[str, int]
Word = bytes | str | int


def slot_of(key: bytes) -> int:
    """Returns the slot of a key, in [0, 16384): that of its first `{...}` where there is one.

    Source: Redis Cluster Specification, "Hash tags".

    Example:
        >>> slot_of(b"123456789"), slot_of(b"{7}a") == slot_of(b"view/{7}") == slot_of(b"7")
        (12739, True)
    """
    first = key.find(b"{")
    if first >= 0:
        last = key.find(b"}", first + 1)
        if last > first + 1:
            key = key[first + 1 : last]
    return binascii.crc_hqx(key, 0) % SLOTS


@dataclass(kw_only=True, slots=True)
class Command:
    """A command about some of a caller's items, whose keys have one slot.

    Attributes:
        slot: The slot of its keys; -1 where there is only one server.
        items: Which of the caller's items it is about.
        words: Gives the words of the command for some items.
        accept: Takes the answer for the items.
        asking: The server that takes over the slot, for one try.
    """

    slot: int
    items: Sequence[int]
    words: Callable[[Sequence[int]], Sequence[Word]]
    accept: Callable[[Sequence[int], Any], None]
    asking: Server | None = None


class _Sent(NamedTuple):
    server: Server
    commands: list[Command]
    connection: Any


class Servers:
    """One Redis server, or the servers of a cluster.

    Args:
        address: Scheme `redis`, `rediss`, `redis-cluster` or `rediss-cluster`; the last two find the other servers
            of the cluster by the ones named.
        script: The script that commands call by its digest.

    Raises:
        MissingExtra: If the client is not installed.
    """

    def __init__(self, address: Address, script: str) -> None:
        try:
            import redis
            import redis.backoff
            import redis.retry
        except ImportError:
            raise MissingExtra("redis", "a store at a redis:// address") from None
        self.address = address
        self.is_cluster = address.scheme.endswith("-cluster")
        self.timeout_ms = address.whole_number("timeout_ms", 500)
        self._errors = redis.exceptions
        self._pool_class = redis.ConnectionPool
        self._script = script
        self._pools: dict[Server, Any] = {}
        self._lock = threading.Lock()
        self._slots: list[Server | None] = []
        seconds = self.timeout_ms / 1000
        self._settings: dict[str, Any] = {
            "socket_timeout": seconds,
            "socket_connect_timeout": seconds,
            "socket_read_size": 1 << 17,
            # Ours is the only retry, so that the time a call may take is known.
            "retry": redis.retry.Retry(redis.backoff.NoBackoff(), 0),
            "protocol": 2,
            "username": address.user or None,
            "password": address.password or None,
        }
        if address.scheme.startswith("rediss"):
            self._settings |= {
                "connection_class": redis.SSLConnection,
                "ssl_ca_certs": address.options.get("ca"),
                "ssl_certfile": address.options.get("cert"),
                "ssl_keyfile": address.options.get("key"),
            }
        if not self.is_cluster:
            self._settings["db"] = int(address.path or 0)

    def run(self, commands: Sequence[Command]) -> None:
        """Sends commands, all of a server's at once, and hands each its answer.

        Raises:
            StoreError: If a server cannot be reached, does not answer in time, or refuses.
        """
        waiting, lost, unknown = list(commands), False, set[Server]()
        for _ in range(_ROUNDS):
            if not waiting:
                return
            again: list[Command] = []
            stale = False
            for server, command, answer in self._exchange(waiting, unknown):
                if not isinstance(answer, Exception):
                    command.accept(command.items, answer)
                    continue
                step = self._next_step(server, answer, may_reconnect=not lost)
                if step == "reconnect":
                    lost = stale = True
                elif step == "load":
                    unknown.add(server)
                again += self._split(command) if step == "split" else [self._redirected(command, server, answer)]
            if stale and self.is_cluster:
                self._find_slots()
            waiting = again
        if waiting:
            raise StoreError(
                f"the Redis cluster at {self.address.servers} moved its slots about for {_ROUNDS} answers on end: "
                "try again when its resharding is done"
            )

    def close(self) -> None:
        """Closes all connections."""
        with self._lock:
            for pool in self._pools.values():
                pool.disconnect()
            self._pools.clear()

    def _exchange(self, commands: Sequence[Command], unknown: set[Server]) -> list[tuple[Server, Command, Any]]:
        # All commands are on their way before the first answer is waited for: one round trip for all servers.
        by_server: dict[Server, list[Command]] = {}
        for command in commands:
            by_server.setdefault(command.asking or self._owner(command.slot), []).append(command)
        answers: list[tuple[Server, Command, Any]] = []
        sent: list[_Sent] = []
        try:
            for server, group in by_server.items():
                connection = None
                try:
                    connection = self._pool(server).get_connection()
                    sent.append(_Sent(server, group, connection))
                    connection.send_packed_command(connection.pack_commands(self._lines(group, load=server in unknown)))
                except self._errors.TimeoutError:
                    raise
                except self._errors.RedisError as error:
                    if connection is not None:
                        self._give_back(sent.pop())
                    answers += [(server, command, error) for command in group]
            while sent:
                one = sent[0]
                answers += self._answers(one, load=one.server in unknown)
                self._give_back(sent.pop(0))
        except self._errors.TimeoutError as error:
            raise StoreError(self._late(by_server)) from error
        finally:
            # Left only where something failed: an answer may still be under way, so the connection must not be used.
            for one in sent:
                one.connection.disconnect()
                self._give_back(one)
        return answers

    def _lines(self, group: list[Command], *, load: bool) -> list[Sequence[Word]]:
        lines: list[Sequence[Word]] = [("SCRIPT", "LOAD", self._script)] if load else []
        for command in group:
            if command.asking:
                lines.append(("ASKING",))
            lines.append(command.words(command.items))
        return lines

    def _answers(self, one: _Sent, *, load: bool) -> list[tuple[Server, Command, Any]]:
        answers: list[tuple[Server, Command, Any]] = []
        for position, command in enumerate(one.commands):
            extra = (load and position == 0) + (command.asking is not None)
            try:
                for _ in range(extra):
                    one.connection.read_response()
                answers.append((one.server, command, one.connection.read_response()))
            except self._errors.ConnectionError as error:
                one.connection.disconnect()
                return answers + [(one.server, left, error) for left in one.commands[position:]]
            except self._errors.ResponseError as error:
                answers.append((one.server, command, error))
            except self._errors.InvalidResponse as error:
                one.connection.disconnect()
                raise self._failed(one.server, error) from error
        return answers

    def _next_step(
        self, server: Server, error: Exception, *, may_reconnect: bool
    ) -> Literal["follow", "load", "split", "reconnect"]:
        errors = self._errors
        if isinstance(error, errors.AskError) and self.is_cluster:  # also MovedError, its subclass
            return "follow"
        if isinstance(error, errors.NoScriptError):
            return "load"
        if isinstance(error, errors.TryAgainError):
            return "split"
        refused = (errors.AuthenticationError, errors.AuthorizationError, errors.BusyLoadingError)
        gone = isinstance(error, errors.ConnectionError) and not isinstance(error, refused)
        if (gone or (self.is_cluster and isinstance(error, errors.ReadOnlyError))) and may_reconnect:
            return "reconnect"
        raise self._failed(server, error) from error

    def _redirected(self, command: Command, server: Server, answer: Exception) -> Command:
        command.asking = None
        if isinstance(answer, self._errors.AskError):
            target = (answer.host or server[0], answer.port)
            if isinstance(answer, self._errors.MovedError):
                self._slots[command.slot] = target
            else:
                command.asking = target
        return command

    @staticmethod
    def _split(command: Command) -> list[Command]:
        # Of a slot under way some keys are here and some there; one by one each is found.
        return [
            Command(slot=command.slot, items=[item], words=command.words, accept=command.accept)
            for item in command.items
        ]

    def _owner(self, slot: int) -> Server:
        if not self.is_cluster:
            return self.address.hosts[0]
        if not self._slots:
            self._find_slots()
        server = self._slots[slot]
        if server is None:
            raise StoreError(
                f"the Redis cluster at {self.address.servers} has no server for slot {slot}: "
                "look at CLUSTER INFO on one of them and give the slot an owner"
            )
        return server

    def _find_slots(self) -> None:
        known = list(dict.fromkeys([*filter(None, dict.fromkeys(self._slots)), *self.address.hosts]))
        last: Exception | None = None
        for server in known:
            try:
                with_slots = self._call(server, "CLUSTER", "SLOTS")
            except (self._errors.ConnectionError, self._errors.TimeoutError) as error:
                last = error
                continue
            except self._errors.RedisError as error:
                raise self._failed(server, error) from error
            slots: list[Server | None] = [None] * SLOTS
            for first, end, owner, *_ in with_slots:
                host = owner[0].decode() if owner[0] else server[0]
                slots[first : end + 1] = [(host, owner[1])] * (end - first + 1)
            self._slots = slots
            return
        if isinstance(last, self._errors.TimeoutError):
            raise StoreError(self._late(known)) from last
        raise self._failed(known[-1], last or ConnectionError("no server was named")) from last

    def _call(self, server: Server, *words: Word) -> Any:
        pool = self._pool(server)
        connection = pool.get_connection()
        try:
            connection.send_command(*words)
            return connection.read_response()
        finally:
            pool.release(connection)

    def _pool(self, server: Server) -> Any:
        pool = self._pools.get(server)
        if pool is None:
            with self._lock:
                pool = self._pools.get(server)
                if pool is None:
                    pool = self._pool_class(host=server[0], port=server[1], **self._settings)
                    self._pools[server] = pool
        return pool

    def _give_back(self, one: _Sent) -> None:
        self._pool(one.server).release(one.connection)

    def _late(self, servers: Sequence[Server] | dict[Server, list[Command]]) -> str:
        names = ", ".join(f"{host}:{port}" for host, port in list(servers)[:4])
        return (
            f"Redis at {names} did not answer within {self.timeout_ms} ms: see whether it is busy or out of reach; "
            "?timeout_ms= of the address says how long to wait"
        )

    def _failed(self, server: Server, error: Exception) -> StoreError:
        """Says which server refused what, and what mends it."""
        errors, text = self._errors, str(error)
        if isinstance(error, errors.AuthenticationError) or text.startswith("NOAUTH"):
            said = "wants another user or password: write them as redis://user:password@host"
        elif isinstance(error, (errors.NoPermissionError, errors.AuthorizationError)):
            said = f"forbids it ({text}): allow the user +mget +evalsha +script +getrange +set +unlink on its keys"
        elif isinstance(error, errors.BusyLoadingError):
            said = "is still loading its data: try again later"
        elif isinstance(error, errors.OutOfMemoryError):
            said = "has no memory left: raise its maxmemory or erase rows"
        elif isinstance(error, errors.ReadOnlyError):
            said = "is a replica and takes no writes: use the address of its primary"
        elif isinstance(error, (errors.MovedError, errors.ClusterCrossSlotError)):
            said = "is part of a cluster: use redis-cluster://"
        elif isinstance(error, errors.ClusterDownError):
            said = f"says that its cluster is down ({text}): look at CLUSTER INFO there"
        elif isinstance(error, errors.InvalidResponse):
            said = (
                f"does not speak the protocol of Redis ({text}): see that the port and redis:// or rediss:// are right"
            )
        elif "cluster support disabled" in text:
            said = "is not part of a cluster: use redis://"
        elif isinstance(error, (errors.ConnectionError, OSError)):
            said = f"cannot be reached ({text}): see that it runs and that the address is right"
        else:
            said = f"refused: {text}"
        return StoreError(f"Redis at {server[0]}:{server[1]} {said}")
