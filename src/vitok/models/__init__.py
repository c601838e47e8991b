"""What learns and how it is fitted: boosted trees, the calibrators of their scores, their kernel and their export.

Arrays go in, fitted objects that can be written to JSON or bytes come out. Where rows come from (`features`), which
version is in force (`registry`) and how it answers (`serving`) is decided elsewhere.
"""

from vitok.models.boosting import BoostedTrees, fit_boosted_trees
from vitok.models.calibrators import Calibrator, fit_best
from vitok.models.calibrators_refit import RefitVerdict, refit_calibrator
from vitok.models.convert import Converted, convert
from vitok.models.distil import distil
from vitok.models.forest import Forest
from vitok.models.quantise import quantise
from vitok.models.tradeoffs import Bounds

__all__ = [
    "BoostedTrees",
    "Bounds",
    "Calibrator",
    "Converted",
    "Forest",
    "RefitVerdict",
    "convert",
    "distil",
    "fit_best",
    "fit_boosted_trees",
    "quantise",
    "refit_calibrator",
]
