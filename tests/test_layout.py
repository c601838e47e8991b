"""The floor plan of the repository: short modules, one level of rooms, text that is true on every machine."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "vitok"
ROOMS = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))

LONGEST_MODULE = 600
NAMELESS = {"utils", "util", "common", "core", "helpers", "helper", "misc", "base_utils"}
# In pieces, so that this file does not break its own rules.
UNFINISHED = re.compile(r"\b(?:TO" + r"DO|FIX" + r"ME|HA" + r"CK|XX" + r"X)\b")
MACHINE_PATH = re.compile(r"(?<![\w.:/*}<-])/(?:home|root|work|Users|mnt|opt)/[A-Za-z0-9_.-]+")
REGISTRY = re.compile(r"https?://[\w.-]*(?:pypi|pythonhosted|simple/|download\.pytorch)", re.IGNORECASE)
TEXT = {".py", ".md", ".toml", ".txt", ".yaml", ".yml", ".json", ".jsonl", ".svg", ".html", ".css", ".js", ".cfg", ""}


def tracked() -> list[Path]:
    """Lists the files of the repository; reads .gitignore itself, as a copy without git must pass too."""
    patterns = [line.strip("/") for line in (ROOT / ".gitignore").read_text().split() if not line.startswith("#")]
    found, folders = [], [ROOT]
    while folders:
        for path in sorted(folders.pop().iterdir()):
            if path.name == ".git" or any(path.match(pattern) for pattern in patterns):
                continue
            if path.is_dir() and not path.is_symlink():
                folders.append(path)
            else:
                found.append(path)
    return found


FILES = tracked()
MODULES = [path for path in FILES if path.suffix == ".py"]
TEXTS = [path for path in FILES if path.suffix in TEXT and path.stat().st_size < 2_000_000]


def lines_with(pattern: re.Pattern[str]) -> list[str]:
    """Lists file:line of every match in the tracked text."""
    return [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
        for path in TEXTS
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if pattern.search(line)
    ]


def test_modules_are_short() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in MODULES}
    too_long = {name: length for name, length in lengths.items() if length > LONGEST_MODULE}
    assert not too_long, f"at most {LONGEST_MODULE} lines a module; split by what it does"


def test_package_is_one_level_deep() -> None:
    for path in MODULES:
        if PACKAGE not in path.parents:
            continue
        parts = path.relative_to(PACKAGE).parts
        deepest = 3 if parts[0] == "systems" else 2
        assert len(parts) <= deepest, f"{path.relative_to(ROOT)}: vitok/room/module.py, or vitok/systems/name/module.py"


def test_names_are_nouns_of_the_field() -> None:
    nameless = [
        str(path.relative_to(ROOT)) for path in MODULES if NAMELESS & {path.stem, *path.relative_to(ROOT).parts}
    ]
    assert not nameless, "name a module after what lives in it"


def test_nothing_is_left_unfinished() -> None:
    assert not lines_with(UNFINISHED)


def test_no_path_of_one_machine() -> None:
    assert not lines_with(MACHINE_PATH)


def test_no_address_of_a_package_index() -> None:
    assert not lines_with(REGISTRY), "the machine's own pip configuration says where packages come from"


def test_constraints_are_names_and_versions() -> None:
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+", pin) for pin in pins)
    names = [re.sub(r"[-_.]+", "-", pin.partition("==")[0]).lower() for pin in pins]
    assert len(names) == len(set(names))
    assert "vitok" not in names


def test_no_print_and_no_sleep_in_tests() -> None:
    calls = []
    for path in MODULES:
        if path.relative_to(ROOT).parts[0] != "tests":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in {"time.sleep", "sleep", "print"}:
                calls.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not calls, "pass a clock in, or wait for the thing itself with a deadline"


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_has_a_page_and_tests(room: str) -> None:
    assert (ROOT / "docs" / f"{room}.md").exists(), f"docs/{room}.md is missing"
    assert f"{room}.md" in (ROOT / "docs" / "index.md").read_text(), f"docs/index.md does not link {room}.md"
    assert list((ROOT / "tests" / room).rglob("test_*.py")), f"tests/{room}/ has no test_*.py"


def test_links_between_pages_lead_somewhere() -> None:
    broken = []
    for path in TEXTS:
        if path.suffix != ".md":
            continue
        for target in re.findall(r"\]\(([^)\s#]+)(?:#[^)]*)?\)|src=\"([^\"]+)\"", path.read_text()):
            link = "".join(target)
            if "://" not in link and not link.startswith("mailto:") and not (path.parent / link).exists():
                broken.append(f"{path.relative_to(ROOT)}: {link}")
    assert not broken
