"""What results promise: frozen, printable, JSON."""

import dataclasses
import json
import math
import pkgutil
import subprocess
import sys

import pytest

from vitok import stats
from vitok.stats import Estimate


def estimate(value: float = 0.5, **parts: float) -> Estimate:
    return Estimate(name="x", value=value, lower=0.0, upper=1.0, n_obs=3, definition="no rows", **parts)


def test_estimate_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        estimate().value = 1.0  # type: ignore[misc]


def test_undefined_says_why_and_becomes_null() -> None:
    undefined = estimate(math.nan)
    assert str(undefined) == "x undefined (no rows, n = 3)"
    assert json.loads(json.dumps(undefined.to_dict(), allow_nan=False))["value"] is None


def test_level_is_printed_without_rounding_noise() -> None:
    assert "99.9 % interval" in str(estimate(confidence_level=0.999))


def test_all_is_what_the_room_shows() -> None:
    modules = {module.name for module in pkgutil.iter_modules(stats.__path__)}
    assert {name for name in vars(stats) if not name.startswith("_")} - modules == set(stats.__all__)


def test_import_is_light() -> None:
    code = "import sys, vitok.stats; print([m for m in ('scipy', 'numba', 'sklearn', 'polars') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
