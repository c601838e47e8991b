"""Runs a job's SQL text on a local Flink, in Flink's own environment: python flink_runner.py FILE."""

import re
import sys
from pathlib import Path


def main(path: Path) -> None:
    from pyflink.table import EnvironmentSettings, TableEnvironment

    environment = TableEnvironment.create(EnvironmentSettings.in_streaming_mode())
    environment.get_config().set("parallelism.default", "1")
    for statement in path.read_text(encoding="utf-8").strip().removesuffix(";").split(";\n\n"):
        # SET is a word of Flink's SQL client, not of its tables.
        setting = re.search(r"^SET '(.+)' = '(.+)'$", statement, re.MULTILINE)
        if setting:
            environment.get_config().set(*setting.groups())
            continue
        result = environment.execute_sql(statement)
        if statement.startswith("EXECUTE"):
            result.wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
