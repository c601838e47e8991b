"""Model packages, runs, gates, and the ledger of stages.

Here lives what a model version *is* (a package: a folder whose every byte has a checksum), how it came about (a run
in an MLflow store), why it was let through (gates and their verdicts), where it stands and stood (the ledger:
append-only, chained by hashes, the truth about stages), and its model card. A package holds files and JSON that the
caller gives: what a model computes, how it is fitted and how it answers live in models, features and serving; when
to retrain, promote or roll back is decided in loop. MLflow's registry and aliases are a mirror of the ledger, never
read back.
"""

from vitok.registry.attachment import Attachment, attach, attachment_of, has_registry
from vitok.registry.backup_files import Backup
from vitok.registry.cards import MetricRow, ModelCard, model_card
from vitok.registry.cleaning import Cleaned, Removal, clean
from vitok.registry.client import RegistryClient
from vitok.registry.copying import Restored, backup, restore
from vitok.registry.gate_checks import (
    all_of,
    calibrated,
    calibrated_in_the_large,
    close_to_traffic,
    contract_kept,
    data_in_order,
    fast_enough,
    no_dearer,
    no_skew,
    no_worse_by_slice,
)
from vitok.registry.gates import Check, Verdict, at_least, at_most, evaluate, not_worse
from vitok.registry.home_copying import CopiedHome, copy_home
from vitok.registry.ledger import Ledger
from vitok.registry.object_packages import ObjectPackages
from vitok.registry.package import Package, read_package, write_package
from vitok.registry.provenance import DataSnapshot, Provenance, column_statistics, find_provenance
from vitok.registry.registry import Registry
from vitok.registry.remote_backup import fetch_backup, send_backup
from vitok.registry.run_copying import CopiedRuns
from vitok.registry.run_reading import Compared, MetricHistory, RunComparison, RunList, RunRecord, compare
from vitok.registry.runs import TrackedRun
from vitok.registry.shared_backup import RestoredStores, backup_stores, restore_stores
from vitok.registry.shared_cleaning import clean_stores
from vitok.registry.stages import Entry, ModelState, Stage, Version
from vitok.registry.storage import Verification
from vitok.registry.tracking import Tracker

__all__ = [
    "Attachment",
    "Backup",
    "Check",
    "Cleaned",
    "Compared",
    "CopiedHome",
    "CopiedRuns",
    "DataSnapshot",
    "Entry",
    "Ledger",
    "MetricHistory",
    "MetricRow",
    "ModelCard",
    "ModelState",
    "ObjectPackages",
    "Package",
    "Provenance",
    "Registry",
    "RegistryClient",
    "Removal",
    "Restored",
    "RestoredStores",
    "RunComparison",
    "RunList",
    "RunRecord",
    "Stage",
    "TrackedRun",
    "Tracker",
    "Verdict",
    "Verification",
    "Version",
    "all_of",
    "at_least",
    "at_most",
    "attach",
    "attachment_of",
    "backup",
    "backup_stores",
    "calibrated",
    "calibrated_in_the_large",
    "clean",
    "clean_stores",
    "close_to_traffic",
    "column_statistics",
    "compare",
    "contract_kept",
    "copy_home",
    "data_in_order",
    "evaluate",
    "fast_enough",
    "fetch_backup",
    "find_provenance",
    "has_registry",
    "model_card",
    "no_dearer",
    "no_skew",
    "no_worse_by_slice",
    "not_worse",
    "read_package",
    "restore",
    "restore_stores",
    "send_backup",
    "write_package",
]
