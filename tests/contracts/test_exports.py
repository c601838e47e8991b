import subprocess
import sys
import types

from vitok import contracts


def test_public_names_are_all_of_them() -> None:
    names = {name for name, value in vars(contracts).items() if not name.startswith("_")}
    modules = {name for name in names if isinstance(getattr(contracts, name), types.ModuleType)}
    assert set(contracts.__all__) == names - modules


def test_a_service_that_checks_rows_does_not_wait_for_polars() -> None:
    code = "import sys, vitok.contracts; sys.exit('polars' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
