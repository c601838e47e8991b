"""What is done at three in the morning: triage, mitigation within bounds, and everything of it in the incident.

The order of things is fixed: an alert is filed, the causes are asked for, a measure is chosen, and only then something
is done, if nobody has switched it to "propose only" and no bound is reached. An action is written down before it is
taken and again afterwards, has an end where it can have one, and can be taken back.
"""

from collections.abc import Callable, Mapping
from typing import Any

from vitok.clock import DAY, isoformat
from vitok.errors import Conflict, InvalidInput, NotFound, VitokError
from vitok.loop.durable import Durable
from vitok.loop.incidents import Incidents, RaisedAlert, events, facts_of, standing
from vitok.loop.playbook_actions import LASTING, VERBS, Actions, Bound, Measure, Order, measures, usual_bounds, words
from vitok.loop.records import Record, RecordEntry
from vitok.loop.switches import Switches
from vitok.loop.triage import Evidence, TriageRules, triage

LOOP = "loop"


class Playbook:
    """Answers alerts, for one system.

    Args:
        incidents: Where everything is written down.
        actions: What may be done.
        evidence: What the system knows of itself.
        durable: Runs the steps so that a crash between any two repeats none that was finished.
        switches: What is only proposed.
        rules: How alerts are read.
        bounds: How often, how far and how long, by action.
    """

    def __init__(
        self,
        incidents: Incidents,
        actions: Actions,
        evidence: Evidence,
        *,
        durable: Durable,
        switches: Switches,
        rules: TriageRules | None = None,
        bounds: Mapping[str, Bound] | None = None,
    ) -> None:
        self._incidents = incidents
        self._actions = actions
        self._evidence = evidence
        self._durable = durable
        self._switches = switches
        self._rules = rules or TriageRules()
        self._bounds = {**usual_bounds(), **(bounds or {})}

    def respond(self, alert: RaisedAlert, *, now: int) -> Record:
        """Files an alert, asks for its causes, and does or proposes what follows; once for each alert.

        After a crash, the same call goes on where it stopped, so call it for each open alert at each tick.

        Args:
            alert: An alert that was raised.
            now: The present, in microseconds.

        Returns:
            The incident, which stays open.

        Raises:
            StoreError: If nothing can be written down; then nothing is done either.
        """
        facts = facts_of(alert)
        # Not by its number alone, which comes again in another file of alerts.
        key = f"playbook/{facts['system']}/{alert.id}/{isoformat(facts['first_seen'])}"

        def file(_: dict[str, Any]) -> dict[str, Any]:
            return {"incident": self._incidents.report(alert, now=now).record_id}

        def ask(done: dict[str, Any]) -> dict[str, Any]:
            found = triage(facts, self._evidence, now=now, rules=self._rules)
            chosen = [measure.to_dict() for measure in measures(facts, found, self._rules)]
            data = {"event": "triage", "alert": alert.id, "measures": chosen, **found.to_dict()}
            self._incidents.records.add(
                self._incidents.follow(done["incident"]).record_id,
                f"triage of alert {alert.id}: {found}",
                now=now,
                data=data,
                key=f"{key}/triage",
            )
            return {"measures": chosen, "rollback_to": found.rollback_to}

        done = self._durable.run(key, [("file", file), ("triage", ask)])
        for chosen in done["measures"]:
            measure = Measure(**chosen)
            to = done["rollback_to"] if measure.action == "rollback" else ""
            self._take(f"{key}/{measure.action}", done["incident"], facts, measure, to=to, now=now)
        return self._incidents.follow(done["incident"])

    def approve(self, incident: str, key: str, *, who: str, now: int) -> Record:
        """Does what was only proposed, because a person says so; bounds do not hold, the log does.

        What failed, or was done and taken back, is done anew under a key of its own.

        Args:
            incident: The incident.
            key: The key of the proposal, or of what the loop tried and could not do, as the timeline has it.
            who: Who says so.
            now: The present, in microseconds.

        Raises:
            NotFound: If there is no such proposal.
            InvalidInput: If nobody is named.
        """
        if not who.strip():
            raise InvalidInput("who", who, "not be empty")
        record = self._incidents.follow(incident)
        proposals = {entry.data["order"]["key"]: entry for entry in events(record, "proposal")}
        over = [entry.data["order"]["key"] for entry in events(record, "failed")]
        over += [entry.data["of"] for entry in events(record, "undone")]
        proposals |= {
            entry.data["order"]["key"]: entry
            for entry in events(record, "intent")
            if entry.data["order"]["key"] in over
        }
        if key not in proposals:
            raise NotFound("proposal", key, proposals)
        entry = proposals[key]
        times = sum(one == key or one.startswith(f"{key}/again/") for one in over)
        new = f"{key}/again/{times}" if times else key
        until = self._end(entry.data["action"], now)
        order = Order(**{**entry.data["order"], "key": new, "now": now, "until": until})
        self._act(entry.data["action"], order, actor=who)
        return self._incidents.follow(incident)

    def expire(self, *, now: int) -> tuple[str, ...]:
        """Takes back what has come to its end; call it every minute.

        What cannot be taken back is written down once, holds nothing else up, and is tried again the next time.

        Returns:
            The keys of what was taken back.
        """
        ended = []
        for record in self._incidents.records.list("incident"):
            for entry in standing(record):
                until = entry.data["order"]["until"]
                if until is None or until > now:
                    continue
                key = entry.data["order"]["key"]
                try:
                    self._take_back(record, entry, why="its time is over", who=LOOP, now=now)
                except VitokError as error:
                    text = f"{LOOP} could not take back {words(entry.data['action'], Order(**entry.data['order']))}"
                    text += f", whose time is over: {error}. Take it back by hand; it is tried again"
                    data = {"event": "stuck", "of": key, "error": str(error)}
                    home = self._incidents.follow(record.record_id)
                    self._incidents.records.add(home.record_id, text, now=now, data=data, key=f"{key}/stuck")
                else:
                    ended.append(key)
        return tuple(ended)

    def undo(self, incident: str, key: str, *, who: str, why: str, now: int) -> Record:
        """Takes an action back by hand.

        Raises:
            NotFound: If no such action stands.
        """
        record = self._incidents.follow(incident)
        done = {entry.data["order"]["key"]: entry for entry in standing(record)}
        if key not in done:
            raise NotFound("standing action", key, done)
        self._take_back(record, done[key], why=why, who=who, now=now)
        return self._incidents.follow(incident)

    def _take(self, key: str, incident: str, facts: Mapping[str, Any], measure: Measure, *, to: str, now: int) -> None:
        """Decides whether a measure is taken or proposed, writes that down, and takes it."""

        def decide(_: dict[str, Any]) -> dict[str, Any]:
            record = self._incidents.follow(incident)
            by, held = self._allowed(measure.action, facts["system"], key, now)
            stands = any(entry.data["action"] == measure.action for entry in standing(record))
            if stands and measure.action in LASTING:
                held = held or f"it was done in {record.record_id} already and stands"
            order = Order(
                key=key,
                incident=record.record_id,
                system=facts["system"],
                version=facts["version"],
                reason=f"{record.record_id}: {measure.why} ({facts['rule']}: {facts['reason']})",
                now=now,
                by=by,
                until=self._end(measure.action, now),
                to=to,
            )
            event, text = ("intent", "is about to") if not held else ("proposal", "proposes to")
            data = {"event": event, "action": measure.action, "order": order.to_dict(), "held": held}
            text = f"{LOOP} {text} {words(measure.action, order)}: {measure.why}"
            if held:
                text += f"; not done, since {held}"
            self._incidents.records.add(record.record_id, text, now=now, data=data, key=f"{key}/{event}")
            return {"order": order.to_dict(), "held": held}

        done = self._durable.run(key, [("decide", decide)])
        if not done["held"]:
            self._act(measure.action, Order(**done["order"]), actor=LOOP)

    def _allowed(self, action: str, system: str, key: str, now: int) -> tuple[float, str]:
        """Returns how far an action may go, and why it is only proposed; empty where it may be done."""
        bound = self._bounds[action]
        if self._actions.of(action) is None:
            return bound.by, f"{system} cannot {VERBS[action]} by itself"
        switch = self._switches.holds(action)
        if switch is not None:
            return bound.by, f"{switch.action} is only proposed, by {switch.who}: {switch.why}"
        times, far = [], 0.0
        for record in self._incidents.records.list("incident"):
            own = [
                entry
                for entry in events(record, "intent")
                if entry.data["action"] == action
                and entry.data["order"]["system"] == system
                and entry.data["order"]["key"] != key
            ]
            times += [entry.time_us for entry in own]
            # Also what was begun and is not written down as done, as before a crash.
            over = {entry.data["order"]["key"] for kind in ("action", "failed") for entry in events(record, kind)}
            begun = [entry for entry in own if entry.data["order"]["key"] not in over]
            done = [entry for entry in standing(record) if entry.data["order"]["system"] == system]
            far += sum(entry.data["order"]["by"] for entry in (*done, *begun) if entry.data["action"] == action)
        for span, most, often in ((DAY, bound.per_day, "a day"), (7 * DAY, bound.per_week, "a week")):
            count = sum(now - span < time for time in times)
            if count >= most:
                return bound.by, f"it may be done {most} times {often} and was done {count} times"
        if not bound.by:
            return 0.0, ""
        left = bound.total - far
        if left <= 0:
            return bound.by, f"it may go {bound.total:g} far altogether and stands at {far:g}"
        return min(bound.by, left), ""

    def _end(self, action: str, now: int) -> int | None:
        lasts = self._bounds[action].lasts
        return None if lasts is None else now + lasts

    def _act(self, action: str, order: Order, *, actor: str) -> None:
        chosen = self._actions.of(action)
        if chosen is None:
            raise Conflict(f"{order.system} does not let the loop {VERBS[action]}; do it by hand")

        def do(_: dict[str, Any]) -> dict[str, Any]:
            return _attempt(lambda: chosen.do(order))

        def write(done: dict[str, Any]) -> dict[str, Any]:
            failed = done.get("error")
            text = (
                f"{actor} did {words(action, order)}"
                if failed is None
                else f"{actor} could not {VERBS[action]}: {failed}"
            )
            if failed is None and order.until is not None:
                text += f", until {isoformat(order.until)}"
            data = {
                "event": "action" if failed is None else "failed",
                "action": action,
                "order": order.to_dict(),
                "actor": actor,
                **done,
            }
            record = self._incidents.follow(order.incident)
            self._incidents.records.add(record.record_id, text, now=order.now, data=data, key=f"{order.key}/done")
            return {}

        self._durable.run(f"{order.key}/act", [("do", do), ("write", write)])

    def _take_back(self, record: Record, entry: RecordEntry, *, why: str, who: str, now: int) -> None:
        action, order = entry.data["action"], Order(**entry.data["order"])
        chosen = self._actions.of(action)
        if chosen is None:
            raise Conflict(f"{order.system} does not let the loop take this back; do it by hand")

        def undo(_: dict[str, Any]) -> dict[str, Any]:
            chosen.undo(order, entry.data["result"])
            return {}

        def write(_: dict[str, Any]) -> dict[str, Any]:
            data = {"event": "undone", "action": action, "of": order.key, "who": who}
            text = f"{who} took back {words(action, order)}: {why}"
            home = self._incidents.follow(record.record_id)
            self._incidents.records.add(home.record_id, text, now=now, data=data, key=f"{order.key}/undone")
            return {}

        self._durable.run(f"{order.key}/undo", [("undo", undo), ("write", write)])


def _attempt(do: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    # An error is a result like another: it is written down and not tried again without a person.
    try:
        return {"result": dict(do())}
    except VitokError as error:
        return {"error": str(error)}
