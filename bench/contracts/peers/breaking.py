"""datacontract-cli: says of two versions of a contract whether the change breaks consumers, and whether producers."""

import json
import logging
import sys

logging.disable(logging.CRITICAL)


def main() -> None:
    """Reads pairs of contracts, prints for each whether it breaks either side."""
    from datacontract.data_contract import DataContract
    from datacontract.model.breaking import Perspective

    found = []
    for old, new in json.load(sys.stdin)["pairs"]:
        sides = {}
        for side in ("consumer", "producer"):
            before, after = (DataContract(data_contract_str=text) for text in (old, new))
            sides[side] = bool(before.breaking(after, perspective=Perspective(side)).is_breaking)
        found.append(sides)
    print(json.dumps({"found": found}))


if __name__ == "__main__":
    main()
