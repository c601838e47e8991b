"""Which library a model comes from."""

import json
from collections.abc import Mapping
from typing import Any

from vitok.errors import InvalidInput
from vitok.models.forest_layout import Arrays

_KNOWN = (
    "be a model of LightGBM, XGBoost, CatBoost or scikit-learn, LightGBM's model text, XGBoost's JSON or UBJSON, "
    "CatBoost's JSON, or the path of such a file"
)


def read_model(model: Any) -> tuple[str, Arrays, tuple[str, ...]]:
    """Returns the library, the trees and the names of the features.

    Args:
        model: A fitted object, a dict, text or bytes, as `Forest.of` takes them.

    Raises:
        InvalidInput: If it is no tree model that can be read.
    """
    if isinstance(model, str | bytes | bytearray):
        return _content(model.encode() if isinstance(model, str) else bytes(model))
    if isinstance(model, Mapping):
        return _described(model)
    for base in type(model).__mro__:
        library = base.__module__.split(".")[0]
        if library == "lightgbm":
            return _lightgbm(model)
        if library == "xgboost":
            from vitok.models.forest_xgboost import read_xgboost_object

            return "xgboost", *read_xgboost_object(model)
        if library == "catboost":
            from vitok.models.forest_catboost import read_catboost_object

            return "catboost", *read_catboost_object(model)
        if library == "sklearn":
            from vitok.models.forest_sklearn import read_sklearn

            return "sklearn", *read_sklearn(model)
    raise InvalidInput("model", type(model), _KNOWN)


def _lightgbm(model: Any) -> tuple[str, Arrays, tuple[str, ...]]:
    from vitok.models.forest_lightgbm import read_lightgbm_text

    booster = model.booster_ if hasattr(model, "booster_") else model
    if not hasattr(booster, "model_to_string"):
        raise InvalidInput("model", type(model), "be fitted, a Booster or one of LightGBM's estimators")
    return "lightgbm", *read_lightgbm_text(booster.model_to_string())


def _content(content: bytes) -> tuple[str, Arrays, tuple[str, ...]]:
    start = content.lstrip()[:2]
    if content.startswith((b"tree\n", b"tree\r\n")):
        from vitok.models.forest_lightgbm import read_lightgbm_text

        try:
            text = content.decode()
        except UnicodeDecodeError:
            raise InvalidInput("model", content[:40], "be text in UTF-8", "The text is damaged") from None
        return "lightgbm", *read_lightgbm_text(text)
    if start in (b"{L", b"{i", b"{U", b"{I", b"{l"):
        from vitok.models.forest_xgboost import read_ubjson

        return _described(read_ubjson(content))
    if start[:1] == b"{":
        try:
            described = json.loads(content)
        except ValueError:
            raise InvalidInput("model", content[:40], "be whole JSON", "The text is cut off or damaged") from None
        return _described(described)
    raise InvalidInput("model", content[:40], _KNOWN)


def _described(model: Any) -> tuple[str, Arrays, tuple[str, ...]]:
    if isinstance(model, Mapping) and "learner" in model:
        from vitok.models.forest_xgboost import read_xgboost

        return "xgboost", *read_xgboost(model)
    if isinstance(model, Mapping) and "features_info" in model:
        from vitok.models.forest_catboost import read_catboost

        return "catboost", *read_catboost(model)
    if isinstance(model, Mapping) and "tree_info" in model:
        raise InvalidInput("model", "LightGBM's dump_model()", "be its model text", "Use Booster.model_to_string()")
    raise InvalidInput("model", list(model)[:5] if isinstance(model, Mapping) else model, _KNOWN)
