"""datacontract-cli: lints contracts, and tests data by them."""

import contextlib
import io
import json
import logging
import sys

# Its findings come back as objects; what it prints besides would follow our last line.
logging.disable(logging.CRITICAL)


def lint(path: str) -> list[str]:
    """Returns what it finds wrong with a contract; nothing where it is valid."""
    from datacontract.data_contract import DataContract

    run = DataContract(data_contract_file=path).lint()
    found = [f"{check.name}: {check.reason}" for check in run.checks if check.result != "passed"]
    return found or ([] if run.result == "passed" else [str(run.result)])


def test(path: str) -> dict[str, object]:
    """Returns its verdict on the data that a contract names, and what it says of each rule that it found broken."""
    from datacontract.data_contract import DataContract

    run = DataContract(data_contract_file=path, server="local").test()
    broken = [
        {"type": check.type, "field": check.field, "result": str(check.result.value), "reason": str(check.reason)[:300]}
        for check in run.checks
        if check.result in ("failed", "error")
    ]
    return {"good": not broken, "broken": broken, "checks": len(run.checks)}


def main() -> None:
    """Reads paths, prints findings."""
    payload = json.load(sys.stdin)
    with contextlib.redirect_stdout(io.StringIO()):
        found = {
            "lint": {path: lint(path) for path in payload["lint"]},
            "test": {path: test(path) for path in payload["test"]},
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
