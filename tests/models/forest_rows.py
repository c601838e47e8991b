"""Models to read and the rows to score them on that tests of forests share."""

import numpy as np

ODD = np.array(
    (
        *(np.nan, np.inf, -np.inf, 0.0, -0.0, 5e-324, -5e-324, 1e-35, -1e-35, 2e-35, 1e-45, 1e300, -1e300),
        *(float(np.float32(1e-35)), -float(np.float32(1e-35))),
        *(2.0**31, 2.0**31 + 0.5, -(2.0**31), 1e10, -0.3, 0.7),
    )
)
ORDINARY = ODD[np.isnan(ODD) | (np.abs(ODD) < 1e30)]


def training(seed: int, n: int = 1500, *, missing: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """Rows of seven features (3: few values; 4: categories below 80; 5: below 5; 6: mostly zero) and a target."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 7))
    X[:, 3] = np.round(X[:, 3] * 3)
    X[:, 6] = np.where(rng.random(n) < 0.6, 0.0, X[:, 6])
    X[:, 4], X[:, 5] = rng.integers(0, 80, n), rng.integers(0, 5, n)
    y = X[:, 0] + X[:, 1] * X[:, 2] + np.sin(X[:, 4]) + (X[:, 5] == 3) + 0.3 * rng.normal(size=n)
    if missing:
        X[rng.random(X.shape) < missing] = np.nan
    return X, y


def held_out(seed: int, thresholds: dict[int, np.ndarray], n: int = 1500, *, odd: np.ndarray = ODD) -> np.ndarray:
    """Rows with odd numbers, categories that no model has seen, and numbers on and next to the thresholds.

    Args:
        seed: Of the numbers.
        thresholds: Of each feature.
        n: Rows.
        odd: Which odd numbers.
    """
    rng = np.random.default_rng(seed + 1000)
    X = rng.normal(size=(n, 7)) * 2
    X[:, 3] = np.round(X[:, 3])
    X[:, 4], X[:, 5] = rng.integers(-3, 100, n), rng.integers(-2, 9, n)
    X[:, 4:6] += rng.choice([0.0, 0.0, 0.5, -0.5], (n, 2))
    chosen = rng.random(X.shape) < 0.12
    X[chosen] = rng.choice(odd, chosen.sum())
    for feature, values in thresholds.items():
        at = rng.random(n) < 0.3
        value = rng.choice(values, n)
        with np.errstate(all="ignore"):
            below, above = np.nextafter(value, -np.inf), np.nextafter(value, np.inf)
            below32 = np.nextafter(single(value), np.float32(-np.inf))
        X[at, feature] = np.choose(rng.integers(0, 4, n), [value, below, above, below32])[at]
    return X


def single(X: np.ndarray) -> np.ndarray:
    """Rounds to 32 bits; what is too large becomes infinite."""
    with np.errstate(over="ignore"):
        return X.astype(np.float32)


def equal(ours: np.ndarray, theirs: np.ndarray) -> bool:
    """Says whether all is the same to the last bit; NaN is NaN, and 0.0 is not -0.0."""
    ours, theirs = np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
    alike = (ours.view(np.int64) == theirs.view(np.int64)) | (np.isnan(ours) & np.isnan(theirs))
    return ours.shape == theirs.shape and bool(alike.all())


def apart(ours: np.ndarray, theirs: np.ndarray) -> float:
    """How many units in the last place two arrays differ at most."""
    return float(np.max(np.abs(ours - theirs) / np.spacing(np.maximum(np.abs(theirs), 1e-300))))


def named(value: object) -> str:
    """Names a case of a test: a function prints its address, which each process has another one of."""
    return "target" if callable(value) else str(value)
