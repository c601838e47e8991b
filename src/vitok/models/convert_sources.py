"""What a trained model is and what it scores: the reference that its converted form is held against."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitok.errors import InvalidInput, MissingExtra
from vitok.models.boosting import BoostedTrees
from vitok.models.onnx_scoring import flat

LIBRARIES = ("lightgbm", "xgboost", "catboost", "sklearn", "torch")
LINKS = ("identity", "sigmoid", "softmax")
_KNOWN = "be fitted BoostedTrees, or a model of LightGBM, XGBoost, CatBoost, scikit-learn or torch"
_Scores = NDArray[np.float64]
_Score = Callable[[Any], _Scores]


@dataclass(frozen=True, kw_only=True)
class Source:
    """A trained model.

    Attributes:
        library: One of `LIBRARIES`.
        kind: Name of its class.
        probability: Whether it scores probabilities, else values.
        names: Names of its features as it knows them; empty where it knows none.
        score: Scores rows as the library does: the probability of class 1, of every class where there are more than
            two, or the value.
        raw: The same before the link, such as log-odds; None where the library gives none that a forest's raw scores
            are equal to.
    """

    library: str
    kind: str
    probability: bool
    names: tuple[str, ...]
    score: _Score
    raw: _Score | None = None


def read_source(model: Any, *, link: str = "identity") -> Source:
    """Finds out what a model is.

    Args:
        model: A fitted object.
        link: What turns a torch module's output into scores: `"identity"`, `"sigmoid"` or `"softmax"`.

    Raises:
        InvalidInput: If it is none that can be converted, or a link is given for a model that has its own.
        MissingExtra: If its library is not installed.
    """
    if link not in LINKS:
        raise InvalidInput("link", link, f"be one of {', '.join(LINKS)}")
    library = _library(model)
    if link != "identity" and library != "torch":
        raise InvalidInput("link", link, f"be 'identity' for a model of {library}, which has a link of its own")
    if isinstance(model, BoostedTrees):
        return _booster(model.booster(), narrow=True)
    if library == "torch":
        return _torch(model, link)
    return {"lightgbm": _lightgbm, "xgboost": _xgboost, "catboost": _catboost, "sklearn": _sklearn}[library](model)


def _library(model: Any) -> str:
    if isinstance(model, BoostedTrees):
        return "lightgbm"
    for base in type(model).__mro__:
        library = base.__module__.split(".")[0]
        if library in LIBRARIES:
            return library
    raise InvalidInput("model", type(model), _KNOWN)


def _lightgbm(model: Any) -> Source:
    if not hasattr(model, "booster_"):
        return _booster(model)
    return _classic(model, "lightgbm", raw=lambda X: flat(model.predict(X, raw_score=True)))


def _booster(booster: Any, *, narrow: bool = False) -> Source:
    def rows(X: Any) -> Any:
        return np.asarray(X, dtype=np.float32) if narrow else X

    text = booster.model_to_string(num_iteration=1)
    objective = next((line[10:] for line in text.split("\n") if line.startswith("objective=")), "")
    return Source(
        library="lightgbm",
        kind="Booster",
        probability=objective.split(" ")[0] in ("binary", "multiclass", "multiclassova", "cross_entropy"),
        names=_own_names(booster.feature_name()),
        score=lambda X: flat(booster.predict(rows(X))),
        raw=lambda X: flat(booster.predict(rows(X), raw_score=True)),
    )


def _xgboost(model: Any) -> Source:
    if hasattr(model, "get_booster"):
        return _classic(model, "xgboost", raw=lambda X: flat(model.predict(X, output_margin=True)))
    xgboost = importlib.import_module("xgboost")

    def predict(X: Any, *, output_margin: bool = False) -> _Scores:
        data = xgboost.DMatrix(
            X, feature_names=model.feature_names, feature_types=model.feature_types, enable_categorical=True, nthread=1
        )
        return flat(model.predict(data, output_margin=output_margin))

    return Source(
        library="xgboost",
        kind="Booster",
        probability='"binary:logistic"' in model.save_config() or '"multi:softprob"' in model.save_config(),
        names=tuple(model.feature_names or ()),
        score=predict,
        raw=lambda X: predict(X, output_margin=True),
    )


def _catboost(model: Any) -> Source:
    def predict(kind: str) -> _Score:
        return lambda X: flat(model.predict(X, prediction_type=kind))

    if not model.is_fitted():
        raise InvalidInput("model", type(model).__name__, "be fitted")
    texts = (model.get_cat_feature_indices, model.get_text_feature_indices, model.get_embedding_feature_indices)
    columns = sorted({int(column) for indices in texts for column in indices()})
    if columns:
        # CatBoost keeps hashes and running statistics of them, and not all of these in what it saves as trees.
        raise InvalidInput(
            "model",
            f"{type(model).__name__} with categories or texts in the columns {columns}",
            "be trained on numbers alone",
            "Code them as numbers before training, train LightGBM or XGBoost, or serve the model with CatBoost itself "
            "as the page on packaging shows",
        )
    loss = str(model.get_all_params().get("loss_function", "")).split(":")[0]
    probability = loss in ("Logloss", "CrossEntropy", "MultiClass", "MultiClassOneVsAll")
    kind = "Probability" if probability else "Exponent" if loss in ("Poisson", "Tweedie") else "RawFormulaVal"
    return Source(
        library="catboost",
        kind=type(model).__name__,
        probability=probability,
        names=() if all(name.isdigit() for name in model.feature_names_) else tuple(model.feature_names_),
        score=predict(kind),
        raw=predict("RawFormulaVal"),
    )


def _sklearn(model: Any) -> Source:
    step = model.steps[-1][1] if hasattr(model, "steps") else model
    # The averaged trees of a forest have no score before the link, and decision functions are those of boosting.
    boosted = type(step).__name__ in ("GradientBoostingClassifier", "HistGradientBoostingClassifier")
    return _classic(model, "sklearn", raw=(lambda X: flat(model.decision_function(X))) if boosted else None)


def _classic(model: Any, library: str, *, raw: _Score | None) -> Source:
    probability = hasattr(model, "predict_proba")
    classes = getattr(model, "classes_", None)
    if not hasattr(model, "n_features_in_") and not hasattr(model, "feature_names_in_") and not _fitted(model):
        raise InvalidInput("model", type(model).__name__, "be fitted")
    if not probability and (classes is not None or not hasattr(model, "predict")):
        raise InvalidInput(
            "model", type(model).__name__, "have predict_proba, or be a regressor", "Wrap it in CalibratedClassifierCV"
        )
    if probability and isinstance(classes, list):
        raise InvalidInput("model", f"{len(classes)} targets", "have one target", "Convert a model for each")
    return Source(
        library=library,
        kind=type(model).__name__,
        probability=probability,
        names=tuple(str(name) for name in getattr(model, "feature_names_in_", ())) if library == "sklearn" else (),
        score=lambda X: flat(model.predict_proba(X) if probability else model.predict(X)),
        raw=raw,
    )


def _fitted(model: Any) -> bool:
    check: Callable[[], bool] | None = getattr(model, "__sklearn_is_fitted__", None)
    return bool(check and check())


def _torch(module: Any, link: str) -> Source:
    torch = import_torch()

    def score(X: Any) -> _Scores:
        was, parameter = module.training, next(module.parameters(), None)
        kind = torch.float32 if parameter is None else parameter.dtype
        module.eval()
        try:
            with torch.no_grad():
                found = module(torch.as_tensor(np.asarray(X), dtype=kind))
                if link != "identity":
                    found = torch.sigmoid(found) if link == "sigmoid" else torch.softmax(found, dim=-1)
        finally:
            module.train(was)
        return flat(found.numpy())

    return Source(library="torch", kind=type(module).__name__, probability=link != "identity", names=(), score=score)


def import_torch() -> Any:
    """Returns torch.

    Raises:
        MissingExtra: If it is not installed.
    """
    try:
        return importlib.import_module("torch")
    except ImportError:
        raise MissingExtra("torch", "converting torch modules") from None


def _own_names(names: Sequence[str]) -> tuple[str, ...]:
    made_up = all(name == f"Column_{i}" for i, name in enumerate(names))
    return () if made_up else tuple(names)


def columns_of(examples: Any) -> dict[str, NDArray[Any]] | None:
    """Returns the columns of a frame by name, or None for a matrix.

    Args:
        examples: A mapping from name to values, or a frame of pandas, polars or Arrow.

    Example:
        >>> columns_of({"amount": [1.0, 2.0]})
        {'amount': array([1., 2.])}
        >>> columns_of(np.zeros((2, 3))) is None
        True
    """
    if isinstance(examples, Mapping):
        return {str(name): np.asarray(values) for name, values in examples.items()}
    names = getattr(examples, "column_names", None) or getattr(examples, "columns", None)
    if names is None or isinstance(examples, np.ndarray):
        return None
    return {str(name): np.asarray(examples[name]) for name in names}
