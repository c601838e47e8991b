"""The challenger: a model that learns from every outcome as it comes, in shadow beside the champion.

    challenger = Challenger(home, registry, label_delay=7 * DAY)
    print(challenger.hour(now))       # learns what has become known, and shows the service its newest snapshot
    print(challenger.day(now))        # the same, and how it does against the champion

It runs beside the service and reads its logs: labels are joined late, in the order of the decisions, with one over the
propensity of what was let pass. Everything that it knows lies in one file, which is replaced as a whole; killed at any
moment and started again it comes to the same weights, in every bit. `challenger_serving` is its side in the service,
`challenger_standing` what is compared, `challenger_release` how it becomes a version.
"""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vitok import decisions
from vitok.clock import DAY, HOUR, MINUTE, isoformat
from vitok.decisions.segments import segments
from vitok.errors import Conflict, InvalidInput, NotFound, StoreError
from vitok.features import FeatureSet
from vitok.loop import Records
from vitok.models.online import OnlineModel
from vitok.models.online_features import Buckets, Cross, HashedFeatures
from vitok.models.online_ftrl import Rates
from vitok.models.online_learning import LearningRules, LogLearner
from vitok.models.online_state import content_name, read_content, write_state
from vitok.models.online_validation import ProgressiveScore, ProgressiveValidation
from vitok.monitoring import ReferenceProfile
from vitok.policies import Costs, TierPolicy
from vitok.registry import Registry
from vitok.stats import Estimate
from vitok.stats.detectors_adwin import ADWIN
from vitok.stats.results import Result
from vitok.systems.fraud.challenger_serving import FOLDER, SERVING, SNAPSHOTS
from vitok.systems.fraud.challenger_standing import COLUMNS, Standing, Tally, standing
from vitok.systems.fraud.features import FEATURES
from vitok.systems.fraud.messages import CHALLENGER, OUTCOME_KIND, SYSTEM

if TYPE_CHECKING:
    import polars as pl

    from vitok.systems.fraud.training import Sample

LEARNER, START = "learner.online", "start.online"
CROSSES = (
    ("amount", "amount_to_mean"),
    ("customer_count_1d", "amount_to_mean"),
    ("terminal_labels_count_7d", "terminal_labels_risk_7d"),
)
_MOST_NOTES = 200


@dataclass(frozen=True, kw_only=True)
class ChallengerRules:
    """How the challenger learns, and what begins it anew. Times are microseconds.

    Attributes:
        rates: Of FTRL-Proximal.
        grace: How much longer than the label delay an outcome is waited for, above 0: then none means no fraud.
        correct_for: For how long after that an outcome still puts a decision right.
        slack: The longest time from the moment that an outcome is learned of until it is in the log.
        publish_every: Least time from one snapshot to the next; what was learned after it is learned again from the
            log where a crash comes between, to the same bits.
        check_every: Decisions from one look at the detector to the next; looks lie at the same decisions whoever
            calls when.
        mark_every: Looks from one mark to the next. A mark is a snapshot that it can begin anew from.
        marks: How many marks are kept.
        delta: Error probability of the detector (ADWIN, on the squared error of what was predicted before it was
            learned) at one look, in (0, 1).
        memory: Share of its squared gradients that a model keeps when it begins anew, 0 to 1.
        keep: How long snapshots are kept, for replays.
        trailing: Length of the period that is compared.
        min_positives: Frauds that a challenger must have been compared on before it can be called better.
    """

    rates: Rates = dataclasses.field(default_factory=lambda: Rates(alpha=0.1, beta=1.0, l1=0.1))
    grace: int = DAY
    correct_for: int = 30 * DAY
    slack: int = MINUTE
    publish_every: int = 6 * HOUR
    check_every: int = 256
    mark_every: int = 8
    marks: int = 64
    delta: float = 0.002
    memory: float = 0.1
    keep: int = 30 * DAY
    trailing: int = 14 * DAY
    min_positives: int = 50

    def __post_init__(self) -> None:
        for name in ("grace", "check_every", "mark_every", "marks", "keep", "trailing"):
            if not getattr(self, name) > 0:
                raise InvalidInput(name, getattr(self, name), "be above 0")
        if self.slack < 0:
            raise InvalidInput("slack", self.slack, "be at least 0")


@dataclass(frozen=True, kw_only=True)
class Restarted(Result):
    """The challenger has begun anew.

    Attributes:
        at: Time that it had reached, in microseconds.
        decisions: How many decisions it had gone through.
        reason: Why, in words.
        start: The snapshot that it went on from, from before its loss rose; or `"the start"`.
    """

    at: int
    decisions: int
    reason: str
    start: str

    def __str__(self) -> str:
        return f"the challenger began anew from {self.start}: {self.reason}"


@dataclass(frozen=True, kw_only=True)
class ChallengerHour(Result):
    """What an hour has brought.

    Attributes:
        version: What its newest snapshot is called in the log; None before there is one.
        learned: Decisions that were learned.
        positives: Of those, frauds.
        corrected: Decisions that a later outcome has put right.
        restarts: Where it has begun anew.
    """

    version: str | None
    learned: int
    positives: int
    corrected: int
    restarts: tuple[Restarted, ...] = ()

    def __str__(self) -> str:
        if self.version is None:
            return "no challenger: it begins with the first version in Production"
        told = f"{self.version} learned {self.learned:,} decisions, {self.positives:,} frauds"
        if self.corrected:
            told += f"; {self.corrected:,} put right"
        return "; ".join([told, *map(str, self.restarts)])


@dataclass(frozen=True, kw_only=True)
class ChallengerDay(Result):
    """What a day has brought, and how the challenger does.

    Attributes:
        hour: What was learned.
        progressive: How well decisions were predicted before they were learned, lately; None before there are any.
        standing: The challenger against the champion on the latest decisions whose labels are known; None where
            there are none that both scored.
        cost_difference: What a decision costs more with the challenger, over all looks since it began; the interval
            holds at all of them together.
        better: Whether it may be called better: it is certainly cheaper, on enough frauds.
    """

    hour: ChallengerHour
    progressive: ProgressiveScore | None
    standing: Standing | None
    cost_difference: Estimate
    better: bool

    def __str__(self) -> str:
        lines = [str(self.hour)]
        if self.progressive is not None:
            lines.append(f"before learning: {self.progressive}")
        if self.standing is not None:
            lines.append(str(self.standing))
        if self.cost_difference.n_obs:
            lines.append(f"over all looks: {self.cost_difference}" + ("; it is better" if self.better else ""))
        return "\n".join(lines)


def declared(profile: ReferenceProfile, *, bits: int = 16) -> HashedFeatures:
    """Returns what the challenger sees of a row: each column of a version's profile in its frozen bins, and crosses.

    Edges are rounded to 32 bits, which is how a version in the registry gets its rows.
    """
    found: list[Buckets | Cross] = []
    for name, frozen in zip(profile.names, profile.edges[:-1], strict=True):
        edges = np.unique(np.array(frozen.edges, np.float32)).astype(np.float64)
        edges = edges[np.isfinite(edges)]
        if len(edges):
            found.append(Buckets(name, tuple(edges.tolist())))
    known = {item.name for item in found}
    found += [Cross(names) for names in CROSSES if set(names) <= known]
    if not found:
        raise InvalidInput("profile", profile.names, "have a column of more than one value")
    return HashedFeatures(features=tuple(found), bits=bits)


class Challenger:
    """Learns beside the service, one process a home.

    It begins with the version in Production: with the bins of its profile, and with what the history says, or with
    the share of frauds that the version expects where there is none.

    Args:
        home: The service's home folder; the challenger writes below `challenger`.
        registry: Where versions stand.
        label_delay: Age at which labels are known, in microseconds.
        costs: What actions cost.
        history: Rows from before the log begins, by time; those with labels are learned first. Read once, when the
            challenger begins.
        rules: How it learns.

    Raises:
        Conflict: If a challenger that learned by other rules lies in the folder.
        StoreError: If its files are damaged.
    """

    def __init__(
        self,
        home: Path,
        registry: Registry,
        *,
        label_delay: int,
        costs: Costs | None = None,
        history: "Sample | None" = None,
        rules: ChallengerRules | None = None,
        features: FeatureSet = FEATURES,
    ) -> None:
        self.home = home
        self.registry = registry
        self.rules = rules or ChallengerRules()
        self.features = features
        self.costs = costs or Costs()
        self._folder = home / FOLDER
        self._maturity = label_delay + self.rules.grace
        self._history = history
        self._records = Records(home)
        self._learner: LogLearner | None = None
        self._detector = ADWIN(delta=self.rules.delta, worse="higher", after_change="keep")
        # Rows that were learned, also before it began anew; and since which of them the loss has been higher.
        self._n_seen = 0
        self._worse_since: int | None = None
        if (self._folder / LEARNER).exists():
            self._go_on()

    @property
    def model(self) -> OnlineModel | None:
        """The model as it is now; None before it has begun."""
        return None if self._learner is None else self._learner.model

    def snapshot(self) -> OnlineModel | None:
        """Returns a copy of the model, which does not change when the challenger goes on; None before it has begun."""
        return None if self._learner is None else OnlineModel.from_bytes(_packed(self._learner.model)[1])

    def cost_difference(self) -> Tally:
        """Returns what was counted of the costs of both, over all looks."""
        return Tally(until=0) if self._learner is None else Tally(**self._learner.notes["tally"])

    @property
    def version(self) -> str | None:
        """What the newest snapshot is called in the log; None before there is one."""
        published = [] if self._learner is None else self._learner.notes["published"]
        return f"{CHALLENGER}/{published[-1][1]}" if published else None

    @property
    def restarts(self) -> tuple[Restarted, ...]:
        """Where it has begun anew, the latest last."""
        notes = [] if self._learner is None else self._learner.notes["restarts"]
        return tuple(Restarted(**item) for item in notes)

    def policy(self) -> TierPolicy | None:
        """Returns the policy of the version in Production; None where none is."""
        number = self.registry.state(SYSTEM).production
        return None if number is None else TierPolicy.from_dict(self.registry.load(SYSTEM, number).json("policy.json"))

    # Each hour

    def hour(self, now: int) -> ChallengerHour:
        """Learns what has become known by now, and puts the newest snapshot where the service takes it.

        Made for each hour; called more often it learns sooner, and the service gets its snapshots as often as before.

        Args:
            now: The present, in microseconds.

        Raises:
            StoreError: If a log cannot be read, or a file not be written; what was there before goes on.
        """
        if self._learner is None and not self._begin():
            return ChallengerHour(version=None, learned=0, positives=0, corrected=0)
        learner = self._learner
        assert learner is not None  # noqa: S101
        rules, before, n_restarts = self.rules, learner.counts, len(self.restarts)
        with self._whole():
            self._advance(learner, now - rules.slack)
            published, news = learner.notes["published"], learner.notes["shown"] != _done(learner)
            due = not published or now - published[-1][0] >= rules.publish_every
            if not published or len(self.restarts) > n_restarts or (news and due):
                self._publish(learner, now)
        counts = learner.counts
        return ChallengerHour(
            version=self.version,
            learned=counts.learned - before.learned,
            positives=counts.positives - before.positives,
            corrected=counts.corrected - before.corrected,
            restarts=self.restarts[n_restarts:],
        )

    def _advance(self, learner: LogLearner, as_of: int) -> None:
        every = self.rules.check_every
        while True:
            before = learner.counts.decisions
            done = learner.advance(as_of=as_of, max_decisions=every - before % every).decisions
            if done == before or done % every:
                return
            # Only here, so that where it begins anew does not depend on when somebody looked.
            if self._worse_since is not None:
                since, self._worse_since = self._worse_since, None
                reason = f"its loss has risen since the decision that it learned as number {since:,}"
                self._restart(learner, reason, since=since, key=f"decision {done}")
            if done % (every * self.rules.mark_every) == 0:
                name, content = _packed(learner.model)
                write_state(self._snapshot(name), content)
                marks = [*learner.notes["marks"], [self._n_seen, learner.reached, name]]
                learner.notes["marks"] = marks[-self.rules.marks :]

    def _seen(self, p: NDArray[np.float64], labels: NDArray[np.float64]) -> None:
        # The squared error: proper, so that a model that gets better cannot lose by it, and in [0, 1] as the detector
        # wants its numbers. A log loss has no bound, and one that is cut off is not proper.
        losses = (p - labels) ** 2
        for loss in losses.tolist():
            self._n_seen += 1
            # One by one: the width says since when only at the alarm itself.
            if self._detector.update(loss) and self._worse_since is None:
                self._worse_since = self._n_seen - self._detector.width

    @contextlib.contextmanager
    def _whole(self) -> Iterator[None]:
        # What could not be written to its end has not happened: the next call begins where the last one that was
        # written has ended, as it would after a crash.
        try:
            yield
        except StoreError:
            self._go_on()
            raise

    # Beginning anew

    def restart(self, *, reason: str, now: int, key: str) -> Restarted | None:
        """Begins anew for a reason from outside: an alert of the watch about quality, labels found to be poisoned.

        Args:
            reason: Why, in words.
            now: The present, in microseconds. What was learned in the time that a label takes is forgotten.
            key: The same key again does nothing, such as the alert's.

        Returns:
            What was done; None where the key was used before, or nothing has begun.
        """
        learner = self._learner
        if learner is None or key in learner.notes["keys"]:
            return None
        past = [item[0] for item in learner.notes["marks"] if item[1] <= now - self._maturity]
        with self._whole():
            done = self._restart(learner, reason, since=past[-1] if past else 0, key=key)
            learner.notes["keys"] = [*learner.notes["keys"], key][-_MOST_NOTES:]
            self._publish(learner, now)
        return done

    def _restart(self, learner: LogLearner, reason: str, *, since: int, key: str) -> Restarted:
        name = next((item[2] for item in reversed(learner.notes["marks"]) if item[0] <= since), None)
        path = self._folder / START if name is None else self._snapshot(name)
        learner.model.warm_restart(path, memory=self.rules.memory)
        self._detector.reset()
        done = Restarted(
            at=learner.reached,
            decisions=learner.counts.decisions,
            reason=reason,
            start="the start" if name is None else f"{CHALLENGER}/{name}",
        )
        learner.notes["restarts"] = [*learner.notes["restarts"], done.to_dict()][-_MOST_NOTES:]
        # By the key: what is done again after a crash is written once.
        record = self._records.open(
            "incident",
            "the challenger began anew",
            system=SYSTEM,
            version=CHALLENGER,
            now=max(done.at, 0),
            why=reason,
            details=done.to_dict(),
            key=f"{CHALLENGER}/{key}",
        )
        if record.is_open:
            self._records.close(record.record_id, str(done), now=max(done.at, 0))
        return done

    # Each day

    def day(self, now: int) -> ChallengerDay:
        """Learns as `hour` does, and compares with the champion on the decisions whose labels are known by now.

        Args:
            now: The present, in microseconds.
        """
        hour = self.hour(now)
        learner, policy = self._learner, self.policy()
        if learner is None or policy is None:
            empty = Tally(until=0).difference()
            return ChallengerDay(hour=hour, progressive=None, standing=None, cost_difference=empty, better=False)
        until = self.matured(now)
        tally = self.cost_difference()
        found = None
        rows = self._labelled(min(tally.until, until - self.rules.trailing), until, now)
        if rows is not None:
            import polars as pl

            def within(since: int) -> "pl.DataFrame":
                moment = pl.lit(max(since, 0)).cast(pl.Datetime("us", "UTC"))
                return rows.filter(pl.col("event_time") >= moment)

            if until > tally.until:
                fresh = within(tally.until)
                tally = tally.added(fresh, policy=policy, costs=self.costs, until=until)
                learner.notes["tally"] = tally.to_dict()
                self._save(learner)
            since = until - self.rules.trailing
            found = standing(within(since), policy=policy, costs=self.costs, since=since, until=until)
        difference = tally.difference()
        progressive = learner.model.validation.score() if learner.counts.learned else None
        return ChallengerDay(
            hour=hour,
            progressive=progressive,
            standing=found,
            cost_difference=difference,
            better=tally.n_positives >= self.rules.min_positives and difference.upper < 0,
        )

    def matured(self, now: int) -> int:
        """Returns the event time up to which labels are taken to be known, at a day's beginning, in microseconds."""
        return (now - self._maturity) // DAY * DAY

    def labelled(self, since: int, until: int, as_of: int, columns: Sequence[str] = COLUMNS) -> "pl.DataFrame":
        """Returns decisions of `[since, until)` with `label`, null where it is not known at `as_of`.

        Raises:
            NotFound: If there are none.
        """
        found = self._labelled(since, until, as_of, columns)
        if found is None:
            raise NotFound("decisions", f"from {isoformat(max(since, 0))} to {isoformat(max(until, 0))}")
        return found

    def _labelled(self, since: int, until: int, as_of: int, columns: Sequence[str] = COLUMNS) -> "pl.DataFrame | None":
        logged, outcomes = self._log("decisions"), self._log("outcomes")
        if until <= since or not (_begun(logged) and _begun(outcomes)):
            return None
        rows = decisions.read(logged, since=max(since, 0), until=max(until, 1), columns=columns)
        if rows.is_empty():
            return None
        return decisions.join(rows, decisions.labels(outcomes, as_of=as_of, kind=OUTCOME_KIND))

    # Files

    def _begin(self) -> bool:
        number = self.registry.state(SYSTEM).production
        if number is None:
            return False
        package = self.registry.load(SYSTEM, number)
        profile = ReferenceProfile.from_dict(package.json("profile.json"))
        model = OnlineModel(declared(profile), rates=self.rules.rates)
        edges, counts = profile.edges[-1], profile.counts[-1].astype(np.float64)
        known = np.isfinite(np.array(edges.centers))
        expected = float(counts[known] @ np.array(edges.centers)[known] / max(counts[known].sum(), 1.0))
        rate = min(max(expected, 1e-6), 1 - 1e-6)
        model.start_from_batch({"constant": math.log(rate / (1 - rate))})
        if self._history is not None:
            known = np.isfinite(self._history.is_fraud)
            rows = {name: column[known] for name, column in self._history.columns(self.features).items()}
            model.learn_many(rows, self._history.is_fraud[known])
            model.validation = ProgressiveValidation(half_lives=model.validation.half_lives)
        policy = TierPolicy.from_dict(package.json("policy.json"))
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / SNAPSHOTS).mkdir(exist_ok=True)
        model.save(self._folder / START)
        most = 1 / policy.pass_through if policy.pass_through else 1.0
        learner = LogLearner(
            model,
            self._learning(most),
            decisions=self._log("decisions"),
            outcomes=self._log("outcomes"),
            learned=self._seen,
        )
        learner.notes = {
            "published": [],
            "shown": [0, 0],
            "marks": [],
            "restarts": [],
            "keys": [],
            "most_weight": most,
            "tally": Tally(until=0).to_dict(),
        }
        self._save(learner)
        self._learner = learner
        return True

    def _go_on(self) -> None:
        path = self._folder / LEARNER
        learner = LogLearner.load(
            path, decisions=self._log("decisions"), outcomes=self._log("outcomes"), learned=self._seen
        )
        notes = learner.notes
        try:
            wanted = self._learning(float(notes["most_weight"]))
            self._detector = ADWIN.from_bytes(bytes.fromhex(notes["detector"]))
            self._n_seen, self._worse_since = int(notes["seen"]), notes["worse_since"]
        except (KeyError, TypeError, ValueError, InvalidInput) as error:
            raise StoreError(f"{path}: is no snapshot of a challenger ({error!r})") from None
        if learner.rules != wanted or learner.model.ftrl.rates != self.rules.rates:
            raise Conflict(
                f"{path}: was learned by {learner.rules} and {learner.model.ftrl.rates}, and {wanted} and "
                f"{self.rules.rates} are wanted; move the folder {self._folder} away to start anew"
            )
        self._learner = learner
        if notes["published"]:
            # A crash may have come between the learner's file and the service's.
            content = read_content(self._snapshot(notes["published"][-1][1]))
            serving = self._folder / SERVING
            if not serving.exists() or serving.read_bytes() != content:
                write_state(serving, content)

    def _learning(self, most_weight: float) -> LearningRules:
        return LearningRules(
            kind=OUTCOME_KIND,
            maturity=self._maturity,
            correct_for=self.rules.correct_for,
            censored=("block",),
            most_weight=most_weight,
        )

    def _log(self, name: str) -> Path:
        return self.home / "log" / name

    def _snapshot(self, name: str) -> Path:
        return self._folder / SNAPSHOTS / f"{name}.online"

    def _publish(self, learner: LogLearner, now: int) -> None:
        # First where a replay finds it, then in the learner's own file, then where the service takes it: whatever is
        # in the log can be found again, wherever a crash comes between.
        name, content = _packed(learner.model)
        write_state(self._snapshot(name), content)
        published = [item for item in learner.notes["published"] if item[1] != name]
        learner.notes["shown"] = _done(learner)
        learner.notes["published"] = [*(item for item in published if item[0] > now - self.rules.keep), [now, name]]
        self._save(learner)
        write_state(self._folder / SERVING, content)
        names = {item[-1] for kind in ("published", "marks") for item in learner.notes[kind]}
        for path in (self._folder / SNAPSHOTS).glob("*.online"):
            if path.stem not in names:
                with contextlib.suppress(OSError):
                    path.unlink()

    def _save(self, learner: LogLearner) -> None:
        learner.notes |= {
            "detector": self._detector.to_bytes().hex(),
            "seen": self._n_seen,
            "worse_since": self._worse_since,
        }
        learner.save(self._folder / LEARNER)


def _packed(model: OnlineModel) -> tuple[str, bytes]:
    # What a service needs of a model: weights and calibrator, and nothing that was counted.
    counted = ProgressiveValidation(half_lives=(math.inf,))
    found = OnlineModel(model.features, rates=model.ftrl.rates, validation=counted)
    found.ftrl, found.calibrator = model.ftrl, model.calibrator
    content = found.to_bytes()
    return content_name(content), content


def _done(learner: LogLearner) -> list[int]:
    return [learner.counts.decisions, learner.counts.corrected]


def _begun(folder: Path) -> bool:
    return folder.is_dir() and bool(segments(folder))
