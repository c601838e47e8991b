import json
import math

import pytest

from vitok.errors import InvalidInput
from vitok.registry import ModelCard, Version, at_least, evaluate, model_card
from vitok.stats.results import Estimate

VERSION = Version(model="fraud", version=3, stage="Production", registered=0, digest="abc", path="fraud/3", run_id="r")
PRECISION = Estimate(name="p", value=0.3, lower=0.2, upper=0.4, n_obs=1200, definition="mean over days")


def card() -> ModelCard:
    return model_card(
        VERSION,
        metrics={"card_precision_100": PRECISION, "roc_auc": 0.91, "ece": math.nan},
        slices={"night | day": {"card_precision_100": PRECISION}},
        gate=evaluate([at_least("roc_auc", 0.91, 0.8)]),
        parameters={"leaves": 31},
        intended_use="Orders card payments for review.",
    )


def test_markdown_has_the_sections_of_the_paper() -> None:
    """Oracle: Mitchell et al. 2019, figure 1."""
    text = card().markdown()
    headings = [line[3:] for line in text.splitlines() if line.startswith("## ")]
    assert headings == [
        "Model details",
        "Intended use",
        "Factors",
        "Metrics",
        "Evaluation data",
        "Training data",
        "Quantitative analyses",
        "Ethical considerations",
        "Caveats and recommendations",
    ]
    assert "| card_precision_100 | all | 0.3 | 0.2 to 0.4 | 1,200 |" in text
    assert "| card_precision_100 | night \\| day | 0.3 |" in text
    assert "| ece | all | undefined |  |  |" in text
    assert "- card_precision_100: mean over days" in text
    assert "Gate accepted: roc_auc 0.91 is at least 0.8" in text
    assert "- leaves: 31" in text
    assert text.count("Not stated.") == 5
    assert str(card()) == text


def test_an_empty_card() -> None:
    text = model_card(VERSION).markdown()
    assert "No gate has judged this version." in text


def test_cards_survive_json() -> None:
    for made in (card(), model_card(VERSION), ModelCard(title="x")):
        assert ModelCard.from_dict(json.loads(json.dumps(made.to_dict(), allow_nan=False))) == made


def test_from_dict_of_something_else() -> None:
    with pytest.raises(InvalidInput):
        ModelCard.from_dict({})
    with pytest.raises(InvalidInput):
        ModelCard.from_dict({**card().to_dict(), "unknown": 1})
