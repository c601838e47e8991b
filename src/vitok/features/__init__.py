"""What a decision knows: features declared once, computed as a table, kept on the stream, read online.

A `View` says which events of one entity are aggregated over which windows, a `Latest` which columns of its newest row
are features; a `FeatureSet` is the ordered list of columns that a model sees. `table` computes them for past rows,
point in time; `OnlineFeatures` keeps the same values up to date event by event and survives a crash. Where events come
from, what they must look like and what is done with the values is not decided here (see `contracts`, `decisions`,
`models`).
"""

from vitok.features.aggregations import (
    Count,
    Distinct,
    First,
    Last,
    Max,
    Mean,
    Min,
    Rate,
    Ratio,
    Recent,
    Std,
    Sum,
    TopK,
    Window,
)
from vitok.features.catalogue import Catalogue
from vitok.features.corrections import with_corrections
from vitok.features.definitions import FeatureSet, OnDemand
from vitok.features.embeddings import ArrayIndex
from vitok.features.forgetting import forget
from vitok.features.live import Follower
from vitok.features.materialise import materialise
from vitok.features.online import OnlineFeatures
from vitok.features.parity import compare
from vitok.features.reader import FeatureReader
from vitok.features.rebuild import rebuild
from vitok.features.schedule import Materialiser
from vitok.features.sources import Buckets, Categories, Entity, Source
from vitok.features.stream import StreamWorker
from vitok.features.table import table
from vitok.features.vectors import Vectors
from vitok.features.views import Embedding, Latest, View

__all__ = [
    "ArrayIndex",
    "Buckets",
    "Catalogue",
    "Categories",
    "Count",
    "Distinct",
    "Embedding",
    "Entity",
    "FeatureReader",
    "FeatureSet",
    "First",
    "Follower",
    "Last",
    "Latest",
    "Materialiser",
    "Max",
    "Mean",
    "Min",
    "OnDemand",
    "OnlineFeatures",
    "Rate",
    "Ratio",
    "Recent",
    "Source",
    "Std",
    "StreamWorker",
    "Sum",
    "TopK",
    "Vectors",
    "View",
    "Window",
    "compare",
    "forget",
    "materialise",
    "rebuild",
    "table",
    "with_corrections",
]
