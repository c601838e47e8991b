"""The decision log: what was decided, with everything that made the decision, and what the world answered.

Here live the two append-only logs (`DecisionLog`, `OutcomeLog`), the reader that follows them while they grow
(`Tail`), the reads over all of their segments (`read`, `find`, `query`), the label view as of any past time
(`labels`), its join with decisions (`join`) and how fast labels arrive (`maturity`). What is a good decision, how
far a distribution has moved and whether a version is better are questions for the rooms above; features of
entities are kept by `features`.
"""

from vitok.decisions.label_view import join, labels, maturity
from vitok.decisions.log import DecisionLog, OutcomeLog
from vitok.decisions.messages import Constant
from vitok.decisions.reading import find, read
from vitok.decisions.schema import DecisionBlock, LogSchema, OutcomeBlock
from vitok.decisions.segments import Position
from vitok.decisions.sql import query
from vitok.decisions.tail import Tail

__all__ = [
    "Constant",
    "DecisionBlock",
    "DecisionLog",
    "LogSchema",
    "OutcomeBlock",
    "OutcomeLog",
    "Position",
    "Tail",
    "find",
    "join",
    "labels",
    "maturity",
    "query",
    "read",
]
