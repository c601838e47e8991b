"""The turn back: when to retrain, whether a release holds, what is done about it, and what is written down.

Here live the trigger of a retraining, durable steps that go on after a crash, the judge of a canary on the log, the
functions that begin, settle, push and roll back a release, and the records of incidents and releases. What a model
learns, which checks a gate makes and what raises an alert live in models, registry and monitoring; the steps of a
whole turn are put together in systems.
"""

from vitok.loop.durable import Durable
from vitok.loop.judge import CANARY_FAILED, JudgeRules, PairedJudge, ReleaseVerdict
from vitok.loop.records import Record, RecordEntry, Records
from vitok.loop.releases import begin_canary, push, roll_back, settle_canary
from vitok.loop.traffic_judge import CostRule, RateRule, TrafficJudge, TrafficVerdict
from vitok.loop.triggers import Reason, RetrainTrigger

__all__ = [
    "CANARY_FAILED",
    "CostRule",
    "Durable",
    "JudgeRules",
    "PairedJudge",
    "RateRule",
    "Reason",
    "Record",
    "RecordEntry",
    "Records",
    "ReleaseVerdict",
    "RetrainTrigger",
    "TrafficJudge",
    "TrafficVerdict",
    "begin_canary",
    "push",
    "roll_back",
    "settle_canary",
]
