from pathlib import Path

import pytest
import yaml

from vitok import contracts
from vitok.errors import InvalidInput, NotFound, StoreError, VitokError

FRAUD = Path(contracts.__file__).parent.parent / "systems" / "fraud" / "transactions.odcs.yaml"


def test_dump_writes_back_every_byte(text: str, tmp_path: Path) -> None:
    source, target = tmp_path / "a.yaml", tmp_path / "b.yaml"
    source.write_text(text, encoding="utf-8")
    contract = contracts.load(source)
    contract.dump(target)
    assert target.read_bytes() == source.read_bytes()
    assert contracts.load(str(target)) == contract
    assert contract.fingerprint == contracts.load(target).fingerprint
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".part"] == []


def test_dump_says_why_it_cannot_write(contract: contracts.Contract, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be written"):
        contract.dump(tmp_path / "no" / "folder" / "a.yaml")


def test_owner_and_description(contract: contracts.Contract, text: str) -> None:
    assert (contract.owner, contract.description) == ("Bob", "Payments to learn from")
    listed = text.replace(text[text.index("team:") : text.index("schema:")], "team:\n  - {username: eve}\n")
    assert contracts.load(listed).owner == "eve"
    assert "Bob" in str(contract)


def test_a_primary_key_is_required_and_unique(contract: contracts.Contract) -> None:
    table = contract.table()
    assert table.fields[0].required
    assert [key.fields for key in table.keys] == [("id",)]


def test_fraud_contract_is_what_the_standard_allows() -> None:
    # Oracle: open-data-contract-standard 3.2.0, whose model forbids unknown keys of a contract.
    model = pytest.importorskip("open_data_contract_standard.model")
    known = model.OpenDataContractStandard.from_file(str(FRAUD))
    contract = contracts.load(FRAUD)
    assert (
        [table.name for table in contract.tables]
        == [table.name for table in known.schema_]
        == [
            "transactions",
            "labels",
            "training",
        ]
    )
    for table, other in zip(contract.tables, known.schema_, strict=True):
        assert [field.name for field in table.fields] == [item.name for item in other.properties]
        assert [field.logical_type for field in table.fields] == [item.logicalType for item in other.properties]
    assert contract.not_checked == ()
    assert contract.owner == "Fraud team"


def test_table_is_named_or_the_only_one() -> None:
    contract = contracts.load(FRAUD)
    with pytest.raises(InvalidInput, match="transactions, labels"):
        contract.table()
    with pytest.raises(NotFound, match="transactions, labels"):
        contract.table("payments")


def test_missing_file_lists_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "other.odcs.yaml").touch()
    with pytest.raises(NotFound, match=r"other\.odcs\.yaml"):
        contracts.load(tmp_path / "contract.yaml")
    with pytest.raises(VitokError):
        contracts.load(tmp_path)
    with pytest.raises(NotFound):
        contracts.load(tmp_path / "no" / "contract.yaml")


def test_file_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "contract.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidInput, match="UTF-8"):
        contracts.load(path)
    path.write_bytes(b"")
    with pytest.raises(InvalidInput, match="mapping"):
        contracts.load(path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("kind: DataContract", "kind: DataProduct", "kind: got 'DataProduct', must be 'DataContract'"),
        ("v3.1.0", "v4.0.0", "apiVersion: got 'v4.0.0'"),
        ("v3.1.0", "v2.2.2", "v3.0.0"),
        ("kind: DataContract", "kind: [DataContract", "line"),
        ("kind: DataContract", "kind: DataContract\nkind: DataContract", "given once"),
        ("status: active", "statsu: active", "Did you mean 'status'"),
        ("version: 1.2.0", "version: 1.2", "Quote it"),
        ("logicalType: number, required", "logicalType: number, requird", "Did you mean 'required'"),
        ("required: true, logicalTypeOptions: {minimum: 0", "required: 'yes', logicalTypeOptions: {minimum: 0", "true"),
        ("logicalType: number", "logicalType: decimal", "payments.amount.logicalType: got 'decimal'"),
        ("logicalType: number", "logicalType: array", "got 'array'"),
        ("minimum: 0,", "minimun: 0,", "Did you mean 'minimum'"),
        ("minimum: 0,", "minimum: .nan,", "finite number"),
        ("minimum: 0,", "minimum: 1e7,", "leave room"),
        ("minimum: 0,", "multipleOf: 2,", "not supported yet"),
        ("minLength: 1", "minLength: -1", "at least 0"),
        ("minLength: 1, maxLength: 8", "minLength: 9, maxLength: 8", "leave room"),
        ("^[A-Z]{3}$", "^(?=A)", "regular expression"),
        ("^[A-Z]{3}$", "[A-Z", "regular expression"),
        ("[EUR, USD, XX]", "[EUR, yes]", "Quote it"),
        ("[EUR, USD, XX]", "[]", "validValues or a pattern"),
        ("metric: invalidValues", "metric: freshValues", "got 'freshValues', must be a library rule"),
        ("metric: invalidValues", "metric: rowCount", "got 'rowCount'"),
        ("metric: rowCount", "metric: nullValues", "got 'nullValues'"),
        ("mustBeBetween: [1, 1000]", "mustBeBetween: [1000, 1]", "smaller first"),
        ("mustBeBetween: [1, 1000]", "mustBeNear: 3", "mustBeNear"),
        ("mustBeBetween: [1, 1000]", "unit: rows", "come with one of"),
        ("mustBeBetween: [1, 1000]", "mustBe: 1, mustNotBe: 2", "one operator"),
        ("mustBeBetween: [1, 1000]", "mustBe: 1, severity: quarantine", "warn or block"),
        ("mustBeBetween: [1, 1000]", "mustBe: 1, severity: loud", "got 'loud'"),
        ("mustBeBetween: [1, 1000]", "mustBe: 1, unit: bytes", "rows or percent"),
        ("unit: d", "unit: m", "got 'm'"),
        ("value: 2", "value: 0", "longer than zero"),
        ("payments.time}", "payments.amount}", "type number"),
        ("payments.time}", "orders.time}", "payments.time, payments.day"),
        ("- {name: online, logicalType: boolean}", "- {name: id, logicalType: boolean}", "one property only"),
        ("- {name: online, logicalType: boolean}", "- {logicalType: boolean}", "name"),
        ("- {name: online, logicalType: boolean}", "- online", "mapping"),
    ],
)
def test_what_is_wrong_is_named(text: str, old: str, new: str, message: str) -> None:
    assert old in text
    with pytest.raises(InvalidInput) as error:
        contracts.load(text.replace(old, new, 1))
    assert message in str(error.value)


@pytest.mark.parametrize("written", ["schema: []", "schema: {}", "schema:", ""])
def test_a_contract_has_tables(text: str, written: str) -> None:
    head = text[: text.index("schema:")]
    with pytest.raises(InvalidInput, match="schema"):
        contracts.load(head + written + "\n")


def test_what_cannot_be_checked_is_named(text: str) -> None:
    more = text.replace(
        "slaProperties:",
        "slaProperties:\n  - {property: retention, value: 3, unit: y}",
    ).replace(
        "- {metric: rowCount,",
        "- {type: sql, query: SELECT TOP 1 x FROM y, mustBe: 1}\n      - {type: text, description: Be true}\n"
        "      - {metric: rowCount,",
    )
    contract = contracts.load(more)
    assert len(contract.not_checked) == 3
    assert any("retention" in item for item in contract.not_checked)


def test_words_of_the_earlier_standard(text: str) -> None:
    former = text.replace("v3.1.0", "v3.0.2").replace(
        "{metric: invalidValues, arguments: {validValues: [EUR, USD, XX]}, mustBe: 0}",
        "{type: library, rule: validValues, validValues: [EUR, USD, XX]}",
    )
    assert contracts.load(former).tables == contracts.load(text).tables


def test_enum_of_the_later_standard(text: str) -> None:
    later = text.replace("v3.1.0", "v3.2.0").replace(
        "logicalType: boolean}", "logicalType: boolean, enum: [{value: true}]}"
    )
    rules = [rule.name for rule in contracts.load(later).table().fields[5].rules]
    assert rules == ["type", "validValues"]


def test_contracts_of_other_hands_survive(tmp_path: Path) -> None:
    document = {
        "apiVersion": "v3.0.2",
        "kind": "DataContract",
        "id": "a",
        "version": "1",
        "servers": [{"server": "s", "type": "local", "path": "x"}],
        "price": {"priceAmount": 1.5},
        "schema": [{"name": "t", "properties": [{"name": "ключ", "logicalType": "string", "tags": ["x"]}]}],
    }
    contract = contracts.load(yaml.safe_dump(document))
    contract.dump(tmp_path / "out.yaml")
    assert yaml.safe_load((tmp_path / "out.yaml").read_text(encoding="utf-8")) == document


def test_what_diff_holds_to_is_not_told_as_unchecked(text: str) -> None:
    text += "  - {property: noticePeriod, value: 30, unit: d}\n  - {property: retention, value: 5, unit: y}\n"
    assert contracts.load(text).not_checked == ("slaProperties: retention 5",)
