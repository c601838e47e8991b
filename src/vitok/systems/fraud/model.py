"""A model version as the service holds it: runtime, calibrator and tiers of one package."""

import dataclasses

import numpy as np

from vitok.errors import Conflict
from vitok.features import FeatureSet
from vitok.models.calibrators import Calibrator, calibrator_from_dict
from vitok.policies import TierPolicy
from vitok.registry import Package
from vitok.serving import Runtime


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model version, ready to answer."""

    version: str
    stage: str
    runtime: Runtime
    columns: np.ndarray
    calibrator: Calibrator
    policy: TierPolicy

    @classmethod
    def load(cls, package: Package, version: str, stage: str, features: FeatureSet) -> "LoadedModel":
        """Loads a package for the features that the service computes.

        Raises:
            Conflict: If the package was made for other feature definitions.
        """
        wanted = package.json("features.json")["version"]
        if wanted != features.version:
            raise Conflict(f"model {version} was fitted on features {wanted}, the service computes {features.version}")
        names = package.json("signature.json")["inputs"]
        return cls(
            version,
            stage,
            Runtime.load(package, version=version),
            np.array([features.names.index(name) for name in names]),
            calibrator_from_dict(package.json("calibrator.json")),
            TierPolicy.from_dict(package.json("policy.json")),
        )

    def answer(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns score and calibrated probability, each of shape (n,)."""
        # The trees were fitted on float32, so that is what they are asked with, whatever runs them.
        rows = values[:, self.columns].astype(np.float32)
        score = self.runtime.score(rows.astype(self.runtime.dtype, copy=False))
        return score, self.calibrator(score)
