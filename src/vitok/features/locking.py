"""The two locks of windows that one thread fills while others read: one for a whole change, one for its instant."""

import functools
import threading
from collections.abc import Callable
from typing import Concatenate, ParamSpec, Protocol, TypeVar


class Locks:
    """A lock for whoever changes the windows and the store together, and one for the windows in memory alone.

    Readers take the second one only, so that they wait for the moment in which events are counted and not for the
    store that is written before.

    Attributes:
        changing: Held from the first to the last step of a change.
        windows: Held while windows in memory are read or changed; never waits for `changing`.
    """

    def __init__(self) -> None:
        self.changing = threading.RLock()
        self.windows = threading.RLock()


class Locked(Protocol):
    """What has the two locks."""

    locks: Locks


Self_ = TypeVar("Self_", bound=Locked)
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def alone(
    method: Callable[Concatenate[Self_, Arguments], Result],
) -> Callable[Concatenate[Self_, Arguments], Result]:
    """Makes a method one change: no other change begins before it has ended."""

    @functools.wraps(method)
    def change(self: Self_, /, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        with self.locks.changing:
            return method(self, *args, **kwargs)

    return change


def at_once(
    method: Callable[Concatenate[Self_, Arguments], Result],
) -> Callable[Concatenate[Self_, Arguments], Result]:
    """Makes a method one step for those who read or change windows in memory."""

    @functools.wraps(method)
    def step(self: Self_, /, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        with self.locks.windows:
            return method(self, *args, **kwargs)

    return step
