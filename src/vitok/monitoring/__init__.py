"""Whether what was built still holds: counts of every hour against the reference, labels against promises, and alerts.

Here live the reference profile that ships with a model version, hourly sketches of the decision log by version and
slice, the drift of each feature and of the prediction against training, a healthy stretch or last year, faults of the
data, joint drift, label and concept drift and the diagnosis that names them, training-serving skew, realised
performance once labels are in, alerts that hold for several windows, and the watch that judges each closed day once.
What is measured and what is called an alarm are kept apart: a statistic is a number with its null law, a rule is the
caller's. Reading and writing the log is for `decisions`, the mathematics for `stats`; taking the step that a playbook
names (retrain, roll back) is for `loop`.
"""

from vitok.monitoring.alerts import Alert, Alerts, Observation
from vitok.monitoring.baselines import Baseline
from vitok.monitoring.calibration_watch import watch_calibration
from vitok.monitoring.conditions import Finding, WatchRules
from vitok.monitoring.confidence import ConfidenceCounts, confidence_shift
from vitok.monitoring.counting import HourSealer
from vitok.monitoring.delivery import Delivery, DeliveryRules, Escalation, Route
from vitok.monitoring.diagnosis import Diagnosis, DiagnosisRule, diagnose, onset
from vitok.monitoring.drift import ColumnDrift, DriftReport, DriftRule, DriftVerdict, drift, frame_drift
from vitok.monitoring.estimate_ledger import EstimateGrade, EstimateLedger
from vitok.monitoring.estimate_watch import EstimateWatch
from vitok.monitoring.estimation import (
    MulticlassEstimator,
    PerformanceEstimator,
    estimate_from_window,
    estimate_under_shift,
    realised_performance,
)
from vitok.monitoring.hourly_watch import HourlyWatch, WatchedHour
from vitok.monitoring.hours import HourlyCounts
from vitok.monitoring.joint import DomainClassifier, JointDrift, RandomFeatures, domain_classifier
from vitok.monitoring.label_guard import LABEL_SOURCE, GuardRules, Hold, LabelGuard, LookedDay
from vitok.monitoring.label_samples import LabelSample
from vitok.monitoring.label_sources import SourceCounts, SourceFinding, SourceRules, judge_sources
from vitok.monitoring.labels import ConceptDrift, LabelDrift, MaturedLabels, by_quantile, concept_drift, label_drift
from vitok.monitoring.loss_estimation import LossEstimator
from vitok.monitoring.performance import Performance, performance
from vitok.monitoring.profile import ReferenceProfile
from vitok.monitoring.prometheus import Sample, publish
from vitok.monitoring.quality import QualityFinding, QualityRule, check_quality, check_schema
from vitok.monitoring.rule_set import usual_rules
from vitok.monitoring.rules import AlertRule, Series, evaluate, to_prometheus
from vitok.monitoring.sampling import estimate_from_labels, plan_labels
from vitok.monitoring.sketches import Sketches, SliceCounts, WindowCounts
from vitok.monitoring.skew import SkewReport, skew
from vitok.monitoring.slices import SliceReport, explain, moved_slices
from vitok.monitoring.volume import ExpectedVolume, VolumeCheck
from vitok.monitoring.watch import Watch, Watched, WatchedDay
from vitok.monitoring.windows import DriftSeries, drift_series, windows

__all__ = [
    "LABEL_SOURCE",
    "Alert",
    "AlertRule",
    "Alerts",
    "Baseline",
    "ColumnDrift",
    "ConceptDrift",
    "ConfidenceCounts",
    "Delivery",
    "DeliveryRules",
    "Diagnosis",
    "DiagnosisRule",
    "DomainClassifier",
    "DriftReport",
    "DriftRule",
    "DriftSeries",
    "DriftVerdict",
    "Escalation",
    "EstimateGrade",
    "EstimateLedger",
    "EstimateWatch",
    "ExpectedVolume",
    "Finding",
    "GuardRules",
    "Hold",
    "HourSealer",
    "HourlyCounts",
    "HourlyWatch",
    "JointDrift",
    "LabelDrift",
    "LabelGuard",
    "LabelSample",
    "LookedDay",
    "LossEstimator",
    "MaturedLabels",
    "MulticlassEstimator",
    "Observation",
    "Performance",
    "PerformanceEstimator",
    "QualityFinding",
    "QualityRule",
    "RandomFeatures",
    "ReferenceProfile",
    "Route",
    "Sample",
    "Series",
    "Sketches",
    "SkewReport",
    "SliceCounts",
    "SliceReport",
    "SourceCounts",
    "SourceFinding",
    "SourceRules",
    "VolumeCheck",
    "Watch",
    "WatchRules",
    "Watched",
    "WatchedDay",
    "WatchedHour",
    "WindowCounts",
    "by_quantile",
    "check_quality",
    "check_schema",
    "concept_drift",
    "confidence_shift",
    "diagnose",
    "domain_classifier",
    "drift",
    "drift_series",
    "estimate_from_labels",
    "estimate_from_window",
    "estimate_under_shift",
    "evaluate",
    "explain",
    "frame_drift",
    "judge_sources",
    "label_drift",
    "moved_slices",
    "onset",
    "performance",
    "plan_labels",
    "publish",
    "realised_performance",
    "skew",
    "to_prometheus",
    "usual_rules",
    "watch_calibration",
    "windows",
]
