"""CatBoost with categories, as the page on packaging has it served. Oracle: CatBoost on the same rows."""

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vitok.errors import InvalidInput
from vitok.models.convert import convert
from vitok.serving.batch_inference import score_files
from vitok.serving.runtime import Runtime

catboost = pytest.importorskip("catboost", reason="CatBoost is not installed")
PAGE = Path(__file__).parents[2] / "docs" / "packaging.md"


def test_the_package_of_the_page_scores_as_the_library(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    amount = rng.lognormal(size=600)
    country = rng.choice(["DE", "FR", "\N{LATIN CAPITAL LETTER A WITH RING ABOVE}X", ""], 600)
    label = (amount > 1.5) ^ (country == "FR") ^ (rng.random(600) < 0.1)
    rows = [list(row) for row in zip(amount.tolist(), country.tolist(), strict=True)]
    model = catboost.CatBoostClassifier(iterations=20, verbose=0, allow_writing_files=False, thread_count=1)
    model.fit(rows, label, cat_features=[1])
    with pytest.raises(InvalidInput, match=r"in the columns \[1\]', must be trained on numbers alone"):
        convert(model, np.zeros((5, 2)))
    with pytest.raises(InvalidInput, match="be fitted"):
        convert(catboost.CatBoostClassifier(), np.zeros((5, 2)))
    folder = tmp_path / "risk" / "1"
    folder.mkdir(parents=True)
    model.save_model(str(folder / "model.cbm"))
    page = PAGE.read_text(encoding="utf-8")
    for name, kind in (("model.py", r"python\n# model\.py"), ("callable.json", "json")):
        found = re.search(rf"```{kind}\n(.*?)```", page, re.DOTALL)
        assert found is not None
        (folder / name).write_text(found[1], encoding="utf-8")
    runtime = Runtime.load(folder, version="risk/1")
    new = [[2.0, "never seen"], [0.5, "FR"], [np.inf, ""]]
    given = {"amount": np.array([row[0] for row in new]), "country": np.array([row[1].encode() for row in new], object)}
    expected = model.predict_proba(catboost.Pool(new, cat_features=[1]))[:, 1]
    assert runtime.infer(given)["probability"].tolist() == expected.tolist()
    pq.write_table(pa.table({"amount": amount, "country": country}), tmp_path / "rows.parquet")
    score_files(runtime, tmp_path / "rows.parquet", tmp_path / "out", names=["amount", "country"])
    scored = pq.read_table(tmp_path / "out" / "part-000000.parquet")["score"].to_numpy()
    assert np.array_equal(scored, model.predict_proba(rows)[:, 1])
