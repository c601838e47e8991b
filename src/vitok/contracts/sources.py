"""Reads the rows of a checked table again: those that repeat a key, the rejected and the accepted ones."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import polars as pl

from vitok.contracts import columns
from vitok.contracts.contract import Key
from vitok.contracts.plans import ADDED, BROKEN, PLACE, PREFIX, Engine, Mask, Plan, collect
from vitok.contracts.rules import Rule
from vitok.errors import StoreError

HASH = f"{PREFIX}hash"
# More of them are looked up faster by a join than in a list.
_FEW = 100_000
_KEPT = pl.Schema({PLACE: pl.UInt32(), HASH: pl.UInt64()})


def repeats(
    plan: Plan, lazy: pl.LazyFrame, key: Key, engine: Engine, *, masks: Sequence[Mask], clean: bool = True
) -> pl.DataFrame:
    """Finds the rows that repeat the key of an earlier one.

    Only keys whose hash is there twice are compared, so what is held is a number a row and the rows in question.

    Args:
        plan: The rules.
        lazy: The data.
        key: The key.
        engine: What runs it.
        masks: The rules that some rows break and that take rows out.
        clean: Whether only rows count that keep all these.

    Returns:
        Place and hash of each such row, in order.
    """
    marked = plan.marked(lazy.with_row_index(PLACE), masks if clean else ()).filter(plan.compared(key, clean=clean))
    parts = [plan.values[name].alias(f"{PREFIX}part_{index}") for index, name in enumerate(key.fields)]
    rows = marked.select(PLACE, plan.hashed(key).alias(HASH), *parts)
    hashes = collect(rows.select(pl.col(HASH)), engine)[HASH].sort()
    twice = hashes.filter(hashes == hashes.shift(1)).unique()
    found = collect(_among(rows, twice), engine).sort(PLACE)
    names = [f"{PREFIX}part_{index}" for index in range(len(parts))]
    return found.filter(~pl.struct(names).is_first_distinct()).select(PLACE, HASH)


def _among(rows: pl.LazyFrame, hashes: pl.Series) -> pl.LazyFrame:
    if len(hashes) <= _FEW:
        return rows.filter(pl.col(HASH).is_in(hashes.implode()))
    return rows.join(hashes.to_frame().lazy(), on=HASH, how="semi")


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
    """

    plan: Plan
    lazy: pl.LazyFrame
    engine: Engine
    n_rows: int
    n_rejected: int
    masks: Sequence[Mask]
    repeats: Mapping[int, pl.DataFrame] = field(default_factory=dict)

    def scan_accepted(self) -> pl.LazyFrame:
        """The accepted rows, cast to the contract's types; other columns as they came."""
        plan = self.plan
        chosen = [plan.values[name].alias(name) if name in plan.values else pl.col(name) for name in plan.schema]
        return self._judged().filter(~pl.any_horizontal(BROKEN, *self._repeated())).select(chosen)

    def scan_rejected(self) -> pl.LazyFrame:
        """The rejected rows as they came, with the reason and all broken rules."""
        plan = self.plan
        dropping = [*self.masks, *self._key_masks()]
        reasons = [
            pl.when(pl.col(mask.name)).then(
                pl.concat_str(
                    pl.lit(f"{mask.rule.field}: got "), self._given(mask.rule), pl.lit(f", must {mask.rule.wanted}")
                )
            )
            for mask in dropping
        ]
        labels = [pl.when(pl.col(mask.name)).then(pl.lit(mask.rule.label)) for mask in dropping]
        reason = pl.coalesce(reasons) if reasons else pl.lit("")
        rules = pl.concat_list(labels).list.drop_nulls() if labels else pl.lit([], dtype=pl.List(pl.String))
        broken = pl.any_horizontal(BROKEN, *self._repeated())
        first, second = ADDED
        return (
            self._judged()
            .filter(broken)
            .select(*plan.schema, reason.cast(pl.String).alias(first), rules.cast(pl.List(pl.String)).alias(second))
        )

    def accepted(self) -> pl.DataFrame:
        """Reads the accepted rows.

        Raises:
            StoreError: If the data cannot be read, or is not what was checked.
        """
        return self._same(collect(self.scan_accepted(), self.engine), self.n_rows - self.n_rejected)

    def rejected(self) -> pl.DataFrame:
        """Reads the rejected rows.

        Raises:
            StoreError: If the data cannot be read, or is not what was checked.
        """
        if self.n_rejected == 0:
            return collect(self.scan_rejected().head(0), "in-memory")
        return self._same(collect(self.scan_rejected(), self.engine), self.n_rejected)

    def first_reason(self, labels: Collection[str]) -> str:
        """The reason of the first rejected row that breaks one of these rules; "" where there is none."""
        named = pl.col(ADDED[1]).list.eval(pl.element().is_in(list(labels))).list.any()
        found = collect(self.scan_rejected().filter(named).select(ADDED[0]).head(1), self.engine)
        return str(found.item()) if found.height else ""

    def _same(self, frame: pl.DataFrame, n_rows: int) -> pl.DataFrame:
        if frame.height != n_rows:
            raise StoreError(
                f"the data changed while it was read: {n_rows:,} rows were counted, and {frame.height:,} are there. "
                "Check it again; collect a lazy frame first whose rows come in another order each time"
            )
        return frame

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
            bits = f"{PREFIX}hash_{index}"
            found = rows.lazy().select(PLACE, pl.col(HASH).alias(bits), pl.lit(value=True).alias(name))
            marked = marked.with_columns(hashed.alias(bits))
            marked = marked.join(found, on=[PLACE, bits], how="left", maintain_order="left")
        return marked

    def _repeated(self) -> list[pl.Expr]:
        return [pl.col(_key_name(index)).fill_null(value=False) for index in self.repeats]

    def _key_masks(self) -> list[Mask]:
        return [
            Mask(_key_name(index), self.plan.table.keys[index].rule, pl.col(_key_name(index)), ())
            for index in self.repeats
        ]

    def _given(self, rule: Rule) -> pl.Expr:
        schema = self.plan.schema
        names = [rule.field] if rule.field in schema else rule.field.split(",")
        return pl.concat_str([columns.shown(name, schema[name]) for name in names], separator=", ")


def _key_name(index: int) -> str:
    return f"{PREFIX}key_{index}"


def rejected_places(found: Mapping[int, pl.DataFrame]) -> int:
    """How many rows repeat at least one of several keys."""
    frames = [rows.select(PLACE) for rows in found.values()]
    if not frames:
        return 0
    return frames[0].height if len(frames) == 1 else pl.concat(frames).n_unique()


def repeated_rows(rows: Sequence[tuple[int, int]] = ()) -> pl.DataFrame:
    """Writes rows that repeat a key as a table of their places and hashes, in order."""
    return pl.DataFrame(rows, schema=_KEPT, orient="row").sort(PLACE)
