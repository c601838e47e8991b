"""Kubernetes manifests of a service, from one description: plain dictionaries in, YAML out, nothing is applied.

A service without state of its own runs as many replicas as its load needs and is scaled on the time that requests
wait for their batch: a processor may be busy and nobody waits, or half idle and all wait for a store. A service that
keeps its state in a folder runs alone, with a volume.

Sources: the Kubernetes API reference (apps/v1, autoscaling/v2, policy/v1, networking.k8s.io/v1) and the Gateway API
(gateway.networking.k8s.io/v1). The `sleep` of `preStop` needs Kubernetes 1.30 or newer.
"""

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from vitok.errors import InvalidInput
from vitok.serving.server import DRAIN_SECONDS

HOME = "/var/lib/vitok"
USER = 10_001
STABLE, CANARY = "stable", "canary"
_TRACK = "vitok.io/track"
_SPARE_SECONDS = 5
_THOUSANDTHS = 1000
_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_SIZE = re.compile(r"[1-9][0-9]*(Ki|Mi|Gi|Ti)")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_USED = re.compile(r"\$\(([A-Za-z_][A-Za-z0-9_]*)\)")
_PASSWORD = re.compile(r"://[^/@\s]*:[^/@\s]+@")
_LABEL = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
_HOST = re.compile(rf"(\*\.)?{_LABEL}(\.{_LABEL})*")
_SECRET = re.compile(rf"{_LABEL}(\.{_LABEL})*")
_GATEWAY = re.compile(rf"({_LABEL}/)?{_LABEL}(\.{_LABEL})*")
_SECRET_KEY = re.compile(r"[-._A-Za-z0-9]{1,253}")
_SECRET_NAME = re.compile(r"(password|passwd|secret|token|api_?key|credentials?)$", re.IGNORECASE)

Manifest = dict[str, Any]


@dataclass(frozen=True)
class SecretKey:
    """Where a secret value lies in the cluster; the value itself is never written.

    Attributes:
        secret: Name of the `Secret`.
        key: Key in it.
    """

    secret: str
    key: str


@dataclass(frozen=True, kw_only=True)
class Canary:
    """A second version of the service that gets a part of the requests.

    Attributes:
        image: Its image.
        share: Its part of the requests, in (0, 1).
    """

    image: str
    share: float


@dataclass(frozen=True, kw_only=True)
class Deployed:
    """A service as it is to run in a cluster.

    Attributes:
        name: Name of all its objects: lower-case letters, digits and dashes, at most 50.
        image: The image, best by digest.
        command: What runs in it; `$(NAME)` is the value of a variable out of `settings` or `secrets`.
        port: Where it listens.
        live: Path that answers while the process lives.
        ready: Path that answers 200 once it can do its work.
        namespace: Namespace of all objects; by default the one they are applied to.
        replicas: Fewest replicas, at least 1.
        most_replicas: Most replicas.
        cpu_seconds: Processor seconds a request, as measured: `cost` of its decisions.
        rate: Requests a second that it must bear without being scaled first.
        utilisation: Share of its processors that may be busy at that rate, in (0, 1].
        memory: Memory of a replica, such as `"1Gi"`.
        queue_delay: Seconds that requests may wait for their batch on average before replicas are added.
        queue_metric: Name of that metric in the cluster's custom metrics.
        settings: Environment variables; goes into a `ConfigMap`.
        secrets: Environment variables and where their values lie.
        canary: A second version beside it.
        gateway: Gateway that splits the requests, `"name"` or `"namespace/name"`; empty where there is none.
        hostnames: Host names that the gateway's route is for.
        volume: Size of the volume of a service that keeps its state in its folder; empty for one without state.
        leave_seconds: Time before SIGTERM in which the cluster learns not to send any more.
        drain_seconds: Time in which the service finishes what it owes after SIGTERM.

    Raises:
        InvalidInput: If a value is out of its range, or a setting looks like a secret.

    Example:
        >>> scored = Deployed(name="scoring", image="registry.example/scoring:3", command=("vitok", "serve"),
        ...                   cpu_seconds=20e-6, rate=90_000)
        >>> print(scored.sizing)
        4 replicas of 1000m processors
        >>> [manifest["kind"] for manifest in manifests(scored)]
        ['ServiceAccount', 'Deployment', 'Service', 'HorizontalPodAutoscaler', 'PodDisruptionBudget', 'NetworkPolicy']
    """

    name: str
    image: str
    command: Sequence[str]
    port: int = 8200
    live: str = "/healthz"
    ready: str = "/readyz"
    namespace: str = ""
    replicas: int = 2
    most_replicas: int = 20
    cpu_seconds: float | None = None
    rate: float | None = None
    utilisation: float = 0.6
    memory: str = "1Gi"
    queue_delay: float = 0.005
    queue_metric: str = "vitok_queue_delay_seconds"
    settings: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, SecretKey] = field(default_factory=dict)
    canary: Canary | None = None
    gateway: str = ""
    hostnames: Sequence[str] = ()
    volume: str = ""
    leave_seconds: int = 5
    drain_seconds: int = DRAIN_SECONDS

    def __post_init__(self) -> None:
        for name, text in (("name", self.name), ("namespace", self.namespace)):
            if (text or name == "name") and not (_NAME.fullmatch(text) and len(text) <= 50):
                raise InvalidInput(name, text, "be lower-case letters, digits and dashes, at most 50")
        for name, image in (("image", self.image), *((("canary.image", self.canary.image),) if self.canary else ())):
            if not image or any(sign <= " " or sign > "~" for sign in image):
                raise InvalidInput(name, image, "be the address of an image, without blanks")
        if not self.command:
            raise InvalidInput("command", self.command, "say what runs in the image")
        if not 1 <= self.port <= 65_535:
            raise InvalidInput("port", self.port, "be in 1 to 65535")
        for name in ("live", "ready"):
            if not getattr(self, name).startswith("/"):
                raise InvalidInput(name, getattr(self, name), "be a path that starts with a slash")
        for name, size in (("memory", self.memory), *((("volume", self.volume),) if self.volume else ())):
            if not _SIZE.fullmatch(size):
                raise InvalidInput(name, size, "be a whole number of Ki, Mi, Gi or Ti", "Try 1Gi")
        for name, least in (("leave_seconds", 0), ("drain_seconds", 1), ("replicas", 1)):
            if getattr(self, name) < least:
                raise InvalidInput(name, getattr(self, name), f"be at least {least}")
        if self.gateway and not _GATEWAY.fullmatch(self.gateway):
            raise InvalidInput("gateway", self.gateway, "be the name of a Gateway, or namespace/name")
        for host in self.hostnames:
            if not _HOST.fullmatch(host) or len(host) > 253:
                raise InvalidInput("hostnames", host, "be host names in lower case", "Try api.example.com")
        if self.hostnames and not self.gateway:
            raise InvalidInput("hostnames", list(self.hostnames), "go with a gateway, whose route they are for")
        self._check_load()
        self._check_variables()
        self._check_state()

    def _check_load(self) -> None:
        if self.most_replicas < self.replicas:
            raise InvalidInput("most_replicas", self.most_replicas, f"be at least replicas, {self.replicas}")
        for name in ("cpu_seconds", "rate"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise InvalidInput(name, value, "be above 0 and finite")
        if self.rate is not None and self.cpu_seconds is None:
            raise InvalidInput("cpu_seconds", None, "be given with a rate", "Measure it: the mean cost of decisions")
        if not 0 < self.utilisation <= 1:
            raise InvalidInput("utilisation", self.utilisation, "be in (0, 1]", "For 60 % write 0.6")
        if not 1e-6 <= self.queue_delay < 3600:
            raise InvalidInput("queue_delay", self.queue_delay, "be seconds, from 1e-6 to an hour")
        sizing = self.sizing
        if sizing.replicas > self.most_replicas and not self.volume:
            rule = f"be at least {sizing.replicas}, which {self.rate:g} requests a second need"
            raise InvalidInput("most_replicas", self.most_replicas, rule)

    def _check_variables(self) -> None:
        for name, value in self.settings.items():
            if not _VARIABLE.fullmatch(name):
                raise InvalidInput("settings", name, "be the name of an environment variable")
            if _PASSWORD.search(value) or _SECRET_NAME.search(name):
                raise InvalidInput(f"settings[{name}]", "a secret", "not be there", "Name a Secret in `secrets`")
        for name, source in self.secrets.items():
            if not _VARIABLE.fullmatch(name):
                raise InvalidInput("secrets", name, "be the name of an environment variable")
            if name in self.settings:
                raise InvalidInput("secrets", name, "not be in `settings` too")
            if not (_SECRET.fullmatch(source.secret) and _SECRET_KEY.fullmatch(source.key)):
                place = f"{source.secret}/{source.key}"
                raise InvalidInput(f"secrets[{name}]", place, "name a Secret and a key in it", "Try redis/url")
        for part in self.command:
            for name in _USED.findall(part):
                if name not in self.settings and name not in self.secrets and name != "VITOK_HOME":
                    raise InvalidInput("command", part, f"use what is set: {name} is in neither settings nor secrets")

    def _check_state(self) -> None:
        if self.volume and self.canary is not None:
            raise InvalidInput("canary", self.canary.image, "not be there where state lies in one folder")
        if self.volume and self.sizing.replicas > 1:
            rule = "be 1 where state lies in one folder" + (", which bears no such rate" if self.replicas == 1 else "")
            raise InvalidInput("replicas", self.sizing.replicas, rule)
        if self.canary is not None and not 0 < self.canary.share < 1:
            raise InvalidInput("canary.share", self.canary.share, "be in (0, 1)", "For 5 % write 0.05")
        if self.canary is not None and not self.gateway:
            _by_replicas(self, self.canary)

    @property
    def sizing(self) -> "Sizing":
        """How many replicas there are at first, and what each asks for.

        One process answers on one processor, so a replica never asks for more; one replica more than the rate needs
        is there, so that one may be away.
        """
        if self.rate is None or self.cpu_seconds is None:
            return Sizing(self.replicas, 1000)
        processors = self.rate * self.cpu_seconds / self.utilisation
        if self.volume:
            return Sizing(max(self.replicas, math.ceil(processors)), _millis(processors))
        # What 90,000 times 20e-6 over 0.6 leaves behind the point must not cost a replica.
        replicas = max(self.replicas, math.ceil(processors - 1e-9) + 1)
        return Sizing(replicas, _millis(processors / (replicas - 1)))


@dataclass(frozen=True)
class Sizing:
    """What a service asks the cluster for.

    Attributes:
        replicas: How many there are at first.
        millis: Thousandths of a processor that each asks for.
    """

    replicas: int
    millis: int

    def __str__(self) -> str:
        return f"{self.replicas} replicas of {self.millis}m processors"


def _millis(processors: float) -> int:
    return min(1000, max(50, 10 * math.ceil(100 * processors - 1e-9)))


def manifests(service: Deployed) -> list[Manifest]:
    """Returns all objects of a service, in the order in which they are to be applied."""
    out = [service_account(service)]
    if service.settings:
        out.append(config_map(service))
    if service.volume:
        out.append(volume_claim(service))
    out.append(deployment(service))
    if service.canary is not None:
        out.append(deployment(service, track=CANARY))
    out.append(balanced(service))
    if service.canary is not None and service.gateway:
        out.append(balanced(service, track=CANARY))
    if service.gateway:
        out.append(http_route(service))
    if not service.volume:
        out.append(autoscaler(service))
        if service.canary is not None and service.gateway:
            out.append(autoscaler(service, track=CANARY))
        out.append(disruption_budget(service))
    out.append(network_policy(service))
    return out


def to_yaml(objects: Sequence[Manifest]) -> str:
    """Writes manifests as one YAML document each."""
    return yaml.dump_all(objects, Dumper=_Plain, sort_keys=False, explicit_start=True, width=120)


class _Plain(yaml.SafeDumper):  # type: ignore[misc]
    # Labels stand in several places of a manifest, and are to be read in each.
    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        return True


def deployment(service: Deployed, *, track: str = STABLE) -> Manifest:
    """Returns the `Deployment` of a track: `"stable"` or `"canary"`."""
    alone = bool(service.volume)
    labels = {**_selector(service), _TRACK: track}
    strategy: Manifest = {"type": "Recreate"}
    if not alone:
        strategy = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
    notes: dict[str, str] = {}
    if service.canary is not None and not service.gateway:
        ours, theirs = _by_replicas(service, service.canary)
        notes["vitok.io/canary-share"] = f"{theirs} of {ours + theirs} replicas; less as the stable track grows"
    annotations = {
        "prometheus.io/scrape": "true",
        "prometheus.io/port": str(service.port),
        "prometheus.io/path": "/metrics",
    }
    if service.settings:
        # A changed ConfigMap by itself restarts nothing.
        annotations["vitok.io/settings"] = _hash(service.settings)
    pod: Manifest = {
        "serviceAccountName": service.name,
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": service.leave_seconds + service.drain_seconds + _SPARE_SECONDS,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(service, track)],
        "volumes": [
            {"name": "scratch", "emptyDir": {}},
            {"name": "home", **({"persistentVolumeClaim": {"claimName": service.name}} if alone else {"emptyDir": {}})},
        ],
    }
    if not alone:
        pod["topologySpreadConstraints"] = [
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": labels},
            }
        ]
    return _object(
        service,
        "apps/v1",
        "Deployment",
        _track_name(service, track),
        {
            "replicas": _replicas(service, track),
            "revisionHistoryLimit": 5,
            "selector": {"matchLabels": labels},
            "strategy": strategy,
            "template": {
                "metadata": {"labels": {**_labels(service), **labels}, "annotations": annotations},
                "spec": pod,
            },
        },
        annotations=notes,
    )


def _container(service: Deployed, track: str) -> Manifest:
    image = service.canary.image if track == CANARY and service.canary is not None else service.image

    def probe(path: str, **rhythm: int) -> Manifest:
        return {"httpGet": {"path": path, "port": "http"}, "timeoutSeconds": 2, **rhythm}

    variables: list[Manifest] = [
        {"name": "VITOK_HOME", "value": HOME},
        # The root is read-only: what is compiled or cached goes where it may be written.
        {"name": "HOME", "value": "/tmp"},  # noqa: S108
        {"name": "NUMBA_CACHE_DIR", "value": "/tmp/numba"},  # noqa: S108
        {"name": "OMP_NUM_THREADS", "value": "1"},
    ]
    variables = [item for item in variables if item["name"] not in {*service.settings, *service.secrets}]
    variables += [
        {"name": name, "valueFrom": {"secretKeyRef": {"name": source.secret, "key": source.key}}}
        for name, source in service.secrets.items()
    ]
    container: Manifest = {
        "name": "service",
        "image": image,
        "command": list(service.command),
        "ports": [{"name": "http", "containerPort": service.port, "protocol": "TCP"}],
        "env": variables,
    }
    if service.settings:
        container["envFrom"] = [{"configMapRef": {"name": service.name}}]
    return container | {
        # No limit of processors: a process that is stopped for the rest of each tenth of a second has no P99.
        "resources": {
            "requests": {"cpu": f"{service.sizing.millis}m", "memory": service.memory},
            "limits": {"memory": service.memory},
        },
        # A model may take long to load, and until it has, nobody is to take that for a hang.
        "startupProbe": probe(service.ready, periodSeconds=2, failureThreshold=90),
        "readinessProbe": probe(service.ready, periodSeconds=2, failureThreshold=2),
        "livenessProbe": probe(service.live, periodSeconds=10, failureThreshold=3),
        # SIGTERM ends listening at once, so first the cluster must have learned to send elsewhere.
        **({"lifecycle": {"preStop": {"sleep": {"seconds": service.leave_seconds}}}} if service.leave_seconds else {}),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "scratch", "mountPath": "/tmp"},  # noqa: S108
            {"name": "home", "mountPath": HOME},
        ],
    }


def balanced(service: Deployed, *, track: str = STABLE) -> Manifest:
    """Returns the `Service`: of one track where a gateway splits the requests, else of both."""
    selector = _selector(service)
    if service.canary is not None and service.gateway:
        selector = {**selector, _TRACK: track}
    ports = [{"name": "http", "port": 80, "targetPort": "http", "protocol": "TCP", "appProtocol": "http"}]
    spec = {"type": "ClusterIP", "selector": selector, "ports": ports}
    return _object(service, "v1", "Service", _track_name(service, track), spec)


def autoscaler(service: Deployed, *, track: str = STABLE) -> Manifest:
    """Returns the `HorizontalPodAutoscaler`: on the mean time that requests wait for their batch.

    It grows at once, to twice the replicas a minute, and shrinks by a tenth a minute after five quiet minutes.
    """
    metric = {
        "type": "Pods",
        "pods": {
            "metric": {"name": service.queue_metric},
            "target": {"type": "AverageValue", "averageValue": _quantity(service.queue_delay)},
        },
    }
    name = _track_name(service, track)
    spec = {
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name},
        "minReplicas": _replicas(service, track),
        "maxReplicas": max(service.most_replicas, _replicas(service, track)),
        "metrics": [metric],
        "behavior": {
            "scaleUp": {
                "stabilizationWindowSeconds": 0,
                "selectPolicy": "Max",
                "policies": [
                    {"type": "Percent", "value": 100, "periodSeconds": 60},
                    {"type": "Pods", "value": 2, "periodSeconds": 60},
                ],
            },
            "scaleDown": {
                "stabilizationWindowSeconds": 300,
                "policies": [{"type": "Percent", "value": 10, "periodSeconds": 60}],
            },
        },
    }
    return _object(service, "autoscaling/v2", "HorizontalPodAutoscaler", name, spec)


def adapter_rule(service: Deployed, *, series: str = "vitok_inference_wait_seconds") -> Manifest:
    """Returns the rule by which prometheus-adapter makes the metric of the autoscaler out of a histogram.

    Args:
        service: Whose metric it is.
        series: Name of the histogram that the service shows at `/metrics`.
    """
    one, grouped = "{<<.LabelMatchers>>}[1m]", "by (<<.GroupBy>>)"
    query = f"sum(rate({series}_sum{one})) {grouped} / (sum(rate({series}_count{one})) {grouped} > 0)"
    return {
        "seriesQuery": f'{series}_count{{namespace!="",pod!=""}}',
        "resources": {"overrides": {"namespace": {"resource": "namespace"}, "pod": {"resource": "pod"}}},
        "name": {"matches": f"^{series}_count$", "as": service.queue_metric},
        "metricsQuery": query,
    }


def http_route(service: Deployed) -> Manifest:
    """Returns the `HTTPRoute` of the gateway, which splits the requests by weight."""
    namespace, _, gateway = service.gateway.rpartition("/")
    parent = {"name": gateway, **({"namespace": namespace} if namespace else {})}
    canary = round(_THOUSANDTHS * service.canary.share) if service.canary is not None else 0
    backends = [{"name": service.name, "port": 80, "weight": _THOUSANDTHS - canary}]
    if service.canary is not None:
        backends.append({"name": _track_name(service, CANARY), "port": 80, "weight": canary})
    spec: Manifest = {"parentRefs": [parent]}
    if service.hostnames:
        spec["hostnames"] = list(service.hostnames)
    spec["rules"] = [{"matches": [{"path": {"type": "PathPrefix", "value": "/"}}], "backendRefs": backends}]
    return _object(service, "gateway.networking.k8s.io/v1", "HTTPRoute", service.name, spec)


def disruption_budget(service: Deployed) -> Manifest:
    """Returns the `PodDisruptionBudget`: whoever empties a node takes one replica at a time."""
    spec = {"maxUnavailable": 1, "selector": {"matchLabels": _selector(service)}}
    return _object(service, "policy/v1", "PodDisruptionBudget", service.name, spec)


def network_policy(service: Deployed) -> Manifest:
    """Returns the `NetworkPolicy`: nothing but the port of the service can be reached from outside the pod."""
    spec = {
        "podSelector": {"matchLabels": _selector(service)},
        "policyTypes": ["Ingress"],
        "ingress": [{"ports": [{"protocol": "TCP", "port": service.port}]}],
    }
    return _object(service, "networking.k8s.io/v1", "NetworkPolicy", service.name, spec)


def service_account(service: Deployed) -> Manifest:
    """Returns the `ServiceAccount`, which has no rights and mounts no token."""
    return {**_object(service, "v1", "ServiceAccount", service.name), "automountServiceAccountToken": False}


def config_map(service: Deployed) -> Manifest:
    """Returns the `ConfigMap` of the settings."""
    return {**_object(service, "v1", "ConfigMap", service.name), "data": dict(service.settings)}


def volume_claim(service: Deployed) -> Manifest:
    """Returns the `PersistentVolumeClaim` of a service that keeps its state in its folder."""
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": service.volume}}}
    return _object(service, "v1", "PersistentVolumeClaim", service.name, spec)


def _object(
    service: Deployed,
    version: str,
    kind: str,
    name: str,
    spec: Manifest | None = None,
    *,
    annotations: Mapping[str, str] | None = None,
) -> Manifest:
    metadata: Manifest = {"name": name}
    if service.namespace:
        metadata["namespace"] = service.namespace
    metadata["labels"] = _labels(service)
    if annotations:
        metadata["annotations"] = dict(annotations)
    return {"apiVersion": version, "kind": kind, "metadata": metadata, **({"spec": spec} if spec is not None else {})}


def _selector(service: Deployed) -> dict[str, str]:
    return {"app.kubernetes.io/name": service.name}


def _labels(service: Deployed) -> dict[str, str]:
    return {**_selector(service), "app.kubernetes.io/component": "serving", "app.kubernetes.io/managed-by": "vitok"}


def _track_name(service: Deployed, track: str) -> str:
    return service.name if track == STABLE else f"{service.name}-{track}"


def _replicas(service: Deployed, track: str) -> int:
    canary = service.canary
    if canary is None:
        return service.sizing.replicas
    if service.gateway:
        least = service.sizing.replicas
        return least if track == STABLE else max(1, math.ceil(least * canary.share))
    stable, beside = _by_replicas(service, canary)
    return stable if track == STABLE else beside


def _by_replicas(service: Deployed, canary: Canary) -> tuple[int, int]:
    # The fewest replicas of both tracks whose ratio is within a fifth of the share.
    for stable in range(service.sizing.replicas, service.most_replicas + 1):
        beside = max(1, round(stable * canary.share / (1 - canary.share)))
        if abs(beside / (stable + beside) - canary.share) <= 0.2 * canary.share:
            return stable, beside
    rule = f"be a ratio of at most {service.most_replicas} replicas"
    raise InvalidInput("canary.share", canary.share, rule, "Name a gateway, which splits by weight")


def _quantity(seconds: float) -> str:
    micros = round(1e6 * seconds)
    return f"{micros // 1000}m" if micros % 1000 == 0 else f"{micros}u"


def _hash(settings: Mapping[str, str]) -> str:
    text = yaml.safe_dump(dict(settings), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
