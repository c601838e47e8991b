"""Where a run comes from: git commit and unsaved changes, environment, hardware, data and seeds."""

import contextlib
import hashlib
import importlib.metadata
import math
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitok import settings
from vitok.errors import InvalidInput

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

_GIT_TIMEOUT_S = 20
_DIFF_LIMIT = 5_000_000
_QUANTILES = (0.0, 0.05, 0.5, 0.95, 1.0)


@dataclass(frozen=True, kw_only=True)
class DataSnapshot:
    """The data that a run read, named by its contents.

    Attributes:
        digest: Hash of the contents, in hexadecimal.
        rows: How many rows, at least 0.
        statistics: Column name to numbers about it, such as `{"amount": {"nulls": 0, "mean": 52.1}}`; None for one
            that is not known.

    Example:
        >>> DataSnapshot(digest="5d41", rows=2, statistics=column_statistics({"amount": [1.0, 3.0]})).statistics
        {'amount': {'n': 2, 'nulls': 0, 'mean': 2.0, 'q0': 1.0, 'q0.05': 1.1, 'q0.5': 2.0, 'q0.95': 2.9, 'q1': 3.0}}
    """

    digest: str
    rows: int
    statistics: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.digest:
            raise InvalidInput("digest", self.digest, "be the hash of the data")
        if self.rows < 0:
            raise InvalidInput("rows", self.rows, "be at least 0")
        for column, numbers in self.statistics.items():
            for name, value in numbers.items():
                if value is not None and not math.isfinite(value):
                    raise InvalidInput(f"statistics[{column}][{name}]", value, "be a finite number or None")


def column_statistics(columns: "Mapping[str, ArrayLike]") -> dict[str, dict[str, float | None]]:
    """Describes columns of numbers for a `DataSnapshot`: rows, nulls, mean and quantiles of what is finite.

    Args:
        columns: Name to values, shape (n,); NaN where there is none.
    """
    import numpy as np

    found: dict[str, dict[str, float | None]] = {}
    for name, values in columns.items():
        array = np.asarray(values, dtype=np.float64)
        finite = array[np.isfinite(array)]
        at = np.quantile(finite, _QUANTILES).tolist() if len(finite) else [None] * len(_QUANTILES)
        found[name] = {
            "n": len(array),
            "nulls": int(np.isnan(array).sum()),
            "mean": float(finite.mean()) if len(finite) else None,
            **{f"q{q:g}": value for q, value in zip(_QUANTILES, at, strict=True)},
        }
    return found


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What has to be known to make a run again.

    Attributes:
        commit: Git commit, or None where the code is in no checkout.
        branch: Git branch, or None where there is none.
        dirty: True where files differ from the commit, or git does not say; False also where there is no checkout.
        status: `git status` in short form, one file a line.
        diff: The changes against the commit, as `git apply` takes them; without untracked files.
        python: Version of Python.
        platform: Operating system and machine.
        packages: Installed packages and their versions.
        packages_digest: SHA-256 of that list: equal lists have equal digests.
        lock_digest: SHA-256 of the lock or constraints file that `settings` names, or None.
        hardware: Processor, cores, memory in bytes.
    """

    commit: str | None
    branch: str | None
    dirty: bool
    status: str = field(repr=False)
    diff: str = field(repr=False)
    python: str
    platform: str
    packages: Mapping[str, str] = field(repr=False)
    packages_digest: str
    lock_digest: str | None
    hardware: Mapping[str, Any]

    def environment(self) -> dict[str, Any]:
        """Returns everything but git, as a dict that `json.dumps` accepts."""
        return {
            "python": self.python,
            "platform": self.platform,
            "hardware": dict(self.hardware),
            "packages_digest": self.packages_digest,
            "lock_digest": self.lock_digest,
            "packages": dict(self.packages),
        }

    def __str__(self) -> str:
        code = "no git checkout" if self.commit is None else f"commit {self.commit[:12]}"
        return f"{code}{' with changes' if self.dirty else ''}, Python {self.python}, {len(self.packages)} packages"


def find_provenance(source: Path | None = None) -> Provenance:
    """Finds out where a run comes from; outside a git checkout, or without git, that part is empty.

    Args:
        source: A folder of the code that runs; None for the working folder.

    Raises:
        InvalidInput: If the lock file that the settings name cannot be read.

    Example:
        >>> find_provenance().python == platform.python_version()
        True
    """
    folder = Path(source) if source is not None else Path.cwd()
    commit = _git(folder, "rev-parse", "--verify", "--quiet", "HEAD")
    inside = _git(folder, "rev-parse", "--is-inside-work-tree") == "true"
    # What git was too slow to say, or could not, is not called unchanged.
    status = _git(folder, "status", "--porcelain", strip=False) if inside else ""
    status = "?? git did not say what has changed\n" if status is None else status
    diff = _git(folder, "diff", "--binary", "--no-ext-diff", "--no-color", "HEAD", strip=False) if commit else ""
    diff = "The changes are not known: git did not say.\n" if diff is None else diff
    if len(diff) > _DIFF_LIMIT:
        diff = f"The changes are {len(diff)} characters long and were left out; their SHA-256 is {_sha256(diff)}.\n"
    packages = _packages()
    return Provenance(
        commit=commit,
        branch=_git(folder, "symbolic-ref", "--short", "--quiet", "HEAD"),
        dirty=bool(status),
        status=status,
        diff=diff,
        python=platform.python_version(),
        platform=platform.platform(),
        packages=packages,
        packages_digest=_sha256("".join(f"{name}=={version}\n" for name, version in packages.items())),
        lock_digest=_lock_digest(settings.current().lock),
        hardware=_hardware(),
    )


def _lock_digest(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise InvalidInput("lock", str(path), f"be a file that can be read ({error.strerror})") from None


def _git(folder: Path, *arguments: str, strip: bool = True) -> str | None:
    # GIT_OPTIONAL_LOCKS: looking must not make the user's own git command wait.
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            timeout=_GIT_TIMEOUT_S,
            check=True,
            env=environment,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    text = done.stdout.decode(errors="backslashreplace")
    return text.strip() or None if strip else text


def _packages() -> dict[str, str]:
    found = {}
    for distribution in importlib.metadata.distributions():
        # An uninstall that broke off leaves a folder without a name.
        name = distribution.metadata["Name"] if distribution.metadata else None
        if name:
            found[name.lower().replace("_", "-")] = distribution.version
    return dict(sorted(found.items()))


def _hardware() -> dict[str, Any]:
    processor = platform.processor() or platform.machine()
    memory: int | None = None
    cores = os.cpu_count()
    # /proc and these calls are Linux's own.
    with contextlib.suppress(OSError, ValueError, AttributeError):
        cores = len(os.sched_getaffinity(0))
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                processor = line.partition(":")[2].strip()
                break
    return {"processor": processor, "cores": cores, "memory": memory, "bits": sys.maxsize.bit_length() + 1}


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
