"""OpenLineage run events of what is done with features: a table built, views materialised, a model trained.

Plain JSON of OpenLineage 2-0-2, for a file or any collector of it (Marquez, DataHub and others): a START and a
COMPLETE or FAIL for each run, with the schema of every dataset and the columns that each feature is made of.
Source: the OpenLineage specification, https://openlineage.io/spec/2-0-2/OpenLineage.json, and its facets.
"""

import dataclasses
import json
import os
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from vitok import __version__
from vitok.clock import isoformat
from vitok.errors import InvalidInput, ServiceError, StoreError
from vitok.features.definitions import FeatureSet
from vitok.features.described import Feature, SetVersion
from vitok.features.views import AnyView, Embedding

Kind = Literal["table", "materialisation", "training"]
# The schema asks for an address; this one names the program and, being of .invalid, leads nowhere.
PRODUCER = f"https://vitok.invalid/vitok/{__version__}"
SCHEMA = "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/RunEvent"
_FACETS = "https://openlineage.io/spec/facets"
_VERSIONS = {
    "ColumnLineageDatasetFacet": "1-2-0",
    "DatasetVersionDatasetFacet": "1-0-1",
    "DocumentationDatasetFacet": "1-1-0",
    "ErrorMessageRunFacet": "1-0-1",
    "JobTypeJobFacet": "2-0-4",
    "OutputStatisticsOutputDatasetFacet": "1-0-2",
    "OwnershipDatasetFacet": "1-0-1",
    "SchemaDatasetFacet": "1-2-0",
}
_JOBS = {"table": "build table", "materialisation": "materialise", "training": "train"}
# What an aggregation does to a column, in the words of the column lineage facet.
_AGGREGATED = {"type": "DIRECT", "subtype": "AGGREGATION", "masking": False}
_TAKEN = {"type": "DIRECT", "subtype": "IDENTITY", "masking": False}
_COMPUTED = {"type": "DIRECT", "subtype": "TRANSFORMATION", "masking": False}
_SELECTED = {"type": "INDIRECT", "subtype": "FILTER", "masking": False}


class Client(Protocol):
    """What posts: an `httpx.Client`, or anything with its `post`."""

    def post(self, url: str, *, content: bytes, headers: Mapping[str, str]) -> Any:
        """Posts some bytes and returns an answer with a `status_code`."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One run that read sources and wrote something.

    Attributes:
        kind: `"table"`, `"materialisation"` or `"training"`.
        output: What was written: a table, a store, a model version such as `"fraud/3"`.
        started: When, in microseconds.
        ended: When; None where it still runs.
        rows: How many rows were written; None where nobody counted.
        error: What went wrong; "" where nothing did.
        run_id: A UUID; by default made of kind, output and start, so that a repeated report is the same run.
    """

    kind: Kind
    output: str
    started: int
    ended: int | None = None
    rows: int | None = None
    error: str = ""
    run_id: str = ""

    def __post_init__(self) -> None:
        """Checks kind, times and id."""
        if self.kind not in _JOBS:
            raise InvalidInput("run: kind", self.kind, f"be one of {', '.join(_JOBS)}")
        if not self.output:
            raise InvalidInput("run: output", self.output, "name what was written")
        if self.ended is not None and self.ended < self.started:
            raise InvalidInput("run: ended", self.ended, "not be before it started")
        if self.run_id:
            try:
                uuid.UUID(self.run_id)
            except ValueError:
                raise InvalidInput("run: run_id", self.run_id, "be a UUID") from None

    @property
    def id(self) -> str:
        """The UUID of the run."""
        return self.run_id or str(uuid.uuid5(uuid.NAMESPACE_URL, f"vitok/{self.kind}/{self.output}/{self.started}"))


def events(
    run: Run,
    features: FeatureSet | SetVersion | Sequence[AnyView],
    *,
    namespace: str = "vitok",
    request: str = "request",
    types: Mapping[str, Mapping[str, str]] | None = None,
) -> tuple[dict[str, Any], ...]:
    """Writes a run as OpenLineage events.

    Args:
        run: What was done.
        features: What was computed, or what the model was trained on.
        namespace: Namespace of the job and of datasets without a location of their own.
        request: What the dataset of request columns is called.
        types: Source to column to type, where they are known, such as `{"payments": {"amount": "double"}}`.

    Returns:
        START, and COMPLETE or FAIL where the run has ended; each ready for JSON.

    Raises:
        InvalidInput: If there is no feature.

    Example:
        >>> from vitok.features import Entity, FeatureSet, Source, Sum, View
        >>> card, paid = Entity("card", "card_id"), Source("payments", "payment_id", location="s3://lake/payments")
        >>> view = View(name="card", entity=card, source=paid, aggregations=(Sum("amount", ("1d",)),))
        >>> start, end = events(Run(kind="table", output="rows", started=0, ended=5), FeatureSet(views=(view,)))
        >>> start["eventType"], end["eventType"], end["inputs"][0]["namespace"], end["inputs"][0]["name"]
        ('START', 'COMPLETE', 's3://lake', 'payments')
        >>> list(end["outputs"][0]["facets"]["columnLineage"]["fields"])
        ['card_amount_sum_1d']
    """
    found = _described(features)
    names = tuple(name for name in found.computed if name in found.used) if run.kind != "training" else found.names
    if not names:
        raise InvalidInput("features", features, "hold at least one feature")
    datasets = _Datasets(found, namespace, request, types or {})
    job = {
        "namespace": namespace,
        "name": f"{_JOBS[run.kind]} {run.output}",
        "facets": {
            "jobType": _facet("JobTypeJobFacet", processingType="BATCH", integration="VITOK", jobType="JOB"),
        },
    }
    inputs, output = datasets.inputs(), datasets.output(run, names)

    def event(kind: str, moment: int, facets: dict[str, Any], outputs: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "eventType": kind,
            "eventTime": isoformat(moment),
            "run": {"runId": run.id, "facets": facets},
            "job": job,
            "inputs": inputs,
            "outputs": outputs,
            "producer": PRODUCER,
            "schemaURL": SCHEMA,
        }

    start = event("START", run.started, {}, [output])
    if run.ended is None:
        return (start,)
    if run.error:
        failed = {"errorMessage": _facet("ErrorMessageRunFacet", message=run.error, programmingLanguage="PYTHON")}
        return start, event("FAIL", run.ended, failed, [output])
    if run.rows is not None:
        counted = _facet("OutputStatisticsOutputDatasetFacet", rowCount=run.rows)
        output = {**output, "outputFacets": {"outputStatistics": counted}}
    return start, event("COMPLETE", run.ended, {}, [output])


def write(path: str | Path, found: Iterable[Mapping[str, Any]]) -> int:
    """Adds events to a file, one a line; several processes may write to it.

    Returns:
        How many were written.

    Raises:
        StoreError: If the file cannot be written.
    """
    lines = [json.dumps(item, ensure_ascii=False) + "\n" for item in found]
    target = Path(path)
    content = "".join(lines).encode()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # One write to a file that is opened for appending: lines of two processes never mix.
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            written = os.write(descriptor, content)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise StoreError(f"lineage file {target} cannot be written: {error}") from error
    if written < len(content):
        raise StoreError(f"lineage file {target}: {written} of {len(content)} bytes were written; the disk is full")
    return len(lines)


def post(client: Client, url: str, found: Iterable[Mapping[str, Any]]) -> int:
    """Posts events to a collector, one request each, in order.

    Args:
        client: Such as an `httpx.Client` with the headers and the timeout that the collector needs.
        url: Such as `"http://localhost:5000/api/v1/lineage"`.
        found: Events.

    Returns:
        How many were taken.

    Raises:
        ServiceError: If the collector refuses one; those before it were taken.
    """
    n = 0
    for item in found:
        answer = client.post(url, content=json.dumps(item).encode(), headers={"content-type": "application/json"})
        if not 200 <= answer.status_code < 300:
            raise ServiceError(
                f"lineage collector {url} answered {answer.status_code} to event {n + 1}; {n} were taken"
            )
        n += 1
    return n


def _described(features: FeatureSet | SetVersion | Sequence[AnyView]) -> SetVersion:
    if isinstance(features, SetVersion):
        return features
    return SetVersion.of(features if isinstance(features, FeatureSet) else FeatureSet(views=tuple(features)))


def _facet(schema: str, **fields: Any) -> dict[str, Any]:
    address = f"{_FACETS}/{_VERSIONS[schema]}/{schema}.json#/$defs/{schema}"
    return {"_producer": PRODUCER, "_schemaURL": address, **fields}


class _Datasets:
    def __init__(
        self, features: SetVersion, namespace: str, request: str, types: Mapping[str, Mapping[str, str]]
    ) -> None:
        self.features = features
        self.namespace = namespace
        self.request = request
        self.types = types
        self.used = [one for name, one in features.features.items() if name in features.used]
        self.addresses = {request: (namespace, request)}
        self.views: dict[str, AnyView] = {}
        for view in features.views:
            if isinstance(view, Embedding):
                self.addresses[view.reference] = (namespace, view.reference)
                self.views.setdefault(view.reference, view)
            else:
                self.addresses[view.source.name] = _address(view.source.location, view.source.name, namespace)
                self.views.setdefault(view.source.name, view)

    def inputs(self) -> list[dict[str, Any]]:
        columns: dict[str, dict[str, None]] = {}
        for one in self.used:
            columns.setdefault(one.source, {}).update(dict.fromkeys([*one.context, *one.columns]))
        functions = [item for item in self.features.on_demand if item.name in self.features.used]
        of_request = [name for name in self.features.request if name in self.features.used]
        of_request += [name for item in functions for name in item.inputs if name not in self.features.computed]
        if of_request:
            columns[self.request] = dict.fromkeys(of_request)
        return [self._input(source, tuple(names)) for source, names in columns.items()]

    def _input(self, source: str, columns: tuple[str, ...]) -> dict[str, Any]:
        namespace, name = self.addresses[source]
        known = self.types.get(source, {})
        fields = [{"name": column, **({"type": known[column]} if column in known else {})} for column in columns]
        facets = {"schema": _facet("SchemaDatasetFacet", fields=fields)}
        view = self.views.get(source)
        if view is not None and not isinstance(view, Embedding):
            if view.source.owner:
                facets["ownership"] = _owned(view.source.owner)
            if view.source.description:
                facets["documentation"] = _facet("DocumentationDatasetFacet", description=view.source.description)
        return {"namespace": namespace, "name": name, "facets": facets}

    def output(self, run: Run, names: Sequence[str]) -> dict[str, Any]:
        found = self.features
        meanings = {one.name: one.meaning for one in self.used}
        fields = [
            {"name": name, "type": "double", **({"description": meanings[name]} if name in meanings else {})}
            for name in names
        ]
        facets = {
            "schema": _facet("SchemaDatasetFacet", fields=fields),
            "columnLineage": _facet(
                "ColumnLineageDatasetFacet", fields={name: {"inputFields": self._origins(name)} for name in names}
            ),
            "version": _facet("DatasetVersionDatasetFacet", datasetVersion=found.version),
        }
        owners = dict.fromkeys(view.owner for view in found.views if view.owner)
        if owners:
            facets["ownership"] = _owned(*owners)
        return {"namespace": self.namespace, "name": run.output, "facets": facets}

    def _origins(self, name: str) -> list[dict[str, Any]]:
        found = self.features
        if name in found.features:
            return self._of_view(found.features[name])
        function = next((item for item in found.on_demand if item.name == name), None)
        if function is None:
            return [self._field(self.request, name, _TAKEN)]
        out: dict[tuple[str, str, str], dict[str, Any]] = {}
        for item in function.inputs:
            known = item in found.computed
            origins = self._origins(item) if known else [self._field(self.request, item, _COMPUTED)]
            for origin in origins:
                key = (origin["namespace"], origin["name"], origin["field"])
                direct = any(one["type"] == "DIRECT" for one in origin["transformations"])
                changed = {**origin, "transformations": [_COMPUTED]} if direct else origin
                # A column that is read by one input and selects the rows of another is told as read.
                if key not in out or direct:
                    out[key] = changed
        return list(out.values())

    def _of_view(self, one: Feature) -> list[dict[str, Any]]:
        aggregated = "aggregation" in one.recipe
        fields = [self._field(one.source, column, _AGGREGATED if aggregated else _TAKEN) for column in one.columns]
        return fields + [self._field(one.source, column, _SELECTED) for column in one.context]

    def _field(self, source: str, column: str, transformation: Mapping[str, Any]) -> dict[str, Any]:
        namespace, name = self.addresses[source]
        return {"namespace": namespace, "name": name, "field": column, "transformations": [dict(transformation)]}


def _owned(*owners: str) -> dict[str, Any]:
    return _facet("OwnershipDatasetFacet", owners=[{"name": owner, "type": "OWNER"} for owner in owners])


def _address(location: str, name: str, namespace: str) -> tuple[str, str]:
    """Namespace and name of a dataset by the naming rules: scheme and authority, then the path."""
    scheme, mark, rest = location.partition("://")
    if not mark:
        return ("file", location) if location else (namespace, name)
    authority, _, path = rest.partition("/")
    return (f"{scheme}://{authority}", path.strip("/") or name)
