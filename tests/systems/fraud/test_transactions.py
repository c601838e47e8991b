"""Reading transactions from files as they come."""

import datetime as dt
import gzip
from pathlib import Path

import polars as pl
import pytest

from vitok import contracts
from vitok.clock import DAY, HOUR, parse_time
from vitok.errors import ContractBroken, InvalidInput
from vitok.systems.fraud import transactions as module
from vitok.systems.fraud.simulator import simulate
from vitok.systems.fraud.transactions import read

HEADER = "TRANSACTION_ID,TX_DATETIME,CUSTOMER_ID,TERMINAL_ID,TX_AMOUNT,TX_FRAUD\n"
ROWS = "10,2018-06-15 00:00:01,7,3,24.01,0\n11,2018-06-15 00:00:02,8,3,240.5,1\n"
UTC = pl.Datetime("us", "UTC")


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return path


def test_handbook_columns_need_no_mapping(tmp_path: Path) -> None:
    data = read(write(tmp_path / "a.csv", HEADER + ROWS))
    assert data.transactions.rows() == [
        ("10", dt.datetime(2018, 6, 15, 0, 0, 1, tzinfo=dt.UTC), "7", "3", 24.01),
        ("11", dt.datetime(2018, 6, 15, 0, 0, 2, tzinfo=dt.UTC), "8", "3", 240.5),
    ]
    assert data.transactions.schema == {
        "transaction_id": pl.String,
        "event_time": UTC,
        "customer_id": pl.String,
        "terminal_id": pl.String,
        "amount": pl.Float64,
    }
    assert data.labels.schema == {"transaction_id": pl.String, "is_fraud": pl.Int8, "label_time": UTC}
    assert data.labels["is_fraud"].to_list() == [0, 1]
    assert data.label_delay_us == 7 * DAY
    assert data.span() == (parse_time("2018-06-15T00:00:01"), parse_time("2018-06-15T00:00:02"))
    assert data.assumptions == (
        "Times without an offset are taken as UTC.",
        "There is no label time; every label is taken to be known 7 days after the transaction.",
    )


@pytest.mark.parametrize(
    "text",
    [
        ",".join(["", *HEADER.strip().split(",")]) + "\n0,10,2018-06-15 00:00:01,7,3,24.01,0\n",
        "\ufeff" + HEADER + ROWS,
        (HEADER + ROWS).replace(",", ";"),
        (HEADER + ROWS).replace(",", "\t"),
        (HEADER + ROWS).replace("\n", "\r\n"),
        HEADER.lower() + ROWS,
        HEADER.replace("TX_AMOUNT", '"TX_AMOUNT"') + ROWS.replace(",7,", ',"7",'),
        (HEADER + ROWS).replace(",7,", ",7.0,").replace("10,2018", "10.0,2018"),
        (HEADER + ROWS).replace(" 00:00:01", "T00:00:01Z"),
        (HEADER + ROWS).replace(" 00:00:01", "T02:00:01.000+02:00"),
    ],
)
def test_the_same_row_in_many_spellings(tmp_path: Path, text: str) -> None:
    first = read(write(tmp_path / "a.csv", text)).transactions.row(0)
    assert first == ("10", dt.datetime(2018, 6, 15, 0, 0, 1, tzinfo=dt.UTC), "7", "3", 24.01)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2018-06-15", "2018-06-15T00:00:00"),
        ("2018-06-15 10:11", "2018-06-15T10:11:00"),
        ("2018-06-15T10:11:12.345678", "2018-06-15T10:11:12.345678"),
        ("2018-06-15 10:11:12.5", "2018-06-15T10:11:12.5"),
        ("2018-06-15 10:11:12-0530", "2018-06-15T15:41:12"),
        ("2018-06-15 10:11:12 UTC", "2018-06-15T10:11:12"),
        ("2018-06-15T10:11:12+01", "2018-06-15T09:11:12"),
        ("2018-02-30 10:00:00", None),
        ("yesterday", None),
        ("2018-06-15 25:00:00", None),
        ("", None),
    ],
)
def test_times(tmp_path: Path, text: str, expected: str | None) -> None:
    data = read(write(tmp_path / "a.csv", HEADER + ROWS + f"12,{text},1,1,1.0,0\n"))
    row = data.transactions.filter(pl.col("transaction_id") == "12")
    assert row["event_time"].to_physical().to_list() == [parse_time(expected) if expected else None]


@pytest.mark.parametrize("scale", [1, 1000, 10**6, 10**9])
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_whole_numbers_are_times_since_1970(tmp_path: Path, scale: int, suffix: str) -> None:
    frame = pl.DataFrame(
        {
            "TX_DATETIME": [1_529_020_801 * scale, 5],
            "CUSTOMER_ID": [7, 7],
            "TERMINAL_ID": [3, 3],
            "TX_AMOUNT": [1.0, 1.0],
            "TX_FRAUD": [0, 1],
        }
    )
    file = tmp_path / f"a{suffix}"
    frame.write_csv(file) if suffix == ".csv" else frame.write_parquet(file)
    data = read(file)
    assert data.transactions["event_time"].to_physical().to_list() == [1_529_020_801 * 10**6, None]
    assert any("since 1970" in text for text in data.assumptions)
    assert "1 values of event_time could not be read and are taken as missing." in data.assumptions


@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "Europe/Berlin"])
def test_parquet_times_of_any_unit(tmp_path: Path, unit: str, zone: str | None) -> None:
    moment = pl.Series([dt.datetime(2018, 6, 15, 12)]).cast(pl.Datetime(unit)).dt.replace_time_zone(zone)  # type: ignore[arg-type]
    frame = pl.DataFrame(
        {"event_time": moment, "customer_id": [1.0], "terminal_id": [3], "amount": [2], "is_fraud": [True]}
    )
    frame.write_parquet(tmp_path / "a.parquet")
    data = read(tmp_path / "a.parquet")
    hour = 10 if zone == "Europe/Berlin" else 12
    assert data.transactions.row(0) == ("0", dt.datetime(2018, 6, 15, hour, tzinfo=dt.UTC), "1", "3", 2.0)
    assert data.labels["is_fraud"].to_list() == [1]
    assert "There is no transaction id; the number of the row, from 0, stands for it." in data.assumptions


def test_identifiers_with_gaps_lose_the_point_and_keep_the_gap(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {
            "TRANSACTION_ID": [1, 2, 3],
            "TX_DATETIME": [dt.datetime(2018, 6, 15)] * 3,
            "CUSTOMER_ID": [1.0, None, float("nan")],
            "TERMINAL_ID": [2.0, 2.5, 3.0],
            "TX_AMOUNT": [1, None, 3],
            "TX_FRAUD": [0.0, 1.0, None],
        }
    )
    frame.write_parquet(tmp_path / "a.parquet")
    data = read(tmp_path / "a.parquet")
    assert data.transactions["customer_id"].to_list() == ["1", None, None]
    assert data.transactions["terminal_id"].to_list() == ["2", "2.5", "3"]
    assert data.transactions["amount"].to_list() == [1.0, None, 3.0]
    assert data.labels["is_fraud"].to_list() == [0, 1, None]


def test_bad_values_become_null_and_are_counted(tmp_path: Path) -> None:
    bad = "12,soon,7,3,NaN,0\n13,2018-06-15 00:00:03,,3,many,2\n14,2018-06-15 00:00:04,7,,inf,maybe\n15,,7,3,,\n"
    data = read(write(tmp_path / "a.csv", HEADER + ROWS + bad))
    assert len(data) == 6
    by_id = data.transactions.sort("transaction_id")
    assert by_id["amount"].to_list() == [24.01, 240.5, None, None, None, None]
    assert by_id["event_time"].is_null().to_list() == [False, False, True, False, False, True]
    assert by_id["customer_id"].null_count() == by_id["terminal_id"].null_count() == 1
    # Two is not a label, but it is a number: the contract says so, with the row.
    assert sorted(data.labels["is_fraud"].drop_nulls()) == [0, 0, 1, 2]
    assert "3 values of amount could not be read and are taken as missing." in data.assumptions
    assert "1 values of event_time could not be read and are taken as missing." in data.assumptions
    assert "1 values of is_fraud could not be read and are taken as missing." in data.assumptions
    contract = contracts.load(Path(module.__file__).with_name("transactions.odcs.yaml"))
    assert len(contract.check(data.transactions, schema="transactions").accepted) == 2
    assert len(contract.check(data.labels, schema="labels").accepted) == 2


def test_a_mapping_gives_names(tmp_path: Path) -> None:
    text = "when,card,shop,AMT,bad,known\n2018-06-15 00:00:01,7,3,24.01,true,2018-06-16 00:00:01\n"
    file = write(tmp_path / "a.csv", text)
    mapping = {"event_time": "when", "customer_id": "card", "terminal_id": "shop", "amount": "AMT", "is_fraud": "bad"}
    assert read(file, mapping=mapping, label_delay="12h").label_delay_us == 12 * HOUR
    data = read(file, mapping={**mapping, "label_time": "known"})
    assert data.label_delay_us == DAY
    assert data.labels["is_fraud"].to_list() == [1]
    assert any("99 % of the labels were known within 1 days" in text for text in data.assumptions)


def test_missing_label_times_take_the_assumed_delay(tmp_path: Path) -> None:
    header = HEADER.strip() + ",label_time\n"
    rows = "1,2018-06-15 00:00:00,7,3,1,0,2018-06-25 00:00:00\n2,2018-06-15 00:00:00,7,3,1,0,\n"
    data = read(write(tmp_path / "a.csv", header + rows), label_delay="3d")
    ages = (data.labels["label_time"] - data.transactions["event_time"]).dt.total_days().to_list()
    assert ages == [10, 3]
    assert data.label_delay_us == 10 * DAY
    assert any(text.startswith("1 labels have no time") for text in data.assumptions)


def test_missing_columns_say_what_is_there_and_what_to_write(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", "trans_date,cc_num,merchant,amt,zip\n2018-06-15 00:00:01,7,3,24.01,1\n")
    with pytest.raises(ContractBroken) as caught:
        read(file)
    message = str(caught.value)
    assert "'cc_num'" in message
    assert "event_time, customer_id, terminal_id, amount, is_fraud" in message
    assert "--mapping event_time=trans_date --mapping customer_id=cc_num --mapping terminal_id=merchant" in message
    assert "--mapping amount=amt --mapping is_fraud=COLUMN" in message
    assert "without a label" in message
    with pytest.raises(ContractBroken, match="the mapping names columns that are not there: amount=AMOUNT"):
        read(write(tmp_path / "b.csv", HEADER + ROWS), mapping={"amount": "AMOUNT"})
    with pytest.raises(InvalidInput, match="map one of our columns"):
        read(file, mapping={"sum": "amt"})


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [("24.01", "x", "amount"), ("2018-06-15 00:00:01", "20180615", "event_time"), (",0\n", ",no\n", "is_fraud")],
)
def test_a_column_without_one_readable_value_is_the_wrong_column(
    tmp_path: Path, old: str, new: str, field: str
) -> None:
    text = HEADER + ROWS.splitlines(keepends=True)[0].replace(old, new)
    with pytest.raises(ContractBroken, match=f"{field}: not one of 1 values"):
        read(write(tmp_path / "a.csv", text))


def test_folders_mix_formats_in_the_order_of_names(tmp_path: Path) -> None:
    write(tmp_path / "days" / "b.csv", HEADER + ROWS)
    zipped = gzip.compress((HEADER + "12,2018-06-14 00:00:00,7,3,1.0,0\n").encode())
    (tmp_path / "days" / "c.csv.gz").write_bytes(zipped)
    read(tmp_path / "days" / "b.csv").transactions.with_columns(
        pl.lit(0).alias("TX_FRAUD"), transaction_id=pl.lit("0") + pl.col("transaction_id")
    ).write_parquet(tmp_path / "days" / "a.parquet")
    write(tmp_path / "days" / "_SUCCESS", "")
    write(tmp_path / "days" / "notes.txt", "")
    data = read(tmp_path / "days")
    assert data.transactions["transaction_id"].to_list() == ["12", "010", "10", "011", "11"]


def test_files_of_different_shape_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", HEADER + ROWS)
    write(tmp_path / "b.csv", HEADER.replace("TRANSACTION_ID", "N") + ROWS)
    with pytest.raises(ContractBroken, match="some files have a column for transaction_id"):
        read(tmp_path)


def test_what_is_no_file_of_transactions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="exists"):
        read(tmp_path / "none.csv")
    with pytest.raises(InvalidInput, match="hold at least one file"):
        read(tmp_path)
    with pytest.raises(InvalidInput, match="end in one of"):
        read(write(tmp_path / "a.xlsx", ""))
    for name, content in {
        "empty.csv": b"",
        "torn.parquet": b"PAR1",
        "torn.csv.gz": gzip.compress((HEADER + ROWS * 9999).encode())[:-20],
        "plain.csv.gz": HEADER.encode(),
        "wide.csv": (HEADER + "1,2,3,4,5,6,7\n").encode(),
    }.items():
        (tmp_path / "bad").mkdir(exist_ok=True)
        (tmp_path / "bad" / name).write_bytes(content)
        with pytest.raises(InvalidInput):
            read(tmp_path / "bad" / name)
    with pytest.raises(InvalidInput, match="at least one row"):
        read(write(tmp_path / "header.csv", HEADER))
    with pytest.raises(InvalidInput, match="duration"):
        read(write(tmp_path / "a.csv", HEADER + ROWS), label_delay="soon")


def test_fingerprint_follows_contents_and_reading(tmp_path: Path) -> None:
    one = read(write(tmp_path / "a.csv", HEADER + ROWS))
    same = read(write(tmp_path / "b.csv", HEADER + ROWS))
    assert one.fingerprint == same.fingerprint
    assert one.fingerprint != read(tmp_path / "a.csv", label_delay="8d").fingerprint
    assert one.fingerprint != read(write(tmp_path / "c.csv", HEADER + ROWS.replace("24.01", "24.02"))).fingerprint


def test_simulated_data_survive_a_round_trip(tmp_path: Path) -> None:
    data = simulate(n_customers=100, n_terminals=200, days=20, radius=15)
    both = data.transactions.join(data.labels, on="transaction_id", maintain_order="left")
    both.write_csv(tmp_path / "a.csv")
    both.write_parquet(tmp_path / "a.parquet")
    for name in ("a.csv", "a.parquet"):
        again = read(tmp_path / name)
        assert again.transactions.equals(data.transactions)
        assert again.labels.equals(data.labels.drop("scenario"))
        assert again.label_delay_us == 7 * DAY
