"""A model version as the service holds it: the parts of one package, checked against each other, behind a breaker."""

import dataclasses
import logging
import time

import numpy as np

from vitok.errors import Conflict, InvalidInput, NotFound, ServiceError, VitokError
from vitok.features import FeatureSet
from vitok.models.calibrators import Calibrator, calibrator_from_dict
from vitok.policies import TierPolicy
from vitok.registry import Package
from vitok.serving import Batch, Breaker, LocalModel, Runtime, Scored, TargetFailed, TimedOut
from vitok.serving.retries import NO_DEADLINE

NEEDED = ("signature.json", "features.json", "examples.json", "calibrator.json", "policy.json")
LEARNED = "learned.json"
"""File of a package that says which days its trees learned from, and after which change of the world."""
_LOG = logging.getLogger("vitok.fraud")


class BehindBreaker:
    """A model of this process that is not asked while its breaker is open, and found well again by a few probes.

    Args:
        model: The model.
        breaker: Counts what fails and what is slow.

    Example:
        >>> from vitok.serving import BreakerRules
        >>> def broken(rows):
        ...     raise OSError("the disk is full")
        >>> target = BehindBreaker(LocalModel("fraud/3", broken), Breaker(BreakerRules(min_calls=1)))
        >>> for _ in range(2):
        ...     try:
        ...         target.score(Batch(np.zeros((1, 1))))
        ...     except TargetFailed as error:
        ...         print(error)
        fraud/3: OSError('the disk is full')
        fraud/3 is out: 1 calls in a row failed
    """

    def __init__(self, model: LocalModel, breaker: Breaker) -> None:
        self.model = model
        self.breaker = breaker
        self.name, self.version, self.quality = model.name, model.version, model.quality

    @property
    def cost(self) -> float:
        """What a row costs."""
        return self.model.cost

    def score(self, batch: Batch, deadline: int = NO_DEADLINE) -> Scored:
        """Answers a batch.

        Raises:
            TimedOut: If the deadline has passed before it began.
            ServiceError: If the model fails, or the breaker is open.
        """
        permit = self.breaker.admit()
        if not permit:
            raise TargetFailed(f"{self.name} is out: {self.breaker.reason}")
        began = time.perf_counter_ns()
        try:
            scored = self.model.score(batch, deadline)
        except TimedOut:
            self.breaker.release(permit)
            raise
        except VitokError as error:
            self.breaker.record(permit, ok=False)
            _LOG.warning("%s failed: %s", self.name, error)
            raise
        self.breaker.record(permit, ok=True, took=time.perf_counter_ns() - began)
        return scored

    async def call(self, batch: Batch, deadline: int = NO_DEADLINE) -> Scored:
        """Answers a batch, as `score`."""
        return self.score(batch, deadline)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model version, ready to answer.

    Attributes:
        version: Such as `"fraud/3"`.
        stage: Where the ledger has it.
        runtime: What runs the trees.
        columns: Places of its inputs among the features of the service, shape (inputs,).
        calibrator: From its scores to probabilities.
        policy: From probabilities to actions.
        policy_version: Hash of the policy's contents, made once.
        target: The model as routes ask it: rows of all features in, scores out.
    """

    version: str
    stage: str
    runtime: Runtime
    columns: np.ndarray
    calibrator: Calibrator
    policy: TierPolicy
    policy_version: str
    target: BehindBreaker

    @classmethod
    def load(
        cls, package: Package, version: str, stage: str, features: FeatureSet, *, breaker: Breaker | None = None
    ) -> "LoadedModel":
        """Loads a package for the features that the service computes, scores its examples, and warms it up.

        Packages of earlier versions of vitok load as well: what scores may be ONNX, and rows of 32 or 64 bits.

        Args:
            package: The package, every byte of it checked when it was read.
            version: What to call it.
            stage: Where the ledger has it.
            features: What the service computes.
            breaker: Its breaker; by default one that opens where half of the calls fail.

        Raises:
            Conflict: If the package lacks a part, or was made for other features.
            ServiceError: If the model does not reproduce the examples of the package.
        """
        missing = [name for name in NEEDED if name not in package]
        if missing:
            raise Conflict(f"model {version}: its package has no {' and no '.join(missing)}; register it once more")
        try:
            wanted = package.json("features.json")["version"]
            names = package.json("signature.json")["inputs"]
            calibrator = calibrator_from_dict(package.json("calibrator.json"))
            policy = TierPolicy.from_dict(package.json("policy.json"))
        except (KeyError, TypeError, ValueError, InvalidInput) as error:
            raise Conflict(f"model {version}: its package cannot be read: {error!r}") from None
        if wanted != features.version:
            raise Conflict(f"model {version} was fitted on features {wanted}, the service computes {features.version}")
        unknown = [name for name in names if name not in features.names]
        if unknown:
            raise Conflict(f"model {version} takes {', '.join(unknown)}, which the service does not compute")
        try:
            runtime = Runtime.load(package, version=version)
        except NotFound as error:
            raise Conflict(f"model {version}: {error}") from None
        if runtime.n_features != len(names):
            raise Conflict(f"model {version} takes {runtime.n_features} columns, its signature names {len(names)}")
        if "latency.json" in package:
            there = package.json("latency.json")["microseconds"].get("1")
            _LOG.info(
                "%s: a row takes %.3g us here, %s us where it was made", version, 1e6 * runtime.seconds_per_run, there
            )
        columns = np.array([features.names.index(name) for name in names])

        def score(values: np.ndarray) -> np.ndarray:
            # The trees were fitted on float32, so that is what they are asked with, whatever runs them.
            rows = values[:, columns].astype(np.float32)
            found = runtime.score(rows.astype(runtime.dtype, copy=False))
            if not np.isfinite(found).all():
                raise ServiceError(f"{version}: a score is no number")
            return found

        return cls(
            version=version,
            stage=stage,
            runtime=runtime,
            columns=columns,
            calibrator=calibrator,
            policy=policy,
            policy_version=policy.version,
            target=BehindBreaker(LocalModel(version, score), breaker or Breaker()),
        )

    def answer(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns score and calibrated probability, each of shape (n,), whatever its breaker says.

        Raises:
            ServiceError: If the model fails.
        """
        score = self.target.model.score(Batch(values)).values
        return score, self.calibrator(score)
