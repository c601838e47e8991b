"""Pure mathematics: arrays in, frozen results out, no input or output and no state but histograms and detectors.

Here live ranking metrics, calibration, frozen-edge and latency histograms, divergences between histograms, intervals
for one look, confidence sequences for every look, change detectors, and adjustments for many tests. Each result carries its definition,
its n and its interval or null law. What reads data, watches a window or turns a number into an action does not live
here: that is for `decisions`, `monitoring`, `policies` and `loop`; calibrators, which are fitted and shipped with a
model, are in `models`.
"""

from vitok.stats.calibration import (
    BrierDecomposition,
    CalibrationError,
    ReliabilityCurve,
    brier,
    brier_decomposition,
    calibration_error,
    ece_equal_mass,
    ece_equal_width,
    isotonic_means,
    log_loss,
    reliability_curve,
    spiegelhalter,
)
from vitok.stats.confidence_sequences import (
    bounded_mean_sequence,
    mean_sequence,
    rate_difference_sequence,
    rate_sequence,
)
from vitok.stats.detectors import Detections, Detector, Verdict
from vitok.stats.detectors_adwin import ADWIN
from vitok.stats.detectors_calibration import Calibration, RunLength, calibrate, run_length
from vitok.stats.detectors_error_rates import DDM, EDDM
from vitok.stats.detectors_hddm import HDDMA, HDDMW
from vitok.stats.detectors_kswin import KSWIN
from vitok.stats.detectors_page_hinkley import PageHinkley
from vitok.stats.divergences import Divergence, chi_square, hellinger, jensen_shannon, ks, psi, wasserstein
from vitok.stats.histograms import FrozenEdges, count_matrix
from vitok.stats.intervals import (
    clopper_pearson,
    clopper_pearson_lower,
    mean_interval,
    mean_interval_from_moments,
    trials_needed,
    wilson,
)
from vitok.stats.latency import LatencyHistogram
from vitok.stats.multiplicity import AdjustedPValues, benjamini_hochberg, holm
from vitok.stats.ranking import CardPrecision, average_precision, card_precision_at_k, precision_at_k, roc_auc
from vitok.stats.rate_comparison import RateComparison
from vitok.stats.results import Estimate, NullTest
from vitok.stats.sequential_drift import ConformalDrift
from vitok.stats.sequential_proportions import ProportionDrift, proportion_drift

__all__ = [
    "ADWIN",
    "DDM",
    "EDDM",
    "HDDMA",
    "HDDMW",
    "KSWIN",
    "AdjustedPValues",
    "BrierDecomposition",
    "Calibration",
    "CalibrationError",
    "CardPrecision",
    "ConformalDrift",
    "Detections",
    "Detector",
    "Divergence",
    "Estimate",
    "FrozenEdges",
    "LatencyHistogram",
    "NullTest",
    "PageHinkley",
    "ProportionDrift",
    "RateComparison",
    "ReliabilityCurve",
    "RunLength",
    "Verdict",
    "average_precision",
    "benjamini_hochberg",
    "bounded_mean_sequence",
    "brier",
    "brier_decomposition",
    "calibrate",
    "calibration_error",
    "card_precision_at_k",
    "chi_square",
    "clopper_pearson",
    "clopper_pearson_lower",
    "count_matrix",
    "ece_equal_mass",
    "ece_equal_width",
    "hellinger",
    "holm",
    "isotonic_means",
    "jensen_shannon",
    "ks",
    "log_loss",
    "mean_interval",
    "mean_interval_from_moments",
    "mean_sequence",
    "precision_at_k",
    "proportion_drift",
    "psi",
    "rate_difference_sequence",
    "rate_sequence",
    "reliability_curve",
    "roc_auc",
    "run_length",
    "spiegelhalter",
    "trials_needed",
    "wasserstein",
    "wilson",
]
