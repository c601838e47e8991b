"""Changes of a contract are called breaking where datacontract-cli calls them so, and the exceptions are declared.

Each pair of versions differs in one thing (`tests/contracts/versions.py`) and is judged from both sides. The peer
looks at what its checks look at; what a contract promises besides (service levels, notice, meaning, who may see it)
it passes over, and there we say more.
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.contracts.versions import BASE, CHANGES  # noqa: E402

from vitok import contracts  # noqa: E402
from vitok.contracts.changes import View  # noqa: E402

VERSION = "1.2.8"
REQUIREMENTS = [f"datacontract-cli[parquet,duckdb]=={VERSION}"]
PEER = Path(__file__).parent / "peers" / "breaking.py"
VIEWS: tuple[View, View] = ("consumer", "producer")

PASSED_OVER = "the peer compares only what its checks look at"
# By kind of change, or kind and side; what is not named here must agree.
DECLARED = {
    "type narrowed": "a reader of numbers can read whole numbers, as in the registries of Avro schemas",
    "type widened": "whole numbers are numbers, so who delivers them need not change",
    "pattern changed": "of two patterns it cannot be told which lets more through; the peer only warns",
    "quality rule dropped": "of two queries it cannot be told which lets more through; the peer only warns",
    "quality rule added": "of two queries it cannot be told which lets more through; the peer only warns",
    "uniqueness dropped": "what is unique by one column is unique by two, and is required already",
    "physicalType changed": "files have no types of a database, so we ask for a review",
    "personal data": PASSED_OVER,
    "classification changed": PASSED_OVER,
    "unit changed": PASSED_OVER,
    "retired": PASSED_OVER,
    "id changed": PASSED_OVER,
    "notice period shortened": PASSED_OVER,
    "notice period lengthened": PASSED_OVER,
    "service level retention loosened": PASSED_OVER,
    "service level retention tightened": PASSED_OVER,
    "service level timeOfAvailability loosened": PASSED_OVER,
    "service level timeOfAvailability dropped": PASSED_OVER,
}


def main() -> int:
    """Compares the verdicts; prints where they differ, then the line of the claim."""
    from bench import peers

    python = peers.environment("datacontract", REQUIREMENTS)
    pairs = [(BASE, BASE.replace(old, new)) for old, new, *_ in CHANGES]
    theirs = peers.run(python, PEER, {"pairs": pairs})["found"]
    agreed = declared = weaker = 0
    for (old, new), (*_, kind, _), found in zip(pairs, CHANGES, theirs, strict=True):
        for view in VIEWS:
            change = contracts.diff(contracts.load(old), contracts.load(new), now=0, view=view)
            ours = bool(change.breaking)
            if ours == found[view]:
                agreed += 1
            elif kind in DECLARED:
                declared += 1
                weaker += found[view]
            else:
                print(f"{kind}, {view}: we say {ours}, it says {found[view]}", file=sys.stderr)
    total = len(pairs) * len(VIEWS)
    claim = {
        "claim": "changes are called breaking where the standard's own tool calls them so",
        "value": 100 * agreed / (total - declared),
        "unit": "% of verdicts",
        "peer": f"datacontract-cli {VERSION}",
        "peer_value": None,
        "ratio": None,
        "bar": "100",
        "met": agreed == total - declared,
        "n": total,
        "protocol": (
            f"{len(pairs)} pairs of versions that differ in one thing, from both sides; {declared} verdicts are "
            f"declared to differ with the reason, in {declared - weaker} of them we call breaking what it does not."
        ),
    }
    print(json.dumps(claim))
    return 0


if __name__ == "__main__":
    sys.exit(main())
