"""The decision log: what was decided, with everything that made the decision, and what the world answered.

Here live the two append-only logs (`DecisionLog`, `OutcomeLog`), the reader that follows them while they grow
(`Tail`), the files made beside each segment at its sealing (`sidecars`), the reads over all of their segments (`read`,
`find`, `query`), the label view as of any past time (`labels`), its join with decisions (`join`), how fast labels
arrive (`maturity`), decisions taken again (`replay_decision`, `replay_period`), and how rows go again (`retain`,
`redact`, `forget`). What is a good decision, how far a distribution has moved and whether a version is better are
questions for the rooms above; features of entities are kept by `features`.
"""

from vitok.decisions.forgetting import Receipt, Verified, forget, receipts, verify
from vitok.decisions.label_maturity import maturity
from vitok.decisions.label_view import join, labels
from vitok.decisions.log import DecisionLog, OutcomeLog
from vitok.decisions.merging import Merged, merge
from vitok.decisions.messages import Constant
from vitok.decisions.reading import find, read
from vitok.decisions.replay import (
    Recomputed,
    Replayable,
    ReplayedDecision,
    ReplayedPeriod,
    Rescored,
    replay_decision,
    replay_period,
)
from vitok.decisions.retention import Hold, Retained, hold, holds, redact, release, retain
from vitok.decisions.schema import DecisionBlock, LogSchema, OutcomeBlock
from vitok.decisions.segments import Position
from vitok.decisions.selection import LabelWeights, label_weights
from vitok.decisions.sidecars import OnSeal, Sidecar, reseal, sidecars
from vitok.decisions.sql import query
from vitok.decisions.tail import Tail

__all__ = [
    "Constant",
    "DecisionBlock",
    "DecisionLog",
    "Hold",
    "LabelWeights",
    "LogSchema",
    "Merged",
    "OnSeal",
    "OutcomeBlock",
    "OutcomeLog",
    "Position",
    "Receipt",
    "Recomputed",
    "Replayable",
    "ReplayedDecision",
    "ReplayedPeriod",
    "Rescored",
    "Retained",
    "Sidecar",
    "Tail",
    "Verified",
    "find",
    "forget",
    "hold",
    "holds",
    "join",
    "label_weights",
    "labels",
    "maturity",
    "merge",
    "query",
    "read",
    "receipts",
    "redact",
    "release",
    "replay_decision",
    "replay_period",
    "reseal",
    "retain",
    "sidecars",
    "verify",
]
