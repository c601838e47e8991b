"""The public face of the room."""

import subprocess
import sys

from vitok import loop


def test_all_is_what_can_be_imported() -> None:
    assert len(set(loop.__all__)) == len(loop.__all__)
    assert all(hasattr(loop, name) for name in loop.__all__)


def test_importing_the_room_loads_neither_dbos_nor_polars() -> None:
    code = "import sys, vitok.loop; sys.exit(bool({'dbos', 'polars', 'mlflow', 'sqlalchemy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
