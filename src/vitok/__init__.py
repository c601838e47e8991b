"""The closed loop of production machine learning: decide, log, join the outcome, watch, compare, improve, roll back.

The rooms are imported where they are used (`from vitok import features`), so that `import vitok` stays light.
"""

import importlib
from typing import Any

from vitok.decision import Decision, Outcome
from vitok.errors import VitokError

__version__ = "0.1.0"

_ROOMS = frozenset(
    {
        "contracts",
        "decisions",
        "features",
        "guard",
        "loop",
        "models",
        "monitoring",
        "policies",
        "registry",
        "serving",
        "stats",
        "systems",
    }
)

__all__ = ["Decision", "Outcome", "VitokError", "__version__", *sorted(_ROOMS)]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"vitok.{name}")
    raise AttributeError(f"module 'vitok' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
