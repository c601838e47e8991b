"""Pure mathematics: arrays in, frozen results out, no input or output and no state but histograms and detectors.

Here live ranking metrics, calibration and performance without labels, frozen-edge and latency histograms, divergences
between histograms, intervals for one look, confidence sequences for every look, change detectors, conformal sets, and
adjustments for many tests. Each result carries its definition, its n and its interval or null law. What reads data,
watches a window or turns a number into an action does not live here: that is for `decisions`, `monitoring`, `policies`
and `loop`; calibrators, which are fitted and shipped with a model, are in `models`.
"""

from vitok.stats.binned_performance import ScoreBins, score_edges
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
from vitok.stats.calibration_variants import (
    adaptive_calibration_error,
    calibration_null_test,
    class_wise_error,
    maximum_calibration_error,
    murphy_decomposition,
    smooth_calibration_error,
    top_label_error,
)
from vitok.stats.confidence_sequences import (
    bounded_mean_sequence,
    mean_sequence,
    rate_difference_sequence,
    rate_sequence,
)
from vitok.stats.conformal import AdaptiveCoverage, ConformalIntervals, ConformalSets, watch_coverage
from vitok.stats.detectors import Detections, Detector, Verdict
from vitok.stats.detectors_adwin import ADWIN
from vitok.stats.detectors_calibration import Calibration, RunLength, calibrate, run_length
from vitok.stats.detectors_error_rates import DDM, EDDM
from vitok.stats.detectors_hddm import HDDMA, HDDMW
from vitok.stats.detectors_kswin import KSWIN
from vitok.stats.detectors_page_hinkley import PageHinkley
from vitok.stats.divergences import Divergence, chi_square, hellinger, jensen_shannon, ks, psi, wasserstein
from vitok.stats.histograms import BinLayout, FrozenEdges, count_matrix
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
from vitok.stats.off_policy import (
    OffPolicyEstimate,
    doubly_robust,
    importance_weights,
    ips,
    snips,
)
from vitok.stats.performance_estimation import (
    ExpectedPerformance,
    calibration_noise,
    expected_multiclass,
    expected_performance,
)
from vitok.stats.ranking import CardPrecision, average_precision, card_precision_at_k, precision_at_k, roc_auc
from vitok.stats.rate_comparison import RateComparison
from vitok.stats.reliability import ReliabilityDiagram, reliability_diagram
from vitok.stats.results import Estimate, NullTest
from vitok.stats.sequential_drift import ConformalDrift
from vitok.stats.sequential_proportions import ProportionDrift, proportion_drift
from vitok.stats.weighted_means import effective_sample_size, weighted_mean_interval

__all__ = [
    "ADWIN",
    "DDM",
    "EDDM",
    "HDDMA",
    "HDDMW",
    "KSWIN",
    "AdaptiveCoverage",
    "AdjustedPValues",
    "BinLayout",
    "BrierDecomposition",
    "Calibration",
    "CalibrationError",
    "CardPrecision",
    "ConformalDrift",
    "ConformalIntervals",
    "ConformalSets",
    "Detections",
    "Detector",
    "Divergence",
    "Estimate",
    "ExpectedPerformance",
    "FrozenEdges",
    "LatencyHistogram",
    "NullTest",
    "OffPolicyEstimate",
    "PageHinkley",
    "ProportionDrift",
    "RateComparison",
    "ReliabilityCurve",
    "ReliabilityDiagram",
    "RunLength",
    "ScoreBins",
    "Verdict",
    "adaptive_calibration_error",
    "average_precision",
    "benjamini_hochberg",
    "bounded_mean_sequence",
    "brier",
    "brier_decomposition",
    "calibrate",
    "calibration_error",
    "calibration_noise",
    "calibration_null_test",
    "card_precision_at_k",
    "chi_square",
    "class_wise_error",
    "clopper_pearson",
    "clopper_pearson_lower",
    "count_matrix",
    "doubly_robust",
    "ece_equal_mass",
    "ece_equal_width",
    "effective_sample_size",
    "expected_multiclass",
    "expected_performance",
    "hellinger",
    "holm",
    "importance_weights",
    "ips",
    "isotonic_means",
    "jensen_shannon",
    "ks",
    "log_loss",
    "maximum_calibration_error",
    "mean_interval",
    "mean_interval_from_moments",
    "mean_sequence",
    "murphy_decomposition",
    "precision_at_k",
    "proportion_drift",
    "psi",
    "rate_difference_sequence",
    "rate_sequence",
    "reliability_curve",
    "reliability_diagram",
    "roc_auc",
    "run_length",
    "score_edges",
    "smooth_calibration_error",
    "snips",
    "spiegelhalter",
    "top_label_error",
    "trials_needed",
    "wasserstein",
    "watch_coverage",
    "weighted_mean_interval",
    "wilson",
]
