"""A topic in the memory of the process, with partitions, groups of readers and retention: for tests and examples."""

import threading
import time
import zlib
from collections.abc import Iterable, Mapping, Sequence

from vitok.clock import SystemClock
from vitok.engines import address
from vitok.engines.event_stream import (
    Message,
    OnAssign,
    OnRevoke,
    Outgoing,
    check_positions,
    chosen_partitions,
    out_of_range,
    starts_latest,
)
from vitok.errors import InvalidInput, StoreError

OPTIONS = ("n_partitions", "partitions", "group", "start")


class MemoryTopic:
    """Messages by partition, the same for all who open its name in this process.

    Args:
        name: For errors.
        n_partitions: At least 1.

    Example:
        >>> topic = MemoryTopic("clicks", 2)
        >>> topic.publish([Outgoing(b"a", b"1"), Outgoing(b"a", b"2")])
        2
        >>> sorted(len(kept) for kept in topic.partitions)
        [0, 2]
    """

    _opened: dict[str, "MemoryTopic"] = {}  # noqa: RUF012 - one for the process is what it is for
    _opening = threading.Lock()

    def __init__(self, name: str, n_partitions: int = 1) -> None:
        self.name = name
        self.partitions: list[list[Message]] = [[] for _ in range(n_partitions)]
        self.first = [0] * n_partitions
        self.changed = threading.Condition()
        self.groups: dict[str, _Group] = {}
        self._turn = 0

    @classmethod
    def named(cls, url: str) -> "MemoryTopic":
        """Returns the topic at `memory://name`; `?n_partitions=` counts the partitions of one that is new.

        Raises:
            InvalidInput: If it is there with another number of partitions.
        """
        place = address.embedded(url, OPTIONS)
        wanted = place.whole_number("n_partitions", 0)
        with cls._opening:
            topic = cls._opened.get(place.path)
            if topic is None:
                topic = cls._opened[place.path] = cls(place.path, wanted or 1)
        n = len(topic.partitions)
        if wanted not in (0, n):
            raise InvalidInput("?n_partitions= of the address", wanted, f"be {n}, as the topic was made with")
        return topic

    def publish(self, messages: Iterable[Outgoing]) -> int:
        """Adds messages, all or none; returns how many.

        Raises:
            InvalidInput: If there is no such partition.
        """
        new = list(messages)
        n = len(self.partitions)
        for message in new:
            if not -1 <= message.partition < n:
                raise InvalidInput("partition", message.partition, f"be one of 0 to {n - 1}, or -1 for that of the key")
        with self.changed:
            for key, value, moment, chosen in new:
                if chosen >= 0:
                    number = chosen
                elif key is not None:
                    number = zlib.crc32(key) % n
                else:
                    number = self._turn = (self._turn + 1) % n
                kept = self.partitions[number]
                offset = self.first[number] + len(kept)
                kept.append(Message(number, offset, key, bytes(value), moment or SystemClock().now()))
            self.changed.notify_all()
        return len(new)

    def truncate(self, partition: int, first: int) -> None:
        """Forgets the messages of a partition before the offset `first`, as retention does."""
        with self.changed:
            gone = min(max(0, first - self.first[partition]), len(self.partitions[partition]))
            del self.partitions[partition][:gone]
            self.first[partition] += gone


class _Group:
    # Who reads which partition: a reader takes one only after the one before has given it back.
    def __init__(self) -> None:
        self.members: list[MemoryStream] = []
        self.owners: dict[int, MemoryStream] = {}

    def due(self, member: "MemoryStream", n: int) -> set[int]:
        place = self.members.index(member)
        return {number for number in range(n) if number % len(self.members) == place}


class MemoryStream:
    """Reads a `MemoryTopic`; the whole `EventStream` without a server.

    Args:
        url: `memory://topic`, with `?partitions=0,1` to read, or `?group=` to share them, and `?start=latest`.
        on_assign: See `open_stream`.
        on_revoke: See `open_stream`.
        on_lost: Never called: nobody is thrown out of a group here.

    Raises:
        InvalidInput: If the address is wrong.
    """

    def __init__(
        self,
        url: str,
        *,
        on_assign: OnAssign | None = None,
        on_revoke: OnRevoke | None = None,
        on_lost: OnRevoke | None = None,  # noqa: ARG002 - part of what all streams take
    ) -> None:
        place = address.embedded(url, OPTIONS)
        self._topic = MemoryTopic.named(url)
        self._wanted = set(chosen_partitions(place, len(self._topic.partitions)))
        self._latest = starts_latest(place)
        self._on_assign, self._on_revoke = on_assign, on_revoke
        self._next: dict[int, int] = {}
        self._turn = 0
        self._closed = False
        self._group: _Group | None = None
        if place.options.get("group"):
            with self._topic.changed:
                self._group = self._topic.groups.setdefault(place.options["group"], _Group())
                self._group.members.append(self)
                self._topic.changed.notify_all()

    def poll(self, max_messages: int, timeout_seconds: float) -> list[Message]:
        """Returns the next messages, none after the timeout.

        Raises:
            StoreError: If a position is outside of what the topic keeps, or the stream is closed.
        """
        if self._closed:
            raise StoreError(f"the stream of topic {self._topic.name!r} is closed: open it again")
        if max_messages < 1:
            raise InvalidInput("max_messages", max_messages, "be at least 1")
        deadline = time.monotonic() + timeout_seconds
        while True:
            self._rebalance()
            with self._topic.changed:
                found = self._take(max_messages)
                left = deadline - time.monotonic()
                if found or left <= 0:
                    return found
                self._topic.changed.wait(left)

    def seek(self, positions: Mapping[int, int]) -> None:
        """Sets the next offset of some partitions that this reader has.

        Raises:
            InvalidInput: If it does not have one of them, or an offset is negative.
        """
        if self._group is None and not self._next:
            self._rebalance()
        check_positions(positions, self._next)
        self._next.update(positions)

    def behind(self) -> dict[int, int | None]:
        """Returns how many messages of each partition are not read yet."""
        topic = self._topic
        with topic.changed:
            ends = {number: topic.first[number] + len(topic.partitions[number]) for number in self._next}
            return {number: max(0, end - self._next[number]) for number, end in ends.items()}

    def close(self) -> None:
        """Gives the partitions back and ends the reading."""
        if self._closed:
            return
        self._closed = True
        mine = sorted(self._next)
        try:
            if mine and self._on_revoke:
                self._on_revoke(mine)
        finally:
            with self._topic.changed:
                self._free(mine)
                if self._group is not None:
                    self._group.members.remove(self)
                self._topic.changed.notify_all()

    def _rebalance(self) -> None:
        topic = self._topic
        with topic.changed:
            due = self._wanted if self._group is None else self._group.due(self, len(topic.partitions))
        self._give_back(sorted(self._next.keys() - due))
        with topic.changed:
            free = sorted(due - self._next.keys())
            if self._group is not None:
                free = [number for number in free if number not in self._group.owners]
                self._group.owners.update(dict.fromkeys(free, self))
        if free:
            try:
                positions = self._on_assign(free) if self._on_assign else {}
                check_positions(positions, dict.fromkeys(free))
            except BaseException:
                with topic.changed:
                    self._free(free)
                raise
            for number in free:
                end = topic.first[number] + len(topic.partitions[number])
                self._next[number] = positions.get(number, end if self._latest else topic.first[number])

    def _give_back(self, numbers: Sequence[int]) -> None:
        if not numbers:
            return
        if self._on_revoke:
            self._on_revoke(numbers)
        with self._topic.changed:
            self._free(numbers)

    def _free(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            self._next.pop(number, None)
            if self._group is not None:
                self._group.owners.pop(number, None)
        self._topic.changed.notify_all()

    def _take(self, most: int) -> list[Message]:
        found: list[Message] = []
        order = sorted(self._next)
        self._turn += 1
        for step in range(len(order)):
            number = order[(self._turn + step) % len(order)]
            first, kept = self._topic.first[number], self._topic.partitions[number]
            position = self._next[number]
            if not first <= position <= first + len(kept):
                if found:
                    break
                raise out_of_range(self._topic.name, number, position, first, first + len(kept))
            batch = kept[position - first : position - first + most - len(found)]
            self._next[number] = position + len(batch)
            found += batch
        return found
