import dataclasses
import json
import math
import os
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from tests.console.conftest import START, Home, get
from tests.console.markup import Markup
from typer.testing import CliRunner, Result

from vitok import contracts, decisions
from vitok.clock import DAY, HOUR, EventClock, parse_time
from vitok.console import reading
from vitok.console.definition_files import load_definitions
from vitok.console.feature_commands import app
from vitok.console.feature_reading import contract_impact, definition_diff, survey
from vitok.engines import open_rows
from vitok.errors import InvalidInput, NotFound
from vitok.features import FeatureSet
from vitok.features.catalogue import Catalogue
from vitok.features.described import SetVersion
from vitok.features.materialise import progress_key
from vitok.features.notes import change_note
from vitok.systems.fraud.features import CUSTOMER_VIEW, FEATURES

OWN = """
from vitok.features import Count, Entity, FeatureSet, Latest, Source, Sum, View
from beside import SPAN
CARD = Entity("card", "card_id")
PAID = Source("payments", "payment_id")
SPEND = View(
    name="card", entity=CARD, source=PAID, aggregations=(Count((SPAN,)), Sum("amount", (SPAN,))), fresh_within="1h",
    owner="risk team",
)
FEATURES = FeatureSet(request=("amount",), views=(SPEND,))
OTHER = FeatureSet(views=(Latest(name="account", entity=CARD, source=Source("accounts"), columns=("limit",)),))
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    (tmp_path / "beside.py").write_text("SPAN = '1h'\n")
    path = tmp_path / "features.py"
    path.write_text(OWN)
    return path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(item) for item in arguments])


# What is read


def test_survey_of_a_home(home: Home) -> None:
    found = survey(home.folder, load_definitions(), now=START + 9 * DAY)
    assert [(item.name, item.role, item.current) for item in found.uses] == [
        ("fraud/3", "unreleased", True),
        ("fraud/2", "canary", True),
        ("fraud/1", "Production", True),
    ]
    assert [str(user) for user in found.users("customer")] == [
        "fraud/3 (unreleased)",
        "fraud/2 (canary)",
        "fraud/1 (Production)",
    ]
    assert found.unused() == ()
    kinds = {node.kind for node in found.lineage.nodes}
    assert kinds == {"column", "feature", "model", "log", "experiment"}
    canary = next(node for node in found.lineage.nodes if node.kind == "experiment")
    assert canary.name == "canary fraud/2 beside fraud/1"
    log = next(node for node in found.lineage.nodes if node.kind == "log")
    assert [node.name for node in found.lineage.upstream(log) if node.kind == "model"] == ["fraud/2", "fraud/1"]


def test_freshness_is_that_of_the_logs(home: Home) -> None:
    # Oracle: the greatest times of the logs.
    latest = home.rows["event_time"].max()
    outcomes = decisions.read(home.folder / "log" / "outcomes")
    found = survey(home.folder, load_definitions(), now=START + 9 * DAY, at=START + 9 * DAY)
    fresh = {item.view: item for item in found.freshness}
    assert fresh["customer"].event_time == fresh["terminal"].event_time == latest
    assert fresh["customer"].arrival == latest + 1_000  # type: ignore[operator]
    assert fresh["terminal_labels"].event_time == outcomes["event_time"].dt.epoch("us").max()
    assert fresh["terminal_labels"].arrival == outcomes["ingest_time"].dt.epoch("us").max()


def test_null_shares_are_those_of_the_last_day(home: Home) -> None:
    # Oracle: polars over the last day of the log.
    rows = decisions.read(home.folder / "log" / "decisions")
    last = rows.filter(pl.col("event_time") > pl.col("event_time").max() - pl.duration(days=1))
    found = survey(home.folder, load_definitions(), now=START + 9 * DAY).served
    assert found is not None
    assert found.n == last.height
    assert set(found.nulls) == set(FEATURES.names)
    for name, nulls in found.nulls.items():
        assert nulls == last[f"f_{name}"].fill_nan(None).null_count()
        assert found.null_share(name) == nulls / last.height
    assert sum(found.nulls.values()) > 0
    assert math.isnan(found.null_share("no such feature"))


def test_replay_of_the_past_is_known(home: Home, tmp_path: Path) -> None:
    now = START + 3_000 * DAY
    found = survey(home.folder, load_definitions(), now=now)
    assert "replay of the past" in found.moment.reason
    assert found.moment.now < START + 9 * DAY
    # Of a log whose files are as old as its records, the present is the present: a service may have died long ago.
    copy = tmp_path / "copy"
    shutil.copytree(home.folder / "log", copy / "log")
    for path in copy.rglob("segment-*"):
        os.utime(path, ((START + 8 * DAY) / 1e6,) * 2)
    dead = survey(copy, load_definitions(), now=now)
    assert (dead.moment.now, dead.moment.reason) == (now, "")
    assert survey(home.folder, load_definitions(), now=now, at=now).moment.now == now


def test_impact_is_what_a_contract_change_breaks(home: Home) -> None:
    impact = contract_impact(home.folder)
    assert impact["labels.is_fraud"] == (
        "feature terminal_labels_risk_1d",
        "feature terminal_labels_risk_7d",
        "feature terminal_labels_risk_30d",
        "model fraud/2 (canary)",
        "model fraud/1 (Production)",
        "log fraud decisions",
        "experiment canary fraud/2 beside fraud/1",
    )
    assert {"feature amount", "feature amount_to_mean", "feature customer_sum_1h"} <= set(impact["transactions.amount"])
    assert "feature is_night" in impact["transactions.event_time"]
    text = (Path(contracts.__file__).parents[1] / "systems" / "fraud" / "transactions.odcs.yaml").read_text()
    old = contracts.load(text)
    new = contracts.load(text.replace("- name: is_fraud", "- name: fraudulent"))
    change = contracts.diff(old, new, now=0, impact=impact)
    assert "model fraud/1 (Production)" in change.affected
    assert "feature terminal_labels_risk_7d" in change.affected
    assert "feature customer_sum_1h" not in change.affected


def test_empty_home_has_definitions_alone(tmp_path: Path) -> None:
    found = survey(tmp_path / "absent", load_definitions(), now=0)
    assert found.uses == ()
    assert found.served is None
    promised = {view.name for view in FEATURES.views if view.fresh_within}
    assert {item.view for item in found.stale} == promised
    assert len(found.unused()) == len(FEATURES.names)
    assert not (tmp_path / "absent").exists()
    assert contract_impact(tmp_path / "absent")["labels.is_fraud"][0] == "feature terminal_labels_risk_1d"


def test_catalogue_of_the_home_counts(tmp_path: Path) -> None:
    changed = dataclasses.replace(CUSTOMER_VIEW, aggregations=CUSTOMER_VIEW.aggregations[:1])
    catalogue = Catalogue(tmp_path / "features", clock=EventClock(0))
    catalogue.uses(model="other/7", features=FeatureSet(views=(changed,)))
    found = survey(tmp_path, load_definitions(), now=0)
    (use,) = found.uses
    assert (use.name, use.role, use.current) == ("other/7", "", False)
    assert len(found.unused()) == len(FEATURES.names) - 6
    diff = definition_diff(found, "customer", "other/7", "declared")
    assert (diff.old, diff.new) == (changed.version, CUSTOMER_VIEW.version)
    assert len(diff.added) == 9
    assert definition_diff(found, "customer", changed.version[:5], "declared") == diff
    story = reading.view_story(tmp_path, "customer", clock=EventClock(0))
    assert [(one.version, one.declared) for one in story.versions] == [
        (CUSTOMER_VIEW.version, True),
        (changed.version, False),
    ]
    page = Markup(get(tmp_path, "/features/customer").text).text
    assert "no served value changes : added customer_sum_15m" in page or "added customer_sum_15m" in page


def test_definitions_of_a_file(own: Path) -> None:
    both = load_definitions(str(own))
    assert [features.name for features in both] == ["FEATURES", "OTHER"]
    (one,) = load_definitions(f"{own}:OTHER")
    assert one.names == ("account_limit",)
    assert load_definitions()[0].version == FEATURES.version
    with pytest.raises(NotFound, match="FEATURES, OTHER"):
        load_definitions(f"{own}:NOTHING")
    with pytest.raises(NotFound, match=r"beside\.py"):
        load_definitions(str(own.with_name("absent.py")))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("1 +", "SyntaxError"),
        ("import nothing_of_the_kind", "ModuleNotFoundError"),
        ("x = undefined", "NameError"),
        ("x = 1", "hold a FeatureSet"),
        ("from vitok.features import Count\nCount(())", "hold a window"),
        ("1 / 0", "ZeroDivisionError"),
    ],
)
def test_file_that_does_not_run_is_an_error_of_vitok(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "broken.py"
    path.write_text(text)
    with pytest.raises(InvalidInput, match=told):
        load_definitions(str(path))


def test_two_sets_with_one_view_name_must_be_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "two.py"
    path.write_text(
        OWN.replace("from beside import SPAN", "SPAN = '1h'")
        + "THIRD = FeatureSet(views=(View(name='card', entity=CARD, source=PAID, aggregations=(Count('7d'),)),))\n"
    )
    found = survey(tmp_path, load_definitions(str(path)), now=0)
    with pytest.raises(InvalidInput, match="FILE:NAME"):
        found.view("card")


# The command


def test_list(home: Home) -> None:
    done = run("list", "--home", home.folder)
    assert done.exit_code == 0
    for view in FEATURES.views:
        assert view.name in done.output
        assert view.version in done.output
    assert "fraud team" in done.output
    assert "fraud/1 (Production)" in done.output
    assert "replay of the past" in done.output
    told = json.loads(CliRunner().invoke(app, ["list", "--home", str(home.folder), "--json"]).stdout)
    assert [view["name"] for view in told["views"]] == [view.name for view in FEATURES.views]
    assert told["views"][0]["freshness"]["newest_event"].startswith("2018-07-08")
    assert told["models"][0]["pins"]["customer"] == CUSTOMER_VIEW.version


def test_show(home: Home) -> None:
    done = run("show", "terminal_labels", "--home", home.folder)
    assert done.exit_code == 0
    assert "Share of frauds among" in done.output
    assert "mean of is_fraud over 7d" in done.output
    one = run("show", "customer_mean_7d", "--home", home.folder)
    assert "customer_mean_7d" in one.output
    assert "customer_count_1h" not in one.output
    told = json.loads(run("show", "customer", "--home", home.folder, "--json").stdout)
    assert len(told["features"]) == len(CUSTOMER_VIEW.feature_names)
    assert told["features"][0]["used_by"] == ["fraud/3", "fraud/2", "fraud/1"]


def test_lineage(home: Home) -> None:
    assert "source labels -> terminal_labels" in run("lineage", "--home", home.folder).output
    column = run("lineage", "labels.is_fraud", "--home", home.folder).output
    assert "terminal_labels_risk_7d" in column
    assert "canary fraud/2 beside fraud/1" in column
    told = json.loads(run("lineage", "terminal_labels", "--home", home.folder, "--json").stdout)
    assert {node["kind"] for node in told["nodes"]} == {"column", "feature", "model", "log", "experiment"}
    whole = json.loads(run("lineage", "--home", home.folder, "--json").stdout)
    assert len(whole["nodes"]) > len(told["nodes"])


def test_diff(home: Home) -> None:
    done = run("diff", "customer", "fraud/1", "declared", "--home", home.folder)
    assert "nothing differs" in done.output
    told = json.loads(run("diff", "fraud", "fraud/1", "fraud/2", "--home", home.folder, "--json").stdout)
    assert told["values_change"] is False
    wrong = CliRunner().invoke(app, ["diff", "customer", "beef", "declared"], catch_exceptions=False)
    assert (wrong.exit_code, "does not exist" in wrong.stderr) == (2, True)


def test_stale_leaves_with_one(own: Path, tmp_path: Path) -> None:
    (features,) = load_definitions(f"{own}:FEATURES")
    url = f"lmdb://{tmp_path / 'rows'}"
    store = open_rows(url)
    change_note(store, progress_key(features.views[0]), lambda _: {"watermark": 10 * DAY})
    del store
    shared = ("--definitions", f"{own}:FEATURES", "--home", tmp_path / "home", "--store", url)
    late = run("stale", *shared, "--at", "1970-01-11T02:00:00Z")
    assert late.exit_code == 1
    assert "card: stale" in late.output
    assert "risk team" in late.output
    good = run("stale", *shared, "--at", "1970-01-11T00:30:00Z")
    assert (good.exit_code, "nothing is stale: 1 of 1 views" in good.output) == (0, True)
    told = run("stale", *shared, "--at", "now", "--json")
    assert told.exit_code == 1
    assert json.loads(told.stdout)["stale"][0]["view"] == "card"


def test_unused(home: Home, own: Path) -> None:
    assert "every feature reaches a model" in run("unused", "--home", home.folder).output
    found = run("unused", "--home", home.folder, "--definitions", own)
    assert found.exit_code == 0
    assert "card_amount_sum_1h (view card, owner risk team)" in found.output
    told = json.loads(run("unused", "--home", home.folder, "--definitions", own, "--live", "--json").stdout)
    assert {item["name"] for item in told["unused"]} >= {"card_count_1h", "account_limit"}


@pytest.mark.parametrize("command", ["list", "stale", "unused", "lineage"])
def test_empty_home_says_what_to_do(tmp_path: Path, command: str) -> None:
    done = run(command, "--home", tmp_path / "absent")
    promised = any(view.fresh_within for view in FEATURES.views)
    assert done.exit_code == (command == "stale" and promised)
    assert "vitok demo fraud" in done.output or command == "lineage"
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("show", "nothing"),
        ("lineage", "nothing at all"),
        ("list", "--at", "yesterday"),
        ("list", "--store", "gopher://x"),
        ("list", "--definitions", "absent.py"),
    ],
)
def test_bad_input_is_an_error_of_vitok(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app, [*arguments, "--home", str(tmp_path)], catch_exceptions=False)
    assert result.exit_code == 2
    assert result.stderr.startswith("vitok: ")


# The pages


def test_page_of_all_features(home: Home) -> None:
    text = Markup(get(home.folder, "/features").text).text
    assert "Views View From Owner" in text
    assert "fraud/2 , fraud/1 and 1 more" in text
    assert "None: every feature reaches a model." in text
    assert "The same in words" in text
    assert "canary fraud/2 beside fraud/1" in text
    assert "arrived" in text


def test_page_of_a_view(home: Home) -> None:
    answer = get(home.folder, "/features/terminal_labels")
    assert answer.status == 200
    page = Markup(answer.text)
    assert page.faults == []
    assert "Share of frauds among" in page.text
    assert "Mean of is_fraud over 7d in steps of 1 h" in page.text
    assert "labels.is_fraud" in page.text
    assert "declared now" in page.text
    assert 'id="terminal_labels_risk_7d"' in answer.text
    assert 'href="/features/terminal_labels#terminal_labels_risk_7d"' in answer.text
    assert answer.text.count('class="edge row"') > 0


def test_unknown_view_is_a_page(home: Home) -> None:
    answer = get(home.folder, "/features/nothing")
    assert answer.status == 404
    assert "customer, terminal, terminal_labels" in Markup(answer.text).text


def test_picture_needs_no_script_and_no_style(home: Home) -> None:
    for path in ("/features", "/features/customer"):
        page = Markup(get(home.folder, path).text)
        assert {"svg", "path", "text"} <= set(page.elements)
        assert "style" not in page.attributes
        assert "script" not in page.elements


def test_story_prints_itself(home: Home) -> None:
    clock = EventClock(START + 9 * DAY)
    assert "customer_mean_7d" in str(reading.view_story(home.folder, "customer", clock=clock))
    told = str(reading.features(home.folder, clock=clock))
    assert f"{len(FEATURES.names)} features" in told
    assert "terminal_labels: " in told


def test_many_versions_do_not_fill_the_picture(tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path / "features", clock=EventClock(0))
    for number in range(20):
        catalogue.uses(model=f"fraud/{number + 1}", features=FEATURES)
    found = reading.features(tmp_path, clock=EventClock(parse_time("2018-07-01") + HOUR))
    assert sum("fraud/" in box.label for box in found.picture.boxes) == 6
    assert len(found.uses) == 20


def test_set_of_a_package_is_the_declared_one(home: Home) -> None:
    (features,) = load_definitions()
    found = survey(home.folder, [features], now=0)
    assert all(item.use.features.fingerprints == features.fingerprints for item in found.uses)
    assert np.all([item.use.features.version == SetVersion.of(FEATURES).version for item in found.uses])
