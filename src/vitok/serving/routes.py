"""Which model version answers a unit: a fixed share goes to the canary, the same units each time."""

import functools
import hashlib
import threading
from dataclasses import dataclass, field
from typing import NamedTuple

from vitok.errors import InvalidInput

CACHED_UNITS = 65_536


class Assignment(NamedTuple):
    """Where one unit goes, and why: the fields `model_version`, `route` and `route_reason` of its decisions."""

    version: str
    route: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Route:
    """Splits units between a champion and a canary by a hash of the unit's key.

    A unit stays where it is as long as the salt stays. When the share grows, units only move from the champion to the
    canary; when it shrinks, only back. Another salt draws another sample, independent of the first.

    Attributes:
        champion: Version that answers by default, such as `"fraud/3"`.
        canary: Version on trial, or None.
        share: Share of the units that the canary answers, in [0, 1].
        salt: Names the draw; use one for each trial.

    Raises:
        InvalidInput: If the share is outside [0, 1], is above 0 without a canary, or the champion has no name.

    Example:
        >>> route = Route(champion="fraud/3", canary="fraud/4", share=0.1, salt="release-4")
        >>> route.assign("17").version
        'fraud/3'
        >>> route.assign("17").reason
        'hash of the unit is outside the 10 % of the canary fraud/4'
        >>> sum(route.assign(str(unit)).route == "canary" for unit in range(10_000))
        965
    """

    champion: str
    canary: str | None = None
    share: float = 0.0
    salt: str = ""
    _cache: dict[str, Assignment] = field(default_factory=dict, init=False, repr=False, compare=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.champion:
            raise InvalidInput("champion", self.champion, "name a model version")
        if not 0 <= self.share <= 1:
            raise InvalidInput("share", self.share, "be in [0, 1]", "For 10 % write 0.1")
        if self.share > 0 and self.canary is None:
            raise InvalidInput("share", self.share, "be 0 where there is no canary")

    def position(self, unit: str) -> float:
        """Returns the unit's place in [0, 1): it goes to the canary where this is below the share.

        The place is the first 53 of 64 bits of BLAKE2b (RFC 7693) over the salt, a zero byte and the key, so that
        any other program can draw the same sample.
        """
        digest = hashlib.blake2b(f"{self.salt}\0{unit}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
        return (int.from_bytes(digest, "big") >> 11) * 2.0**-53

    def assign(self, unit: str) -> Assignment:
        """Returns where a unit goes.

        Args:
            unit: Key of the unit, such as the customer's id; the empty string is a unit like any other.
        """
        known = self._cache.get(unit)
        if known is not None:
            return known
        return self._assign(unit)

    def _assign(self, unit: str) -> Assignment:
        champion, canary = self._both
        assignment = canary if self.share > 0 and self.position(unit) < self.share else champion
        with self._lock:
            if len(self._cache) >= CACHED_UNITS:
                self._cache.clear()
            self._cache[unit] = assignment
        return assignment

    @functools.cached_property
    def _both(self) -> tuple[Assignment, Assignment]:
        champion = Assignment(self.champion, "champion", "there is no canary")
        if self.canary is None or self.share == 0:
            return champion, champion
        share = f"the {100 * self.share:.6g} % of the canary {self.canary}"
        return (
            champion._replace(reason=f"hash of the unit is outside {share}"),
            Assignment(self.canary, "canary", f"hash of the unit is within {share}"),
        )
