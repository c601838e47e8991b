"""`vitok serve fraud` and `vitok demo fraud`: the service of card fraud behind its guard, and the whole turn."""

import contextlib
import sys
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from vitok import settings
from vitok.clock import Clock, EventClock, SystemClock, duration
from vitok.console.exits import plain_errors
from vitok.console.model_guarding import GuardPlan
from vitok.console.option_names import options_named
from vitok.console.registry_options import REGISTRY_OPTIONS, ArtifactsAt, PackagesAt, RegistryAt, only_with_a_database
from vitok.console.shared_options import Home, home_of
from vitok.console.trace_options import check_tracing, tracing_to
from vitok.errors import InvalidInput, ServiceError, VitokError

if TYPE_CHECKING:
    from vitok.loop import TriggerRules
    from vitok.monitoring.delivery import DeliveryRules
    from vitok.monitoring.outbox import Channel

_WAYS = "env:NAME or file:PATH with an address of apprise, or http://alertmanager; may be repeated."
_TOLD = {
    "critical": "--tell-critical",
    "warning": "--tell-warning",
    "info": "--tell-info",
    "schedule": "--retrain",
    "trigger: labels": "--retrain-labels",
}
_DEMO = {
    "n_customers": "--customers",
    "days": "--days",
    "n_days": "--days",
    "seed": "--seed",
    "duration": "--label-delay",
    "mapping": "--mapping",
}
_CLOCKS = ("system", "events")


def serve_fraud(
    home: Home = None,
    registry: RegistryAt = None,
    packages: PackagesAt = None,
    artifacts: ArtifactsAt = None,
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.")] = 8200,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    clock: Annotated[str, typer.Option(help="'system', or 'events' for a replay of the past.")] = "system",
    durability: Annotated[str, typer.Option(help="'process' survives kill -9, 'fsync' a power cut.")] = "process",
    label_delay: Annotated[str, typer.Option(help="Age at which a label is taken to be known.")] = "7d",
    deadline: Annotated[float, typer.Option(help="Seconds from arrival after which rules answer.")] = 0.05,
    keys: Annotated[Path | None, typer.Option(help="File of keys ('vitok keys'): who has none is refused.")] = None,
    key_limit: Annotated[str | None, typer.Option(help="Requests a key, or address: 100/1s, 100/1s:200.")] = None,
    user_limit: Annotated[str | None, typer.Option(help="Requests a user, likewise.")] = None,
    user_header: Annotated[str, typer.Option(help="Header that names the user.")] = "x-user-id",
    allow: Annotated[list[str] | None, typer.Option(help="Network that may ask; may be repeated.")] = None,
    deny: Annotated[list[str] | None, typer.Option(help="Network that may not; may be repeated.")] = None,
    trust_proxy: Annotated[list[str] | None, typer.Option(help="Proxy whose X-Forwarded-For is believed.")] = None,
    door: Annotated[str, typer.Option(help="'hot', or 'asgi' for every request through ASGI.")] = "hot",
    workers: Annotated[int, typer.Option(help="Processes; 1 is what this system allows.")] = 1,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificates in PEM, for TLS.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Their key in PEM.")] = None,
    trace: Annotated[str | None, typer.Option(help="Sends traces there, OTLP over HTTP: http://.../v1/traces.")] = None,
    trace_rate: Annotated[float, typer.Option(help="Share traced of what comes without traceparent.")] = 0.0,
    grpc_port: Annotated[int | None, typer.Option(help="Port of gRPC; 0 takes a free one; none by default.")] = None,
    budgets: Annotated[Path | None, typer.Option(help="File of budgets ('vitok cost budget').")] = None,
    tell_critical: Annotated[list[str] | None, typer.Option(help=f"Who hears of critical alerts: {_WAYS}")] = None,
    tell_warning: Annotated[list[str] | None, typer.Option(help="Who hears of warnings, likewise.")] = None,
    tell_info: Annotated[list[str] | None, typer.Option(help="Who gets the daily summary, likewise.")] = None,
    retrain: Annotated[str | None, typer.Option(help="When to retrain in any case: '0 3 * * sun', in UTC.")] = None,
    retrain_labels: Annotated[int | None, typer.Option(help="Retrain after so many new labels.")] = None,
    *,
    merge: Annotated[bool, typer.Option(help="Whether small files of the log are merged once a day.")] = True,
    quiet: Annotated[bool, typer.Option("--quiet", help="Says nothing.")] = False,
) -> None:
    """Serves decisions on card transactions, their outcomes, and the console."""
    from vitok.systems.fraud.edge import one_process

    with plain_errors():
        if clock not in _CLOCKS:
            raise InvalidInput("--clock", clock, "be system or events")
        if durability not in ("process", "fsync"):
            raise InvalidInput("--durability", durability, "be process or fsync")
        if door not in ("hot", "asgi"):
            raise InvalidInput("--door", door, "be hot or asgi")
        for option, number in (("--port", port), ("--grpc-port", grpc_port)):
            if number is not None and not 0 <= number <= 65_535:
                raise InvalidInput(option, number, "be in 0 to 65535")
        one_process(workers)
        only_with_a_database("--registry", registry, packages=packages, artifacts=artifacts)
        check_tracing(trace, trace_rate)
        if (tls_cert is None) != (tls_key is None):
            raise InvalidInput("--tls-key", tls_key, "go with --tls-cert")
        with options_named(duration="--label-delay"):
            duration(label_delay)
        plan = FraudPlan(
            home=home_of(home),
            registry=registry,
            packages=packages,
            artifacts=artifacts,
            host=host,
            port=port,
            grpc_port=grpc_port,
            events=clock == "events",
            fsync=durability == "fsync",
            label_delay=label_delay,
            deadline=deadline,
            asgi=door == "asgi",
            certificate=tls_cert,
            key=tls_key,
            trace=trace,
            trace_rate=trace_rate,
            guard=GuardPlan(
                keys=keys,
                key_limit=key_limit,
                user_limit=user_limit,
                user_header=user_header,
                allow=tuple(allow or ()),
                deny=tuple(deny or ()),
                trust=tuple(trust_proxy or ()),
            ),
            budgets=budgets,
            tell={"critical": tell_critical or [], "warning": tell_warning or [], "info": tell_info or []},
            retrain=retrain,
            retrain_labels=retrain_labels,
            merge=merge,
        )
        # A wrong address or schedule ends the command before anything is opened.
        with options_named(**_TOLD):
            plan.channels()
            plan.triggers()
        serve_plan(plan, say=(lambda _: None) if quiet else _say)


@dataclass(frozen=True, kw_only=True)
class FraudPlan:
    """How the system is served: the options of the command.

    Attributes:
        home: Folder of all that it keeps.
        registry: The registry that it goes by; None for the one that it went by before, at first its own.
        packages: Where packages lie if that is a database.
        artifacts: Where the files of runs lie, if runs go to that database as well.
        host: Address to listen on.
        port: Port of HTTP.
        grpc_port: Port of gRPC; None for none.
        events: Whether the requests move the clock, for a replay of the past.
        fsync: Whether what is acknowledged survives a power cut.
        label_delay: Age at which a label is taken to be known.
        deadline: Seconds from arrival after which rules answer.
        asgi: Whether every request goes through ASGI.
        certificate: Certificate for TLS; None for none.
        key: Its key.
        trace: Address of the collector of traces; None for none.
        trace_rate: Share of the requests without `traceparent` that is traced.
        guard: Who may ask, how often, from where.
        budgets: File of the budgets of teams; None for none.
        tell: Who hears of alerts, by severity; a file in the home where nobody is named.
        retrain: Schedule of retrainings in the fields of cron; None for none.
        retrain_labels: After how many new labels to retrain; None for never.
        merge: Whether small files of the log are merged once a day.
    """

    home: Path
    registry: str | None = None
    packages: str | None = None
    artifacts: str | None = None
    host: str
    port: int
    grpc_port: int | None
    events: bool
    fsync: bool
    label_delay: str
    deadline: float
    asgi: bool
    certificate: Path | None
    key: Path | None
    trace: str | None
    trace_rate: float
    guard: GuardPlan
    budgets: Path | None
    tell: Mapping[str, Sequence[str]] = field(default_factory=dict)
    retrain: str | None = None
    retrain_labels: int | None = None
    merge: bool = True

    def channels(self) -> "tuple[Mapping[str, Channel], DeliveryRules]":
        """Returns the ways to people, and who is told what."""
        from vitok.systems.fraud.notices import channels

        return channels(self.home, **self.tell)

    def triggers(self) -> "TriggerRules":
        """Returns when to retrain, besides what the loop finds by itself."""
        from vitok.loop import Cron, TriggerRules

        return TriggerRules(schedule=Cron(self.retrain) if self.retrain else None, labels=self.retrain_labels)


def serve_plan(plan: FraudPlan, *, say: Callable[[str], None]) -> None:
    """Serves the system until SIGTERM or SIGINT.

    Args:
        plan: How.
        say: Gets where it is to be found, in sentences.

    Raises:
        VitokError: If a store cannot be opened, or an address cannot be used.
    """
    from vitok.console.model_costing import Costing
    from vitok.console.pages import routes
    from vitok.registry import attach
    from vitok.serving import Running, serve
    from vitok.serving.grpc_calls import GrpcAddress
    from vitok.serving.server import Tls
    from vitok.systems.fraud import FraudService, announce, application, operate
    from vitok.systems.fraud.decide_grpc import decide_door
    from vitok.systems.fraud.edge import DECIDE
    from vitok.systems.fraud.operating import Gauges

    with options_named(certificate="--tls-cert", key="--tls-key"):
        tls = Tls(plan.certificate, plan.key) if plan.certificate is not None and plan.key is not None else None
    failures: list[VitokError] = []
    bound: list[int] = []
    with contextlib.ExitStack() as resources:
        guard = plan.guard.guard()
        costing = Costing(guard=guard, keys=plan.guard.keys, budgets=plan.budgets)
        resources.callback(costing.close)
        tracing = tracing_to(plan.trace, plan.trace_rate, service="vitok-fraud")
        if tracing is not None:
            resources.callback(tracing.close)
        plan.home.mkdir(parents=True, exist_ok=True)
        if plan.registry is not None:
            with options_named(**REGISTRY_OPTIONS):
                attach(plan.home, plan.registry, packages=plan.packages, artifacts=plan.artifacts)
        clock: Clock = EventClock() if plan.events else SystemClock()
        # A thread that packs a checkpoint must not hold the loop for the usual 5 ms.
        sys.setswitchinterval(0.0005)
        with options_named(deadline="--deadline"):
            service = FraudService(
                plan.home,
                clock=clock,
                durability="fsync" if plan.fsync else "process",
                deadline=plan.deadline,
                tracing=tracing,
                meter=costing.meter,
            )
        resources.callback(service.close)
        resources.callback((plan.home / "service.json").unlink, missing_ok=True)
        gauges = Gauges()
        if not plan.events:
            # In a replay of the past, whoever sends it also watches it, and acts.
            stop = threading.Event()
            options = {"clock": clock, "label_delay": duration(plan.label_delay), "stop": stop, "gauges": gauges}
            options |= {"triggers": plan.triggers(), "channels": plan.channels(), "merge": plan.merge}
            operator = threading.Thread(target=operate, args=(plan.home,), kwargs=options, name="operator", daemon=True)
            operator.start()
            resources.callback(operator.join, 10)
            resources.callback(stop.set)

        endpoint = service if costing.guard is None else costing.guard.before(service, DECIDE)

        @contextlib.asynccontextmanager
        async def beside() -> AsyncIterator[None]:
            if plan.grpc_port is None:
                yield
                return
            address = GrpcAddress(host=plan.host, port=plan.grpc_port, certificate=plan.certificate, key=plan.key)
            async with contextlib.AsyncExitStack() as stack:
                try:
                    bound.append(await stack.enter_async_context(decide_door(service, endpoint, address, guard=guard)))
                except VitokError as error:
                    failures.append(error)
                    raise
                yield

        def ready(running: Running) -> None:
            announce(plan.home, running.port)
            say(f"console   {running.url}/")
            say(f"decisions POST {running.url}{service.path}")
            if bound:
                say(f"gRPC      {plan.host}:{bound[0]}  vitok.decide.v1.DecideService, with reflection")
            say(f"API       {running.url}/openapi.json      stop with Ctrl-C")

        app = application(service, pages=routes(service), guard=guard, samples=gauges.read, beside=beside)
        way: Literal["hot", "asgi"] = "asgi" if plan.asgi else "hot"
        try:
            serve(app, [endpoint], host=plan.host, port=plan.port, ready=ready, tls=tls, door=way)
        except ServiceError as error:
            # What kept the application from starting says more than that it did not.
            raise (failures[0] if failures else error) from None


def _say(text: str) -> None:
    typer.echo(text, err=True)


def demo_fraud(
    home: Home = None,
    transactions: Annotated[
        Path | None, typer.Option(help="CSV or Parquet file, or a folder of them; by default data are simulated.")
    ] = None,
    mapping: Annotated[
        list[str] | None, typer.Option(help="Our column name = yours, such as amount=AMT; may be repeated.")
    ] = None,
    label_delay: Annotated[str, typer.Option(help="Assumed age of a label where the file has no label time.")] = "7d",
    customers: Annotated[int, typer.Option(help="Customers to simulate.")] = 2500,
    days: Annotated[int, typer.Option(help="Days to simulate.")] = 121,
    seed: Annotated[int, typer.Option(help="Seed of the simulation and of training.")] = 0,
    protocol: Annotated[str | None, typer.Option(help="'handbook': the published features, split and metric.")] = None,
    json: Annotated[Path | None, typer.Option(help="Writes the numbers to this file.")] = None,
    *,
    concept_change: Annotated[bool, typer.Option(help="Whether fraud changes its ways during the replay.")] = True,
    fresh: Annotated[bool, typer.Option("--fresh", help="Runs again also where nothing has changed.")] = False,
) -> None:
    """Runs contract, features, training, gate, service, monitoring, retraining, canary and rollback on card data."""
    from vitok.systems.fraud import run_demo

    with plain_errors(), options_named(**_demo_names(transactions)), settings.using(seed=seed):
        if mapping and transactions is None:
            raise InvalidInput("--mapping", mapping[0], "go with --transactions")
        run_demo(
            home=home_of(home),
            transactions=transactions,
            mapping=_pairs(mapping or []),
            label_delay=label_delay,
            n_customers=customers,
            days=days,
            concept_change=concept_change,
            protocol=protocol,
            json_file=json,
            fresh=fresh,
        )


def _demo_names(transactions: Path | None) -> dict[str, str]:
    # How long the data are is said by the days where they are simulated, else by the file.
    if transactions is None:
        return {**_DEMO, "transactions: length": "--days"}
    return {**_DEMO, "transactions": "--transactions", "transactions: length": "--transactions"}


def _pairs(texts: list[str]) -> dict[str, str]:
    pairs = {}
    for text in texts:
        ours, mark, theirs = text.partition("=")
        if not mark or not ours or not theirs:
            raise InvalidInput("--mapping", text, "look like ours=theirs, such as amount=AMT")
        pairs[ours.strip()] = theirs.strip()
    return pairs
