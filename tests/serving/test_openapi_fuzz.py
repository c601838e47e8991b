"""The HTTP API of `vitok serve-models` asked at random, from its own OpenAPI document: no 500 and no crash."""

import http.client
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from tests.console.test_model_serving import place, process
from tests.serving.model_folders import make_models

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not there; make test-libraries has it")

EXAMPLES = 40


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_models(tmp_path / "models")
    return tmp_path


def document(found: dict[str, Any]) -> dict[str, Any]:
    connection = http.client.HTTPConnection(*place(found), timeout=20)
    connection.request("GET", "/openapi.json")
    answer: dict[str, Any] = json.loads(connection.getresponse().read())
    connection.close()
    return answer


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the libraries that ask
@pytest.mark.parametrize("options", [(), ("--door", "asgi"), ("--queue", "on", "--cache", "1M", "--round", "3")])
def test_no_answer_is_a_fault(folder: Path, options: tuple[str, ...]) -> None:
    from schemathesis import GenerationMode
    from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance

    with process(folder, "--pin", "sum", *options) as (child, found):
        schema = schemathesis.openapi.from_dict(document(found))
        statuses: dict[int, int] = {}

        def answered(case: Any) -> None:
            response = case.call(base_url=found["http"])
            statuses[response.status_code] = statuses.get(response.status_code, 0) + 1
            assert response.status_code != 500, (case, response.content)
            case.validate_response(response, checks=[status_code_conformance, response_schema_conformance])

        for result in schema.get_all_operations():
            operation = result.ok()
            # Names are not to be guessed, so half of the requests are for a model that there is.
            named = {"name": "sum", "version": "1"} if "{version}" in operation.path else {"name": "sum"}
            ways = [{}, {"path_parameters": named}] if "{name}" in operation.path else [{}]
            if operation.path.endswith("/infer"):
                ways += [way | {"generation_mode": GenerationMode.NEGATIVE} for way in ways]
            for way in ways:
                many = settings(
                    max_examples=EXAMPLES,
                    deadline=None,
                    derandomize=True,
                    database=None,
                    suppress_health_check=list(HealthCheck),
                )
                many(given(case=operation.as_strategy(**way))(answered))()
        assert child.poll() is None
        assert {200, 404, 422} <= set(statuses), statuses
        connection = http.client.HTTPConnection(*place(found), timeout=20)
        connection.request("GET", "/v2/health/ready")
        assert connection.getresponse().status == 200
        connection.close()
