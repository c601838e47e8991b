"""What data must be: contracts written in the Open Data Contract Standard, and what is done with data that breaks one.

`load` reads a contract; `Contract.check` checks a table in one pass and parts it into accepted and rejected rows;
`Contract.row_checker` checks one request in microseconds by the same rules; `html.render` writes a report for a
person; `Quarantine` keeps what was rejected with the reason until it is repaired, released or discarded; `infer`
drafts a contract from data; `diff` says of a change whom it breaks and whether they were told in time. Where data
comes from, what is computed of it (see `features`) and whether its distribution has moved (see `monitoring`) is not
decided here.
"""

from vitok.contracts import html as html
from vitok.contracts.changes import Change, Difference, diff
from vitok.contracts.contract import Contract, Field, Freshness, Key, Table
from vitok.contracts.drafting import infer
from vitok.contracts.interpretation import load
from vitok.contracts.notice import Notice
from vitok.contracts.quarantine import Quarantine
from vitok.contracts.report import CheckReport, RuleResult
from vitok.contracts.rows import Violation
from vitok.contracts.rules import Comparison, Metric, Rule
from vitok.contracts.settlements import Settlement

__all__ = [
    "Change",
    "CheckReport",
    "Comparison",
    "Contract",
    "Difference",
    "Field",
    "Freshness",
    "Key",
    "Metric",
    "Notice",
    "Quarantine",
    "Rule",
    "RuleResult",
    "Settlement",
    "Table",
    "Violation",
    "diff",
    "infer",
    "load",
]
