"""The turn back: when to retrain, whether a release holds, what is done about it, and what is written down.

Here live the triggers of a retraining, durable steps that go on after a crash, the judges of a new version on the log,
releases by plan from the shadow to full traffic and back, and the records of incidents and releases. What a model
learns, which checks a gate makes and what raises an alert live in models, registry and monitoring; the steps of a
whole turn are put together in systems.
"""

from vitok.loop.cron import Cron
from vitok.loop.durable import Durable
from vitok.loop.incidents import Incidents
from vitok.loop.judge import CANARY_FAILED, JudgeRules, PairedJudge, ReleaseVerdict
from vitok.loop.playbook import Playbook
from vitok.loop.playbook_actions import Action, Actions, Bound, Order
from vitok.loop.records import Record, RecordEntry, Records
from vitok.loop.release_book import Release
from vitok.loop.release_evidence import LogEvidence, Look, Split
from vitok.loop.release_plan import PlannedJudge, ReleasePlan, Step
from vitok.loop.release_run import Releases
from vitok.loop.releases import push, roll_back, rollback_seconds
from vitok.loop.switches import Switches
from vitok.loop.traffic_judge import CostRule, RateRule, TrafficJudge, TrafficVerdict
from vitok.loop.triage import Change, Evidence, Fact, TriageRules, changes_in_ledger
from vitok.loop.trigger_book import Run, TriggerRules, Triggers

__all__ = [
    "CANARY_FAILED",
    "Action",
    "Actions",
    "Bound",
    "Change",
    "CostRule",
    "Cron",
    "Durable",
    "Evidence",
    "Fact",
    "Incidents",
    "JudgeRules",
    "LogEvidence",
    "Look",
    "Order",
    "PairedJudge",
    "PlannedJudge",
    "Playbook",
    "RateRule",
    "Record",
    "RecordEntry",
    "Records",
    "Release",
    "ReleasePlan",
    "ReleaseVerdict",
    "Releases",
    "Run",
    "Split",
    "Step",
    "Switches",
    "TrafficJudge",
    "TrafficVerdict",
    "TriageRules",
    "TriggerRules",
    "Triggers",
    "changes_in_ledger",
    "push",
    "roll_back",
    "rollback_seconds",
]
