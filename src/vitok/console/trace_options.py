"""The options `--trace` and `--trace-rate` of a command that serves."""

from vitok.console.option_names import options_named
from vitok.errors import InvalidInput
from vitok.serving.tracing import Tracing, otlp


def check_tracing(address: str | None, rate: float) -> None:
    """Looks at both options before anything is opened.

    Raises:
        InvalidInput: If the rate is none, or there is one without an address.

    Example:
        >>> check_tracing(None, 0.1)
        Traceback (most recent call last):
        vitok.errors.InvalidInput: --trace-rate: got 0.1, must go with --trace
    """
    if not 0 <= rate <= 1:
        raise InvalidInput("--trace-rate", rate, "be in [0, 1]", "For 1 % write 0.01")
    if rate and address is None:
        raise InvalidInput("--trace-rate", rate, "go with --trace")


def tracing_to(address: str | None, rate: float, *, service: str) -> Tracing | None:
    """Returns what traces requests, or None where nothing does.

    Args:
        address: Where the collector takes traces, by OTLP over HTTP; None for none.
        rate: Share of the requests without `traceparent` that is traced.
        service: Name of the service in its traces.

    Raises:
        InvalidInput: If the address is none of HTTP.
        MissingExtra: If the extra `tracing` is not installed.
    """
    if address is None:
        return None
    with options_named(endpoint="--trace"):
        return Tracing(otlp(address), rate=rate, service=service)
