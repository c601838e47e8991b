import dataclasses
import importlib
import json
import re
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest
from tests.features.definition_cases import ACCOUNT, FEATURES

from vitok.clock import parse_time
from vitok.errors import InvalidInput, ServiceError, StoreError
from vitok.features import FeatureSet
from vitok.features.described import SetVersion
from vitok.features.openlineage import Run, events, post, write

RUN = Run(kind="table", output="training rows", started=1_000_000, ended=3_000_000, rows=12)
TRAINING = Run(kind="training", output="fraud/3", started=1_000_000, ended=3_000_000)
FAILED = Run(kind="materialisation", output="online", started=0, ended=1, error="the disk is full")
TYPES = {"payments": {"amount": "double", "card_id": "varchar"}}
# The fields that the specification 2-0-2 requires, by the place they are at.
_DATASET = {"namespace": str, "name": str, "facets": dict}


def check_event(event: dict[str, Any]) -> None:
    # Oracle: OpenLineage 2-0-2, RunEvent, and each facet's own schema.
    assert set(event) == {"eventType", "eventTime", "run", "job", "inputs", "outputs", "producer", "schemaURL"}
    assert event["eventType"] in {"START", "RUNNING", "COMPLETE", "ABORT", "FAIL", "OTHER"}
    assert parse_time(event["eventTime"]) >= 0
    assert "T" in event["eventTime"]
    assert event["eventTime"].endswith("Z")
    assert uuid.UUID(event["run"]["runId"])
    assert event["schemaURL"] == "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/RunEvent"
    assert re.match(r"https://\S+$", event["producer"])
    assert event["job"]["namespace"]
    assert event["job"]["name"]
    facets = [*event["run"]["facets"].values(), *event["job"]["facets"].values()]
    for dataset in (*event["inputs"], *event["outputs"]):
        assert all(isinstance(dataset[name], kind) for name, kind in _DATASET.items())
        assert set(dataset) <= {*_DATASET, "inputFacets", "outputFacets"}
        facets += [*dataset["facets"].values(), *dataset.get("outputFacets", {}).values()]
        assert all(set(field) <= {"name", "type", "description"} for field in dataset["facets"]["schema"]["fields"])
        assert all(field["name"] for field in dataset["facets"]["schema"]["fields"])
    for facet in facets:
        name = facet["_schemaURL"].rpartition("/")[2]
        assert re.fullmatch(
            rf"https://openlineage\.io/spec/facets/\d+-\d+-\d+/{name}\.json#/\$defs/{name}", facet["_schemaURL"]
        )
        assert facet["_producer"] == event["producer"]
    for output in event["outputs"]:
        for origins in output["facets"]["columnLineage"]["fields"].values():
            for origin in origins["inputFields"]:
                assert set(origin) == {"namespace", "name", "field", "transformations"}
                assert all(one["type"] in {"DIRECT", "INDIRECT"} for one in origin["transformations"])
    assert json.loads(json.dumps(event, allow_nan=False)) == event


@pytest.mark.parametrize("run", [RUN, TRAINING, FAILED])
def test_events_keep_the_specification(run: Run) -> None:
    found = events(run, FEATURES, types=TYPES)
    assert len(found) == 2
    for event in found:
        check_event(event)
    assert found[0]["run"]["runId"] == found[1]["run"]["runId"]


def test_run_has_a_beginning_and_an_end() -> None:
    start, end = events(RUN, FEATURES)
    assert (start["eventType"], start["eventTime"]) == ("START", "1970-01-01T00:00:01Z")
    assert (end["eventType"], end["eventTime"]) == ("COMPLETE", "1970-01-01T00:00:03Z")
    assert end["outputs"][0]["outputFacets"]["outputStatistics"]["rowCount"] == 12
    (running,) = events(dataclasses.replace(RUN, ended=None), FEATURES)
    assert running["run"]["runId"] == start["run"]["runId"]
    failed = events(FAILED, FEATURES)[1]
    assert failed["eventType"] == "FAIL"
    assert failed["run"]["facets"]["errorMessage"]["message"] == "the disk is full"
    given = str(uuid.uuid4())
    assert events(dataclasses.replace(RUN, run_id=given), FEATURES)[0]["run"]["runId"] == given


def test_inputs_are_the_columns_that_are_read() -> None:
    inputs = {item["name"]: item for item in events(RUN, FEATURES, types=TYPES)[1]["inputs"]}
    assert set(inputs) == {"payments", "accounts", "shops@7", "request"}
    assert inputs["payments"]["namespace"] == "s3://lake"
    assert inputs["accounts"]["namespace"] == "vitok"
    columns = {field["name"]: field.get("type") for field in inputs["payments"]["facets"]["schema"]["fields"]}
    assert columns == {
        "card_id": "varchar",
        "event_time": None,
        "payment_id": None,
        "known_at": None,
        "amount": "double",
        "channel": None,
        "shop_id": None,
        "merchant": None,
    }
    assert inputs["payments"]["facets"]["ownership"]["owners"] == [{"name": "payments team", "type": "OWNER"}]
    assert [field["name"] for field in inputs["request"]["facets"]["schema"]["fields"]] == ["amount", "event_time"]


def test_columns_lead_back_to_their_sources() -> None:
    output = events(RUN, FEATURES)[1]["outputs"][0]
    fields = output["facets"]["columnLineage"]["fields"]
    assert tuple(fields) == FEATURES.computed

    def origins(name: str) -> dict[tuple[str, str], str]:
        return {
            (one["name"], one["field"]): one["transformations"][0]["type"] + " " + one["transformations"][0]["subtype"]
            for one in fields[name]["inputFields"]
        }

    assert origins("amount") == {("request", "amount"): "DIRECT IDENTITY"}
    assert origins("card_spent_1h") == {
        ("payments", "amount"): "DIRECT AGGREGATION",
        ("payments", "card_id"): "INDIRECT FILTER",
        ("payments", "event_time"): "INDIRECT FILTER",
        ("payments", "payment_id"): "INDIRECT FILTER",
        ("payments", "known_at"): "INDIRECT FILTER",
    }
    assert origins("account_is_vip")["accounts", "is_vip"] == "DIRECT IDENTITY"
    assert origins("ratio")["payments", "amount"] == "DIRECT TRANSFORMATION"
    assert origins("ratio")["payments", "card_id"] == "INDIRECT FILTER"
    assert origins("is_new")["request", "event_time"] == "DIRECT TRANSFORMATION"
    assert origins("is_new")["payments", "amount"] == "DIRECT TRANSFORMATION"
    assert output["facets"]["version"]["datasetVersion"] == FEATURES.version


def test_training_takes_what_the_model_sees() -> None:
    chosen = FeatureSet(
        request=FEATURES.request, views=FEATURES.views, on_demand=FEATURES.on_demand, select=("is_new", "card_spent_1h")
    )
    found = events(TRAINING, SetVersion.of(chosen))[1]
    assert list(found["outputs"][0]["facets"]["columnLineage"]["fields"]) == ["is_new", "card_spent_1h"]
    assert {item["name"] for item in found["inputs"]} == {"request", "payments"}
    assert found["job"]["name"] == "train fraud/3"


def test_views_alone_will_do() -> None:
    found = events(Run(kind="materialisation", output="redis://host", started=0, ended=1), [ACCOUNT])[1]
    assert [item["name"] for item in found["inputs"]] == ["accounts"]
    with pytest.raises(InvalidInput, match="at least one feature"):
        events(RUN, FeatureSet())


@pytest.mark.parametrize(
    ("location", "address"),
    [
        ("", ("vitok", "payments")),
        ("s3://lake", ("s3://lake", "payments")),
        ("kafka://host:9092/topic", ("kafka://host:9092", "topic")),
        ("data/payments", ("file", "data/payments")),
        ("postgresql://host/db/table", ("postgresql://host", "db/table")),
    ],
)
def test_datasets_are_named_by_where_they_are(location: str, address: tuple[str, str]) -> None:
    source = dataclasses.replace(FEATURES.views[0].source, location=location)  # type: ignore[union-attr]
    view = dataclasses.replace(FEATURES.views[0], source=source)  # type: ignore[arg-type, call-arg]
    (found,) = events(RUN, [view])[1]["inputs"]
    assert (found["namespace"], found["name"]) == address


@pytest.mark.parametrize("changes", [{"kind": "nothing"}, {"output": ""}, {"ended": 0}, {"run_id": "not one"}])
def test_bad_runs_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        dataclasses.replace(RUN, **changes)


def test_file_is_lines_of_events(tmp_path: Path) -> None:
    path = tmp_path / "lineage" / "events.jsonl"
    assert write(path, events(RUN, FEATURES)) == 2
    assert write(path, events(FAILED, FEATURES)) == 2
    read = [json.loads(line) for line in path.read_text().splitlines()]
    assert [event["eventType"] for event in read] == ["START", "COMPLETE", "START", "FAIL"]
    with pytest.raises(StoreError, match="cannot be written"):
        write(tmp_path / "lineage" / "events.jsonl" / "below", events(RUN, FEATURES))


def test_full_disk_is_told() -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("there is no /dev/full")
    with pytest.raises(StoreError, match="No space left"):
        write(full, events(RUN, FEATURES))


def test_events_are_posted_in_order() -> None:
    httpx = pytest.importorskip("httpx")
    seen = []

    def answer(request: Any) -> Any:
        seen.append(json.loads(request.content))
        assert request.headers["content-type"] == "application/json"
        assert request.headers["authorization"] == "Bearer key"
        return httpx.Response(201 if len(seen) < 4 else 500)

    with httpx.Client(transport=httpx.MockTransport(answer), headers={"authorization": "Bearer key"}) as client:
        assert post(client, "http://collector/api/v1/lineage", events(RUN, FEATURES)) == 2
        with pytest.raises(ServiceError, match="answered 500 to event 2; 1 were taken"):
            post(client, "http://collector/api/v1/lineage", events(RUN, FEATURES))
    assert [event["eventType"] for event in seen] == ["START", "COMPLETE", "START", "COMPLETE"]


def test_reference_client_reads_them() -> None:
    # Oracle: the classes that the project generates from its schemas; an unknown or missing field is a TypeError.
    pytest.importorskip("openlineage.client", reason="openlineage-python is not installed")
    for run in (RUN, TRAINING, FAILED):
        for event in events(run, FEATURES, types=TYPES):
            assert _without_empty(_rebuilt(event)) == _without_empty(event)


_MODULES = {
    "ColumnLineageDatasetFacet": "column_lineage_dataset",
    "DatasetVersionDatasetFacet": "dataset_version_dataset",
    "DocumentationDatasetFacet": "documentation_dataset",
    "ErrorMessageRunFacet": "error_message_run",
    "JobTypeJobFacet": "job_type_job",
    "OutputStatisticsOutputDatasetFacet": "output_statistics_output_dataset",
    "OwnershipDatasetFacet": "ownership_dataset",
    "SchemaDatasetFacet": "schema_dataset",
}


def _rebuilt(event: dict[str, Any]) -> dict[str, Any]:
    base = importlib.import_module("openlineage.client.generated.base")
    serde = importlib.import_module("openlineage.client.serde")

    def facet(told: dict[str, Any]) -> Any:
        name = told["_schemaURL"].rpartition("/")[2]
        module = importlib.import_module(f"openlineage.client.generated.{_MODULES[name]}")
        fields = {key: value for key, value in told.items() if not key.startswith("_")}
        if name == "ColumnLineageDatasetFacet":
            fields["fields"] = {
                key: module.Fields(
                    inputFields=[
                        module.InputField(
                            **{**one, "transformations": [module.Transformation(**t) for t in one["transformations"]]}
                        )
                        for one in value["inputFields"]
                    ]
                )
                for key, value in fields["fields"].items()
            }
        elif name == "SchemaDatasetFacet":
            fields["fields"] = [module.SchemaDatasetFacetFields(**field) for field in fields["fields"]]
        elif name == "OwnershipDatasetFacet":
            fields["owners"] = [module.Owner(**owner) for owner in fields["owners"]]
        made = getattr(module, name)(producer=told["_producer"], **fields)
        assert made._schemaURL == told["_schemaURL"], name
        return made

    def facets(told: dict[str, Any]) -> dict[str, Any]:
        return {key: facet(value) for key, value in told.items()}

    def dataset(kind: Any, told: dict[str, Any]) -> Any:
        more = {key: facets(told[key]) for key in ("outputFacets", "inputFacets") if key in told}
        return kind(namespace=told["namespace"], name=told["name"], facets=facets(told["facets"]), **more)

    made = base.RunEvent(
        eventType=base.EventType(event["eventType"]),
        eventTime=event["eventTime"],
        run=base.Run(runId=event["run"]["runId"], facets=facets(event["run"]["facets"])),
        job=base.Job(
            namespace=event["job"]["namespace"], name=event["job"]["name"], facets=facets(event["job"]["facets"])
        ),
        inputs=[dataset(base.InputDataset, item) for item in event["inputs"]],
        outputs=[dataset(base.OutputDataset, item) for item in event["outputs"]],
        producer=event["producer"],
    )
    told: dict[str, Any] = json.loads(serde.Serde.to_json(made))
    return told


def _without_empty(value: Any) -> Any:
    # The classes fill in what is optional with nothing.
    if isinstance(value, dict):
        kept = {key: _without_empty(item) for key, item in value.items()}
        return {key: item for key, item in kept.items() if item not in (None, [], {})}
    return [_without_empty(item) for item in value] if isinstance(value, list) else value


def test_no_package_of_theirs_is_needed() -> None:
    code = "import sys, vitok.features.openlineage; print('openlineage' in sys.modules, 'httpx' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
