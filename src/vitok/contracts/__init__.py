"""What data must be: contracts written in the Open Data Contract Standard, and what is done with data that breaks one.

`load` reads a contract; `Contract.check` checks a table in one pass and parts it into accepted and rejected rows;
`Contract.batch_checker` checks the batches of a stream, with a `KeyMemory` of what was accepted before;
`Contract.row_checker` checks one request in microseconds by the same rules; `frozen_histogram` writes a distribution
that a contract may hold data to; `html.render` writes a report for a
person; `Quarantine` keeps what was rejected with the reason until it is repaired, released or discarded; `infer`
drafts a contract from data; `diff` says of a change whom it breaks and whether they were told in time. Where data
comes from, what is computed of it (see `features`) and whether its distribution has moved (see `monitoring`) is not
decided here.
"""

from vitok.contracts import html as html
from vitok.contracts.changes import Change, Difference, diff
from vitok.contracts.contract import (
    Condition,
    Contract,
    Delivery,
    Field,
    Freshness,
    Key,
    Query,
    Relationship,
    Table,
)
from vitok.contracts.drafting import infer
from vitok.contracts.interpretation import load
from vitok.contracts.keys import KeyMemory
from vitok.contracts.measures import Measure, frozen_histogram
from vitok.contracts.notice import Notice
from vitok.contracts.quarantine import Quarantine
from vitok.contracts.report import CheckReport, PeriodReport, RuleResult
from vitok.contracts.rows import Violation
from vitok.contracts.rules import Comparison, Metric, Rule
from vitok.contracts.settlements import Settlement

__all__ = [
    "Change",
    "CheckReport",
    "Comparison",
    "Condition",
    "Contract",
    "Delivery",
    "Difference",
    "Field",
    "Freshness",
    "Key",
    "KeyMemory",
    "Measure",
    "Metric",
    "Notice",
    "PeriodReport",
    "Quarantine",
    "Query",
    "Relationship",
    "Rule",
    "RuleResult",
    "Settlement",
    "Table",
    "Violation",
    "diff",
    "frozen_histogram",
    "infer",
    "load",
]
