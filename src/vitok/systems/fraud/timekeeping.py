"""The time of the service: which moments an event may have, and how events move the clock of a replay."""

from vitok.clock import MINUTE, Clock, EventClock, isoformat, parse_time

_END_OF_TIME = parse_time("3000-01-01")
_AHEAD = 5 * MINUTE


class Timekeeper:
    """Tells the present, and what is wrong with the time of an event.

    Args:
        clock: The system's clock, or an `EventClock` that the events move (for replays of the past).

    Example:
        >>> times = Timekeeper(EventClock())
        >>> times.advance(7)
        >>> times.now(), times.wrong(8), times.wrong(-1)
        (7, '', 'event_time: got -1 microseconds since 1970, must lie in the years 1970 to 2999')
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._moved = clock if isinstance(clock, EventClock) else None

    def now(self) -> int:
        """Returns the present, in microseconds."""
        return self.clock.now()

    def advance(self, moment: int) -> None:
        """Moves the clock of a replay to an event; the system's clock goes by itself."""
        if self._moved is not None:
            self._moved.advance(moment)

    def wrong(self, moment: int) -> str:
        """Says what is wrong with the time of an event; empty where nothing is."""
        if not 0 <= moment < _END_OF_TIME:
            return f"event_time: got {moment} microseconds since 1970, must lie in the years 1970 to 2999"
        if self._moved is None and moment > self.clock.now() + _AHEAD:
            now = isoformat(self.clock.now())
            return f"event_time: got {isoformat(moment)}, must not lie in the future (now {now})"
        return ""
