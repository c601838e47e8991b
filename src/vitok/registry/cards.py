"""Model cards: what a version is, for whom, and how good.

The sections are those of Mitchell et al., "Model Cards for Model Reporting", FAT* 2019 (doi:10.1145/3287560.3287596).
The card is made from what is already on record: the version, its run, its metrics and its gate.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vitok.clock import isoformat
from vitok.errors import InvalidInput
from vitok.registry.gates import Verdict, is_estimate
from vitok.registry.stages import Version

if TYPE_CHECKING:
    from vitok.stats.results import Estimate

_NOT_STATED = "Not stated."


@dataclass(frozen=True, kw_only=True)
class MetricRow:
    """One line of the card's quantitative analyses.

    Attributes:
        name: Name of the metric.
        value: Its value, or None where it could not be computed.
        lower: Lower end of its interval, or None where there is none.
        upper: Upper end of its interval, or None.
        n_obs: How many observations it rests on, or None.
        definition: How it is computed.
        factor: The slice it was computed on, `"all"` for everything.
    """

    name: str
    value: float | None
    lower: float | None = None
    upper: float | None = None
    n_obs: int | None = None
    definition: str = ""
    factor: str = "all"


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """A model card with the nine sections of Mitchell et al.; a text that nobody gave says "Not stated.".

    Attributes:
        title: Model and version, such as `"fraud/3"`.
        details: Model details: stage, dates, digest, run, parameters.
        intended_use: What it is for, and what it must not be used for.
        factors: Groups and circumstances in which it may do better or worse.
        evaluation_data: What it was evaluated on.
        training_data: What it was trained on.
        metrics: Quantitative analyses, for all rows and by slice.
        gate: The verdict of its gate, or None.
        ethical_considerations: Whom a wrong answer hurts, and how.
        caveats: What a reader has to know besides.
    """

    title: str
    details: Mapping[str, Any] = field(default_factory=dict)
    intended_use: str = _NOT_STATED
    factors: str = _NOT_STATED
    evaluation_data: str = _NOT_STATED
    training_data: str = _NOT_STATED
    metrics: tuple[MetricRow, ...] = ()
    gate: Verdict | None = None
    ethical_considerations: str = _NOT_STATED
    caveats: str = _NOT_STATED

    def to_dict(self) -> dict[str, Any]:
        """Returns the card as a dict that `json.dumps` accepts; `from_dict` reads it."""
        return {
            **self.__dict__,
            "details": dict(self.details),
            "metrics": [dict(row.__dict__) for row in self.metrics],
            "gate": self.gate.to_dict() if self.gate else None,
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> "ModelCard":
        """Reads what `to_dict` wrote.

        Raises:
            InvalidInput: If a field is missing or unknown.
        """
        try:
            gate = document["gate"]
            rows = tuple(MetricRow(**row) for row in document["metrics"])
            return cls(**{**document, "metrics": rows, "gate": Verdict.from_dict(gate) if gate else None})
        except (KeyError, TypeError) as error:
            raise InvalidInput("model card", document, f"be what ModelCard.to_dict wrote ({error})") from error

    def markdown(self) -> str:
        """Writes the card as Markdown."""
        details = "\n".join(f"- {name}: {_cell(value)}" for name, value in self.details.items()) or _NOT_STATED
        names = "\n".join(f"- {name}: {text}" for name, text in self._definitions()) or _NOT_STATED
        rows = "\n".join(_line(row) for row in self.metrics)
        table = (
            f"| metric | on | value | interval | n |\n| --- | --- | --- | --- | --- |\n{rows}" if rows else _NOT_STATED
        )
        sections = {
            "Model details": details,
            "Intended use": self.intended_use,
            "Factors": self.factors,
            "Metrics": names,
            "Evaluation data": self.evaluation_data,
            "Training data": self.training_data,
            "Quantitative analyses": f"{table}\n\n{self._gate()}",
            "Ethical considerations": self.ethical_considerations,
            "Caveats and recommendations": self.caveats,
        }
        body = "\n\n".join(f"## {heading}\n\n{text}" for heading, text in sections.items())
        return f"# Model card: {self.title}\n\n{body}\n"

    def _definitions(self) -> list[tuple[str, str]]:
        return list({row.name: (row.name, row.definition or "no definition given") for row in self.metrics}.values())

    def _gate(self) -> str:
        if self.gate is None:
            return "No gate has judged this version."
        checks = "\n".join(f"- {check}" for check in self.gate.checks)
        return f"Gate {'accepted' if self.gate.accepted else 'refused'}: {self.gate.reason}\n\n{checks}".rstrip()

    def __str__(self) -> str:
        return self.markdown()


def model_card(
    version: Version,
    *,
    metrics: "Mapping[str, float | Estimate] | None" = None,
    slices: "Mapping[str, Mapping[str, float | Estimate]] | None" = None,
    gate: Verdict | None = None,
    parameters: Mapping[str, Any] | None = None,
    intended_use: str = _NOT_STATED,
    factors: str = _NOT_STATED,
    evaluation_data: str = _NOT_STATED,
    training_data: str = _NOT_STATED,
    ethical_considerations: str = _NOT_STATED,
    caveats: str = _NOT_STATED,
) -> ModelCard:
    """Makes the card of a version.

    Args:
        version: The version, from the ledger.
        metrics: Metric name to a number or an Estimate, on all evaluation rows.
        slices: Slice name to its metrics.
        gate: The verdict of its gate.
        parameters: Parameters of training, shown under the model details.
        intended_use: What it is for, and what it must not be used for.
        factors: Groups and circumstances in which it may do better or worse.
        evaluation_data: What it was evaluated on.
        training_data: What it was trained on.
        ethical_considerations: Whom a wrong answer hurts, and how.
        caveats: What a reader has to know besides.

    Example:
        >>> version = Version(model="fraud", version=3, stage="Staging", registered=0, digest="ab", path="fraud/3")
        >>> card = model_card(version, metrics={"roc_auc": 0.91}, intended_use="Card payments, to order a review.")
        >>> print(card.markdown().splitlines()[0])
        # Model card: fraud/3
    """
    rows = [*_rows("all", metrics or {})]
    for name, values in (slices or {}).items():
        rows += _rows(name, values)
    details = {
        "stage": version.stage,
        "registered": isoformat(version.registered),
        "package digest": version.digest,
        "run": version.run_id or "none",
        **(parameters or {}),
    }
    return ModelCard(
        title=version.name,
        details=details,
        intended_use=intended_use,
        factors=factors,
        evaluation_data=evaluation_data,
        training_data=training_data,
        metrics=tuple(rows),
        gate=gate,
        ethical_considerations=ethical_considerations,
        caveats=caveats,
    )


def _rows(factor: str, values: "Mapping[str, float | Estimate]") -> Iterable[MetricRow]:
    for name, value in values.items():
        if not is_estimate(value):
            yield MetricRow(name=name, value=_number(value), factor=factor)
            continue
        yield MetricRow(
            name=name,
            value=_number(value.value),
            lower=_number(value.lower),
            upper=_number(value.upper),
            n_obs=int(value.n_obs),
            definition=value.definition,
            factor=factor,
        )


def _number(value: Any) -> float | None:
    return float(value) if math.isfinite(value) else None


def _line(row: MetricRow) -> str:
    value = "undefined" if row.value is None else f"{row.value:.4g}"
    interval = "" if row.lower is None or row.upper is None else f"{row.lower:.4g} to {row.upper:.4g}"
    n_obs = "" if row.n_obs is None else f"{row.n_obs:,}"
    return f"| {_cell(row.name)} | {_cell(row.factor)} | {value} | {interval} | {n_obs} |"


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
