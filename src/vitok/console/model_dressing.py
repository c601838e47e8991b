"""What goes with each model that is served: its deadline, its rules, its log, and what leaves of its answers."""

import json as codec
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vitok import contracts
from vitok.console.option_names import options_named
from vitok.contracts import Contract
from vitok.errors import InvalidInput, NotFound, ServiceError, StoreError, VitokError
from vitok.guard import AnomalyScorer, ConfidenceFloor, KeyedNoise
from vitok.models.calibrators import calibrator_from_dict
from vitok.serving.disclosure import Disclosure
from vitok.serving.hosted import ROUTE, Answered, Breach, Hosted, Recorder
from vitok.serving.hosting import Catalogue
from vitok.serving.inference_log import InferenceLog
from vitok.serving.runtime import PackageFiles, Runtime
from vitok.serving.screening import Screen

PROFILE, ANOMALY, FLOOR = "profile.json", "anomaly.json", "confidence_floor.json"
"""Files of a package: the reference profile, what `AnomalyScorer.to_dict` and `ConfidenceFloor.to_dict` give."""

Rows = Callable[[np.ndarray], Sequence[Breach]]
_UNWELL_S = 5.0


@dataclass(frozen=True, kw_only=True)
class OutputPlan:
    """What is looked at in a row before the model runs, and what of its answer leaves.

    Attributes:
        screen: `"count"` or `"refuse"` for rows unlike the reference profile; None for no look.
        decimals: How many digits of a probability leave; None for all.
        noise: Standard deviation of noise in log-odds; None for none.
        noise_key: File of its secret.
        thresholds: Probabilities at which somebody decides, which noise does not cross.
        floor: Confidence below which an answer is withheld, or `"package"` for that of the version's package.
    """

    screen: Literal["count", "refuse"] | None = None
    decimals: int | None = None
    noise: float | None = None
    noise_key: Path | None = None
    thresholds: tuple[float, ...] = ()
    floor: str | None = None

    def __post_init__(self) -> None:
        if self.screen not in (None, "count", "refuse"):
            raise InvalidInput("--screen", self.screen, "be count or refuse")
        if (self.noise is None) != (self.noise_key is None):
            raise InvalidInput("--noise-key", self.noise_key, "go with --noise", "A file of 16 to 64 secret bytes")
        if self.thresholds and self.noise is None:
            raise InvalidInput("--threshold", self.thresholds, "go with --noise")
        if self.floor not in (None, "package"):
            self.level()
        if self.changes:
            self.disclosure("", None)

    @property
    def changes(self) -> bool:
        """Whether anything of an answer is changed."""
        return self.decimals is not None or self.noise is not None or self.floor is not None

    def level(self) -> float:
        """Returns the confidence of `floor`, where that is a number."""
        try:
            level = float(self.floor or "")
        except ValueError:
            level = -1.0
        if not 0 <= level <= 1:
            raise InvalidInput("--floor", self.floor, "be a confidence in [0, 1], or package")
        return level

    def disclosure(self, version: str, floor: ConfidenceFloor | None) -> Disclosure:
        """Makes what changes the answers of a version.

        Args:
            version: Such as `"fraud/3"`; noise is drawn anew for each.
            floor: That of its package, where that is asked for.
        """
        names = {"decimals": "--round", "key": "--noise-key", "scale": "--noise", "thresholds": "--threshold"}
        with options_named(**names):
            noise = None
            if self.noise is not None and self.noise_key is not None:
                key = _secret(self.noise_key)
                noise = KeyedNoise(key, scale=self.noise, thresholds=self.thresholds, model_version=version)
            if self.floor not in (None, "package"):
                floor = fixed_floor(self.level())
            elif self.floor == "package" and floor is None:
                floor = fixed_floor(1.0)  # nothing is known of the version yet
            return Disclosure(decimals=self.decimals, noise=noise, floor=floor)

    def options(self) -> dict[str, object]:
        """Returns it as options of a command line."""
        return {
            "screen": self.screen,
            "round": self.decimals,
            "noise": self.noise,
            "noise-key": self.noise_key,
            "threshold": list(self.thresholds),
            "floor": self.floor,
        }


def fixed_floor(level: float) -> ConfidenceFloor:
    """Returns a floor that somebody has set, of which nothing is known."""
    nan = float("nan")
    return ConfidenceFloor(
        floor=level, coverage=nan, error=nan, error_bound=nan, max_error=nan, n_obs=0, confidence_level=nan
    )


def _secret(path: Path) -> bytes:
    try:
        return path.read_bytes().strip()
    except OSError as error:
        raise InvalidInput("--noise-key", str(path), f"be a file that can be read ({error.strerror})") from None


class ModelLog:
    """The decision log of a model in this process, for all its versions that answer; each with its own calibrator.

    Args:
        folder: Folder of the log.
        name: Name of the model.
        catalogue: Where the packages of its versions are.
        hosted: The model as it was first loaded, which says how many columns there are.

    Raises:
        StoreError: If another process writes the folder, or it cannot be written.
    """

    def __init__(self, folder: Path, name: str, catalogue: Catalogue, hosted: Hosted) -> None:
        self._catalogue = catalogue
        self._lock = threading.Lock()
        self._calibrators: dict[str, Callable[[np.ndarray], np.ndarray] | None] = {}
        self._names = feature_names(catalogue, hosted.runtime)
        self._log = InferenceLog(folder, system=name, features=self._names)

    def record(self, batch: Answered) -> Sequence[bytes]:
        """Writes a batch; returns the decision id of each row."""
        # The path with a version and the one without may answer on two threads.
        with self._lock:
            self._log.calibrator = self._calibrate(batch.version)
            return self._log.record(batch)

    def admit(self, version: str, names: Sequence[str]) -> None:
        """Says whether a version may be logged here.

        Raises:
            ServiceError: If its columns have other names than those of the log.
        """
        if list(names) != self._names:
            raise ServiceError(f"{version}: its inputs are not those of the log: {', '.join(self._names)}")

    def close(self) -> None:
        """Seals the log."""
        self._log.close()

    def _calibrate(self, version: str) -> Callable[[np.ndarray], np.ndarray] | None:
        if version not in self._calibrators:
            self._calibrators[version] = read_calibrator(self._catalogue, version)
        return self._calibrators[version]


def read_json(catalogue: Catalogue, version: str, name: str) -> Any:
    """Reads a file of JSON from the package of a version such as `"fraud/3"`; None where there is none.

    Raises:
        ServiceError: If it is no JSON.
    """
    model, _, number = version.rpartition("/")
    package: PackageFiles | Path = catalogue.package(model, number)
    try:
        path = package / name if isinstance(package, Path) else package.path(name)
        return codec.loads(path.read_bytes())
    except (NotFound, FileNotFoundError):
        return None
    except (OSError, ValueError) as error:
        raise ServiceError(f"{version}: {name} cannot be read: {error}") from None


def read_calibrator(catalogue: Catalogue, version: str) -> Callable[[np.ndarray], np.ndarray] | None:
    """Reads the calibrator of a version; None where it has none.

    Raises:
        ServiceError: If it cannot be used.
    """
    described = read_json(catalogue, version, "calibrator.json")
    if described is None:
        return None
    try:
        return calibrator_from_dict(described)
    except (VitokError, TypeError, ValueError, KeyError, AttributeError) as error:
        raise ServiceError(f"{version}: calibrator.json cannot be used: {error}") from None


def feature_names(catalogue: Catalogue, runtime: Runtime) -> list[str]:
    """Returns the names of the columns, from `inputs` of signature.json; x0, x1, ... where it does not say.

    Raises:
        ServiceError: If it names another number of columns.
    """
    n = runtime.n_features
    signature = read_json(catalogue, runtime.version, "signature.json")
    names = signature.get("inputs") if isinstance(signature, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return [f"x{i}" for i in range(n)]
    if len(names) != n:
        raise ServiceError(f"{runtime.version}: signature.json names {len(names)} inputs, the model takes {n}")
    return names


def rules_of(contract: Contract, names: Sequence[str]) -> Callable[[np.ndarray], list[Breach]]:
    """Returns the rules of a contract for the columns of a matrix.

    Raises:
        InvalidInput: If a column is no field of the contract.
    """
    check = contract.matrix_checker(names)

    def rules(X: np.ndarray) -> list[Breach]:
        return [(row, found.field, found.message) for row, found in check(X)]

    return rules


class Watched:
    """A recorder that remembers when the one behind it could not write.

    Args:
        recorder: The recorder.
        clock: Seconds.
    """

    def __init__(self, recorder: Recorder, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._recorder = recorder
        self._clock = clock
        self._failed = -math.inf
        self._reason = ""

    def record(self, batch: Answered) -> Sequence[bytes]:
        """Writes a batch."""
        try:
            return self._recorder.record(batch)
        except StoreError as error:
            self._failed, self._reason = self._clock(), str(error)
            raise

    @property
    def problem(self) -> str:
        """Why it could not write, for `_UNWELL_S` after that: then it may be worth another try. Empty otherwise."""
        return self._reason if self._clock() - self._failed < _UNWELL_S else ""


class _ByVersion:
    """Does for each version what its package says; versions change between two batches."""

    def __init__(self, hosted: Hosted, make: Callable[[str], Any]) -> None:
        self._hosted = hosted
        self._make = make
        self._made: dict[str, Any] = {}

    def _now(self) -> Any:
        version = self._hosted.runtime.version
        found = self._made.get(version)
        if found is None:
            found = self._made[version] = self._make(version)
        return found


class _Screens(_ByVersion):
    def __call__(self, X: np.ndarray) -> Sequence[Breach]:
        found: Sequence[Breach] = self._now()(X)
        return found

    def describe(self, X: np.ndarray) -> Mapping[str, Any]:
        told: Mapping[str, Any] = self._now().describe(X)
        return told


class _Disclosures(_ByVersion):
    def __call__(self, X: np.ndarray, outputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        found: Mapping[str, np.ndarray] = self._now()(X, outputs)
        return found


class Dressing:
    """Gives each model that is loaded its rules, its log, and what leaves of its answers.

    Args:
        catalogue: Where the models come from.
        contract: File of rules for the rows; None for none.
        log: Folder of the decision logs, one a model; None for none.
        worker: Which of several processes this is; each has a log of its own.
        outputs: What is looked at, and what leaves.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        *,
        contract: Path | None = None,
        log: Path | None = None,
        worker: int | None = None,
        outputs: OutputPlan | None = None,
    ) -> None:
        self._catalogue = catalogue
        self._contract = None if contract is None else contracts.load(contract)
        self._log = log
        self._worker = worker
        self._outputs = outputs or OutputPlan()
        self._logs: dict[str, ModelLog] = {}
        self._kept: list[InferenceLog] = []
        self._watched: dict[str, Watched] = {}

    def __call__(self, hosted: Hosted) -> None:
        """Dresses a model.

        Raises:
            ServiceError: If what is asked for cannot be done for it.
        """
        try:
            if hosted.runtime.takes_rows:
                self._rows(hosted, feature_names(self._catalogue, hosted.runtime))
            if self._outputs.changes:
                self.disclose(hosted)
        except InvalidInput as error:
            raise ServiceError(f"{hosted.runtime.version} cannot be served so: {error}") from None

    def rules(self, of: str, names: Sequence[str]) -> Rows | None:
        """Returns the rules of the contract for columns; None where there is no contract.

        Args:
            of: Whose columns they are: the version of a model, or a route.
            names: Their names.

        Raises:
            ServiceError: If the columns do not fit the contract.
        """
        if self._contract is None:
            return None
        try:
            return rules_of(self._contract, names)
        except InvalidInput as error:
            raise ServiceError(f"{of} does not fit the contract: {error}") from None

    def disclose(self, hosted: Hosted) -> None:
        """Sets what leaves of the answers of a model or a route."""
        if not self._outputs.changes:
            return
        if self._outputs.floor == "package" and hosted.runtime.platform == ROUTE:
            raise InvalidInput("--floor", "package", "be a number where there are routes, which have no package")
        self._outputs.disclosure("", None).dress(hosted)
        hosted.disclose = _Disclosures(hosted, self._disclosure)

    def folder(self, name: str) -> Path | None:
        """Returns the folder of a log; None where there is none."""
        if self._log is None:
            return None
        return self._log / name if self._worker is None else self._log / name / f"worker-{self._worker}"

    def admit(self, runtime: Runtime) -> None:
        """Says whether a version may answer: all that goes with its answers must be right from the first on.

        Raises:
            ServiceError: If a file of its package cannot be used, or its columns are not those of the log.
        """
        if not runtime.takes_rows:
            return
        if self._outputs.screen is not None:
            self._scorer(runtime.version)
        if self._outputs.floor == "package":
            self._disclosure(runtime.version)
        if self._log is None:
            return
        names = feature_names(self._catalogue, runtime)
        read_calibrator(self._catalogue, runtime.version)
        log = self._logs.get(runtime.version.rpartition("/")[0])
        if log is not None:
            log.admit(runtime.version, names)

    def close(self) -> None:
        """Seals the logs."""
        for log in self._logs.values():
            log.close()
        for kept in self._kept:
            kept.close()

    def keep(self, name: str, log: InferenceLog) -> Recorder:
        """Takes the log of a route, which `close` seals with the others; returns what writes it."""
        self._kept.append(log)
        return self.watch(name, log)

    def watch(self, name: str, recorder: Recorder) -> Recorder:
        """Returns a recorder whose failures are among the `problems`."""
        return self._watched.setdefault(name, Watched(recorder))

    def problems(self) -> dict[str, str]:
        """Returns, by name, the logs that could not be written lately."""
        return {name: item.problem for name, item in list(self._watched.items()) if item.problem}

    def _rows(self, hosted: Hosted, names: Sequence[str]) -> None:
        hosted.rules = rules = self.rules(hosted.runtime.version, names)
        if self._outputs.screen is not None:
            refuse = self._outputs.screen == "refuse"
            self._fits(hosted, self._scorer(hosted.runtime.version))
            screens = _Screens(hosted, lambda version: Screen(self._scorer(version), rules=rules, refuse=refuse))
            hosted.rules, hosted.describe = screens, screens.describe
        folder = self.folder(hosted.name)
        if folder is not None:
            log = self._logs.get(hosted.name)
            if log is None:
                log = self._logs[hosted.name] = ModelLog(folder, hosted.name, self._catalogue, hosted)
            hosted.recorder = self.watch(hosted.name, log)

    @staticmethod
    def _fits(hosted: Hosted, scorer: AnomalyScorer) -> None:
        if len(scorer.names) != hosted.runtime.n_features:
            rule = f"have the {hosted.runtime.n_features} columns of the model"
            raise InvalidInput(PROFILE, f"{len(scorer.names)} columns", rule)

    def _scorer(self, version: str) -> AnomalyScorer:
        profile = self._json(version, PROFILE, "--screen")
        calibration = self._json(version, ANOMALY, "--screen")
        try:
            return AnomalyScorer(profile, calibration)
        except (VitokError, TypeError, ValueError, KeyError, AttributeError) as error:
            raise ServiceError(f"{version}: {PROFILE} and {ANOMALY} cannot be used: {error}") from None

    def _disclosure(self, version: str) -> Disclosure:
        floor = None
        if self._outputs.floor == "package":
            try:
                floor = ConfidenceFloor(**self._json(version, FLOOR, "--floor package"))
                if not isinstance(floor.floor, float | int):
                    raise TypeError("floor is no number")
            except TypeError as error:
                raise ServiceError(f"{version}: {FLOOR} cannot be used: {error}") from None
        return self._outputs.disclosure(version, floor)

    def _json(self, version: str, name: str, option: str) -> Any:
        found = read_json(self._catalogue, version, name)
        if found is None:
            raise ServiceError(f"{version}: its package has no {name}, which {option} asks for")
        return found
