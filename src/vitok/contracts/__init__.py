"""What data must be: contracts written in the Open Data Contract Standard, and what is done with data that breaks one.

`load` reads a contract; `Contract.check` checks a table in one pass and parts it into accepted and rejected rows;
`Contract.row_checker` checks one request in microseconds by the same rules; `Quarantine` keeps what was rejected with
the reason; `infer` drafts a contract from data. Where data comes from, what is computed of it (see `features`) and
whether its distribution has moved (see `monitoring`) is not decided here.
"""

from vitok.contracts.contract import Contract, Field, Freshness, Key, Table
from vitok.contracts.drafting import infer
from vitok.contracts.interpretation import load
from vitok.contracts.quarantine import Quarantine
from vitok.contracts.report import CheckReport, RuleResult
from vitok.contracts.rows import Violation
from vitok.contracts.rules import Comparison, Metric, Rule

__all__ = [
    "CheckReport",
    "Comparison",
    "Contract",
    "Field",
    "Freshness",
    "Key",
    "Metric",
    "Quarantine",
    "Rule",
    "RuleResult",
    "Table",
    "Violation",
    "infer",
    "load",
]
