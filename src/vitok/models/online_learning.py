"""Learning from the two logs: decisions in their order, each once its outcome is known or it is too late for one.

Outcomes come late and out of order, so there must be a rule for what a model learns next, and the rule must not depend
on when somebody looked. The rule, with all times in microseconds:

1. Decisions are learned in the order of the log, one after another; in a log that several processes write
   (`shared=True`) that is the order of ingest time and decision id.
2. An outcome is *learned of* at its ingest time, or at that of an outcome before it in the log where a clock went back.
3. A decision is *resolved* when its first outcome is learned of, or at its event time plus the maturity, whichever is
   earlier. It is learned when it and all before it are resolved.
4. The label is that of the last outcome learned of by then; without one it is 0, or, where the action let no outcome
   come (`censored`), the decision is left out.
5. An outcome that comes after its decision was learned and says otherwise puts the gradient right (`Ftrl.correct`), for
   as long as `correct_for` says; it comes before the next decision that is learned at its time or later.

So the weights follow from the two logs and the time that has been reached. A learner that is killed and goes on from
a snapshot, or starts anew, comes to the same weights in every bit.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from vitok.clock import isoformat
from vitok.decisions.reading import find
from vitok.errors import Conflict, InvalidInput, StoreError
from vitok.features.fingerprints import fingerprint_texts
from vitok.models.online import OnlineModel
from vitok.models.online_heard import Heard
from vitok.models.online_memory import Learned
from vitok.models.online_order import NEVER, DecisionOrder, OutcomeOrder
from vitok.models.online_sampling import NegativeSampling
from vitok.models.online_state import pack_state, read_state, write_state
from vitok.stats.results import Result

if TYPE_CHECKING:
    import polars as pl

_Floats = NDArray[np.float64]
_Times = NDArray[np.int64]
_CHUNK = 8192
_FEATURE = "f_"
_LAST = 2**63 - 1


@dataclass(frozen=True, kw_only=True)
class LearningRules:
    """From which outcomes a model learns, and when.

    Attributes:
        kind: Kind of the outcome, such as `"fraud"`; a value of 0.5 or more is a positive.
        maturity: Age, from the event time of a decision, at which no outcome means 0; microseconds, above 0.
        correct_for: For how long after a decision was learned an outcome puts it right, in microseconds; 0 never.
            The learner remembers each decision so long: 40 bytes in a snapshot, some 100 in memory.
        negative_rate: Share of the negatives that is learned, with the weight 1 / share; in (0, 1].
        censored: Actions after which no outcome can come, such as `"block"`: learned only where one came all the same.
        most_weight: Decisions are weighted by 1 / propensity up to this, which undoes a randomised choice of what gets
            an outcome; at least 1, which weights nothing.
        slice_by: Column whose values are the slices of progressive validation; None for none.

    Example:
        >>> LearningRules(kind="fraud", maturity=7 * 86_400_000_000, negative_rate=0.1).to_dict()["negative_rate"]
        0.1
    """

    kind: str
    maturity: int
    correct_for: int = 0
    negative_rate: float = 1.0
    censored: tuple[str, ...] = ()
    most_weight: float = 1.0
    slice_by: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "censored", tuple(self.censored))
        NegativeSampling(self.negative_rate)
        if self.maturity <= 0:
            raise InvalidInput("maturity", self.maturity, "be microseconds above 0")
        if self.correct_for < 0:
            raise InvalidInput("correct_for", self.correct_for, "be microseconds, from 0")
        if not 1 <= self.most_weight < math.inf:
            raise InvalidInput("most_weight", self.most_weight, "be at least 1 and finite")

    @property
    def memory(self) -> int:
        """For how long an outcome is kept for a decision, in microseconds; the same for a repeated delivery."""
        return 2 * self.maturity + self.correct_for

    def to_dict(self) -> dict[str, Any]:
        """Returns what JSON can hold."""
        return {**asdict(self), "censored": list(self.censored)}


@dataclass(frozen=True, kw_only=True)
class LearningCounts(Result):
    """What a learner has done with the decisions it has gone through.

    Attributes:
        decisions: Gone through.
        learned: Of those, learned.
        positives: Of the learned, with label 1.
        timed_out: Of the learned, with label 0 because no outcome came in time.
        censored: Left out because their action let no outcome come.
        left_out: Negatives left out by subsampling.
        repeated: Left out because the same request had been learned before.
        corrected: Put right by an outcome that came afterwards.
        uncorrected: Not put right, because the decision was not to be found any more.
        late: Outcomes that came to the log after the caller had promised that all up to their time were there. With
            any of them, a replay may come to other weights. A decision that comes so late to a shared log is left out.
    """

    decisions: int = 0
    learned: int = 0
    positives: int = 0
    timed_out: int = 0
    censored: int = 0
    left_out: int = 0
    repeated: int = 0
    corrected: int = 0
    uncorrected: int = 0
    late: int = 0

    def __str__(self) -> str:
        return (
            f"{self.decisions:,} decisions: {self.learned:,} learned ({self.positives:,} positive, "
            f"{self.timed_out:,} timed out), {self.censored:,} censored, {self.left_out:,} left out, "
            f"{self.repeated:,} repeated; {self.corrected:,} corrected, {self.uncorrected:,} not to be found; "
            f"{self.late:,} outcomes too late"
        )


class LogLearner:
    """Brings a model up to what the logs say, by the rule of this module.

    Columns of the decision log are the rows: features of the log by their own names (the log's `f_` before them may be
    left out), then fields of the request and entities. One process learns; those that serve follow its snapshots.

    Args:
        model: Starts as it is.
        rules: From what it learns.
        decisions: Folder of the decision log.
        outcomes: Folder of the outcome log.
        learned: Gets what was predicted of rows before they were learned, and their labels, each of shape (n,), in the
            order in which they were learned: for a detector. How rows are cut into calls says nothing.

    Attributes:
        model: The model.
        rules: As given.
        notes: What the caller keeps in the snapshots beside the learner, as JSON can hold it: so that the state of
            whatever goes with it is as old as the weights.
        counts: What has been done.
        reached: Time at which the last decision was learned, in microseconds; very negative before the first.
        lacking: Columns of the features that some part of the log did not have, and that were missing values there.
    """

    def __init__(
        self,
        model: OnlineModel,
        rules: LearningRules,
        *,
        decisions: str | Path,
        outcomes: str | Path,
        learned: Callable[[_Floats, _Floats], object] | None = None,
    ) -> None:
        self.model = model
        self.rules = rules
        self.notes: dict[str, Any] = {}
        self._learned = learned
        self.counts = LearningCounts()
        self.reached = NEVER
        self.lacking: set[str] = set()
        self._folder = Path(decisions)
        self._decisions = DecisionOrder(decisions)
        self._outcomes = OutcomeOrder(outcomes)
        self._sampling = NegativeSampling(rules.negative_rate)
        self._chunk: _Chunk | None = None
        self._done = 0
        self._heard = Heard(memory=rules.memory)
        self._told = self._seen = self._promised = NEVER
        self._memory = Learned()

    def advance(self, *, as_of: int | None = None, max_decisions: int | None = None) -> LearningCounts:
        """Learns every decision whose time has come.

        Args:
            as_of: The caller's word that every outcome learned of by this time is in the log, in microseconds: the
                present less the longest time that an outcome takes from its ingest time to the log; of logs that
                several processes write, every decision too. None takes only what the outcome log itself proves, the
                time of its last row; with a log that rests, or is shared, nothing is learned.
            max_decisions: Stop after so many; a later call goes on.

        Returns:
            `counts`.

        Raises:
            InvalidInput: If `max_decisions` is below 1.
        """
        if max_decisions is not None and max_decisions < 1:
            raise InvalidInput("max_decisions", max_decisions, "be at least 1 or None")
        self._hear(as_of)
        # The last row's own time may come again; what lies before it cannot.
        until = max(self._promised, self._told - 1)
        left = max_decisions
        while left is None or left > 0:
            chunk = self._read()
            if chunk is None:
                break
            times = self._times(chunk, until, left)
            n = int(np.searchsorted(times, until, side="right"))
            if n == 0:
                break
            self._learn(chunk, self._done, self._done + n, times[:n])
            self._done += n
            left = None if left is None else left - n
        return self.counts

    def _hear(self, as_of: int | None) -> None:
        before = self._promised
        if as_of is not None:
            self._promised = max(before, as_of)
        outcomes, late = self._outcomes.read(self._promised, before)
        if outcomes:
            told = np.maximum.accumulate(np.array([self._told, *(outcome[0] for outcome in outcomes)]))
            # Other kinds tell the time as well.
            self._told = int(told[-1])
            mine = [i for i, outcome in enumerate(outcomes) if outcome[2] == self.rules.kind]
            self._heard.add([outcomes[i] for i in mine], told[1:][mine])
        self._count(late=late)

    def _read(self) -> "_Chunk | None":
        if self._chunk is not None and self._done < len(self._chunk.ids):
            return self._chunk
        frame = self._decisions.read(_CHUNK, self._promised)
        self._done = 0
        self._chunk = None if frame is None else self._encoded(frame)
        return self._chunk

    def _encoded(self, frame: "pl.DataFrame") -> "_Chunk":
        rows: dict[str, Any] = {}
        for name in self.model.features.columns:
            column = next((item for item in (_FEATURE + name, name) if item in frame.columns), None)
            rows[name] = [None] * frame.height if column is None else frame.get_column(column)
            if column is None:
                self.lacking.add(name)
        if len(self.lacking) == len(rows):
            raise InvalidInput("features", sorted(rows), f"be columns of the log, which has {frame.columns}")
        slots, values = self.model.features.encode(rows)
        ingest = frame.get_column("ingest_time").to_physical().to_numpy()
        seen = np.maximum(np.maximum.accumulate(ingest), self._seen)
        self._seen = int(seen[-1])
        weights = np.ones(frame.height)
        if self.rules.most_weight > 1:
            propensity = np.maximum(frame.get_column("propensity").to_numpy(), 1 / self.rules.most_weight)
            weights = 1 / propensity
        ids = frame.get_column("request_id").to_list()
        by = self.rules.slice_by
        slices = None if by is None else [str(name) for name in frame.get_column(by).to_list()]
        return _Chunk(
            ids=ids,
            keys=fingerprint_texts(ids),
            slots=slots,
            values=values,
            mature=frame.get_column("event_time").to_physical().to_numpy() + self.rules.maturity,
            seen=seen,
            weights=weights,
            censored=frame.get_column("action").is_in(list(self.rules.censored)).to_numpy(),
            slices=slices,
        )

    def _times(self, chunk: "_Chunk", until: int, most: int | None) -> _Times:
        """Returns when each of the next decisions is learned, `most` at most; only times up to `until` are certain."""
        end = len(chunk.ids) if most is None else self._done + most
        resolved = chunk.mature[self._done : end]
        first = self._heard.first_told(chunk.keys[self._done : end], chunk.seen[self._done : end], never=_LAST)
        resolved = np.where(first <= until, np.minimum(resolved, first), resolved)
        return np.maximum(np.maximum.accumulate(resolved), self.reached)

    def _learn(self, chunk: "_Chunk", start: int, end: int, times: _Times) -> None:
        n = end - start
        again = self._again(chunk, start, end, times)
        if again is None:
            repeated = np.zeros(n, np.bool_)
        else:
            repeated, split = again
            if split:
                # A request that comes again after so long that it counts as new begins rows of its own.
                self._learn(chunk, start, start + split, times[:split])
                self._learn(chunk, start + split, end, times[split:])
                return
        heard = self._heard.latest(chunk.keys[start:end], chunk.seen[start:end], times)
        known = heard >= 0
        labels = np.zeros(n)
        labels[known] = self._heard.values[heard[known]] >= 0.5
        censored = chunk.censored[start:end] & ~known & ~repeated
        kept, sampled = self._sampling.keep(chunk.ids[start:end], labels)
        taken = kept & ~censored & ~repeated
        weights = np.where(taken, sampled * chunk.weights[start:end], 0.0)
        nowhere = np.empty(0, np.intp)
        self._correct(chunk, start, nowhere, times[:1])
        learned = labels.copy()
        fresh = nowhere
        if again is not None:
            fresh = np.flatnonzero(~repeated)
            self._remember(chunk.keys[start:end], labels, weights, times, fresh)

        def take(first: int, last: int) -> None:
            rows = first + np.flatnonzero(taken[first:last])
            self._take(chunk, start, rows, learned, weights)

        take(self._correct(chunk, start, fresh, times, take), n)
        self.reached = int(times[-1])
        self._memory.forget_some(self.reached - self.rules.correct_for)
        # What is forgotten could not count any more; when it is forgotten changes nothing.
        self._heard.forget_some(min(int(chunk.seen[end - 1]), self.reached) - self.rules.memory)
        self._count(
            decisions=n,
            learned=int(taken.sum()),
            positives=int(labels[taken].sum()),
            timed_out=int((taken & ~known).sum()),
            censored=int(censored.sum()),
            left_out=int((~kept & ~censored & ~repeated).sum()),
            repeated=int(repeated.sum()),
        )

    def _again(self, chunk: "_Chunk", start: int, end: int, times: _Times) -> tuple[NDArray[np.bool_], int] | None:
        """Returns which requests were learned a short time ago, and the first, if any, that was long ago."""
        span = self.rules.correct_for
        if not span:
            return None
        places = self._memory.find(chunk.keys[start:end])
        repeated = np.zeros(end - start, np.bool_)
        latest: dict[str, int] = {}
        for i, (request, place) in enumerate(zip(chunk.ids[start:end], places.tolist(), strict=True)):
            before = latest.get(request)
            if before is None and place >= 0:
                before = int(self._memory.times[place])
            if before is not None and before + span >= times[i]:
                repeated[i] = True
                continue
            if before is not None and i:
                return repeated, i
            latest[request] = int(times[i])
        return repeated, 0

    def _correct(
        self,
        chunk: "_Chunk",
        start: int,
        fresh: NDArray[np.intp],
        times: _Times,
        take: Callable[[int, int], None] | None = None,
    ) -> int:
        """Goes through the outcomes up to the last time, and learns the rows before one that puts something right.

        Args:
            chunk: Where the rows lie.
            start: The first of them.
            fresh: Those of them that are remembered, behind all that were before; shape (m,).
            times: When each is learned, shape (n,).
            take: Learns rows.

        Returns:
            How many rows were learned.
        """
        done = 0
        heard, memory = self._heard, self._memory
        passing = heard.passing(int(times[-1]))
        if not len(passing):
            return 0
        told = heard.told[passing]
        places, before = memory.find(heard.keys[passing]), np.searchsorted(times, told)
        rows = np.full(len(passing), -1)
        here = places >= len(memory) - len(fresh)
        if len(fresh):
            rows[here] = fresh[places[here] - (len(memory) - len(fresh))]
        # Most are of the decision that is learned with them, and put nothing right.
        late = np.flatnonzero((places >= 0) & (rows < before))
        late = late[memory.times[places[late]] + self.rules.correct_for >= told[late]]
        for i in late.tolist():
            change = self._correction(chunk, start + int(rows[i]) if rows[i] >= 0 else -1, int(places[i]), passing[i])
            if change is not None:
                if take is not None and before[i] > done:
                    take(done, int(before[i]))
                    done = int(before[i])
                self.model.ftrl.correct(*change)
        heard.go_on(len(passing))
        return done

    def _remember(
        self, keys: NDArray[np.uint64], labels: _Floats, weights: _Floats, times: _Times, fresh: NDArray[np.intp]
    ) -> None:
        if len(fresh) and len(self._memory):
            before = int(self._memory.find(keys[fresh[:1]])[0])
            if before >= 0:
                self._memory.forget_before(int(self._memory.times[before]) + 1)
        self._memory.add(keys[fresh], labels[fresh], weights[fresh], times[fresh])

    def _correction(
        self, chunk: "_Chunk", row: int, place: int, outcome: int
    ) -> tuple[NDArray[np.uint32], _Floats, _Floats] | None:
        """Returns what puts right a decision that is remembered; None where nothing does.

        Args:
            chunk: Where it lies.
            row: Which row of it; -1 where it lies elsewhere.
            place: Where it is remembered.
            outcome: What was heard.
        """
        label, before = float(self._heard.values[outcome] >= 0.5), float(self._memory.labels[place])
        weight = float(self._memory.weights[place])
        if label == before or weight == 0.0:
            return None
        if row >= 0:
            slots, values = chunk.slots[row : row + 1], chunk.values[row : row + 1]
        else:
            decision = find(self._folder, request_id=self._heard.request(outcome))
            if decision is None:
                self._count(uncorrected=1)
                return None
            features = decision.features
            fields = msgspec.structs.asdict(decision) | decision.entities | decision.request
            fields |= features | {_FEATURE + name: value for name, value in features.items()}
            slots, values = self.model.features.encode([fields])
        self._memory.labels[place] = label
        self._count(corrected=1)
        return slots, values, np.array([weight * (before - label)])

    def _take(self, chunk: "_Chunk", start: int, rows: NDArray[np.intp], labels: _Floats, weights: _Floats) -> None:
        if len(rows):
            names = None if chunk.slices is None else [chunk.slices[start + i] for i in rows.tolist()]
            slots, values = chunk.slots[start + rows], chunk.values[start + rows]
            p = self.model.learn_encoded(slots, values, labels[rows], weights=weights[rows], slices=names)
            if self._learned is not None:
                self._learned(p, labels[rows])

    def _count(self, **more: int) -> None:
        values = vars(self.counts)
        self.counts = LearningCounts(**{name: values[name] + more.get(name, 0) for name in values})

    def save(self, path: str | Path) -> None:
        """Writes a snapshot of model and place in the logs, as a whole or not at all.

        `OnlineModel.load` reads the same file as a model.

        Raises:
            StoreError: If it cannot be written.
        """
        about, arrays = self.model.to_parts()
        heard, columns = self._heard.to_parts()
        learner = {
            "rules": self.rules.to_dict(),
            "counts": vars(self.counts),
            "decisions": self._decisions.place(self._done if self._chunk is not None else 0),
            "outcomes": self._outcomes.place(),
            "seen_before": int(self._chunk.seen[0]) if self._chunk is not None else self._seen,
            "times": [self.reached, self._told, self._promised],
            "lacking": sorted(self.lacking),
            "heard": heard,
            "notes": self.notes,
        }
        write_state(path, pack_state({**about, "learner": learner}, {**arrays, **columns, **self._memory.to_arrays()}))

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        decisions: str | Path,
        outcomes: str | Path,
        rules: LearningRules | None = None,
        model: OnlineModel | None = None,
        learned: Callable[[_Floats, _Floats], object] | None = None,
    ) -> Self:
        """Goes on from a snapshot.

        Args:
            path: What `save` wrote.
            decisions: Folder of the decision log.
            outcomes: Folder of the outcome log.
            rules: What the caller means; None takes the snapshot's.
            model: What the caller means by features and rates; None takes the snapshot's.
            learned: As for a new one.

        Raises:
            StoreError: If the snapshot cannot be read, is damaged, or is of a model alone.
            Conflict: If it has other rules, features or rates: weights that were learned by two rules follow from none.
        """
        about, arrays = read_state(path)
        found = OnlineModel.from_parts(about, arrays, where=str(path))
        if "learner" not in about:
            raise StoreError(f"{path}: is a model and no learner; start a learner with it, from the logs' beginning")
        state = about["learner"]
        known = LearningRules(**state["rules"])
        if rules is not None and rules != known:
            raise Conflict(f"{path}: was learned by {known}, and {rules} are wanted; start a learner anew")
        if model is not None:
            model.check_same(found)
        made = cls(found, known, decisions=decisions, outcomes=outcomes, learned=learned)
        made.counts = LearningCounts(**state["counts"])
        made.reached, made._told, made._promised = state["times"]
        made._seen = state["seen_before"]
        made._decisions = DecisionOrder(decisions, state["decisions"])
        made._outcomes = OutcomeOrder(outcomes, state["outcomes"])
        made.lacking = set(state["lacking"])
        made._heard = Heard.from_parts(state["heard"], arrays, memory=known.memory)
        made.notes = state["notes"]
        made._memory = Learned.from_arrays(arrays)
        return made

    def __str__(self) -> str:
        until = "nothing yet" if self.reached == NEVER else f"up to {isoformat(self.reached)}"
        return f"learned {until}\n  {self.counts}\n{self.model}"


@dataclass(frozen=True, kw_only=True, eq=False)
class _Chunk:
    # Decisions that lie one after another in the log.
    ids: Sequence[str]
    keys: NDArray[np.uint64]
    slots: NDArray[np.uint32]
    values: _Floats
    mature: _Times
    seen: _Times
    weights: _Floats
    censored: NDArray[np.bool_]
    slices: Sequence[str] | None
