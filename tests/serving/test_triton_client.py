"""tritonclient, unchanged, against the service: REST in JSON and bytes, gRPC, repository, errors, async.

It wants an older protobuf than ours, so it lives in an environment of its own (`make .venv/triton`).
"""

import json
import os
import subprocess
from pathlib import Path

import pytest
from tests.serving.model_folders import folder_host, make_models, served

ROOT = Path(__file__).parents[2]
PYTHON = Path(os.environ.get("VITOK_TRITON_PYTHON", ROOT / ".venv" / "triton" / "bin" / "python"))


@pytest.mark.parametrize("door", ["hot", "asgi"])
def test_the_client_works_unchanged(tmp_path: Path, door: str) -> None:
    if not PYTHON.exists():
        pytest.skip("no environment for tritonclient; make .venv/triton makes it")
    make_models(tmp_path)
    with served(folder_host(tmp_path, pinned=["sum"]), door=door) as found:
        address = f"{found.service.host}:{found.service.port}"
        script = Path(__file__).with_name("triton_calls.py")
        command = [str(PYTHON), str(script), address, found.grpc]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert len(results) == 19
    assert {name: error for name, error in results.items() if error != "ok"} == {}
