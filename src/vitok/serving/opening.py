"""Endpoints of models that come and go: one that was let go, or was never loaded, is opened by who asks for it."""

import asyncio
import functools
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import msgspec

from vitok.errors import VitokError
from vitok.serving.inference import Hosted, InferEndpoint
from vitok.serving.inference_messages import error_reply
from vitok.serving.messages import Endpoint, HotRequest, Later, Reply
from vitok.serving.problems import FAULT, from_error

logger = logging.getLogger("vitok.serving")

Replies = Sequence[Reply | Later]
_Request = TypeVar("_Request")


class Asking(Protocol):
    """A request of another door than the hot one: it has what a `HotRequest` has, and knows how it is read."""

    def ask(self, endpoint: InferEndpoint, requests: Sequence[Any], /) -> Replies:
        """Has a model answer requests of this kind."""
        ...


def answered(endpoint: InferEndpoint, requests: Sequence[Any]) -> Replies:
    """Has a model answer requests of one door, whichever that is: what stands before it needs to know nothing of that.

    Args:
        endpoint: The model, or a route.
        requests: All of one kind, `HotRequest` or `Asking`.
    """
    if not requests or type(requests[0]) is HotRequest:
        return InferEndpoint.handle(endpoint, requests)
    first: Asking = requests[0]
    return first.ask(endpoint, requests)


def changed(request: _Request, **fields: Any) -> _Request:
    """Returns a request with some of its attributes changed."""
    if isinstance(request, msgspec.Struct):
        return msgspec.structs.replace(request, **fields)
    for name, value in fields.items():
        setattr(request, name, value)
    return request


class Opening:
    """Answers for a model that is not loaded: loads it in a thread, and then has it answer.

    The time that this takes does not count against the deadline that the service sets, nor in the latency.

    Args:
        path: Path of the requests.
        load: Returns the endpoint, loaded; it is called in a thread.
        entered: Called on the event loop when the requests have been handed on, or cannot be.
        tasks: Keeps what is under way.
    """

    def __init__(
        self,
        path: str,
        load: Callable[[], Endpoint],
        *,
        entered: Callable[[], object] = lambda: None,
        tasks: set[asyncio.Task[None]],
    ) -> None:
        self.path = path
        self._load = load
        self._entered = entered
        self._tasks = tasks

    def handle(self, requests: Sequence[HotRequest]) -> Replies:
        """Answers requests of whatever door, later."""
        owed = [Later() for _ in requests]
        task = asyncio.get_running_loop().create_task(self._open(requests, owed))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return owed

    async def _open(self, requests: Sequence[HotRequest], owed: Sequence[Later]) -> None:
        replies: Replies = [error_reply(FAULT)] * len(owed)
        try:
            endpoint = await asyncio.to_thread(self._load)
            now = time.perf_counter_ns()
            replies = endpoint.handle([changed(request, arrived=now) for request in requests])
        except VitokError as error:
            replies = [error_reply(from_error(error))] * len(owed)
        except Exception:
            # Whatever it was, whoever waits gets an answer.
            logger.exception("%s failed on %d requests", self.path, len(owed))
        finally:
            for later, reply in zip(owed, replies, strict=True):
                if isinstance(reply, Later):
                    reply.then(functools.partial(_pass_on, reply, later))
                else:
                    later.give(reply)
            self._entered()


def _pass_on(given: Later, owed: Later) -> None:
    owed.give(given.reply or error_reply(FAULT))


class KeptEndpoint(InferEndpoint):
    """The endpoint of a model that may be let go at any moment; what reaches it afterwards opens the model again.

    Args:
        hosted: The model.
        version: The version in the path; by default any.
        again: Makes what answers once this one is gone.
    """

    def __init__(self, hosted: Hosted, *, version: str | None, again: Callable[[], Endpoint]) -> None:
        super().__init__(hosted, version=version)
        self._again = again
        # Whoever lets the model go waits for the turn that is being answered, and its queue is closed after that.
        self._lease = threading.Lock()
        self._gone = False

    def handle(self, requests: Sequence[HotRequest]) -> Replies:
        """Answers requests of whatever door in the order of their arrival."""
        with self._lease:
            if not self._gone:
                return answered(self, requests)
        return self._again().handle(requests)

    def leave(self) -> None:
        """Takes no more requests; those that were taken are answered."""
        with self._lease:
            self._gone = True
        self.hosted.close()
