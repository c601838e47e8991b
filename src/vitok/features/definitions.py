"""The set of features that a model sees: request columns, views, and functions of them, in the model's order."""

import dataclasses
import functools
import hashlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from vitok.errors import InvalidInput
from vitok.features.sources import Source, unique
from vitok.features.views import AnyView, Embedding, Latest, View, content_hash

CURRENT_COLUMNS = ("event_time",)


@dataclasses.dataclass(frozen=True)
class OnDemand:
    """A feature computed from the request and from other features, by the same function offline and online.

    Args:
        name: Name of the feature.
        function: Takes arrays of shape (n,), named by its parameters (request columns, `event_time` in microseconds,
            features of views), and returns an array of shape (n,). It must be pure.

    Example:
        >>> OnDemand("is_large", lambda amount: amount > 200.0).inputs
        ('amount',)
    """

    name: str
    function: Callable[..., Any]

    @functools.cached_property
    def inputs(self) -> tuple[str, ...]:
        """Names of the columns that the function takes."""
        return tuple(inspect.signature(self.function).parameters)

    def describe(self) -> dict[str, Any]:
        """Returns the name, the inputs and a hash of the function's source."""
        try:
            body = inspect.getsource(self.function)
        except (OSError, TypeError):
            body = self.function.__code__.co_code.hex()
        return {"name": self.name, "inputs": list(self.inputs), "body": hashlib.sha256(body.encode()).hexdigest()[:16]}


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureSet:
    """The ordered columns that a model sees, and where each comes from.

    Args:
        request: Numeric columns of the request that are features as they are.
        views: Views of windows, of latest values, of embeddings.
        on_demand: Functions of the columns before them.
        select: The names that the model sees, in its order; all of them by default. The others are computed only
            where a function needs them.

    Raises:
        InvalidInput: If a name comes twice or an on-demand function asks for a column that is not there.
    """

    request: tuple[str, ...] = ()
    views: tuple[AnyView, ...] = ()
    on_demand: tuple[OnDemand, ...] = ()
    select: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Checks names and inputs."""
        for name in ("request", "views", "on_demand", "select"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        names = self.computed
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise InvalidInput("feature names", twice, "be unique over the request, all views and functions")
        views = [view.name for view in self.views]
        if len(set(views)) < len(views):
            raise InvalidInput("views", views, "have different names")
        by_name: dict[str, Source] = {}
        for source in self.sources:
            if by_name.setdefault(source.name, source) != source:
                raise InvalidInput("sources", source.name, "be declared once", "Two views give it different columns.")
        known = {*CURRENT_COLUMNS, *self.request, *(name for view in self.views for name in view.feature_names)}
        for item in self.on_demand:
            missing = [name for name in item.inputs if name not in known]
            if missing:
                raise InvalidInput(f"on-demand feature {item.name!r}: inputs", missing, "name columns computed before")
            known.add(item.name)
        strange = [name for name in self.select if name not in names]
        if strange or len(set(self.select)) < len(self.select):
            raise InvalidInput("select", strange or self.select, "name features of the set, each once")

    @functools.cached_property
    def computed(self) -> tuple[str, ...]:
        """Names of all columns that are computed: request, views in their order, functions."""
        of_views = tuple(name for view in self.views for name in view.feature_names)
        return (*self.request, *of_views, *(item.name for item in self.on_demand))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the features that the model sees, in its order."""
        return self.select or self.computed

    @functools.cached_property
    def columns_of(self) -> dict[str, slice]:
        """Where the features of each view stand among the computed columns, by the name of the view."""
        out: dict[str, slice] = {}
        at = len(self.request)
        for view in self.views:
            out[view.name] = slice(at, at + len(view.feature_names))
            at += len(view.feature_names)
        return out

    @functools.cached_property
    def _selected(self) -> np.ndarray:
        return np.array([self._where[name] for name in self.select], np.intp)

    def arrange(self, values: np.ndarray, dtype: Any = np.float64) -> np.ndarray:
        """Turns computed columns into what the model takes: its features in its order and type.

        Args:
            values: Shape (n, computed), float64.
            dtype: The model's type, such as `np.float32`.

        Returns:
            Shape (n, features); the input itself where nothing is to be done.
        """
        chosen = values[:, self._selected] if self.select and self.select != self.computed else values
        return chosen.astype(dtype, copy=False)

    @functools.cached_property
    def entity_keys(self) -> tuple[str, ...]:
        """Key columns of the entities, each once, in the order of the views."""
        return unique(key for view in self.views for key in view.entity.keys)

    @functools.cached_property
    def sources(self) -> tuple[Source, ...]:
        """The sources of the views, each once."""
        return tuple(dict.fromkeys(view.source for view in self.views if not isinstance(view, Embedding)))

    @functools.cached_property
    def windowed(self) -> tuple[View, ...]:
        """The views of windows."""
        return tuple(view for view in self.views if isinstance(view, View))

    @functools.cached_property
    def latest(self) -> tuple[Latest, ...]:
        """The views of latest values."""
        return tuple(view for view in self.views if isinstance(view, Latest))

    @functools.cached_property
    def longest(self) -> int:
        """Length of the longest window in microseconds; 0 where there is none."""
        return max((view.longest for view in self.windowed), default=0)

    def add_on_demand(self, values: np.ndarray, event_time: np.ndarray) -> None:
        """Fills the on-demand columns of a matrix from the columns before them, in place.

        Args:
            values: Shape (n, computed), float64, with request and view columns filled.
            event_time: Shape (n,), int64 microseconds.
        """
        where = self._where
        with np.errstate(divide="ignore", invalid="ignore"):
            for item in self.on_demand:
                columns = [event_time if name == "event_time" else values[:, where[name]] for name in item.inputs]
                values[:, where[item.name]] = item.function(*columns)

    @functools.cached_property
    def _where(self) -> Mapping[str, int]:
        return {name: index for index, name in enumerate(self.computed)}

    def describe(self) -> dict[str, Any]:
        """Returns the whole definition, ready for JSON."""
        out = {
            "request": list(self.request),
            "views": [view.describe() for view in self.views],
            "on_demand": [item.describe() for item in self.on_demand],
        }
        if self.select:
            out["select"] = list(self.select)
        return out

    @functools.cached_property
    def version(self) -> str:
        """Content hash of the definition: twelve hex digits, changed by anything that changes a value."""
        return content_hash(self.describe())
