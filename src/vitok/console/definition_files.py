"""Definitions of features as a command names them: a Python file, or the fraud system's own."""

import dataclasses
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitok.errors import InvalidInput, NotFound
from vitok.features import FeatureSet
from vitok.features.described import SetVersion

# What may go wrong when a file of somebody's own is run; anything else is not about the file.
_FAULTS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Definitions:
    """What a file of definitions holds.

    Attributes:
        sets: The feature sets, each under the name of its variable.
        indexes: The vectors of embeddings by `"name@version"`: its variable `INDEXES`, where it has one.
    """

    sets: Mapping[str, FeatureSet]
    indexes: Mapping[str, Any]

    def only(self) -> tuple[str, FeatureSet]:
        """Returns the one set that there is, with its name.

        Raises:
            InvalidInput: If there are several.
        """
        if len(self.sets) > 1:
            names = sorted(self.sets)
            raise InvalidInput("--definitions", names, "name one of them", f"Write FILE:{names[0]}.")
        return next(iter(self.sets.items()))


def load_feature_sets(where: str | None = None) -> Definitions:
    """Loads the feature sets that a command is to compute.

    Args:
        where: Path of a Python file, or `path:NAME` for one of the sets in it; None for the fraud system's.

    Raises:
        NotFound: If there is no such file, or no such name in it.
        InvalidInput: If the file cannot be run, or holds no feature set.
    """
    if where is None:
        from vitok.systems.fraud.features import FEATURES
        from vitok.systems.fraud.messages import SYSTEM

        return Definitions(sets={SYSTEM: FEATURES}, indexes={})
    path, name = _taken_apart(where)
    if not path.is_file():
        beside = sorted(item.name for item in path.parent.glob("*.py")) if path.parent.is_dir() else []
        raise NotFound("file of definitions", str(path), beside)
    variables = _variables(path)
    found = {key: value for key, value in variables.items() if isinstance(value, FeatureSet)}
    if name:
        if name not in found:
            raise NotFound(f"feature set in {path}", name, sorted(found))
        found = {name: found[name]}
    if not found:
        raise InvalidInput(
            "--definitions",
            str(path),
            "hold a FeatureSet in a variable of the module",
            "Write for instance FEATURES = FeatureSet(views=(...)).",
        )
    indexes = variables.get("INDEXES", {})
    if not isinstance(indexes, Mapping) or not all(isinstance(key, str) for key in indexes):
        raise InvalidInput("--definitions: INDEXES", indexes, "map 'name@version' to an index")
    return Definitions(sets=found, indexes=indexes)


def load_definitions(where: str | None = None) -> tuple[SetVersion, ...]:
    """Loads the descriptions of the feature sets that a command is about; arguments and errors are as above.

    Returns:
        The sets, each under the name of its variable.
    """
    return tuple(SetVersion.of(value, key) for key, value in load_feature_sets(where).sets.items())


def _taken_apart(where: str) -> tuple[Path, str]:
    path, mark, name = where.rpartition(":")
    if mark and name.isidentifier() and path:
        return Path(path), name
    return Path(where), ""


def _variables(path: Path) -> dict[str, object]:
    # Imported under a name of its own, with its folder first on the path, so that it finds the modules beside it.
    spec = importlib.util.spec_from_file_location(f"vitok_definitions_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise InvalidInput("--definitions", str(path), "be a Python file, whose name ends in .py")
    module = importlib.util.module_from_spec(spec)
    folder = str(path.resolve().parent)
    sys.modules[spec.name] = module
    sys.path.insert(0, folder)
    try:
        spec.loader.exec_module(module)
    except _FAULTS as error:
        told = f"{type(error).__name__}: {error}"
        raise InvalidInput("--definitions", str(path), f"be a Python file that runs ({told})") from error
    finally:
        sys.modules.pop(spec.name, None)
        sys.path.remove(folder)
    return vars(module)
