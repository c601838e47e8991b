"""Several processes on one port: started, watched, started anew when they die, and ended together.

Each listens with `SO_REUSEPORT`, and the kernel deals out connections. A process of its own watches them and serves
nothing itself, so that whatever brings a worker down does not bring it down too.
"""

import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from vitok.errors import InvalidInput, ServiceError

_LOOK_EVERY_S = 0.05
_STEADY_S = 10.0


@dataclass
class _Worker:
    place: int
    child: subprocess.Popen[str] | None = None
    started: float = 0.0
    pause: float = 0.0
    again: float = 0.0
    told: threading.Event = field(default_factory=threading.Event)


class Workers:
    """Runs the same service in several processes.

    A worker says with its first line that it accepts connections. Its standard input is a pipe that ends when the
    watching process does, however that ends; a worker that reads the end of it has to finish (`until_orphaned`).

    Args:
        command: The command line of a worker, by its number from 0.
        n: How many.
        ready: Called with the first line of each worker, whenever one says so, also one that was started anew.
        tell: Gets what goes wrong, in sentences.
        drain_seconds: How long workers may take to finish what they owe; then they are killed.
        most_pause: Most seconds between the death of a worker and its next start; the first pause is 0.1 s, and each
            one after a short life is twice as long.

    Attributes:
        restarts: How many workers were started anew.

    Raises:
        InvalidInput: If there is to be no worker.
    """

    def __init__(
        self,
        command: Callable[[int], Sequence[str]],
        n: int,
        *,
        ready: Callable[[int, str], None],
        tell: Callable[[str], None],
        drain_seconds: float = 30.0,
        most_pause: float = 10.0,
    ) -> None:
        if n < 1:
            raise InvalidInput("workers", n, "be at least 1")
        self.restarts = 0
        self._command = command
        self._ready = ready
        self._tell = tell
        self._drain_seconds = drain_seconds
        self._most_pause = most_pause
        self._workers = [_Worker(place) for place in range(n)]
        self._stop = threading.Event()

    def stop(self) -> None:
        """Asks for the end; may be called from any thread, and from a handler of signals."""
        self._stop.set()

    def pids(self) -> list[int]:
        """Returns the process ids of the workers that run."""
        return [item.child.pid for item in self._workers if item.child is not None]

    def run(self) -> None:
        """Runs them until SIGTERM, SIGINT or `stop`; then passes SIGTERM on and waits for them to finish.

        Raises:
            ServiceError: If a worker ends before it was ever ready: then all are ended.
        """
        on_main = threading.current_thread() is threading.main_thread()
        numbers = (signal.SIGTERM, signal.SIGINT)
        before = {number: signal.signal(number, lambda *_: self.stop()) for number in numbers} if on_main else {}
        try:
            for item in self._workers:
                self._start(item)
            while not self._stop.wait(_LOOK_EVERY_S):
                for item in self._workers:
                    self._look(item)
        finally:
            self._end()
            for number, handler in before.items():
                signal.signal(number, handler)

    def _start(self, item: _Worker) -> None:
        item.started = time.monotonic()
        item.child = subprocess.Popen(
            self._command(item.place), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        threading.Thread(target=self._listen, args=(item, item.child), daemon=True, name="worker").start()

    def _listen(self, item: _Worker, child: "subprocess.Popen[str]") -> None:
        assert child.stdout is not None  # noqa: S101
        for line in child.stdout:
            if not item.told.is_set() or child is item.child:
                item.told.set()
                self._ready(item.place, line.rstrip("\n"))
                break
        for _ in child.stdout:
            pass  # what is never read would fill the pipe and hold up the worker

    def _look(self, item: _Worker) -> None:
        now = time.monotonic()
        if item.child is None:
            if now >= item.again:
                self.restarts += 1
                self._start(item)
            return
        code = item.child.poll()
        if code is None:
            return
        self._close(item.child)
        item.child = None
        if not item.told.is_set():
            raise ServiceError(f"worker {item.place} ended with {code} before it was ready; its own words say why")
        short = now - item.started < _STEADY_S
        item.pause = min(max(2 * item.pause, 0.1), self._most_pause) if short else 0.1
        item.again = now + item.pause
        self._tell(f"worker {item.place} ended with {code}; it is started anew in {item.pause:g} s")

    def _end(self) -> None:
        children = [item.child for item in self._workers if item.child is not None]
        for child in children:
            if child.poll() is None:
                child.send_signal(signal.SIGTERM)
        until = time.monotonic() + self._drain_seconds
        for child in children:
            try:
                child.wait(max(until - time.monotonic(), 0.0))
            except subprocess.TimeoutExpired:
                self._tell(f"worker {child.pid} did not finish within {self._drain_seconds:g} s and is killed")
                child.kill()
                child.wait()
            self._close(child)

    @staticmethod
    def _close(child: "subprocess.Popen[str]") -> None:
        if child.stdin is not None:
            child.stdin.close()


def until_orphaned(stream: "Callable[[], object]", stop: Callable[[], object]) -> threading.Thread:
    """Has `stop` called once the watching process is gone.

    Args:
        stream: Reads the standard input to its end, such as `sys.stdin.read`.
        stop: Ends the worker.

    Returns:
        The thread that waits.
    """

    def wait() -> None:
        stream()
        stop()

    thread = threading.Thread(target=wait, name="orphaned", daemon=True)
    thread.start()
    return thread
