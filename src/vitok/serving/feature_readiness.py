"""Whether the feature service should be asked: how its store stands, and how far its streams are behind."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from vitok.clock import SECOND, duration
from vitok.features.lag import Lag

if TYPE_CHECKING:
    from vitok.features.served_writer import ServedWriter
    from vitok.serving.feature_service import FeatureEndpoint

MOST_BEHIND = "1m"


class Follows(Protocol):
    """What keeps windows up to date, such as `vitok.features.live.Follower`."""

    @property
    def lag(self) -> Lag:
        """How far it is behind now."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReadyReport:
    """How the service stands at a moment.

    Attributes:
        reasons: Why it should not be asked; empty where it should.
        store: Feature set to the circuit of its store: closed, open or probing.
        streams: How far each follower is behind.
        served: What is told of the counts of served vectors; empty where nothing is counted.
    """

    reasons: tuple[str, ...]
    store: dict[str, str]
    streams: tuple[Lag, ...] = ()
    served: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def ready(self) -> bool:
        """Whether the service should be asked."""
        return not self.reasons

    def to_dict(self) -> dict[str, Any]:
        """Returns the body of an answer to `GET /readyz`."""
        told: dict[str, Any] = {"status": "ok" if self.ready else "degraded", "store": self.store}
        if self.reasons:
            told["reasons"] = list(self.reasons)
        if self.streams:
            told["streams"] = {
                lag.source: {"behind_messages": lag.messages, "behind_s": lag.seconds, "failing": lag.failing}
                for lag in self.streams
            }
        return told | ({"served": self.served} if self.served else {})

    def __str__(self) -> str:
        return "; ".join(self.reasons) or "ready"


class Readiness:
    """Says whether a feature service should be asked, to HTTP and gRPC alike.

    Counts of served vectors that cannot be kept are told of and do no harm to readiness: the answers are right.

    Args:
        endpoints: The feature sets.
        followers: What keeps windows up to date in this process.
        served: What keeps counts of served vectors, if anything does.
        most_behind: How far a stream may be behind; "" for any distance, which suits those who would rather have old
            values than none.

    Example:
        >>> class Slow:
        ...     lag = Lag(source="payments", messages=7, seconds=90.0)
        >>> print(Readiness([], [Slow()]).report())
        payments is 90 s behind (7 messages), more than 60 s
    """

    def __init__(
        self,
        endpoints: "Sequence[FeatureEndpoint]",
        followers: Sequence[Follows] = (),
        *,
        served: "ServedWriter | None" = None,
        most_behind: str | int = MOST_BEHIND,
    ) -> None:
        self._endpoints = tuple(endpoints)
        self._followers = tuple(followers)
        self._served = served
        self._most_s = duration(most_behind) / SECOND if most_behind != "" else None
        self._listeners: list[Callable[[bool], None]] = []
        self._told: bool | None = None

    def listen(self, listener: Callable[[bool], None]) -> None:
        """Has a function called by the next report, and by each one that says something else than the one before."""
        self._listeners.append(listener)
        self._told = None

    def report(self) -> ReadyReport:
        """Looks at the store and the streams, and tells those who listen of a change; asks no other machine."""
        circuits, reasons = {}, []
        for endpoint in self._endpoints:
            counters = getattr(endpoint.reader, "counters", None)
            circuit = circuits[endpoint.name] = getattr(counters, "circuit", "closed")
            if circuit != "closed":
                why = getattr(counters, "last_error", "") or "it does not answer"
                reasons.append(f"the store of {endpoint.name} is {circuit}: {why}")
        lags = tuple(follower.lag for follower in self._followers)
        reasons += [why for lag in lags if (why := lag.too_far(self._most_s))]
        served: dict[str, Any] = {}
        if self._served is not None:
            served = {"written": self._served.n_saved, "failed": self._served.n_failed}
            if self._served.last_error:
                served["error"] = self._served.last_error
        found = ReadyReport(reasons=tuple(reasons), store=circuits, streams=lags, served=served)
        if found.ready is not self._told:
            self._told = found.ready
            for listener in self._listeners:
                listener(found.ready)
        return found
