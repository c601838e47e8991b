"""Contracts are valid for datacontract-cli, and it gives the same verdict on a corpus of good and bad data.

The peer is the reference tool of the standard. Each case is one file and one rule (`tests/contracts/verdicts.py`);
a case is bad for either side where any rule is broken. Cases in which the peer is known to be wrong are declared with
their reason: they are run, counted apart, and the benchmark fails where such a case has come to agree.
"""

import json
import re
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import polars as pl  # noqa: E402
from tests.contracts.conftest import TEXT  # noqa: E402
from tests.contracts.test_drafting import shop  # noqa: E402
from tests.contracts.verdicts import Case, cases  # noqa: E402
from tests.contracts.versions import BASE  # noqa: E402

from vitok import contracts  # noqa: E402
from vitok.clock import SystemClock  # noqa: E402
from vitok.contracts.files import scan  # noqa: E402
from vitok.errors import ContractBroken  # noqa: E402

VERSION = "1.2.8"
REQUIREMENTS = [f"datacontract-cli[parquet,duckdb]=={VERSION}"]
PEER = Path(__file__).parent / "peers" / "verdicts.py"


def ours(contract: Path, data: Path) -> bool:
    """Returns our verdict: true where no rule is broken, also none that only warns."""
    try:
        report = contracts.load(contract).check(scan(data), now=SystemClock().now())
    except ContractBroken:
        return False
    return not report.failed


def written(folder: Path) -> list[Path]:
    """Writes the contracts that are linted: all of the tests, those of the systems, and drafts of ours."""
    found = sorted((ROOT / "src").rglob("*.odcs.yaml"))
    # PyYAML, which the peer reads with, takes 1e6 for a text, as YAML 1.1 has it; we read numbers as YAML 1.2 does.
    texts = {"every_rule": re.sub(r"\b1e6\b", "1000000", TEXT), "every_promise": BASE}
    drafts = {"orders": shop(0), "pairs": pl.DataFrame({"user_id": ["a", "a"], "item_id": [1, 2], "n": [1.5, None]})}
    texts |= {f"draft_{name}": contracts.infer(data, name=name).text for name, data in drafts.items()}
    for name, text in texts.items():
        path = folder / f"{name}.odcs.yaml"
        path.write_text(text)
        found.append(path)
    return found


def main() -> int:
    """Compares the verdicts; prints where they differ, then the line of the claim."""
    from bench import peers

    python = peers.environment("datacontract", REQUIREMENTS)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files: dict[str, tuple[Case, Path, Path]] = {}
        for number, case in enumerate(cases()):
            contract, data = case.write(folder / str(number))
            files[str(contract)] = (case, contract, data)
        linted = [str(path) for path in written(folder)] + list(files)
        theirs = peers.run(python, PEER, {"lint": linted, "test": list(files)})
        problems = [f"lint {path}: {said}" for path, said in theirs["lint"].items() if said]
        agreed = declared = 0
        for path, (case, contract, data) in files.items():
            mine, peer = ours(contract, data), theirs["test"][path]
            same = mine == peer["good"]
            agreed += same and not case.declared
            if mine != case.good:
                problems.append(f"{case.name}: we say {mine}")
            if case.declared:
                declared += 1
                if same:
                    problems.append(f"{case.name}: declared to differ ({case.declared}), and agrees now")
            elif not same:
                problems.append(f"{case.name}: we say good={mine}, it says {json.dumps(peer['broken'])}")
    for problem in problems:
        print(problem, file=sys.stderr)
    checked = len(files) - declared
    valid = sum(not said for said in theirs["lint"].values())
    claim = {
        "claim": "contracts get the same verdict from the standard's own tool on good and bad data",
        "value": 100 * agreed / checked,
        "unit": "% of cases",
        "peer": f"datacontract-cli {VERSION}",
        "peer_value": None,
        "ratio": None,
        "bar": "100",
        "met": agreed == checked and not problems,
        "n": len(files),
        "protocol": (
            f"{len(files)} files of one rule each, {declared} of them declared to differ with the reason; "
            f"{valid} of {len(linted)} contracts pass its lint, our drafts and all contracts of the tests among them."
        ),
    }
    print(json.dumps(claim))
    return 0


if __name__ == "__main__":
    sys.exit(main())
