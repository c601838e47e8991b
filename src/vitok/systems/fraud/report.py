"""The numbers of a turn: what they are measured on, how they are shown, and the file that holds them."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitok import stats
from vitok.clock import DAY, isoformat
from vitok.policies import Costs
from vitok.systems.fraud import rules
from vitok.systems.fraud.training import Sample, measure

METRICS = ("auc", "average_precision", "card_precision_100")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scored:
    """One scorer's probabilities and actions on a sample.

    Attributes:
        name: `"rules"`, or a model version such as `"fraud/1"`.
        score: Shape (n,), what rows are ranked by.
        actions: Shape (n,).
        calibrated: Whether the score is a probability.
    """

    name: str
    score: np.ndarray
    actions: np.ndarray
    calibrated: bool


def by_rules(sample: Sample) -> Scored:
    """Scores a sample by the rules."""
    score = rules.rule_score(sample.columns())
    return Scored(name=rules.VERSION, score=score, actions=np.array(rules.rule_actions(score)), calibrated=False)


def measured(sample: Sample, scored: Scored, costs: Costs) -> dict[str, Any]:
    """Measures one scorer on rows with known labels."""
    values: dict[str, Any] = {"version": scored.name}
    values |= {name: estimate.to_dict() for name, estimate in measure(sample, scored.score).items()}
    cost = costs.realised(scored.actions, sample.amount, sample.is_fraud)
    values["cost_per_decision"] = stats.mean_interval(cost, name="cost_per_decision").to_dict()
    values["cost"] = float(cost.sum())
    if scored.calibrated:
        values["calibration_error"] = stats.calibration_error(sample.is_fraud, scored.score).to_dict()
    return values


def comparison(sample: Sample, scorers: Mapping[str, Scored], costs: Costs) -> dict[str, Any]:
    """Measures several scorers on the same rows.

    Returns:
        `period`, `n`, `frauds`, and for each role the measures; `money_saved` is against the rules.
    """
    if not len(sample):
        return {"period": None, "n": 0, "frauds": 0, "scorers": {}}
    found = {role: measured(sample, scored, costs) for role, scored in scorers.items()}
    for values in found.values():
        values["money_saved"] = found["rules"]["cost"] - values["cost"] if "rules" in found else None
    start, end = int(sample.event_time.min()), int(sample.event_time.max())
    return {
        "period": [isoformat(start // DAY * DAY), isoformat((end // DAY + 1) * DAY)],
        "n": len(sample),
        "frauds": int(sample.is_fraud.sum()),
        "scorers": found,
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that a turn reports.

    Attributes:
        numbers: What `--json` writes; the keys are documented in docs/fraud.md.
        story: What happened, in order: (day, text).
    """

    numbers: Mapping[str, Any]
    story: Sequence[tuple[str, str]]

    def write(self, path: Path) -> None:
        """Writes the numbers as JSON; NaN becomes null."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text(json.dumps(_plain({**self.numbers, "story": self.story}), indent=1) + "\n")
        temporary.replace(path)

    @classmethod
    def read(cls, path: Path) -> "Report":
        """Reads what `write` wrote."""
        numbers = json.loads(path.read_text())
        story = [(str(day), str(text)) for day, text in numbers.pop("story")]
        return cls(numbers=numbers, story=story)


def numbers(
    *,
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    service: Mapping[str, Any],
    turn: Mapping[str, Any],
) -> dict[str, Any]:
    """Lays the numbers out under the keys that are promised.

    Args:
        before: Comparison on the replay before the change (rules, incumbent).
        after: Comparison on the rows after the retrained version's training (rules, incumbent, retrained).
        service: Decisions, latency, mismatches.
        turn: Alerts, releases, rollbacks and the times between them.
    """
    result: dict[str, Any] = {}
    scorers = after["scorers"] or before["scorers"]
    for metric in (*METRICS, "calibration_error", "cost_per_decision", "money_saved"):
        result[metric] = {
            role: {"version": values["version"], **_named(values.get(metric))}
            for role, values in scorers.items()
            if values.get(metric) is not None
        }
    return {**result, "before_change": before, "after_retraining": after, **service, **turn}


def _named(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {"value": value}
    return {key: value.get(key) for key in ("value", "lower", "upper", "n_obs")}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
