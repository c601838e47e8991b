"""One of the writers of test_many_stores.py: registers, has its gate accept, promotes, and says so, line by line."""

import json
import sys
from pathlib import Path

from vitok.registry import Registry, at_least, evaluate


def main(database: str, packages: str, home: str, me: int, rounds: int) -> None:
    good = evaluate([at_least("average_precision", 0.6, 0.5)])
    registry = Registry(database, packages=packages, cache=Path(home) / str(me))
    for i in range(rounds):
        made = registry.register("fraud", {"m": f"{me}-{i}"}, now=i, actor=f"w{me}", key=f"{me}-{i}")
        registry.ledger.record_gate("fraud", made.version, good, now=i, actor="gate")
        registry.ledger.promote("fraud", made.version, "Production", reason="r", actor=f"w{me}", now=i)
        sys.stdout.write(json.dumps([me, i, made.version]) + "\n")
        sys.stdout.flush()
    registry.close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
