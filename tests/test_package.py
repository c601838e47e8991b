"""What a user sees of the package as a whole: it imports fast and shows exactly its public names."""

import importlib
import inspect
import json
import re
import subprocess
import sys
import tomllib
import types
from importlib import metadata
from pathlib import Path

import pytest

import vitok

ROOT = Path(__file__).parent.parent
PACKAGE = Path(vitok.__file__).parent
ROOMS = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))
HEAVY = {"duckdb", "lightgbm", "mlflow", "numba", "numpy", "onnxruntime"}
HEAVY |= {"pandas", "polars", "pyarrow", "scipy", "sklearn"}

IMPORT = """
import sys, time
began = time.perf_counter()
import vitok
seconds = time.perf_counter() - began
import json
print(json.dumps([seconds, sorted(sys.modules)]))
"""


def fresh_import() -> tuple[float, set[str]]:
    """Imports vitok in a new process; returns seconds and the names of all loaded modules."""
    done = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True, cwd=ROOT)
    seconds, modules = json.loads(done.stdout)
    return seconds, set(modules)


def test_import_is_fast() -> None:
    # The least of five: a busy machine makes an import slower, never faster.
    assert min(fresh_import()[0] for _ in range(5)) < 0.3


def test_import_is_light() -> None:
    _, modules = fresh_import()
    assert not modules & HEAVY


def test_all_of_the_root_is_exactly_its_public_names() -> None:
    assert len(vitok.__all__) == len(set(vitok.__all__)) <= 20
    assert dir(vitok) == sorted(vitok.__all__)
    written = {
        name
        for name, value in vars(vitok).items()
        if not name.startswith("_") and getattr(value, "__module__", "").startswith("vitok")
    }
    assert written <= set(vitok.__all__)


def test_rooms_are_reached_from_the_root() -> None:
    for name in vitok.__all__:
        assert getattr(vitok, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nowhere'"):
        _ = vitok.nowhere


def test_version_is_the_one_in_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert vitok.__version__ == project["version"] == metadata.version("vitok")
    assert f"## [{vitok.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_every_room_has_its_floor() -> None:
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]
    floors = set(re.findall(r"vitok\.(\w+)", " ".join(contract["layers"])))
    roots = {path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__"}
    assert floors == roots | set(ROOMS)


@pytest.mark.parametrize("name", ROOMS)
def test_room_says_what_it_is_and_shows_exactly_its_public_names(name: str) -> None:
    room = importlib.import_module(f"vitok.{name}")
    assert room.__doc__
    assert len(room.__doc__.split()) >= 15, "say in one paragraph what lives here and what does not"

    shown = list(room.__all__)
    assert len(shown) == len(set(shown))
    missing = [public for public in shown if not hasattr(room, public)]
    assert not missing

    reexported = {
        public
        for public, value in vars(room).items()
        if not public.startswith("_")
        and not isinstance(value, types.ModuleType)
        and getattr(value, "__module__", "").startswith(f"vitok.{name}")
    }
    assert reexported <= set(shown), "a public name of the room is not in its __all__"


@pytest.mark.parametrize("name", ROOMS)
def test_public_names_of_a_room_are_documented(name: str) -> None:
    room = importlib.import_module(f"vitok.{name}")
    bare = [
        public
        for public in room.__all__
        if (inspect.isclass(value := getattr(room, public)) or inspect.isroutine(value)) and not inspect.getdoc(value)
    ]
    assert not bare
