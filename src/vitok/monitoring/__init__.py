"""Whether what was built still holds: counts of every hour against the reference, labels against promises, and alerts.

Here live the reference profile that ships with a model version, hourly sketches of the decision log, the drift of
each feature and of the prediction, realised performance once labels are in, alerts that hold for several windows,
and the watch that judges each closed day once. What is measured and what is called an alarm are kept apart: a
statistic is a number with its null law, a rule is the caller's. Reading and writing the log is for `decisions`, the
mathematics for `stats`; taking the step that a playbook names (retrain, roll back) is for `loop`.
"""

from vitok.monitoring.alerts import Alert, AlertRule, Alerts, Observation
from vitok.monitoring.conditions import Finding, WatchRules
from vitok.monitoring.drift import ColumnDrift, DriftReport, DriftRule, DriftVerdict, drift
from vitok.monitoring.performance import Performance, performance
from vitok.monitoring.profile import ReferenceProfile
from vitok.monitoring.sketches import Sketches, WindowCounts
from vitok.monitoring.watch import Watch, Watched, WatchedDay

__all__ = [
    "Alert",
    "AlertRule",
    "Alerts",
    "ColumnDrift",
    "DriftReport",
    "DriftRule",
    "DriftVerdict",
    "Finding",
    "Observation",
    "Performance",
    "ReferenceProfile",
    "Sketches",
    "Watch",
    "WatchRules",
    "Watched",
    "WatchedDay",
    "WindowCounts",
    "drift",
    "performance",
]
