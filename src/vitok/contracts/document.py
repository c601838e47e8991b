"""Reads the YAML of a contract into plain values, and says exactly where one of them is not what it must be."""

import difflib
import math
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import yaml

from vitok.errors import InvalidInput, NotFound

# YAML 1.2 reads 1e9 as a number and 1.1 (PyYAML) as text; people write the former.
_NUMBER = re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types
    """A safe loader that refuses a key given twice, of which the usual one silently keeps the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002
        seen: set[object] = set()
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode) and key_node.tag != "tag:yaml.org,2002:merge":
                if key_node.value in seen:
                    line = key_node.start_mark.line + 1
                    raise InvalidInput(f"contract, line {line}", key_node.value, "be a key given once")
                seen.add(key_node.value)
        return super().construct_mapping(node, deep=deep)


def read_text(path_or_text: str | Path) -> str:
    """Returns the text of a contract: a text of more than one line is itself, all else names a file.

    Raises:
        NotFound: If the file does not exist; the message lists the contract files beside it.
        InvalidInput: If it is a folder, unreadable, or not UTF-8.
    """
    if isinstance(path_or_text, str) and "\n" in path_or_text:
        return path_or_text
    path = Path(path_or_text)
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        beside = sorted(item.name for item in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
        raise NotFound("contract file", str(path), beside) from None
    except UnicodeDecodeError as error:
        raise InvalidInput("contract", str(path), f"be UTF-8 text; byte {error.start} is not") from None
    except OSError as error:
        raise InvalidInput("contract", str(path), f"be a readable file ({error.strerror})") from None


def parse(text: str) -> dict[str, Any]:
    r"""Parses the text of a contract.

    Raises:
        InvalidInput: If it is not YAML, not a mapping, or gives a key twice.

    Example:
        >>> parse("kind: DataContract\nid: a\n")
        {'kind': 'DataContract', 'id': 'a'}
    """
    try:
        document = yaml.load(text, Loader=_Loader)  # noqa: S506
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or str(error)
        raise InvalidInput(f"contract{place}", _line(text, mark), f"be YAML ({problem})") from None
    except (ValueError, RecursionError) as error:
        raise InvalidInput("contract", text[:60], f"be YAML that can be read ({error})") from None
    return mapping(document, "contract")


def _line(text: str, mark: Any) -> str:
    lines = text.splitlines()
    return lines[mark.line].strip() if mark is not None and mark.line < len(lines) else text[:60]


def keys(names: str) -> frozenset[str]:
    """Writes a set of names that stand in one text."""
    return frozenset(names.split())


def known_keys(value: Mapping[str, Any], allowed: Collection[str], where: str) -> None:
    """Refuses a key that the standard does not have there: a misspelt rule must not pass for no rule."""
    for key in value:
        if key not in allowed:
            close = difflib.get_close_matches(str(key), allowed, n=1, cutoff=0.7)
            fix = f"Did you mean {close[0]!r}?" if close else f"Known here: {', '.join(sorted(allowed))}"
            raise InvalidInput(where, key, "be a key of the Open Data Contract Standard", fix)


def mapping(value: object, where: str) -> dict[str, Any]:
    """Returns a mapping, or says that there is none."""
    if not isinstance(value, dict):
        raise InvalidInput(where, value, "be a mapping of keys to values")
    return value


def entries(value: object, where: str) -> list[Any]:
    """Returns a list; None counts as an empty one."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise InvalidInput(where, value, "be a list")
    return value


def text(value: object, where: str) -> str:
    """Returns a text that is not empty."""
    if not isinstance(value, str) or not value.strip():
        raise InvalidInput(where, value, "be a text that is not empty", "Quote it if YAML reads it as something else")
    return value


def optional_text(value: object, where: str) -> str:
    """Returns a text, or "" where there is none."""
    if value is None or value == "":
        return ""
    return text(value, where)


def flag(value: object, where: str) -> bool:
    """Returns a boolean; None counts as false."""
    if value is None:
        return False
    if not isinstance(value, bool):
        raise InvalidInput(where, value, "be true or false")
    return value


def number(value: object, where: str) -> int | float:
    """Returns a finite number.

    Example:
        >>> number("1e9", "maximum")
        1000000000.0
    """
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InvalidInput(where, value, "be a finite number")
    return value


def whole(value: object, where: str) -> int:
    """Returns a whole number that is not negative."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise InvalidInput(where, value, "be a whole number of at least 0")
    return value
