"""Which versions answer: what the ledger and the overrides say, loaded beside the requests, put in force as a whole."""

import dataclasses
import logging
import threading
from collections.abc import Callable, Mapping

from vitok.clock import DAY, Clock, isoformat
from vitok.errors import StoreError, VitokError
from vitok.features import FeatureSet
from vitok.registry import ModelState, Registry
from vitok.serving import Breaker, BreakerRules, Fallback, Route
from vitok.systems.fraud import rules
from vitok.systems.fraud.messages import SYSTEM
from vitok.systems.fraud.model import LoadedModel
from vitok.systems.fraud.overrides import Override, Overrides, policy_under

PROBATION = 10 * DAY
"""So long after a promotion the version before is scored beside: the usual label delay, a week, and three days more."""
NO_MODEL = "no version is in Production"
_LOG = logging.getLogger("vitok.fraud")


@dataclasses.dataclass(frozen=True, kw_only=True)
class InForce:
    """The versions that answer, from one entry of the ledger to the next.

    Attributes:
        chain: Champion, the version before it, rules: who is asked until one answers.
        champion: The version in Production, or None.
        canary: The version on trial, or None.
        shadow: The newest version in Staging, of those made after the champion, where there is no canary; or None. It
            is scored, and never answers.
        previous: The version before the champion, or None.
        route: Which customers the canary answers; None without a champion.
        champion_absent: Why another version stands in for the one in Production; empty where none does.
        canary_absent: Whether there should be a canary, but it cannot be loaded.
        probation_end: Until when the version before is scored beside a new champion, microseconds.
        revision: The entry of the ledger that says so.
        overrides: What is other than the ledger says, for a while; it is in the versions' policies already.
    """

    chain: Fallback
    champion: LoadedModel | None = None
    canary: LoadedModel | None = None
    shadow: LoadedModel | None = None
    previous: LoadedModel | None = None
    route: Route | None = None
    champion_absent: str = ""
    canary_absent: bool = False
    probation_end: int = 0
    revision: int = -1
    overrides: tuple[Override, ...] = ()

    def model(self, version: str) -> LoadedModel | None:
        """Returns a version by its name; None for the rules."""
        for model in (self.champion, self.canary, self.shadow, self.previous):
            if model is not None and model.version == version:
                return model
        return None

    def beside(self, now: int) -> LoadedModel | None:
        """Returns what is scored beside the champion: canary, shadow, or the version before in the probation."""
        tried = self.canary or self.shadow
        if tried is not None:
            return tried
        return self.previous if now < self.probation_end else None


class Versions:
    """Follows the ledger and the overrides. `current` is read by the requests, `refresh` is called beside them.

    A version that cannot be loaded must not stop decisions: the one before it, or the rules, go on. Overrides that
    cannot be read are as good as none, since what was released is what people agreed on.

    Args:
        registry: Where versions stand and packages lie.
        features: What the service computes.
        slow_after: Seconds from which a call of a model counts as slow.
        count: Counts `model_load_failures` and `override_failures`.
        clock: Ends overrides; the service's.

    Attributes:
        current: What is in force.
    """

    def __init__(
        self,
        registry: Registry,
        features: FeatureSet,
        *,
        slow_after: float,
        count: Callable[[str, int], None],
        clock: Clock,
    ) -> None:
        self._registry = registry
        self._overrides = Overrides(registry.home)
        self._unread = ""
        self._clock = clock
        self._features = features
        self._breaker = BreakerRules(slow_after=slow_after)
        self._count = count
        self._rules = rules.as_target(features.names)
        self._refreshing = threading.Lock()
        self._released = self.current = InForce(chain=Fallback([self._rules]))

    def refresh(self) -> None:
        """Loads the versions that the ledger names by now, and puts them in force together, under the overrides.

        Raises:
            StoreError: If the ledger cannot be read.
        """
        with self._refreshing:
            revision = self._registry.ledger.revision()
            overrides = self._standing()
            if revision != self._released.revision:
                self._released = self._read(self._registry.ledger.state(SYSTEM), self._released, revision)
            elif overrides == self.current.overrides:
                return
            self.current = self._under(overrides)

    def problem(self) -> str:
        """Says why no model answers as the ledger wants it; empty where one does."""
        current = self.current
        if current.champion is None:
            return f"{current.champion_absent or NO_MODEL}; rules answer"
        if current.champion_absent:
            return f"{current.champion_absent}; {current.champion.version} answers"
        breaker = current.champion.target.breaker
        return "" if breaker.admits else f"{current.champion.version} is out: {breaker.reason}"

    def _standing(self) -> tuple[Override, ...]:
        try:
            found = self._overrides.standing(self._clock.now())
        except StoreError as error:
            # Asked many times a second; said once.
            if str(error) != self._unread:
                _LOG.exception("the overrides cannot be read; what was released answers")
                self._count("override_failures", 1)
            self._unread = str(error)
            return ()
        self._unread = ""
        return found

    def _under(self, overrides: tuple[Override, ...]) -> InForce:
        released = self._released
        for one in overrides:
            if one.action == "use_rules":
                told = f"the rules answer until {isoformat(one.until)}, by {one.who}: {one.why}"
                return InForce(
                    chain=Fallback([self._rules]),
                    champion_absent=told,
                    revision=released.revision,
                    overrides=overrides,
                )

        def adjusted(model: LoadedModel | None) -> LoadedModel | None:
            if model is None:
                return None
            policy = policy_under(model.policy, overrides)
            if policy is model.policy:
                return model
            return dataclasses.replace(model, policy=policy, policy_version=policy.version)

        return dataclasses.replace(
            released,
            champion=adjusted(released.champion),
            canary=adjusted(released.canary),
            shadow=adjusted(released.shadow),
            previous=adjusted(released.previous),
            overrides=overrides,
        )

    def _read(self, state: ModelState, before: InForce, revision: int) -> InForce:
        known = (before.champion, before.canary, before.shadow, before.previous)
        loaded = {model.version: model for model in known if model is not None}
        champion = self._load(state.production, "Production", loaded)
        canary = self._load(state.canary, "Staging", loaded) if state.canary_share else None
        # One that has stayed in Staging since before the champion was made takes no place from its probation.
        staged = max((one for one in state.staging if one > (state.production or 0)), default=None)
        shadow = self._load(None if state.canary_share else staged, "Staging", loaded)
        previous = self._load(state.previous, "Archived", loaded)
        absent = ""
        if champion is None and state.production is not None:
            champion = previous or before.champion
            absent = f"{SYSTEM}/{state.production} cannot be loaded"
        answering = {model.version: model.target for model in (champion, previous) if model is not None}
        route = None
        if champion is not None:
            name = None if canary is None else canary.version
            route = Route(
                champion=champion.version, canary=name, share=state.canary_share if name else 0, salt=name or ""
            )
        return InForce(
            chain=Fallback([*answering.values(), self._rules], name=SYSTEM, margin=0),
            champion=champion,
            canary=None if champion is None else canary,
            shadow=None if champion is None else shadow,
            previous=previous,
            route=route,
            champion_absent=absent,
            canary_absent=bool(state.canary_share) and canary is None,
            probation_end=self._probation(state.production),
            revision=revision,
        )

    def _probation(self, production: int | None) -> int:
        # 0 where there is no version before, or after a roll back.
        for entry in reversed(self._registry.ledger.history(SYSTEM)):
            if entry.kind == "promoted" and entry.version == production and entry.stage_to == "Production":
                return 0 if "rollback_of" in entry.details else entry.time_us + PROBATION
        return 0

    def _load(self, number: int | None, stage: str, loaded: Mapping[str, LoadedModel]) -> LoadedModel | None:
        if number is None:
            return None
        version = f"{SYSTEM}/{number}"
        if version in loaded:
            return dataclasses.replace(loaded[version], stage=stage)
        try:
            package = self._registry.load(SYSTEM, number)
            breaker = Breaker(self._breaker, seed=number)
            return LoadedModel.load(package, version, stage, self._features, breaker=breaker)
        except VitokError:
            _LOG.exception("model %s cannot be loaded", version)
            self._count("model_load_failures", 1)
            return None
