"""Kafka, or what speaks its protocol, as a stream of events; the client is librdkafka's.

Offsets live with the reader's state. What is committed to the group is for displays of lag only and never decides
where to begin; a position that the topic no longer keeps is an error, never a jump.
"""

import logging
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vitok.engines import address
from vitok.engines.address import Address
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
from vitok.errors import InvalidInput, MissingExtra, StoreError

if TYPE_CHECKING:
    import confluent_kafka

_SECURITY = ("plaintext", "ssl", "sasl_plaintext", "sasl_ssl")
_CONNECTION = ("timeout_ms", "security", "mechanism", "ca", "cert", "key")
OPTIONS = ("group", "partitions", "start", "max_poll_ms", "session_ms", *_CONNECTION)
_TOO_SLOW = "was given to other readers as nobody polled for too long: poll more often or raise ?max_poll_ms="
_LOG = logging.getLogger(__name__)
_LOG.addHandler(logging.NullHandler())  # what matters is raised; who wants every lost connection sets a handler
_EARLIEST, _LATEST = -2, -1  # of librdkafka, in place of an offset
_LEAST_CHECK = 0.05
_GRACE = 2.0  # seconds after which the client has surely seen what it checks once a second


class KafkaStream:
    """Reads a topic of Kafka, as a member of a group or by itself; see `open_stream` for the callbacks.

    Args:
        url: `kafka://user:password@host:port,host:port/topic`. Options: `group` or `partitions`; `start`;
            `timeout_ms` to wait for the servers when opening (10,000); `max_poll_ms` between polls before the group
            takes the partitions away (300,000); `session_ms` without a sign of life before it does (45,000);
            `security` (plaintext, ssl, sasl_plaintext, sasl_ssl), `mechanism`
            (PLAIN, SCRAM-SHA-256, SCRAM-SHA-512), and the files `ca`, `cert` and `key` for TLS.
        on_assign: See `open_stream`. An exception of a callback comes out of `poll`; close the stream then.
        on_revoke: See `open_stream`.
        on_lost: See `open_stream`.

    Raises:
        InvalidInput: If the address is wrong.
        StoreError: If no server can be reached or there is no such topic.
        MissingExtra: If the client is not installed.
    """

    def __init__(
        self,
        url: str,
        *,
        on_assign: OnAssign | None = None,
        on_revoke: OnRevoke | None = None,
        on_lost: OnRevoke | None = None,
    ) -> None:
        self._client = _client()
        place = address.remote(url, 9092, OPTIONS)
        self._servers, self._topic = place.servers, _topic_of(place, url)
        self._start = _LATEST if starts_latest(place) else _EARLIEST
        self._on_assign, self._on_revoke = on_assign, on_revoke
        self._on_lost = on_lost or on_revoke
        self._next: dict[int, int] = {}
        self._revoked: set[int] = set()
        self._polled = time.monotonic()
        self._broken: dict[int, StoreError] = {}
        self._down = self._closed = False
        self._refused = ""
        group = place.options.get("group", "")
        session = place.whole_number("session_ms", 45_000)
        max_poll = max(session, place.whole_number("max_poll_ms", 300_000))
        self._consumer = _made(
            self._client.Consumer,
            place,
            {
                "group.id": group or f"vitok-{uuid.uuid4()}",
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "auto.offset.reset": "error",
                # Partitions that stay with a reader stay in work while others move.
                "partition.assignment.strategy": "cooperative-sticky",
                "allow.auto.create.topics": False,
                "max.poll.interval.ms": max_poll,
                "session.timeout.ms": session,
                "heartbeat.interval.ms": max(1, min(3000, session // 3)),
                "fetch.queue.backoff.ms": 50,
                "fetch.wait.max.ms": 100,  # also how long a seek waits for the request under way
                "reconnect.backoff.max.ms": 1000,
                "error_cb": self._noticed,
            },
        )
        try:
            n = _count_partitions(self._consumer, place, self._topic)
            wanted = chosen_partitions(place, n)
        except BaseException:
            self._consumer.close()
            raise
        self._idle = max_poll / 1000 + _GRACE
        self._wanted = () if group else tuple(wanted)
        self._in_group = bool(group)
        if group:
            self._consumer.subscribe(
                [self._topic], on_assign=self._assigned, on_revoke=self._revoking, on_lost=self._losing
            )

    def poll(self, max_messages: int, timeout_seconds: float) -> list[Message]:
        """Returns the next messages as soon as there are some, none after the timeout.

        Raises:
            StoreError: If no server can be reached, the servers refuse, or messages at a position are no longer kept.
        """
        if self._closed:
            raise StoreError(f"the stream of {self._name()} is closed: open it again")
        if max_messages < 1:
            raise InvalidInput("max_messages", max_messages, "be at least 1")
        self._revoked.clear()
        if self._wanted and not self._next:
            self._assigned(self._consumer, [self._at(number, _EARLIEST) for number in self._wanted])
        self._expire()
        for error in self._broken.values():
            raise error
        try:
            first = self._consumer.poll(0 if self._down else timeout_seconds)
            if first is None and self._down:
                self._look_again(min(1.0, timeout_seconds))
                first = self._consumer.poll(0)
            batch = [] if first is None else [first]
            if batch and max_messages > 1:
                # `consume` alone would wait until it has all it was asked for.
                batch += self._consumer.consume(max_messages - 1, 0)
        except self._client.KafkaException as error:
            raise self._failed(error.args[0]) from error
        found = self._unpacked(batch)
        if not found:
            for broken in self._broken.values():
                raise broken
            if self._refused:
                text, self._refused = self._refused, ""
                raise StoreError(text)
        return found

    def seek(self, positions: Mapping[int, int]) -> None:
        """Sets the next offset of some partitions that this reader has.

        Raises:
            InvalidInput: If it does not have one of them, or an offset is negative.
            StoreError: If the client refuses.
        """
        if self._wanted and not self._next:
            self._assigned(self._consumer, [self._at(number, _EARLIEST) for number in self._wanted])
        check_positions(positions, self._next)
        self._move(positions)

    def report(self) -> None:
        """Tells the group how far this reader is, for displays of its lag; nothing begins there.

        Does nothing where there is no group. Does not wait, and does not raise if the servers are away.
        """
        places = [self._at(number, offset) for number, offset in self._next.items() if offset >= 0]
        if self._in_group and places and not self._closed:
            self._consumer.commit(offsets=places, asynchronous=True)

    def behind(self) -> dict[int, int | None]:
        """Returns how many offsets of each partition lie before its end; None where no server has said it yet.

        Asks nobody: the end came with the last messages, or with the answer that there are none. Markers of
        transactions are offsets too, so that some may stay that no message comes for.
        """
        return {number: self._left(number, offset) for number, offset in self._next.items()}

    def _left(self, number: int, offset: int) -> int | None:
        if offset == _LATEST:
            return 0
        try:
            known = self._consumer.get_watermark_offsets(self._at(number, _EARLIEST), cached=True)
        except self._client.KafkaException:
            return None
        # Before the first message the client alone knows where it begins: then all that the topic ever had.
        return None if known is None or known[1] < 0 else max(0, known[1] - max(offset, 0))

    def close(self) -> None:
        """Gives the partitions back, which calls `on_revoke`, and closes the connections."""
        if self._closed:
            return
        self._closed = True
        try:
            if not self._in_group and self._next and self._on_revoke:
                self._on_revoke(sorted(self._next))
        finally:
            self._consumer.close()

    def _unpacked(self, batch: Sequence["confluent_kafka.Message"]) -> list[Message]:
        found: list[Message] = []
        follows, eof = self._next, self._client.KafkaError._PARTITION_EOF  # noqa: SLF001 - how the client spells it
        for message in batch:
            error = message.error()
            number = message.partition()
            if error is not None:
                if error.code() != eof:
                    self._note(error, number)
                continue
            offset = message.offset()
            # Not mine any more, given back and got again within this call, or fetched before a seek.
            if number is None or offset is None or number in self._revoked or offset < follows.get(number, 1 << 63):
                continue
            follows[number] = offset + 1
            kind, milliseconds = message.timestamp()
            moment = milliseconds * 1000 if kind else 0
            found.append(Message(number, offset, _bytes(message.key()), _bytes(message.value()) or b"", moment))
        if found:
            self._down = False
        # What was dropped of a partition that came back must be read once more.
        again = {number: follows[number] for number in self._revoked & follows.keys()}
        if again:
            self._move(again)
        return found

    def _expire(self) -> None:
        now = time.monotonic()
        expired = self._in_group and self._next and now - self._polled > self._idle
        self._polled = now
        if expired:
            # The client tells of it only after what was fetched before, when another reader long has the partitions.
            self._lose()
            raise StoreError(f"{self._name()} {_TOO_SLOW}")

    def _lose(self) -> None:
        gone = sorted(self._next)
        self._next.clear()
        self._broken.clear()
        self._revoked.update(gone)
        if gone and self._on_lost:
            self._on_lost(gone)

    def _note(self, error: "confluent_kafka.KafkaError", number: int | None) -> None:
        if error.code() == self._client.KafkaError._AUTO_OFFSET_RESET and number is not None:  # noqa: SLF001
            try:
                first, end = self._consumer.get_watermark_offsets(self._at(number, _EARLIEST), timeout=1.0)
            except self._client.KafkaException:
                first, end = None, None
            self._broken[number] = out_of_range(self._topic, number, self._next.get(number, 0), first, end)
            return
        if error.code() == self._client.KafkaError._MAX_POLL_EXCEEDED:  # noqa: SLF001
            self._lose()
        self._refused = self._refused or str(self._failed(error))

    def _assigned(self, consumer: Any, partitions: Sequence["confluent_kafka.TopicPartition"]) -> None:
        new = sorted(place.partition for place in partitions)
        positions = self._on_assign(new) if self._on_assign and new else {}
        check_positions(positions, dict.fromkeys(new))
        places = {number: positions.get(number, self._start) for number in new}
        consumer.incremental_assign([self._at(number, offset) for number, offset in places.items()])
        self._next |= places

    def _revoking(self, consumer: Any, partitions: Sequence["confluent_kafka.TopicPartition"]) -> None:
        self._let_go(consumer, partitions, self._on_revoke)

    def _losing(self, consumer: Any, partitions: Sequence["confluent_kafka.TopicPartition"]) -> None:
        self._let_go(consumer, partitions, self._on_lost)

    def _let_go(
        self, consumer: Any, partitions: Sequence["confluent_kafka.TopicPartition"], told: OnRevoke | None
    ) -> None:
        gone = sorted(place.partition for place in partitions if place.partition in self._next)
        try:
            if gone and told:
                told(gone)
        finally:
            for number in gone:
                del self._next[number]
                self._broken.pop(number, None)
            self._revoked.update(gone)
            consumer.incremental_unassign(partitions)

    def _move(self, positions: Mapping[int, int]) -> None:
        places = [self._at(number, offset) for number, offset in positions.items()]
        try:
            self._consumer.incremental_unassign(places)
            self._consumer.incremental_assign(places)
        except self._client.KafkaException as error:
            raise self._failed(error.args[0]) from error
        self._next.update(positions)
        for number in positions:
            self._broken.pop(number, None)

    def _at(self, number: int, offset: int) -> "confluent_kafka.TopicPartition":
        return self._client.TopicPartition(self._topic, number, offset)

    def _noticed(self, error: "confluent_kafka.KafkaError") -> None:
        # Called within poll. A lost connection mends itself where there is another server; poll finds out.
        codes = self._client.KafkaError
        if error.code() in (codes._ALL_BROKERS_DOWN, codes._TRANSPORT, codes._RESOLVE):  # noqa: SLF001
            self._down = True
        elif error.code() in (codes._AUTHENTICATION, codes._SSL) or error.fatal():  # noqa: SLF001
            self._refused = str(self._failed(error))

    def _look_again(self, seconds: float) -> None:
        try:
            self._consumer.list_topics(self._topic, timeout=max(_LEAST_CHECK, seconds))
        except self._client.KafkaException as error:
            raise _unreachable(self._servers, error) from error
        self._down = False

    def _name(self) -> str:
        return f"topic {self._topic!r} at {self._servers}"

    def _failed(self, error: Any) -> StoreError:
        codes = self._client.KafkaError
        code, text = error.code(), error.str()
        if code in (codes.UNKNOWN_TOPIC_OR_PART, codes._UNKNOWN_TOPIC, codes._UNKNOWN_PARTITION):  # noqa: SLF001
            said = "is not there (any more): create it, then open the stream again"
        elif code == codes._MAX_POLL_EXCEEDED:  # noqa: SLF001
            said = _TOO_SLOW
        elif code in (codes._AUTHENTICATION, codes.SASL_AUTHENTICATION_FAILED):  # noqa: SLF001
            said = f"wants another user or password ({text}): write them as kafka://user:password@host/topic"
        elif code in (codes.TOPIC_AUTHORIZATION_FAILED, codes.GROUP_AUTHORIZATION_FAILED):
            said = f"is forbidden to this user ({text}): allow reading the topic and the group"
        else:
            said = f"could not be read: {text}"
        return StoreError(f"{self._name()} {said}")


def publish(url: str, messages: Iterable[Outgoing]) -> int:
    """Publishes messages to a topic of Kafka and waits until all its servers that must have them do.

    Keys choose partitions as the clients for Java do (murmur2), so that all publishers agree.

    Args:
        url: `kafka://host:port/topic`; `timeout_ms` (10,000) says how long to try, the other options are those of
            the connection.
        messages: In order.

    Returns:
        How many were published.

    Raises:
        InvalidInput: If the address is wrong or there is no such partition.
        StoreError: If some could not be published.
        MissingExtra: If the client is not installed.
    """
    client = _client()
    place = address.remote(url, 9092, _CONNECTION)
    topic = _topic_of(place, url)
    patience = place.whole_number("timeout_ms", 10_000)
    settings = {
        "enable.idempotence": True,
        "partitioner": "murmur2_random",
        "linger.ms": 5,
        "message.timeout.ms": patience,
        "queue.buffering.max.messages": 1_000_000,
    }
    producer = _made(client.Producer, place, settings)
    n = _count_partitions(producer, place, topic)
    delivered, failures = 0, list[str]()

    def told(error: "confluent_kafka.KafkaError | None", _: "confluent_kafka.Message") -> None:
        nonlocal delivered
        if error is None:
            delivered += 1
        else:
            failures.append(error.str())

    count = 0
    for key, value, moment, partition in messages:
        if not -1 <= partition < n:
            producer.flush(patience / 1000)
            raise InvalidInput("partition", partition, f"be one of 0 to {n - 1}, or -1 for that of the key")
        milliseconds = (moment or time.time_ns() // 1000) // 1000
        for _ in range(2):
            try:
                producer.produce(
                    topic, value=value, key=key, partition=partition, on_delivery=told, timestamp=milliseconds
                )
                break
            except BufferError:
                producer.flush(patience / 1000)  # the queue is full: what is in it goes first
            except client.KafkaException as error:
                failures.append(error.args[0].str())
                break
        count += 1
        if count % 1000 == 0:
            producer.poll(0)
    # Each message gives up by itself after its own timeout, so this ends.
    producer.flush(patience / 1000 + 5)
    if delivered < count:
        reason = failures[0] if failures else "no answer"
        raise StoreError(
            f"topic {topic!r} at {place.servers} took {delivered} of {count} messages ({reason}): see that the "
            "servers run and take messages of that size, then publish the others again"
        )
    return delivered


def _client() -> Any:
    try:
        import confluent_kafka
    except ImportError:
        raise MissingExtra("kafka", "a stream at a kafka:// address") from None
    return confluent_kafka


def _topic_of(place: Address, url: str) -> str:
    name = place.path
    if not name or len(name) > 249 or not all(c.isascii() and (c.isalnum() or c in "._-") for c in name):
        raise InvalidInput(
            "address",
            address.hidden(url),
            "name a topic of letters, digits, '.', '_' and '-'",
            "Try kafka://host/topic",
        )
    return name


def _made(kind: Any, place: Address, settings: dict[str, Any]) -> Any:
    security = place.options.get("security", "sasl_ssl" if place.user else "plaintext")
    if security not in _SECURITY:
        raise InvalidInput("?security= of the address", security, "be one of " + ", ".join(_SECURITY))
    settings |= {"bootstrap.servers": place.servers, "security.protocol": security}
    if security.startswith("sasl"):
        mechanism = place.options.get("mechanism", "PLAIN")
        settings |= {"sasl.mechanism": mechanism, "sasl.username": place.user, "sasl.password": place.password}
    for option, name in (("ca", "ssl.ca.location"), ("cert", "ssl.certificate.location"), ("key", "ssl.key.location")):
        if option in place.options:
            settings[name] = place.options[option]
    client = _client()
    try:
        return kind(settings, logger=_LOG)
    except client.KafkaException as error:
        raise InvalidInput("address", place, f"suit the client: {error.args[0].str()}") from error


def _count_partitions(handle: Any, place: Address, topic: str) -> int:
    client = _client()
    try:
        # All topics: a question about one makes the broker create it.
        found = handle.list_topics(timeout=place.whole_number("timeout_ms", 10_000) / 1000).topics.get(topic)
    except client.KafkaException as error:
        raise _unreachable(place.servers, error) from error
    if found is None or found.error is not None or not found.partitions:
        reason = f" ({found.error.str()})" if found is not None and found.error is not None else ""
        raise StoreError(f"topic {topic!r} at {place.servers} is not there{reason}: create it, then try again")
    return len(found.partitions)


def _unreachable(servers: str, error: Exception) -> StoreError:
    return StoreError(
        f"no Kafka server at {servers} can be reached ({error.args[0].str()}): see that they run, that the address, "
        "user and password are right, and that each server's advertised address can be reached from here"
    )


def _bytes(content: Any) -> bytes | None:
    return content.encode() if isinstance(content, str) else content
