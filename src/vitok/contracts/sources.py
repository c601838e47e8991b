"""Reads the rows of a checked table again: those that repeat a key, the rejected and the accepted ones."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import polars as pl

from vitok.contracts import columns
from vitok.contracts.contract import Key
from vitok.contracts.plans import ADDED, BROKEN, PLACE, PREFIX, Counted, Engine, Mask, Plan, collect
from vitok.contracts.rules import Rule
from vitok.errors import StoreError

HASH = f"{PREFIX}hash"
# More of them are looked up faster by a join than in a list.
_FEW = 100_000
_KEPT = pl.Schema({PLACE: pl.UInt32(), HASH: pl.UInt64()})


def repeats_and_rejected(
    plan: Plan, lazy: pl.LazyFrame, counted: Counted, engine: Engine, *, most: int
) -> tuple[dict[int, pl.DataFrame], pl.DataFrame | None]:
    """Finds the rows that repeat the key of an earlier one, and writes all rejected rows with their reasons.

    The rows that break another rule came with the first pass. The data is read again only where a hash is there
    twice, and of that only the rows in question are held.

    Args:
        plan: The rules.
        lazy: The data.
        counted: What the first pass found.
        engine: What runs it.
        most: Where more rows than these are in question, rejected rows are left for later.

    Returns:
        By the place of the key, place and hash of each such row, in order; and the rejected rows, or None.
    """
    masks = plan.failing(counted.counts)
    together = int(counted.counts[BROKEN] or 0) + len(counted.suspects) <= most
    repeated: dict[int, pl.DataFrame] = {}
    rows = [] if counted.broken is None else [counted.broken]
    if counted.twice:
        suspects = _suspects(plan, lazy, counted, engine, whole=together)
        for index in counted.twice:
            group = suspects.filter(pl.col(_key_name(index)))
            again = group.filter(~pl.struct(_parts(plan, index)).is_first_distinct())
            if again.height:
                repeated[index] = again.select(PLACE, pl.col(_hash_name(index)).alias(HASH))
    dropping = [index for index in repeated if plan.table.keys[index].rule.severity != "warn"]
    if not together:
        return repeated, None
    if dropping:
        places = pl.concat([repeated[index][PLACE] for index in dropping]).unique()
        rows.append(suspects.filter(pl.col(PLACE).is_in(places.implode())).select(PLACE, *plan.schema))
    judged = plan.marked(pl.concat(rows).sort(PLACE).lazy(), masks).with_columns(
        pl.col(PLACE).is_in(repeated[index][PLACE].implode()).alias(_key_name(index)) for index in dropping
    )
    return repeated, _rejected(plan, judged, masks, dropping).collect()


def _suspects(plan: Plan, lazy: pl.LazyFrame, counted: Counted, engine: Engine, *, whole: bool) -> pl.DataFrame:
    """Reads the rows whose key may be there twice, with its hash and its parts, in order.

    Args:
        plan: The rules.
        lazy: The data.
        counted: What the first pass found.
        engine: What runs it.
        whole: Whether all columns are read.
    """
    keys = {index: plan.table.keys[index] for index in counted.twice}
    rows = plan.valued(lazy)
    if all(len(hashes) <= _FEW for hashes in counted.twice.values()):
        # Said of the columns themselves, it goes down into the reader, which then decodes little of other rows.
        rows = rows.filter(
            pl.any_horizontal(plan.hashed(keys[index]).is_in(item.implode()) for index, item in counted.twice.items())
        )
    rows = rows.with_columns(plan.hashed(key).alias(_hash_name(index)) for index, key in keys.items())
    for index, hashes in counted.twice.items():
        rows = _marked_among(rows, _hash_name(index), hashes, _key_name(index))
    marks = [_key_name(index) for index in keys]
    rows = plan.judged(rows.filter(pl.any_horizontal(marks)), plan.failing(counted.counts))
    rows = rows.with_columns((pl.col(_key_name(index)) & plan.compared(key)) for index, key in keys.items())
    parts = [
        plan.values[field].alias(name)
        for index, key in keys.items()
        for name, field in zip(_parts(plan, index), key.fields, strict=True)
    ]
    chosen = [*marks, *(_hash_name(index) for index in keys), *parts, *(plan.schema if whole else ())]
    found = collect(rows.filter(pl.any_horizontal(marks)).select(chosen), engine)
    return _unchanged(found, len(counted.suspects)).with_columns(counted.suspects.alias(PLACE))


def _marked_among(rows: pl.LazyFrame, name: str, hashes: pl.Series, mark: str) -> pl.LazyFrame:
    """Marks the rows whose hash is one of some."""
    if len(hashes) <= _FEW:
        return rows.with_columns(pl.col(name).is_in(hashes.implode()).fill_null(value=False).alias(mark))
    known = hashes.rename(name).to_frame().lazy().with_columns(pl.lit(value=True).alias(mark))
    joined = rows.join(known, on=name, how="left", maintain_order="left")
    return joined.with_columns(pl.col(mark).fill_null(value=False))


def _rejected(plan: Plan, rows: pl.LazyFrame, masks: Sequence[Mask], keys: Collection[int]) -> pl.LazyFrame:
    """Writes the rows that break a rule as they came, with the reason and the labels of all broken rules."""
    dropping = [(mask.name, mask.rule) for mask in masks]
    dropping += [(_key_name(index), plan.table.keys[index].rule) for index in keys]
    reasons = [
        pl.when(pl.col(name)).then(
            pl.concat_str(pl.lit(f"{rule.field}: got "), _given(plan, rule), pl.lit(f", must {rule.wanted}"))
        )
        for name, rule in dropping
    ]
    labels = [pl.when(pl.col(name)).then(pl.lit(rule.label)) for name, rule in dropping]
    reason = pl.coalesce(reasons) if reasons else pl.lit("")
    # Ten times faster than a list of which the nulls are dropped.
    rules = pl.concat_str(labels, separator="\0", ignore_nulls=True).str.split("\0") if labels else pl.lit([])
    broken = pl.any_horizontal(BROKEN, *(pl.col(_key_name(index)) for index in keys))
    first, second = ADDED
    return rows.filter(broken).select(
        *plan.schema, reason.cast(pl.String).alias(first), rules.cast(pl.List(pl.String)).alias(second)
    )


def _given(plan: Plan, rule: Rule) -> pl.Expr:
    names = [rule.field] if rule.field in plan.schema else rule.field.split(",")
    return pl.concat_str([columns.shown(name, plan.schema[name]) for name in names], separator=", ")


def n_repeated(plan: Plan, lazy: pl.LazyFrame, key: Key, engine: Engine) -> int:
    """How many rows repeat the key of an earlier one, whatever other rules they break."""
    rows = plan.marked(lazy, ()).filter(plan.complete(key)).select(pl.len(), plan.whole(key).n_unique().alias("keys"))
    n_rows, n_keys = collect(rows, engine).row(0)
    return int(n_rows - n_keys)


@dataclass(frozen=True, kw_only=True)
class Source:
    """The rows of a checked table, to be read when they are asked for.

    Attributes:
        plan: The rules.
        lazy: The data.
        engine: What reads it.
        n_rows: Rows that came in.
        n_rejected: Rows that are rejected.
        masks: The rules that some rows break, and that are more than warnings: the others need not be looked at.
        repeats: Rows that repeat a key which takes rows out, by the place of the key.
        read: The rejected rows, where they were read already.
    """

    plan: Plan
    lazy: pl.LazyFrame
    engine: Engine
    n_rows: int
    n_rejected: int
    masks: Sequence[Mask]
    repeats: Mapping[int, pl.DataFrame] = field(default_factory=dict)
    read: pl.DataFrame | None = None

    def scan_accepted(self) -> pl.LazyFrame:
        """The accepted rows, cast to the contract's types; other columns as they came."""
        plan = self.plan
        chosen = [plan.values[name].alias(name) if name in plan.values else pl.col(name) for name in plan.schema]
        repeated = [pl.col(_key_name(index)).fill_null(value=False) for index in self.repeats]
        return self._judged().filter(~pl.any_horizontal(BROKEN, *repeated)).select(chosen)

    def scan_rejected(self) -> pl.LazyFrame:
        """The rejected rows as they came, with the reason and all broken rules."""
        return _rejected(self.plan, self._judged(), self.masks, self.repeats)

    def accepted(self) -> pl.DataFrame:
        """Reads the accepted rows.

        Raises:
            StoreError: If the data cannot be read, or is not what was checked.
        """
        return _unchanged(collect(self.scan_accepted(), self.engine), self.n_rows - self.n_rejected)

    def rejected(self) -> pl.DataFrame:
        """Reads the rejected rows.

        Raises:
            StoreError: If the data cannot be read, or is not what was checked.
        """
        if self.read is not None:
            return _unchanged(self.read, self.n_rejected)
        if self.n_rejected == 0:
            return collect(self.scan_rejected().head(0), "in-memory")
        return _unchanged(collect(self.scan_rejected(), self.engine), self.n_rejected)

    def first_reason(self, labels: Collection[str]) -> str:
        """The reason of the first rejected row that breaks one of these rules; "" where there is none."""
        named = pl.col(ADDED[1]).list.eval(pl.element().is_in(list(labels))).list.any()
        rows = self.scan_rejected() if self.read is None else self.read.lazy()
        found = collect(rows.filter(named).select(ADDED[0]).head(1), self.engine)
        return str(found.item()) if found.height else ""

    def _judged(self) -> pl.LazyFrame:
        """The rows with their masks; those that repeat a key are known by their place and their hash.

        Where the rows came in another order than before, the hash does not fit and the count shows it.
        """
        if not self.repeats:
            return self.plan.marked(self.lazy, self.masks)
        marked = self.plan.marked(self.lazy.with_row_index(PLACE), self.masks)
        for index, rows in self.repeats.items():
            name, hashed = _key_name(index), self.plan.hashed(self.plan.table.keys[index])
            if rows.height <= _FEW:
                there = pl.col(PLACE).is_in(rows[PLACE].implode()) & hashed.is_in(rows[HASH].implode())
                marked = marked.with_columns(there.alias(name))
                continue
            bits = _hash_name(index)
            found = rows.lazy().select(PLACE, pl.col(HASH).alias(bits), pl.lit(value=True).alias(name))
            marked = marked.with_columns(hashed.alias(bits))
            marked = marked.join(found, on=[PLACE, bits], how="left", maintain_order="left")
        return marked


def _unchanged(frame: pl.DataFrame, n_rows: int) -> pl.DataFrame:
    if frame.height != n_rows:
        raise StoreError(
            f"the data changed while it was read: {n_rows:,} rows were counted, and {frame.height:,} are there. "
            "Check it again; collect a lazy frame first whose rows come in another order each time"
        )
    return frame


def _key_name(index: int) -> str:
    return f"{PREFIX}key_{index}"


def _hash_name(index: int) -> str:
    return f"{PREFIX}hash_{index}"


def _parts(plan: Plan, index: int) -> list[str]:
    """Names of columns for the parts of a key."""
    return [f"{PREFIX}part_{index}_{place}" for place in range(len(plan.table.keys[index].fields))]


def rejected_places(found: Mapping[int, pl.DataFrame]) -> int:
    """How many rows repeat at least one of several keys."""
    frames = [rows.select(PLACE) for rows in found.values()]
    if not frames:
        return 0
    return frames[0].height if len(frames) == 1 else pl.concat(frames).n_unique()


def repeated_rows(rows: Sequence[tuple[int, int]] = ()) -> pl.DataFrame:
    """Writes rows that repeat a key as a table of their places and hashes, in order."""
    return pl.DataFrame(rows, schema=_KEPT, orient="row").sort(PLACE)
