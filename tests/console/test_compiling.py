"""A person who opens a page must not wait for a compiler: where no process has compiled before, that takes seconds."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from tests.console.conftest import Home
from tests.console.test_challenger_reading import told as detector_told
from tests.console.test_challenger_reading import write as write_challenger
from tests.console.test_pages import MORE, PAGES

# What is compiled, or loaded from the cache of what was, has a signature.
COMPILED = """
import sys
from numba.core.dispatcher import Dispatcher
from tests.console.conftest import get

def compiled():
    modules = [module for name, module in sys.modules.items() if name.startswith("vitok")]
    values = {id(value): value for module in modules for value in vars(module).values()}
    return {str(value) for value in values.values() if isinstance(value, Dispatcher) and value.signatures}

before = compiled()
for path in sys.argv[2:]:
    assert get(sys.argv[1], path).status == 200, path
print(sorted(compiled() - before))
"""


def test_no_page_waits_until_something_is_compiled(home: Home, tmp_path: Path) -> None:
    folder = tmp_path / "home"
    shutil.copytree(home.folder, folder)
    losses = np.random.default_rng(3).beta(1, 60, 3_000)
    write_challenger(folder, detector_told(losses), seen=len(losses))
    decision = f"/decisions/{home.rows['decision_id'][0]}"
    done = subprocess.run(
        [sys.executable, "-c", COMPILED, str(folder), *PAGES, *MORE, decision],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
