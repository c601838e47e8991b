"""Notices that the machine is about to be taken away: spot notices of three clouds, and SIGTERM.

    with PreemptionWatch(clouds=["aws"]) as watch:
        while work and watch.notice is None:
            ...

AWS: "Spot Instance interruption notices", read through IMDSv2; two minutes ahead, best effort. Google Cloud:
"Preemptible VM instances", `instance/preempted`, about 30 seconds ahead. Azure: "Scheduled Events", `Preempt`, at
least 30 seconds ahead. A metadata server that cannot be reached is asked again; it is no notice.
"""

import abc
import http.client
import json
import signal
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from types import FrameType, TracebackType
from typing import Any, Self

from vitok.errors import InvalidInput

METADATA = {
    "aws": "http://169.254.169.254",
    "gcp": "http://metadata.google.internal",
    "azure": "http://169.254.169.254",
}
_TOKEN_SECONDS = 21_600
_AZURE_EVENTS = ("Preempt", "Terminate", "Redeploy", "Reboot")
_UNREACHABLE = (OSError, http.client.HTTPException, ValueError)
# A metadata address leads to the machine itself, never through a proxy.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class PreemptionWatch:
    """Asks the clouds' metadata servers in the background, and takes SIGTERM, for the length of a `with` block.

    Args:
        clouds: Some of `"aws"`, `"gcp"` and `"azure"`.
        addresses: Other addresses of their metadata servers.
        interval: Seconds between two questions.
        timeout: Seconds for an answer; Google's is held back until something changes, at most as long.
        sigterm: Whether SIGTERM counts; only in the main thread, elsewhere it does not.

    Attributes:
        notice: What was noticed, in words; None while nothing was.
        failures: How many questions had no answer.

    Raises:
        InvalidInput: If a cloud is unknown.

    Example:
        >>> with PreemptionWatch() as watch:
        ...     watch.notice is None
        True
    """

    def __init__(
        self,
        *,
        clouds: Sequence[str] = (),
        addresses: Mapping[str, str] | None = None,
        interval: float = 5.0,
        timeout: float = 60.0,
        sigterm: bool = True,
    ) -> None:
        unknown = sorted(set(clouds) - set(METADATA))
        if unknown:
            raise InvalidInput("clouds", unknown, f"be of {', '.join(METADATA)}")
        self._clouds = tuple(clouds)
        self._addresses = {**METADATA, **(addresses or {})}
        self._interval, self._timeout, self._sigterm = interval, timeout, sigterm
        self._noticed, self._ended = threading.Event(), threading.Event()
        self._before: Any = None
        self._taken = False
        self.notice: str | None = None
        self.failures = 0

    def __enter__(self) -> Self:
        if self._sigterm and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._on_signal)
            self._taken = True
        for cloud in self._clouds:
            threading.Thread(target=self._ask, args=(cloud,), name=f"preemption-{cloud}", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._taken:
            signal.signal(signal.SIGTERM, self._before)

    def wait(self, seconds: float) -> bool:
        """Waits for a notice; returns whether there is one."""
        return self._noticed.wait(seconds)

    def give(self, notice: str) -> None:
        """Takes a notice that came some other way; the first one stays."""
        if self.notice is None:
            self.notice = notice
        self._noticed.set()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self.give(f"signal {signal.Signals(number).name}")

    def _ask(self, cloud: str) -> None:
        kinds: dict[str, type[_Question]] = {"aws": _Aws, "gcp": _Gcp, "azure": _Azure}
        question = kinds[cloud](self._addresses[cloud], self._timeout)
        while not self._ended.is_set() and not self._noticed.is_set():
            try:
                notice = question.ask()
            except _UNREACHABLE:
                self.failures += 1
                notice = None
            else:
                if notice is not None:
                    self.give(f"{cloud}: {notice}")
                    return
                if question.waits:
                    continue
            self._ended.wait(self._interval)


class _Question(abc.ABC):
    waits = False

    def __init__(self, address: str, timeout: float) -> None:
        self.address = address.rstrip("/")
        self.timeout = timeout

    def get(self, path: str, headers: Mapping[str, str], *, method: str = "GET") -> tuple[str, Mapping[str, str]]:
        request = urllib.request.Request(self.address + path, headers=dict(headers), method=method)  # noqa: S310
        with _OPENER.open(request, timeout=self.timeout + 5) as reply:
            return reply.read().decode("utf-8", "replace"), reply.headers

    @abc.abstractmethod
    def ask(self) -> str | None:
        """Asks once: what the cloud says, or None."""


class _Aws(_Question):
    token = ""

    def ask(self) -> str | None:
        if not self.token:
            ttl = {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_SECONDS)}
            self.token = self.get("/latest/api/token", ttl, method="PUT")[0]
        try:
            text, _ = self.get("/latest/meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": self.token})
        except urllib.error.HTTPError as error:
            with error:
                if error.code == http.client.NOT_FOUND:
                    return None
                if error.code == http.client.UNAUTHORIZED:
                    self.token = ""  # it has expired
                raise
        told = json.loads(text)
        return f"{told.get('action')} at {told.get('time')}"


class _Gcp(_Question):
    waits = True
    etag = ""

    def ask(self) -> str | None:
        # The first question is answered at once; the next is held until the value is another than the one last seen.
        wait = f"?wait_for_change=true&timeout_sec={int(self.timeout)}&last_etag={self.etag}" if self.etag else ""
        path = f"/computeMetadata/v1/instance/preempted{wait}"
        text, headers = self.get(path, {"Metadata-Flavor": "Google"})
        self.etag = headers.get("ETag") or "0"
        return "preempted" if text.strip().upper() == "TRUE" else None


class _Azure(_Question):
    def ask(self) -> str | None:
        text, _ = self.get("/metadata/scheduledevents?api-version=2020-07-01", {"Metadata": "true"})
        for event in json.loads(text).get("Events", ()):
            if event.get("EventType") in _AZURE_EVENTS:
                return f"{event['EventType']} not before {event.get('NotBefore') or 'now'}"
        return None
