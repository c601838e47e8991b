"""The protocol of a stream of events that can be read again, and the ways to open one and to publish to it.

A topic has partitions; within one, each message has an offset and the order is fixed. How far a reader is belongs to
its own state: it keeps the next offset of each partition beside what it computed, and tells the stream where to begin.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from vitok.engines import address
from vitok.errors import InvalidInput, StoreError

OnAssign = Callable[[Sequence[int]], Mapping[int, int]]
OnRevoke = Callable[[Sequence[int]], None]

_ADDRESSES = {"kafka": "kafka://host:port/topic", "memory": "memory://topic"}


class Message(NamedTuple):
    """One message of a partition.

    Attributes:
        partition: Number of the partition, from 0.
        offset: Its place in the partition; offsets rise, and some may be left out.
        key: What decided the partition, or None.
        value: The contents; empty for a message without any.
        time: When it was published or what the publisher said, in microseconds since 1970-01-01 UTC, to the
            precision of the engine (Kafka: milliseconds).
    """

    partition: int
    offset: int
    key: bytes | None
    value: bytes
    time: int


class Outgoing(NamedTuple):
    """A message to publish: messages of one key go to one partition, in order.

    Attributes:
        key: Decides the partition; None for any.
        value: The contents.
        time: In microseconds since 1970-01-01 UTC; 0 for now.
        partition: Overrules the key; -1 where the key decides.
    """

    key: bytes | None
    value: bytes
    time: int = 0
    partition: int = -1


class EventStream(Protocol):
    """The messages of a topic, or of some of its partitions, from any position on; one thread reads it."""

    def poll(self, max_messages: int, timeout_seconds: float) -> list[Message]:
        """Returns the next messages as soon as there are some, in order within a partition; none after the timeout.

        Raises:
            StoreError: If the servers cannot be reached or refuse, or if messages at the position are no longer
                kept: nothing is ever skipped in silence. A poll after that goes on, or says the same again.
        """
        ...

    def seek(self, positions: Mapping[int, int]) -> None:
        """Sets the next offset to read of some of the partitions that this reader has.

        Raises:
            InvalidInput: If it does not have one of them, or an offset is negative.
        """
        ...

    def close(self) -> None:
        """Gives the partitions back, which calls `on_revoke`, and ends the reading; a second call does nothing."""
        ...


class MeasuredStream(EventStream, Protocol):
    """A stream that knows how far its reader is behind."""

    def behind(self) -> Mapping[int, int | None]:
        """Returns what is left of each partition that this reader has; None where its end is not known yet."""
        ...


def open_stream(
    url: str,
    *,
    on_assign: OnAssign | None = None,
    on_revoke: OnRevoke | None = None,
    on_lost: OnRevoke | None = None,
) -> MeasuredStream:
    """Opens the stream of a topic.

    With `?group=name` the readers of that name share the partitions, each partition having one reader at a time. With
    `?partitions=0,1` or `?partitions=all`, the default, this reader takes those whoever else reads them.

    Args:
        url: `kafka://host:port,host:port/topic` or `memory://topic`. Options follow a `?`; the page on engines lists
            them.
        on_assign: Called within `poll`, or a first `seek`, with the partitions that are now this reader's, before the
            first message of them; loads their state and returns the next offset of each. Those it leaves out begin
            where `?start=` says, `earliest` by default or `latest`.
        on_revoke: Called within `poll` or `close` with partitions that are about to go to another reader; saves their
            state. No message of them comes after it.
        on_lost: Called instead of `on_revoke` where another reader may have them already, so that the state must be
            dropped and not be saved; without it `on_revoke` is called.

    Raises:
        InvalidInput: If the address is wrong.
        StoreError: If the servers cannot be reached or there is no such topic.
        MissingExtra: If the client is not installed.

    Example:
        >>> url = "memory://payments?n_partitions=1"
        >>> publish(url, [Outgoing(b"customer/7", b"12.50", 1000), Outgoing(b"customer/7", b"3.10", 2000)])
        2
        >>> stream = open_stream("memory://payments", on_assign=lambda partitions: {0: 1})
        >>> stream.poll(100, 0.1)
        [Message(partition=0, offset=1, key=b'customer/7', value=b'3.10', time=2000)]
    """
    if address.scheme_of(url, _ADDRESSES) == "memory":
        from vitok.engines.memory_topic import MemoryStream

        return MemoryStream(url, on_assign=on_assign, on_revoke=on_revoke, on_lost=on_lost)
    from vitok.engines.kafka import KafkaStream

    return KafkaStream(url, on_assign=on_assign, on_revoke=on_revoke, on_lost=on_lost)


def publish(url: str, messages: Iterable[Outgoing]) -> int:
    """Publishes messages to a topic and waits until they are kept; each is kept once, also where the network stumbles.

    Args:
        url: `kafka://host:port/topic`, or `memory://topic?n_partitions=2`, which makes the topic if it is not there.
        messages: In order; those of one key stay in that order.

    Returns:
        How many messages were published.

    Raises:
        InvalidInput: If the address is wrong or there is no such partition.
        StoreError: If some could not be published; the message says how many were.
        MissingExtra: If the client is not installed.
    """
    if address.scheme_of(url, _ADDRESSES) == "memory":
        from vitok.engines.memory_topic import MemoryTopic

        return MemoryTopic.named(url).publish(messages)
    from vitok.engines.kafka import publish as publish_to_kafka

    return publish_to_kafka(url, messages)


def chosen_partitions(place: address.Address, n: int) -> list[int]:
    """Reads `?partitions=` of an address: all, or numbers of partitions below `n`.

    Raises:
        InvalidInput: If it is neither, or comes with `?group=`.
    """
    text = place.options.get("partitions", "all")
    if "partitions" in place.options and place.options.get("group"):
        raise InvalidInput(
            "?partitions= of the address", text, "not come with ?group=", "A group shares out all of them"
        )
    if text == "all":
        return list(range(n))
    parts = [part for part in text.split(",") if part]
    if not parts or not all(part.isascii() and part.isdigit() and int(part) < n for part in parts):
        raise InvalidInput("?partitions= of the address", text, f"be 'all' or numbers of 0 to {n - 1}, such as 0,1")
    return sorted({int(part) for part in parts})


def starts_latest(place: address.Address) -> bool:
    """Reads `?start=` of an address.

    Raises:
        InvalidInput: If it is neither earliest nor latest.
    """
    start = place.options.get("start", "earliest")
    if start not in ("earliest", "latest"):
        raise InvalidInput("?start= of the address", start, "be earliest or latest")
    return start == "latest"


def check_positions(positions: Mapping[int, int], mine: Mapping[int, Any]) -> None:
    """Checks where a reader wants to go on.

    Raises:
        InvalidInput: If a partition is not the reader's, or an offset is negative.
    """
    for number, offset in positions.items():
        if number not in mine:
            owned = ", ".join(map(str, sorted(mine))) or "none"
            raise InvalidInput("partition", number, f"be one that this reader has now: {owned}")
        if offset < 0:
            raise InvalidInput(f"offset of partition {number}", offset, "be at least 0")


def out_of_range(topic: str, partition: int, position: int, first: int | None, end: int | None) -> StoreError:
    """Says that the messages at a position are not there, and what to do about it."""
    place = f"topic {topic!r}, partition {partition}: the next message to read is {position}"
    if first is not None and position < first:
        return StoreError(
            f"{place}, but the oldest one kept is {first}: {first - position} were deleted by retention before they "
            f"were read. Take them from the offline history, then seek to {first}; and let the topic keep more"
        )
    if end is not None and position > end:
        return StoreError(
            f"{place}, but the topic ends before {end}: it was made anew or lost messages. "
            "Rebuild the state from the offline history, then seek to where that ends"
        )
    return StoreError(
        f"{place}, which the topic does not keep: messages were deleted before they were read, or the topic was made "
        "anew. Rebuild the state from the offline history, then seek to where that ends"
    )
