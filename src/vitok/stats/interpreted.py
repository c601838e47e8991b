"""Compiled functions run by Python itself: for so few numbers that compiling takes longer than going through them."""

from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any

from numba.core.dispatcher import Dispatcher


def interpreted(kernel: Any, instead: Mapping[Any, Callable[..., Any]]) -> Callable[..., Any]:
    """Returns what a compiled function computes, as a function of Python; it never compiles anything.

    Its own text is what runs, and that of each compiled function of a module that it calls by its name, so that there
    is no second text to keep equal. Floats give the same bits. Whole numbers of Python do not wrap around as compiled
    ones do.

    Args:
        kernel: What `numba.njit` returned.
        instead: What is called in place of which compiled function, for those that Python cannot run.

    Example:
        >>> from vitok.stats.detectors_kernels import all_within
        >>> interpreted(all_within, {})([0.5, 2.0], 0.0, 1.0)
        False
    """
    made: dict[Any, Callable[..., Any]] = dict(instead)

    def plain(one: Any) -> Callable[..., Any]:
        if one not in made:
            text: FunctionType = one.py_func
            scope = dict(text.__globals__)
            # Before what it calls, which may call it.
            made[one] = FunctionType(text.__code__, scope, text.__name__, text.__defaults__, text.__closure__)
            for name in text.__code__.co_names:
                if isinstance(scope.get(name), Dispatcher):
                    scope[name] = plain(scope[name])
        return made[one]

    return plain(kernel)
