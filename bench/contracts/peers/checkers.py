"""pandera, pointblank and Great Expectations: each checks the same file by the same ten rules."""

import json
import logging
import statistics
import sys
import time
import warnings

warnings.simplefilter("ignore")
logging.disable(logging.CRITICAL)

CURRENCIES = ["EUR", "USD", "GBP"]
MAIL = r"^[0-9]+@[a-z]+\.org$"


def with_pandera(path):
    """A lazy validation of a polars frame; failure cases are counted."""
    import pandera.polars as pa
    import polars as pl
    from pandera.errors import SchemaErrors

    schema = pa.DataFrameSchema(
        {
            "id": pa.Column(str, nullable=False, unique=True),
            "time": pa.Column(pl.Datetime("us", "UTC"), nullable=False),
            "amount": pa.Column(float, pa.Check.ge(0), nullable=False),
            "customer": pa.Column(int, nullable=False),
            "currency": pa.Column(str, pa.Check.isin(CURRENCIES), nullable=True),
            "score": pa.Column(float, pa.Check.le(1), nullable=True),
            "mail": pa.Column(str, pa.Check.str_matches(MAIL), nullable=True),
        }
    )

    def run():
        frame = pl.read_parquet(path)
        assert frame.height > 0
        try:
            schema.validate(frame, lazy=True)
        except SchemaErrors as error:
            cases = error.failure_cases
            return {f"{column}.{check}": n for column, check, n in cases.group_by("column", "check").len().rows()}
        return {}

    return run


def with_pointblank(path):
    """One interrogation of a polars frame; rows are not kept."""
    import pointblank as pb
    import polars as pl

    def run():
        plan = (
            pb.Validate(data=pl.read_parquet(path))
            .col_vals_not_null(columns="id")
            .rows_distinct(columns_subset="id")
            .col_vals_not_null(columns="time")
            .col_vals_not_null(columns="amount")
            .col_vals_ge(columns="amount", value=0, na_pass=True)
            .col_vals_not_null(columns="customer")
            .col_vals_in_set(columns="currency", set=CURRENCIES)
            .col_vals_le(columns="score", value=1, na_pass=True)
            .col_vals_regex(columns="mail", pattern=MAIL, na_pass=True)
            .row_count_match(count=0, inverse=True)
            .interrogate(collect_extracts=False)
        )
        return {str(step): n for step, n in plan.n_failed().items() if n}

    return run


def with_great_expectations(path):
    """A suite on a pandas frame."""
    import great_expectations as gx
    import great_expectations.expectations as gxe
    import pandas as pd

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}
    asset = context.data_sources.add_pandas("source").add_dataframe_asset("payments")
    definition = asset.add_batch_definition_whole_dataframe("all")
    suite = gx.ExpectationSuite(
        name="ten",
        expectations=[
            gxe.ExpectColumnValuesToNotBeNull(column="id"),
            gxe.ExpectColumnValuesToBeUnique(column="id"),
            gxe.ExpectColumnValuesToNotBeNull(column="time"),
            gxe.ExpectColumnValuesToNotBeNull(column="amount"),
            gxe.ExpectColumnValuesToBeBetween(column="amount", min_value=0),
            gxe.ExpectColumnValuesToNotBeNull(column="customer"),
            gxe.ExpectColumnValuesToBeInSet(column="currency", value_set=CURRENCIES),
            gxe.ExpectColumnValuesToBeBetween(column="score", max_value=1),
            gxe.ExpectColumnValuesToMatchRegex(column="mail", regex=MAIL),
            gxe.ExpectTableRowCountToBeBetween(min_value=1),
        ],
    )

    def run():
        batch = definition.get_batch(batch_parameters={"dataframe": pd.read_parquet(path)})
        results = batch.validate(suite).results
        return {
            f"{item.expectation_config.kwargs.get('column')}.{item.expectation_config.type}": item.result.get(
                "unexpected_count", 0
            )
            for item in results
            if not item.success
        }

    return run


TOOLS = {"pandera": with_pandera, "pointblank": with_pointblank, "great_expectations": with_great_expectations}


def main():
    payload = json.load(sys.stdin)
    found = {}
    for kind, path in payload["paths"].items():
        run = TOOLS[payload["tool"]](path)
        counts = run()
        wall, cpu = [], []
        for _ in range(payload["runs"]):
            begun, used = time.perf_counter(), time.process_time()
            run()
            wall.append(time.perf_counter() - begun)
            cpu.append(time.process_time() - used)
        found[kind] = {"wall": statistics.median(wall), "cpu": statistics.median(cpu), "counts": counts}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
