"""The operator of a live service: a thread that watches and acts, and a process of its own for what takes long."""

import contextlib
import logging
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitok import monitoring
from vitok.clock import DAY, HOUR, Clock
from vitok.errors import ServiceError, VitokError
from vitok.loop import Durable, Incidents, Playbook, Switches, TriggerRules, Triggers
from vitok.monitoring.outbox import Channel
from vitok.monitoring.prometheus import Sample, alert_samples
from vitok.policies import Costs, TierPolicy
from vitok.registry import Registry
from vitok.systems.fraud.acting import actions, too_young
from vitok.systems.fraud.challenger import Challenger
from vitok.systems.fraud.evidence import FraudEvidence
from vitok.systems.fraud.log_merging import MergingApart
from vitok.systems.fraud.messages import SYSTEM
from vitok.systems.fraud.operations import Operator
from vitok.systems.fraud.overrides import Overrides

if TYPE_CHECKING:
    from vitok.systems.fraud.releases import Maker

_NICE = 10
_LOG = logging.getLogger("vitok.fraud")


class MakerApart:
    """Makes versions from the log of a home, in a process of its own, so that decisions do not wait for it.

    Args:
        home: The service's home folder.
        costs: What actions cost.
        label_delay: Age at which labels are known, microseconds.
        begins: Gives when the log begins, microseconds; None while it is empty.
    """

    def __init__(self, home: Path, *, costs: Costs, label_delay: int, begins: Callable[[], int | None]) -> None:
        self._home, self._costs, self._label_delay, self._begins = home, costs, label_delay, begins

    def lacks(self, now: int) -> str:
        """Says why no version can be made of the log; empty where one can be tried."""
        return too_young(self._start(now), now)

    def again(self, key: str, *, reason: str, at: int, changed: int | None) -> dict[str, Any]:
        """Makes a version of what is known at a time, as `Maker.again`.

        Raises:
            ServiceError: If the process fails or dies; the same key again goes on.
        """
        given = {"key": key, "reason": reason, "at": at, "changed": changed}
        return _apart(_again, self._home, self._costs, self._label_delay, self._start(at), given)

    def refit(self, key: str, *, champion: int, reason: str, at: int) -> dict[str, Any]:
        """Makes a version of the champion's trees and a new calibrator, as `Maker.refit`.

        Raises:
            ServiceError: If the process fails or dies; the same key again goes on.
        """
        given = {"key": key, "champion": champion, "reason": reason, "at": at}
        return _apart(_refit, self._home, self._costs, self._label_delay, self._start(at), given)

    def mirror(self) -> None:
        """Shows the stages of the versions in the tracking store.

        Raises:
            ServiceError: If the process fails or dies.
        """
        _apart(_mirror, self._home, self._costs, self._label_delay, 0)

    def _start(self, now: int) -> int:
        begins = self._begins()
        return now if begins is None else begins


def _apart(function: Callable[..., dict[str, Any]], *given: Any) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    # A daemon ends with this process; what it has begun is gone on with under the same key.
    process = context.Process(target=_run, args=(there, function, given), daemon=True)
    process.start()
    there.close()
    try:
        found: dict[str, Any] = here.recv()
    except EOFError:
        process.join()
        raise ServiceError(f"the process that makes versions ended with code {process.exitcode}") from None
    finally:
        here.close()
    process.join()
    if "failed" in found:
        raise ServiceError(f"making a version failed: {found['failed']}")
    return found


def _run(there: Connection, function: Callable[..., dict[str, Any]], given: tuple[Any, ...]) -> None:
    os.nice(_NICE)
    try:
        there.send(function(*given))
    except VitokError as error:
        there.send({"failed": str(error)})


@contextlib.contextmanager
def _maker(home: Path, costs: Costs, label_delay: int, start: int) -> "Iterator[Maker]":
    # What trains is imported in the process that does.
    from vitok.registry import Tracker
    from vitok.systems.fraud.releases import Maker, Workshop

    registry = Registry(home)
    try:
        workshop = Workshop.of_log(home, costs=costs, start=start)
        yield Maker(workshop, registry, Tracker(home), label_delay=label_delay)
    finally:
        registry.close()


def _again(home: Path, costs: Costs, label_delay: int, start: int, given: Mapping[str, Any]) -> dict[str, Any]:
    with _maker(home, costs, label_delay, start) as maker:
        return maker.again(**given)


def _refit(home: Path, costs: Costs, label_delay: int, start: int, given: Mapping[str, Any]) -> dict[str, Any]:
    with _maker(home, costs, label_delay, start) as maker:
        return maker.refit(**given)


def _mirror(home: Path, costs: Costs, label_delay: int, start: int) -> dict[str, Any]:
    with _maker(home, costs, label_delay, start) as maker:
        maker.mirror()
    return {}


class LiveOperator(Operator):
    """Watches and acts on a service whose decisions are of these days, as often as `round` is called.

    Args:
        home: The service's home folder.
        registry: Where versions stand.
        label_delay: Age at which labels are taken to be known, microseconds.
        triggers: When to retrain.
        channels: Ways to people, by name, and who is told what; a file in the home by default.
        merge: Whether small files of the log are merged once a day.

    Attributes:
        samples: The gauges as of the last round.
    """

    def __init__(
        self,
        home: Path,
        registry: Registry,
        *,
        label_delay: int,
        triggers: TriggerRules,
        channels: tuple[Mapping[str, Channel], monitoring.DeliveryRules] | None = None,
        merge: bool = True,
    ) -> None:
        costs = _costs(registry)
        maker = MakerApart(home, costs=costs, label_delay=label_delay, begins=self._begins)
        super().__init__(
            home,
            registry,
            maker,
            costs=costs,
            label_delay=label_delay,
            triggers=triggers,
            min_matured=label_delay,
            tell=lambda _moment, text: _LOG.info("%s", text),
            channels=channels,
            refit=maker.refit,
        )
        self.samples: tuple[Sample, ...] = ()
        self._merging = MergingApart(home, tell=self.tell) if merge else None
        self._challenger: Challenger | None = None
        self._learned_at = 0
        self._compared = 0

    def round(self, now: int) -> None:
        """Does what is due by now; what is due once a day or an hour is done once."""
        if self._merging is not None:
            self._merging.tick(now)
        self.catch_up()
        self.follow_up(now)
        live = self.is_live(now)
        if live:
            self.look(now)
            self._evaluate(now)
        self.answer(now)
        if now - self._learned_at >= HOUR or now < self._learned_at:
            self.challenge(now)
            self._learned_at = now
        self.recalibrate(now)
        self.retrain(now)
        self.delivery.tick(now)
        # Who gives the loop an order from the command line runs steps of this home too.
        self.durable.close()

    def challenge(self, now: int) -> None:
        """Lets the challenger learn, begins it anew where quality has fallen, and tells of it once a day.

        Nothing that is wrong with it keeps the champion from being watched.
        """
        try:
            found = self._challenger = self._challenger or Challenger(
                self.home, self.registry, label_delay=self.label_delay, costs=self.costs
            )
            for alert in self.alerts.open():
                if alert.rule == "quality":
                    found.restart(reason=alert.reason, now=now, key=f"alert/{alert.id}/{alert.first_seen}")
            if now // DAY == self._compared:
                found.hour(now)
            else:
                self.tell(now, str(found.day(now)))
                self._compared = now // DAY
        except VitokError as error:
            self.tell(now, f"the challenger cannot go on: {error}")

    def close(self) -> None:
        """Ends what runs in the background, and closes what is open."""
        if self._merging is not None:
            self._merging.close()
        super().close()

    def _evaluate(self, now: int) -> None:
        until = self.alerts.watched_until(SYSTEM) or self._begins()
        rules = monitoring.usual_rules(self.watch.rules)
        open_incidents = Sample(
            metric="vitok_incidents_open",
            labels={"system": SYSTEM},
            value=float(len(self.incidents.open(system=SYSTEM))),
        )
        found = (
            *alert_samples(self.alerts.open(), system=SYSTEM, watched_until=until, now=now),
            *self.alerts.windows(rules, system=SYSTEM),
            *self.delivery.samples(),
            open_incidents,
        )
        self.samples = found
        self.alerts.evaluate(rules, found, now=now)

    def _begins(self) -> int | None:
        hours = self.sketches.hours()
        return hours[0] if hours else None


@contextlib.contextmanager
def by_hand(home: Path, *, clock: Clock) -> Iterator[Playbook]:
    """Opens the playbook of a home for a person, who approves what was proposed or takes back what was done.

    Args:
        home: The service's home folder; a service that runs in it may go on.
        clock: Tells the time.
    """
    with contextlib.ExitStack() as stack:
        registry = Registry(home)
        stack.callback(registry.close)
        incidents, overrides = Incidents(home), Overrides(home)
        triggers = stack.enter_context(contextlib.closing(Triggers(home, TriggerRules())))
        sketches = stack.enter_context(contextlib.closing(monitoring.Sketches(home / "monitoring" / "sketches.sqlite")))
        alerts = stack.enter_context(contextlib.closing(monitoring.Alerts(home / "monitoring" / "alerts.sqlite")))
        may = actions(
            registry, incidents.records, overrides, triggers, clock=clock, lacks=lambda _: "", well=lambda _: ""
        )
        evidence = FraudEvidence(registry, sketches, alerts, overrides, lambda _: None, monitoring.WatchRules())
        durable = stack.enter_context(Durable(home))
        yield Playbook(incidents, may, evidence, durable=durable, switches=Switches(home))


def _costs(registry: Registry) -> Costs:
    state = registry.state(SYSTEM)
    if state.production is None:
        return Costs()
    return TierPolicy.from_dict(registry.load(SYSTEM, state.production).json("policy.json")).costs


class Gauges:
    """Hands what the operator's thread publishes to the page of metrics."""

    def __init__(self) -> None:
        self.samples: tuple[Sample, ...] = ()

    def read(self) -> Iterable[Sample]:
        """Returns the gauges as of the operator's last round; none before the first."""
        return self.samples


def operate(
    home: Path,
    *,
    clock: Clock,
    label_delay: int,
    stop: threading.Event,
    triggers: TriggerRules | None = None,
    channels: tuple[Mapping[str, Channel], monitoring.DeliveryRules] | None = None,
    gauges: Gauges | None = None,
    merge: bool = True,
    every: float = 30.0,
) -> None:
    """Watches a live service and acts on it until `stop` is set, a round every so many seconds.

    Made for a thread of its own. A fault is logged and the next round tries again: neither watching nor acting may
    stop decisions.

    Args:
        home: The service's home folder.
        clock: Tells the time.
        label_delay: Age at which labels are taken to be known, microseconds.
        stop: Ends it.
        triggers: When to retrain; by default on drift with a loss, and when the playbook or a person asks.
        channels: Ways to people, by name, and who is told what; a file in the home by default.
        gauges: Gets what is published after each round.
        merge: Whether small files of the log are merged once a day.
        every: Seconds between two rounds.
    """
    registry = Registry(home)
    operator: LiveOperator | None = None
    said = ""
    try:
        while not stop.wait(every):
            try:
                # What cannot be opened yet, such as a store that is being put back, is tried again too.
                operator = operator or LiveOperator(
                    home,
                    registry,
                    label_delay=label_delay,
                    triggers=triggers or TriggerRules(),
                    channels=channels,
                    merge=merge,
                )
                operator.round(clock.now())
                said = ""
            except VitokError as error:
                if str(error) != said:
                    _LOG.exception("operating %s failed; the next round tries again", home)
                said = str(error)
            if gauges is not None and operator is not None:
                gauges.samples = operator.samples
    finally:
        if operator is not None:
            operator.close()
        registry.close()
