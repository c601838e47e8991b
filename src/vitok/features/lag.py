"""How far a reader of a stream is behind its end: in messages, and in seconds."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence

from vitok.clock import SECOND, Clock, SystemClock
from vitok.engines.event_stream import Message

_QUIET_S = 5.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lag:
    """How far a follower is behind at a moment.

    Attributes:
        source: Name of the source.
        messages: Messages, or offsets of a topic, that it has yet to take in; None while the stream has not said.
        seconds: How long its windows have lacked what the stream holds, at most; 0 at the end of the stream, None
            where it has not read anything since it started.
        failing: What fails now; "" where nothing does.
    """

    source: str
    messages: int | None
    seconds: float | None
    failing: str = ""

    def too_far(self, most_seconds: float | None) -> str:
        """Says why questions should go elsewhere, "" where they need not.

        Args:
            most_seconds: How far behind is good enough; None where any distance is.

        Example:
            >>> Lag(source="payments", messages=1_200, seconds=75.0).too_far(60.0)
            'payments is 75 s behind (1200 messages), more than 60 s'
        """
        if most_seconds is None or (self.seconds is not None and self.seconds <= most_seconds):
            return ""
        why = f"; it fails: {self.failing}" if self.failing else ""
        if self.seconds is None:
            return f"{self.source} has not been read yet{why}"
        return f"{self}, more than {most_seconds:g} s{why}"

    def __str__(self) -> str:
        if self.seconds is None:
            return f"{self.source} has not been read yet"
        if not self.seconds:
            return f"{self.source} is at its end"
        n = "" if self.messages is None else f" ({self.messages} messages)"
        return f"{self.source} is {self.seconds:.3g} s behind{n}"


class LagMeter:
    """Follows how far a reader is behind; one thread tells it, any thread asks.

    A stream that was quiet for an hour and then has a message is not an hour behind: the time since the reader was
    last at the end counts too, and the smaller of both is the answer. It grows also while the reader hangs.

    Args:
        source: Name of the source.
        clock: Tells the present, in the time of the messages.
        monotonic: Tells seconds that never go back.

    Example:
        >>> from vitok.clock import EventClock
        >>> meter = LagMeter("payments", clock=EventClock(10 * SECOND))
        >>> meter.took([Message(0, 7, None, b"{}", 8 * SECOND)])
        >>> meter.stepped({0: 4})
        >>> print(meter.lag())
        payments is 2 s behind (4 messages)
    """

    def __init__(
        self, source: str, *, clock: Clock | None = None, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._monotonic = monotonic
        self._source = source
        self._clock = clock or SystemClock()
        self._taken: dict[int, int] = {}
        self._behind: dict[int, int | None] = {}
        self._at_end: float | None = None
        self._moved = self._monotonic()
        self._failing = ""
        self._last: tuple[int | None, int | None] = (None, None)  # messages, time of what was taken last

    def took(self, messages: Sequence[Message]) -> None:
        """Notes messages that are taken in."""
        for message in messages:
            if message.time > 0:
                self._taken[message.partition] = message.time

    def stepped(self, behind: Mapping[int, int | None], *, n: int = 0) -> None:
        """Notes that the stream was asked without failing, and how much is left of each partition.

        Args:
            behind: Partition to what is left; None where nobody knows the end yet.
            n: How many messages came.
        """
        now = self._monotonic()
        known = dict(behind)
        if n or known != self._behind:
            self._moved = now
        self._behind = known
        self._failing = ""
        left = None if None in known.values() else sum(count or 0 for count in known.values())
        # What is left and does not come is no message: markers of transactions take offsets too.
        if left == 0 or (left is not None and now - self._moved >= _QUIET_S):
            self._at_end = now
            left = 0
        times = [self._taken.get(number) for number, count in known.items() if count != 0]
        self._last = left, min((moment for moment in times if moment is not None), default=None)

    def failed(self, reason: str) -> None:
        """Notes that the stream or the store fails."""
        self._failing = reason

    def lag(self) -> Lag:
        """Returns how far behind the reader is now."""
        messages, taken = self._last
        at_end = self._at_end
        since_end = None if at_end is None else self._monotonic() - at_end
        if messages == 0 and not self._failing and since_end is not None and since_end < 1.0:
            return Lag(source=self._source, messages=0, seconds=0.0)
        ages = [] if since_end is None else [since_end]
        if taken is not None:
            ages.append(max(0.0, (self._clock.now() - taken) / SECOND))
        return Lag(
            source=self._source,
            messages=None if self._failing else messages,
            seconds=min(ages, default=None),
            failing=self._failing,
        )
