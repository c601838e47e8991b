"""Manifests: valid by the schemas of Kubernetes, with what a cluster needs to know, and without a secret."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml
from tests.serving.model_folders import ROWS, SUM, put_model
from typer.testing import CliRunner, Result

from vitok.console.export_commands import export_app
from vitok.engines import open_rows
from vitok.errors import InvalidInput
from vitok.features import Entity, FeatureReader, FeatureSet, Latest, Source
from vitok.serving import Metrics, running
from vitok.serving.feature_service import FeatureEndpoint, feature_application
from vitok.serving.hosting import FolderCatalogue, ModelHost
from vitok.serving.inference import Answered
from vitok.serving.inference_http import inference_application
from vitok.serving.inference_log import InferenceLog
from vitok.serving.kubernetes import Canary, Deployed, Manifest, SecretKey, adapter_rule, manifests, to_yaml
from vitok.serving.server import DRAIN_SECONDS

PLAIN = Deployed(
    name="scoring",
    namespace="decisions",
    image="registry.example/scoring@sha256:0",
    command=("vitok", "serve", "models", "--store", "$(VITOK_ONLINE)"),
    live="/v2/health/live",
    ready="/v2/health/ready",
    settings={"VITOK_STAGE": "Production"},
    secrets={"VITOK_ONLINE": SecretKey("redis", "url")},
)
CANARY = Canary(image="registry.example/scoring@sha256:1", share=0.05)
VARIANTS = {
    "plain": PLAIN,
    "bare": Deployed(name="a", image="b", command=("c",)),
    "sized": replace(PLAIN, cpu_seconds=40e-6, rate=20_000),
    "gateway": replace(PLAIN, gateway="edge/public", hostnames=("scoring.example",)),
    "canary by weight": replace(PLAIN, canary=CANARY, gateway="public"),
    "canary by replicas": replace(PLAIN, canary=replace(CANARY, share=0.25)),
    "folder": replace(PLAIN, replicas=1, volume="10Gi"),
}

NAME = {"type": "string", "minLength": 1, "maxLength": 253}
# What the specification of the Gateway API (gateway.networking.k8s.io/v1, HTTPRoute) says of the fields that are used.
HTTP_ROUTE = {
    "type": "object",
    "additionalProperties": False,
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {
        "apiVersion": {"const": "gateway.networking.k8s.io/v1"},
        "kind": {"const": "HTTPRoute"},
        "metadata": {"type": "object", "required": ["name"]},
        "spec": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "parentRefs": {
                    "type": "array",
                    "minItems": 1,
                    "maxItems": 32,
                    "items": {
                        "type": "object",
                        "additionalProperties": False,
                        "required": ["name"],
                        "properties": {"name": NAME, "namespace": {**NAME, "maxLength": 63}},
                    },
                },
                "hostnames": {
                    "type": "array",
                    "maxItems": 16,
                    "items": {
                        **NAME,
                        "pattern": r"^(\*\.)?[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$",
                    },
                },
                "rules": {
                    "type": "array",
                    "minItems": 1,
                    "maxItems": 16,
                    "items": {
                        "type": "object",
                        "additionalProperties": False,
                        "properties": {
                            "matches": {
                                "type": "array",
                                "maxItems": 64,
                                "items": {
                                    "type": "object",
                                    "additionalProperties": False,
                                    "properties": {
                                        "path": {
                                            "type": "object",
                                            "properties": {
                                                "type": {"enum": ["Exact", "PathPrefix", "RegularExpression"]},
                                                "value": {"type": "string", "maxLength": 1024, "pattern": "^/"},
                                            },
                                        }
                                    },
                                },
                            },
                            "backendRefs": {
                                "type": "array",
                                "maxItems": 16,
                                "items": {
                                    "type": "object",
                                    "additionalProperties": False,
                                    "required": ["name", "port"],
                                    "properties": {
                                        "name": NAME,
                                        "port": {"type": "integer", "minimum": 1, "maximum": 65535},
                                        "weight": {"type": "integer", "minimum": 0, "maximum": 1_000_000},
                                    },
                                },
                            },
                        },
                    },
                },
            },
        },
    },
}


def named(service: Deployed) -> dict[str, Manifest]:
    return {f"{item['kind']}/{item['metadata']['name']}": item for item in manifests(service)}


def container(manifest: Manifest) -> dict[str, Any]:
    found: dict[str, Any] = manifest["spec"]["template"]["spec"]["containers"][0]
    return found


@pytest.mark.parametrize("version", ["1.30", "1.37"])
@pytest.mark.parametrize("kind", VARIANTS)
def test_the_schemas_of_kubernetes_accept_it(kind: str, version: str) -> None:
    validating = pytest.importorskip("kubernetes_validate", reason="the schemas come with kubernetes-validate")
    jsonschema = pytest.importorskip("jsonschema")
    for manifest in yaml.safe_load_all(to_yaml(manifests(VARIANTS[kind]))):
        if manifest["kind"] == "HTTPRoute":
            jsonschema.validate(manifest, HTTP_ROUTE)
        else:
            # "strict" refuses fields that the schema does not know.
            assert validating.validate(manifest, version, strict=True) == version


def test_the_schemas_refuse_what_is_wrong() -> None:
    validating = pytest.importorskip("kubernetes_validate", reason="the schemas come with kubernetes-validate")
    wrong = named(PLAIN)["Deployment/scoring"]
    container(wrong)["readynessProbe"] = {}
    with pytest.raises(validating.ValidationError, match="readynessProbe"):
        validating.validate(wrong, "1.30", strict=True)


@pytest.mark.parametrize("kind", VARIANTS)
def test_selectors_find_the_pods(kind: str) -> None:
    found = manifests(VARIANTS[kind])
    pods = {
        item["metadata"]["name"]: item["spec"]["template"]["metadata"]["labels"]
        for item in found
        if item["kind"] == "Deployment"
    }
    by_kind: dict[str, list[Manifest]] = {}
    for item in found:
        by_kind.setdefault(item["kind"], []).append(item)
    reached = set()
    for item in by_kind["Service"]:
        selected = [name for name, labels in pods.items() if item["spec"]["selector"].items() <= labels.items()]
        assert selected
        reached.update(selected)
    assert reached == set(pods)
    for item in by_kind.get("PodDisruptionBudget", []) + by_kind["NetworkPolicy"]:
        selector = item["spec"].get("selector") or item["spec"]["podSelector"]
        assert all(selector["matchLabels"].items() <= labels.items() for labels in pods.values())
    for item in by_kind.get("HorizontalPodAutoscaler", []):
        assert item["spec"]["scaleTargetRef"]["name"] in pods
    for item in by_kind.get("HTTPRoute", []):
        backends = item["spec"]["rules"][0]["backendRefs"]
        assert {backend["name"] for backend in backends} <= {one["metadata"]["name"] for one in by_kind["Service"]}
        assert sum(backend["weight"] for backend in backends) == 1000
    assert len({(item["kind"], item["metadata"]["name"]) for item in found}) == len(found)


def test_a_pod_may_do_nothing_and_ends_in_order() -> None:
    spec = named(PLAIN)["Deployment/scoring"]["spec"]["template"]["spec"]
    (service,) = spec["containers"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] > 0
    assert service["securityContext"]["readOnlyRootFilesystem"] is True
    assert service["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    leaving = service["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert spec["terminationGracePeriodSeconds"] > leaving + DRAIN_SECONDS
    assert service["readinessProbe"]["httpGet"]["path"] == "/v2/health/ready"
    assert service["livenessProbe"]["httpGet"]["path"] == "/v2/health/live"
    assert {mount["name"] for mount in service["volumeMounts"]} == {volume["name"] for volume in spec["volumes"]}


def test_a_changed_setting_restarts_the_pods() -> None:
    def note(settings: dict[str, str]) -> str:
        service = replace(PLAIN, settings=settings)
        annotations = named(service)["Deployment/scoring"]["spec"]["template"]["metadata"]["annotations"]
        return str(annotations["vitok.io/settings"])

    assert note({"A": "1", "B": "2"}) == note({"B": "2", "A": "1"}) != note({"A": "1", "B": "3"})


@pytest.mark.parametrize(
    ("cpu_us", "rate", "replicas", "millis"),
    [(20, 100, 2, 50), (20, 90_000, 4, 1000), (40, 20_000, 3, 670), (868, 10_000, 16, 970)],
)
def test_processors_by_the_measured_cost(cpu_us: float, rate: float, replicas: int, millis: int) -> None:
    # Oracle: rate times processor seconds over the utilisation of 0.6, and one replica that may be away.
    service = replace(PLAIN, cpu_seconds=cpu_us * 1e-6, rate=rate)
    assert (service.sizing.replicas, service.sizing.millis) == (replicas, millis)
    assert (replicas - 1) * millis / 1000 >= rate * cpu_us * 1e-6 / 0.6
    found = named(service)
    assert container(found["Deployment/scoring"])["resources"]["requests"]["cpu"] == f"{millis}m"
    assert "cpu" not in container(found["Deployment/scoring"])["resources"]["limits"]
    assert found["HorizontalPodAutoscaler/scoring"]["spec"]["minReplicas"] == replicas


def test_it_is_scaled_by_the_queue_and_not_by_the_processor() -> None:
    (metric,) = named(replace(PLAIN, queue_delay=0.0025))["HorizontalPodAutoscaler/scoring"]["spec"]["metrics"]
    assert metric["type"] == "Pods"
    assert metric["pods"]["target"] == {"type": "AverageValue", "averageValue": "2500u"}
    rule = adapter_rule(PLAIN)
    assert rule["name"]["as"] == metric["pods"]["metric"]["name"]
    assert rule["metricsQuery"] == (
        "sum(rate(vitok_inference_wait_seconds_sum{<<.LabelMatchers>>}[1m])) by (<<.GroupBy>>)"
        " / (sum(rate(vitok_inference_wait_seconds_count{<<.LabelMatchers>>}[1m])) by (<<.GroupBy>>) > 0)"
    )


def test_a_canary_by_the_weights_of_a_gateway() -> None:
    found = named(VARIANTS["canary by weight"])
    route = found["HTTPRoute/scoring"]["spec"]
    assert [(item["name"], item["weight"]) for item in route["rules"][0]["backendRefs"]] == [
        ("scoring", 950),
        ("scoring-canary", 50),
    ]
    assert container(found["Deployment/scoring-canary"])["image"] == CANARY.image
    assert container(found["Deployment/scoring"])["image"] == PLAIN.image
    assert found["Deployment/scoring-canary"]["spec"]["replicas"] == 1
    assert "HorizontalPodAutoscaler/scoring-canary" in found


@pytest.mark.parametrize("share", [0.1, 0.2, 0.25, 0.5])
def test_a_canary_by_the_ratio_of_replicas(share: float) -> None:
    found = named(replace(PLAIN, canary=replace(CANARY, share=share)))
    stable, canary = (found[f"Deployment/scoring{end}"] for end in ("", "-canary"))
    n = stable["spec"]["replicas"] + canary["spec"]["replicas"]
    assert math.isclose(canary["spec"]["replicas"] / n, share, rel_tol=0.2)
    assert f"{canary['spec']['replicas']} of {n} replicas" in canary["metadata"]["annotations"]["vitok.io/canary-share"]
    assert "HTTPRoute/scoring" not in found
    assert "HorizontalPodAutoscaler/scoring-canary" not in found


def test_state_in_a_folder_runs_alone() -> None:
    found = named(VARIANTS["folder"])
    deployment = found["Deployment/scoring"]["spec"]
    assert (deployment["replicas"], deployment["strategy"]) == (1, {"type": "Recreate"})
    claims = [volume.get("persistentVolumeClaim") for volume in deployment["template"]["spec"]["volumes"]]
    assert {"claimName": "scoring"} in claims
    assert found["PersistentVolumeClaim/scoring"]["spec"]["resources"]["requests"]["storage"] == "10Gi"
    # A budget that lets the only replica never go would keep a node from ever being emptied.
    assert not {"HorizontalPodAutoscaler/scoring", "PodDisruptionBudget/scoring"} & set(found)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"name": "Scoring"}, "name"),
        ({"name": ""}, "name"),
        ({"name": "a" * 51}, "name"),
        ({"image": ""}, "image"),
        ({"image": "a b"}, "image"),
        ({"command": ()}, "command"),
        ({"command": ("run", "$(UNKNOWN)")}, "command"),
        ({"port": 0}, "port"),
        ({"ready": "readyz"}, "ready"),
        ({"memory": "1 GB"}, "memory"),
        ({"replicas": 0}, "replicas"),
        ({"most_replicas": 1}, "most_replicas"),
        ({"rate": 100.0}, "cpu_seconds"),
        ({"cpu_seconds": -1.0}, "cpu_seconds"),
        ({"cpu_seconds": 1e-3, "rate": 1e6}, "most_replicas"),
        ({"utilisation": 0.0}, "utilisation"),
        ({"queue_delay": 0.0}, "queue_delay"),
        ({"drain_seconds": 0}, "drain_seconds"),
        ({"settings": {"1A": "x"}}, "settings"),
        ({"settings": {"REDIS": "redis://user:hunter2@host"}}, "settings[REDIS]"),
        ({"settings": {"API_TOKEN": "hunter2"}}, "settings[API_TOKEN]"),
        ({"settings": {"VITOK_ONLINE": "redis://host"}}, "secrets"),
        ({"secrets": {"VITOK_ONLINE": SecretKey("redis", "")}}, "secrets[VITOK_ONLINE]"),
        ({"secrets": {"VITOK_ONLINE": SecretKey("Redis Main", "url")}}, "secrets[VITOK_ONLINE]"),
        ({"secrets": {"VITOK_ONLINE": SecretKey("redis", "a key")}}, "secrets[VITOK_ONLINE]"),
        ({"gateway": "/"}, "gateway"),
        ({"gateway": "a/b/c"}, "gateway"),
        ({"gateway": "public", "hostnames": ("a b",)}, "hostnames"),
        ({"gateway": "public", "hostnames": ("API.example.com",)}, "hostnames"),
        ({"hostnames": ("api.example.com",)}, "hostnames"),
        ({"canary": Canary(image="", share=0.1)}, "canary.image"),
        ({"canary": Canary(image="x", share=1.0)}, "canary.share"),
        ({"canary": Canary(image="x", share=0.01)}, "canary.share"),
        ({"volume": "10Gi"}, "replicas"),
        ({"volume": "10Gi", "replicas": 1, "canary": CANARY}, "canary"),
        ({"volume": "ten", "replicas": 1}, "volume"),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        replace(PLAIN, **changes)
    assert caught.value.field == field
    assert "hunter2" not in str(caught.value)


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(export_app, list(arguments))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_the_command_writes_what_the_library_says(tmp_path: Path) -> None:
    with InferenceLog(tmp_path / "decisions", system="scoring", features=["x"]) as log:
        batch = Answered("scoring/1", np.zeros((4, 1)), np.zeros(4), [""] * 4, np.zeros(4, np.int64), 40e-6)
        log.record(batch)
    common = ("k8s", "scoring", "--image", "b", "--command", "serve --on '$(A)'", "--port", "80", "--setting", "A=x y")
    result = run(*common, "--log", str(tmp_path), "--rate", "20000", "--namespace", "n", "--queue-delay", "2")
    assert result.exit_code == 0, result.output
    wanted = Deployed(
        name="scoring",
        namespace="n",
        image="b",
        command=("serve", "--on", "$(A)"),
        port=80,
        settings={"A": "x y"},
        cpu_seconds=40e-6,
        rate=20_000,
        queue_delay=0.002,
    )
    assert list(yaml.safe_load_all(result.stdout)) == manifests(wanted)
    assert json.loads(run(*common, "--json").stdout)[0]["kind"] == "ServiceAccount"
    assert yaml.safe_load(run(*common, "--adapter-rule").stdout) == adapter_rule(wanted)


@pytest.mark.parametrize("system", ["fraud", "features", "models"])
def test_the_systems_that_are_known(system: str) -> None:
    result = run("k8s", system, "--image", "b", "--secret", "VITOK_ONLINE=redis/url")
    assert result.exit_code == 0, result.output
    kinds = [item["kind"] for item in yaml.safe_load_all(result.stdout)]
    assert ("PersistentVolumeClaim" in kinds) == (system == "fraud") != ("HorizontalPodAutoscaler" in kinds)


@pytest.mark.parametrize(("memory", "models"), [("1Gi", "512M"), ("3Gi", "1536M"), ("100Mi", "50M"), ("512Ki", "1M")])
def test_models_stay_within_the_memory_of_the_pod(memory: str, models: str) -> None:
    result = run("k8s", "models", "--image", "b", "--memory", memory)
    pod = next(item for item in yaml.safe_load_all(result.stdout) if item["kind"] == "Deployment")
    assert container(pod)["command"][-2:] == ["--max-memory", models]
    assert "memory: got '5G'" in run("k8s", "models", "--image", "b", "--memory", "5G").stderr


def test_the_autoscaler_looks_at_what_served_models_show(tmp_path: Path) -> None:
    rule = yaml.safe_load(run("k8s", "models", "--image", "b", "--adapter-rule").stdout)
    objects = {item["kind"]: item for item in yaml.safe_load_all(run("k8s", "models", "--image", "b").stdout)}
    pod = objects["Deployment"]["spec"]["template"]
    live, ready = (
        container(objects["Deployment"])[name]["httpGet"]["path"] for name in ("livenessProbe", "readinessProbe")
    )
    put_model(tmp_path, "sum", 1, SUM.format(sleep=0), ROWS)
    host = ModelHost(FolderCatalogue(tmp_path), pinned=["sum"])
    host.start()
    row = {"name": "x", "shape": [1, 2], "datatype": "FP64", "data": [1.0, 2.0]}
    with running(inference_application(host, metrics=Metrics()), list(host.endpoints.values())) as service:
        answers = [httpx.get(service.url + path).status_code for path in (live, ready)]
        answers.append(httpx.post(f"{service.url}/v2/models/sum/infer", json={"inputs": [row]}).status_code)
        shown = httpx.get(service.url + pod["metadata"]["annotations"]["prometheus.io/path"]).text
    host.close()
    assert answers == [200] * 3
    count = rule["name"]["matches"].strip("^$")
    values = {
        line.partition("{")[0]: float(line.rpartition(" ")[2]) for line in shown.splitlines() if line.startswith(count)
    }
    assert values == {count: 1.0}
    assert all(name in shown for name in re.findall(r"vitok_\w+", rule["metricsQuery"]))
    assert objects["HorizontalPodAutoscaler"]["spec"]["metrics"][0]["pods"]["metric"]["name"] == rule["name"]["as"]


def test_the_autoscaler_looks_at_what_the_feature_service_shows() -> None:
    options = ("k8s", "features", "--image", "b", "--secret", "VITOK_ONLINE=redis/url")
    rule = yaml.safe_load(run(*options, "--adapter-rule").stdout)
    limits = Latest(
        name="account", entity=Entity("customer", "customer_id"), source=Source("accounts"), columns=("limit",)
    )
    endpoint = FeatureEndpoint("account", FeatureReader(FeatureSet(views=(limits,)), open_rows("memory://k8s")))
    with running(feature_application([endpoint]), [endpoint]) as service:
        asked = httpx.post(service.url + endpoint.path, json={"keys": {"customer_id": "1"}})
        shown = httpx.get(service.url + "/metrics").text
        assert "/metrics" in httpx.get(service.url + "/openapi.json").json()["paths"]
    assert asked.status_code == 200
    count = rule["name"]["matches"].strip("^$")
    assert f'{count}{{feature_set="account"}} 1' in shown
    assert 'vitok_feature_requests_total{feature_set="account",kind="vectors"} 1' in shown
    assert "vitok_ready 1" in shown
    assert all(name in shown for name in re.findall(r"vitok_\w+", rule["metricsQuery"]))
    own = ("k8s", "own", "--image", "b", "--command", "c", "--port", "80", "--adapter-rule", "--wait-metric", "waits")
    assert yaml.safe_load(run(*own).stdout)["name"]["matches"] == "^waits_count$"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("fraud", "--adapter-rule"), "--adapter-rule: got 'fraud', must be of a service with replicas"),
        (("unknown",), "system 'unknown' does not exist; there is: fraud, features"),
        (("features",), "VITOK_ONLINE is in neither settings nor secrets"),
        (("fraud", "--replicas", "2"), "must be 1 where state lies in one folder"),
        (("fraud", "--setting", "A"), "must look like NAME=value"),
        (("fraud", "--secret", "A=b"), "must look like NAME=secret/key"),
        (("fraud", "--log", "nowhere"), "folder of logs"),
        (("x", "--command", "a 'b", "--port", "1"), '--command: got "a \'b", must be words as in a shell'),
        (("fraud", "--rate", "5"), "--cpu-us: got None, must be given with --rate, or --log"),
        (("fraud", "--cpu-us", "nan"), "--cpu-us: got nan, must be microseconds above 0"),
        (("fraud", "--cpu-us", "5", "--log", "nowhere"), "must not be given beside --log"),
        (("models", "--queue-delay", "0"), "--queue-delay: got 0.0, must be milliseconds"),
        (("models", "--rate", "1e9", "--cpu-us", "100"), "--most-replicas: got 20, must be at least 166668"),
        (("models", "--canary-image", "y", "--canary-share", "2"), "--canary-share: got 2.0"),
        (("models", "--hostname", "example.com"), "--hostname: got ['example.com'], must go with a gateway"),
        (("models", "--name", "Ü"), "--name: got 'Ü'"),
    ],
)
def test_the_command_says_what_is_wrong(arguments: tuple[str, ...], told: str) -> None:
    result = run("k8s", *arguments, "--image", "b")
    assert result.exit_code == 2
    assert told in result.stderr


def test_an_empty_log_has_no_cost(tmp_path: Path) -> None:
    result = run("k8s", "fraud", "--image", "b", "--log", str(tmp_path))
    assert "must hold decisions with a cost" in result.stderr
