"""Steps that are done once though the process is killed between them: DBOS on a SQLite file.

The functions of the steps stay in the program; what is kept is which step of which key finished, and with what.
"""

import contextlib
import contextvars
import copy
import functools
import json
import logging
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

from vitok.errors import Conflict, InvalidInput, MissingExtra, StoreError
from vitok.registry.files import exclusive

Results = dict[str, Any]
Step = tuple[str, Callable[[Results], Results]]

# DBOS takes a workflow up only under the version that began it, by default a hash of the source. Fixed, so that a
# new release goes on with what the old one began.
_APPLICATION_VERSION = "vitok"
_POLL_S = 0.05
_LISTEN_S = 0.2
# DBOS may take a waiting workflow up before its steps are known here, or replay an error that was written before
# a kill: neither ran a step, and the next attempt does.
_ATTEMPTS = 4
_ERROR = "vitok.error"


class _Failed(Exception):  # noqa: N818
    """A workflow that stopped; why is in its job, where a step of this process was the cause."""


class _Job:
    """One key at work: its steps, the caller's context, and the error that stopped it in this process."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self.steps = steps
        self.context = contextvars.copy_context()
        self.error: BaseException | None = None

    def do(self, name: str, function: Callable[[Results], Results], results: Results) -> Results:
        """Runs one step; what it returns is what a later process would read back."""
        try:
            return _jsonable(name, self.context.copy().run(function, copy.deepcopy(results)))
        except BaseException as error:
            self.error = error
            raise _Failed(f"step {name!r}: {type(error).__name__}: {error}") from error


_jobs: dict[str, _Job] = {}
_lock = threading.Lock()
_open: "Durable | None" = None


class Durable:
    """Runs named steps once each, in order, and goes on behind the last finished one after a crash.

    One process at a time runs the steps of a home; the lock goes with the process, whichever way it ends. DBOS has
    one instance in a process, so one `Durable` is open at a time: it starts at the first `run` and ends with
    `close`. It opens no port and sends nothing anywhere.

    Args:
        home: Folder of everything vitok writes; the file is `home/loop.sqlite`.
        wait_s: Seconds to wait for another process that is running steps of this home.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as home, Durable(home) as durable:
        ...     durable.run("retrain-7", [
        ...         ("rows", lambda done: {"rows": 1000}),
        ...         ("fit", lambda done: {"model": f"fitted on {done['rows']} rows"}),
        ...     ])
        {'rows': 1000, 'model': 'fitted on 1000 rows'}
    """

    def __init__(self, home: str | Path, *, wait_s: float = 10.0) -> None:
        self.path = Path(home).absolute() / "loop.sqlite"
        self._wait_s = wait_s
        self._resources: contextlib.ExitStack | None = None
        self._running = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def run(self, key: str, steps: Sequence[Step]) -> Results:
        """Runs the steps that have not finished yet under this key.

        A step is done at least once: where the process dies after a step's work and before its result is written,
        the step is done again, so let each step be idempotent. Steps run in a thread of their own, each in a copy
        of the caller's context (`contextvars`), and one key at a time.

        Args:
            key: Names the run, such as `"retrain-2018-07-12"`.
            steps: Name and function of each. A function gets the results of the steps before it, merged into one
                dict, and returns a dict that JSON can hold.

        Returns:
            The results of all steps, merged; a later step's value stands where two use one name. Of a finished
            key the result it had, without running anything.

        Raises:
            InvalidInput: If the key is empty, two steps have one name, or a step does not return such a dict.
            Conflict: If the key was begun with other steps, another process is running steps of this home, or
                DBOS is in use by something else in this process.
            StoreError: If the file cannot be used.
            MissingExtra: If dbos is not installed.
            Exception: What a step raised; the next call with this key begins with that step.
        """
        steps = list(steps)
        _check(key, steps)
        with self._running:
            job = _jobs[key] = _Job(steps)
            try:
                self._launch()
                with _dbos_errors(self.path):
                    for _ in range(_ATTEMPTS):
                        with contextlib.suppress(_Failed):
                            return _attempt(key, job)
                        if job.error is not None:
                            break
            finally:
                del _jobs[key]
            if job.error is None:
                raise StoreError(f"{self.path}: {key!r} could not be taken up again; run it once more")
            raise job.error

    def close(self) -> None:
        """Stops DBOS and lets the home go; the next `run` starts it again."""
        global _open
        with _lock:
            if self._resources is not None:
                self._resources.close()
                self._resources = None
                _open = None

    def _launch(self) -> None:
        global _open
        with _lock:
            if _open is self:
                return
            if _open is not None:
                raise Conflict(f"{_open.path} is open in this process; close that Durable first")
            try:
                import dbos  # noqa: F401
            except ModuleNotFoundError:
                raise MissingExtra("durable", "running durable steps") from None
            with contextlib.ExitStack() as stack:
                stack.enter_context(exclusive(self.path.with_name("loop.lock"), wait_s=self._wait_s))
                with _dbos_errors(self.path):
                    _start(self.path, stack)
                self._resources = stack.pop_all()
            _open = self


def _start(path: Path, stack: contextlib.ExitStack) -> None:
    """Starts DBOS on a file; `stack` stops it."""
    from dbos import DBOS

    # DBOS writes to the console where its logger has no handler of its own.
    logger = logging.getLogger("dbos")
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())
    _workflow()
    # An executor of its own for each start: at its start DBOS takes up the workflows that its executor left behind,
    # and here they are taken up by `run`, which knows their steps.
    executor = uuid.uuid4().hex
    stack.callback(DBOS.destroy)
    DBOS(
        config={
            "name": "vitok",
            "system_database_url": f"sqlite:///{path}",
            "application_version": _APPLICATION_VERSION,
            "executor_id": executor,
            "log_level": "CRITICAL",
            "enable_otlp": False,
            "notification_listener_polling_interval_sec": _LISTEN_S,
            "serializer": _Json(),
        }
    )
    if DBOS.executor_id != executor:
        stack.pop_all()
        raise Conflict("DBOS is in use by something else in this process; it has one instance a process")
    DBOS.launch()


@functools.cache
def _workflow() -> Callable[[str], Results]:
    """Makes the one workflow that runs the steps of any key; DBOS must know it before it starts."""
    from dbos import DBOS

    def follow(key: str) -> Results:
        job = _jobs.get(key)
        if job is None:
            raise _Failed(f"the steps of {key!r} are not known in this process")
        results: Results = {}
        for name, function in job.steps:
            results |= DBOS.run_step({"name": name}, job.do, name, function, results)
        return results

    return cast("Callable[[str], Results]", DBOS.workflow(name="vitok.steps")(follow))


def _attempt(key: str, job: _Job) -> Results:
    """Starts a key, or takes it up where it stopped, and waits for its end."""
    from dbos import DBOS, SetWorkflowID

    status = DBOS.get_workflow_status(key)
    if status is None:
        with SetWorkflowID(key):
            handle = DBOS.start_workflow(_workflow(), key)
    elif status.status == "SUCCESS":
        return cast("Results", status.output)
    else:
        recorded = DBOS.list_workflow_steps(key)
        _check_begun(key, [step["function_name"] for step in recorded], [name for name, _ in job.steps])
        if status.status == "ERROR":
            # A recorded error is replayed like a result; going back to that step forgets it.
            finished = [step["function_id"] for step in recorded if step["error"] is None]
            handle = DBOS.rewind_workflow(key, start_step=max(finished, default=0) + 1)
        else:
            handle = DBOS.resume_workflow(key)
    return cast("Results", handle.get_result(polling_interval_sec=_POLL_S))


def _check(key: str, steps: Sequence[Step]) -> None:
    if not isinstance(key, str) or not key.strip():
        raise InvalidInput("key", key, "be a text that is not empty")
    names = [name for name, _ in steps]
    if not names:
        raise InvalidInput("steps", steps, "be at least one step")
    for name in names:
        if not name or names.count(name) > 1:
            raise InvalidInput("steps", name, "have names, each given once")


def _check_begun(key: str, begun: list[str], names: list[str]) -> None:
    if begun != names[: len(begun)]:
        raise Conflict(f"{key!r} was begun with the steps {begun}, not {names[: len(begun)]}; use another key")


def _jsonable(name: str, value: object) -> Results:
    if not isinstance(value, dict):
        raise InvalidInput(f"step {name}: result", value, "be a dict")
    try:
        return cast("Results", json.loads(json.dumps(value, allow_nan=False)))
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"step {name}: result", value, f"become JSON ({error})") from None


class _Json:
    """How DBOS writes results into its file: JSON, which a person can read there and which runs no code."""

    def serialize(self, data: Any) -> str:
        """Writes a result, or the message of an error."""
        return json.dumps({_ERROR: str(data)} if isinstance(data, BaseException) else data, allow_nan=False)

    def deserialize(self, serialized_data: str) -> Any:
        """Reads what `serialize` wrote."""
        data = json.loads(serialized_data)
        return _Failed(data[_ERROR]) if isinstance(data, dict) and _ERROR in data else data

    def name(self) -> str:
        """Names the form; it stands beside every value in the file."""
        return "vitok_json"


@contextlib.contextmanager
def _dbos_errors(path: Path) -> Iterator[None]:
    from dbos import error as dbos_error
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (dbos_error.DBOSException, SQLAlchemyError, OSError) as error:
        raise StoreError(f"{path} cannot be used: {error}") from error
