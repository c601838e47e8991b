"""NannyML's side of the benchmark of performance estimation: CBPE on its own car-loan data, DLE on its car prices."""

import json
import sys
import time
import warnings

import nannyml
import numpy as np
import pandas as pd

warnings.filterwarnings("ignore")
# This release knows text columns as objects only.
pd.set_option("future.infer_string", False)


def car_loan(payload: dict) -> dict:
    reference, analysis, truth = nannyml.load_synthetic_car_loan_dataset()
    estimator = nannyml.CBPE(
        y_pred_proba="y_pred_proba",
        y_pred="y_pred",
        y_true="repaid",
        timestamp_column_name="timestamp",
        metrics=payload["metrics"],
        chunk_size=payload["chunk"],
        problem_type="classification_binary",
    )
    began = time.perf_counter()
    estimator.fit(reference)
    fitted = time.perf_counter()
    found = estimator.estimate(analysis).filter(period="analysis").to_df()
    done = time.perf_counter()
    np.savez(
        payload["file"],
        reference_score=reference["y_pred_proba"].to_numpy(dtype=float),
        reference_y=reference["repaid"].to_numpy(dtype=float),
        score=analysis["y_pred_proba"].to_numpy(dtype=float),
        flagged=analysis["y_pred"].to_numpy(dtype=float),
        y=truth["repaid"].to_numpy(dtype=float),
    )
    return {
        "fit_seconds": fitted - began,
        "estimate_seconds": done - fitted,
        "estimates": {metric: found[metric]["value"].tolist() for metric in payload["metrics"]},
        "sampling_error": {metric: float(found[metric]["sampling_error"].iloc[0]) for metric in payload["metrics"]},
    }


def car_price(payload: dict) -> dict:
    reference, analysis, truth = nannyml.load_synthetic_car_price_dataset()
    features = [name for name in reference.columns if name not in ("id", "timestamp", "y_true", "y_pred")]
    estimator = nannyml.DLE(
        feature_column_names=features,
        y_pred="y_pred",
        y_true="y_true",
        timestamp_column_name="timestamp",
        metrics=["mae", "mse", "rmse"],
        chunk_size=payload["chunk"],
    )
    estimator.fit(reference)
    found = estimator.estimate(analysis).filter(period="analysis").to_df()

    def numbers(frame):
        columns = [
            frame[name].astype("category").cat.codes if frame[name].dtype.kind not in "if" else frame[name]
            for name in features
        ]
        return np.column_stack([column.to_numpy(dtype=float) for column in columns])

    np.savez(
        payload["file"],
        reference=numbers(reference),
        reference_prediction=reference["y_pred"].to_numpy(dtype=float),
        reference_y=reference["y_true"].to_numpy(dtype=float),
        current=numbers(analysis),
        prediction=analysis["y_pred"].to_numpy(dtype=float),
        y=truth["y_true"].to_numpy(dtype=float),
    )
    return {"estimates": {metric: found[metric]["value"].tolist() for metric in ("mae", "mse", "rmse")}}


if __name__ == "__main__":
    given = json.load(sys.stdin)
    print(json.dumps({"car_loan": car_loan, "car_price": car_price}[given["what"]](given)))
