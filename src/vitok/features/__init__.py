"""What a decision knows: features declared once, computed as a table, kept on the stream, read online.

A `View` says which events of one entity are aggregated over which windows; a `FeatureSet` is the ordered list of
columns that a model sees. `table` computes them for past rows, point in time; `OnlineFeatures` keeps the same values
up to date event by event and survives a crash. Where events come from, what they must look like and what is done
with the values is not decided here (see `contracts`, `decisions`, `models`).
"""

from vitok.features.definitions import Count, Distinct, Entity, FeatureSet, Mean, OnDemand, Source, Sum, View, Window
from vitok.features.online import OnlineFeatures
from vitok.features.table import compare, table

__all__ = [
    "Count",
    "Distinct",
    "Entity",
    "FeatureSet",
    "Mean",
    "OnDemand",
    "OnlineFeatures",
    "Source",
    "Sum",
    "View",
    "Window",
    "compare",
    "table",
]
