import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from tests.console.conftest import N_DAYS, ODD, ODD_CUSTOMER, START, Home, get
from tests.console.markup import Markup

from vitok import decisions, ids
from vitok.clock import DAY
from vitok.console.block_reading import blocks
from vitok.console.decision_reading import decision_story
from vitok.console.pages import METRIC_NAMES, link, routes
from vitok.console.wording import count
from vitok.decision import Outcome
from vitok.errors import InvalidInput
from vitok.registry import Registry
from vitok.systems.fraud.app import reasons
from vitok.systems.fraud.features import FEATURES
from vitok.systems.fraud.messages import log_schema

PAGES = (
    "/",
    "/decisions",
    "/features",
    "/features/customer",
    "/models",
    "/models/1",
    "/models/3",
    "/drift",
    "/calibration",
    "/estimates",
    "/detectors",
    "/outcomes",
    "/alerts",
    "/incidents",
    "/incidents/incident-0001",
    "/incidents/incident-0002",
    "/releases",
)
MORE = (
    "/decisions?action=allow&page=2",
    "/decisions?customer=17&version=fraud%2F2",
    "/decisions?day=2018-07-03&route=champion",
    "/decisions?customer=nobody",
    "/drift?version=fraud%2F2&days=56&feature=amount",
    "/drift?feature=is_night&day=2018-07-02",
    "/drift?feature=probability",
    "/drift?days=2",
    "/drift?days=364",
    "/drift?against=healthy",
    "/drift?against=last+week",
    "/drift?against=last+year&feature=amount",
    "/drift?find=customer&days=14",
    "/drift?find=%3Cscript%3E",
    "/estimates?of=fraud%2F1",
    "/calibration?version=fraud%2F1",
    "/detectors?version=fraud%2F2",
)


def check_markup(text: str) -> Markup:
    page = Markup(text)
    assert text.startswith("<!doctype html>")
    assert page.faults == []
    assert len(set(page.ids)) == len(page.ids)
    # The content policy allows neither scripts nor styles in the page.
    assert "script" not in page.elements
    assert "style" not in page.elements
    assert not {name for name in page.attributes if name == "style" or name.startswith("on")}
    assert all(re.match(r"(/|#)(?!/)", address) for address in page.addresses), page.addresses
    assert "http://" not in text
    assert "https://" not in text
    assert "nan" not in re.findall(r"\b[a-z]+\b", page.text)
    assert "None" not in page.text.split()
    return page


@pytest.mark.parametrize("path", PAGES + MORE)
def test_page_is_whole(home: Home, path: str) -> None:
    answer = get(home.folder, path)
    assert answer.status == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    page = check_markup(answer.text)
    assert page.elements.count("h1") == 1
    assert page.elements.count("main") == 1


@pytest.mark.parametrize("path", PAGES)
def test_links_of_the_page_lead_somewhere(home: Home, path: str) -> None:
    served = ("/openapi.json", "/metrics", "/v1/")
    for address in sorted(set(Markup(get(home.folder, path).text).addresses))[:12]:
        if address.startswith("/") and not address.startswith(served):
            assert get(home.folder, address).status == 200, address


EMPTY = (
    "/",
    "/decisions",
    "/features",
    "/models",
    "/drift",
    "/calibration",
    "/estimates",
    "/detectors",
    "/outcomes",
    "/alerts",
    "/incidents",
    "/releases",
    "/costs",
)


@pytest.mark.parametrize("path", EMPTY)
def test_empty_home(tmp_path: Path, path: str) -> None:
    answer = get(tmp_path / "absent", path)
    assert answer.status == 200
    check_markup(answer.text)
    assert list(tmp_path.iterdir()) == []


def test_empty_states_say_so(tmp_path: Path) -> None:
    assert "No decisions yet" in get(tmp_path, "/decisions").text
    assert "No alert is open" in get(tmp_path, "/alerts").text
    assert "No version was registered yet" in get(tmp_path, "/models").text
    assert "Nothing was released yet" in get(tmp_path, "/releases").text
    assert "Nothing was estimated yet" in get(tmp_path, "/estimates").text
    assert "No incident is open" in get(tmp_path, "/incidents").text
    assert "Nothing to watch yet" in get(tmp_path, "/detectors").text
    for path in ("/calibration", "/outcomes"):
        assert "Nothing was decided yet." in get(tmp_path, path).text
    assert "Nothing serves yet" in get(tmp_path, "/").text


@pytest.mark.parametrize(
    ("path", "status", "told"),
    [
        ("/decisions?page=-1", 422, "page: got -1"),
        ("/decisions?page=0", 422, "at least 1"),
        ("/decisions?page=two", 422, "whole number"),
        ("/decisions?page=²", 422, "whole number"),
        ("/decisions?page=1000", 404, "does not exist"),
        ("/decisions?page=9" + "9" * 400, 404, "does not exist"),
        ("/decisions?action=nothing", 422, "allow, review, block"),
        ("/decisions?route=x", 422, "champion, canary, fallback"),
        ("/decisions?day=yesterday", 422, "be a day such as"),
        ("/decisions?day=2018-07-01T12:00", 422, "be a day such as"),
        ("/decisions?customer=" + "x" * 300, 422, "printable"),
        ("/decisions?customer=%00", 422, "printable"),
        ("/decisions/abc", 422, "UUID"),
        ("/decisions/00000000-0000-7000-8000-000000000000", 404, "does not exist"),
        ("/features/nothing", 404, "does not exist"),
        ("/models/99", 404, "does not exist"),
        ("/models/0", 422, "at least 1"),
        ("/models/x", 422, "number of a version"),
        ("/models/-1", 422, "number of a version"),
        ("/drift?days=3", 422, "be one of 2, 14, 28, 56, 364"),
        ("/drift?version=fraud%2F9", 404, "does not exist"),
        ("/drift?feature=nothing", 404, "does not exist"),
        ("/drift?day=2001-01-01", 404, "does not exist"),
        ("/drift?day=x", 422, "be a day such as"),
        ("/drift?against=hope", 422, "training, healthy, last week, last year"),
        ("/drift?slice=channel%3Dweb", 404, "does not exist"),
        ("/drift?page=0", 422, "at least 1"),
        ("/drift?page=9", 404, "does not exist"),
        ("/calibration?version=fraud%2F9", 404, "does not exist"),
        ("/detectors?version=fraud%2F9", 404, "does not exist"),
        ("/estimates?of=fraud%2F9", 404, "does not exist"),
        ("/estimates?of=fraud%2F1&metric=hope", 404, "does not exist"),
        ("/incidents/incident-0099", 404, "does not exist"),
        ("/incidents/release-0001", 422, "such as incident-0003"),
        ("/incidents/incident-x", 404, "does not exist"),
    ],
)
def test_bad_input_gets_a_page_that_says_what_is_wrong(home: Home, path: str, status: int, told: str) -> None:
    answer = get(home.folder, path)
    assert answer.status == status
    assert told in check_markup(answer.text).text


def test_what_came_from_outside_is_shown_as_text(home: Home) -> None:
    answer = get(home.folder, "/decisions")
    assert ODD_CUSTOMER not in answer.text
    assert ODD_CUSTOMER in check_markup(answer.text).words
    for path in (*PAGES, "/estimates?of=" + quote(ODD), "/estimates?of=fraud%2F1&metric=" + quote(ODD)):
        text = get(home.folder, path).text
        assert "<i>" not in text, path
        # What turns the direction of a line is written out.
        assert "\u202e" not in text, path
    for path in ("/decisions?customer=%3Cscript%3E", "/decisions?action=%3Cscript%3E", "/models/%3Cscript%3E"):
        assert "<script" not in get(home.folder, path).text


def test_headers_forbid_scripts_and_other_places(home: Home) -> None:
    headers = get(home.folder, "/decisions").headers
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["style-src"] == "'self'"
    assert "script-src" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-cache"


def test_static_files(home: Home) -> None:
    named = re.findall(r'(?:href|src)="(/console/static/[^"]+)"', get(home.folder, "/").text)
    types = {get(home.folder, address).headers["content-type"] for address in named}
    assert types == {"text/css; charset=utf-8", "image/svg+xml"}
    for address in named:
        answer = get(home.folder, address)
        assert answer.status == 200
        assert "immutable" in answer.headers["cache-control"]
        assert re.search(r"\?v=[0-9a-f]{10}$", address)
        assert "url(" not in answer.text
        assert "@import" not in answer.text
    for name in ("nothing.css", "..%2Fpages.py", "%2e%2e"):
        assert get(home.folder, f"/console/static/{name}").status == 404


def test_overview_tells_how_it_is(home: Home) -> None:
    text = check_markup(get(home.folder, "/").text).text
    assert "fraud/1 serves since 30 Jun 2018 00:00; 1 alert open." in text
    assert f"{' '.join(count(home.rows.height).split())} decisions in the log" in text
    assert "fraud/2 25 % of the customers" in text
    assert "Canary in progress" in text
    assert "retrained after drift" in text
    assert "Next: look at the source." in text


def test_evidence_of_blocks_stands_on_the_overview_and_on_each_version(home: Home) -> None:
    for path, version, before in (
        ("/", "fraud/1", "Blocks of fraud/1"),
        ("/models/1", "fraud/1", "Blocks"),
        ("/models/2", "fraud/2", "Blocks"),
    ):
        told = f"{before}: {blocks(home.folder, version)}."
        assert " ".join(told.split()) in check_markup(get(home.folder, path).text).text.replace(" :", ":")


def test_overview_shows_the_parts_of_a_service(home: Home) -> None:
    class Service:
        home = Path()

        def ready(self) -> dict[str, str]:
            return {"model": "ok", "online_store": "the disk is full"}

    service = Service()
    service.home = home.folder
    endpoint = next(route for route in routes(service) if getattr(route, "path", "") == "/").endpoint  # type: ignore[arg-type, attr-defined]
    from starlette.requests import Request

    scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": [], "server": ("x", 80)}
    text = Markup(endpoint(Request(scope)).body.decode()).text
    assert "model works online store the disk is full" in text


def test_decisions_are_listed_newest_first(home: Home) -> None:
    text = get(home.folder, "/decisions").text
    listed = re.findall(r'href="/decisions/([0-9a-f-]{36})"', text)
    assert listed == home.rows["decision_id"].reverse().to_list()[:50]
    assert "older →" in text
    assert "← newer" not in text
    last = get(home.folder, f"/decisions?page={-(-home.rows.height // 50)}").text
    assert "older →" not in last
    assert "← newer" in last


def test_filters_stay_while_turning_pages(home: Home) -> None:
    text = get(home.folder, "/decisions?action=allow&version=fraud%2F1&page=2").text
    assert 'href="/decisions?action=allow&amp;version=fraud%2F1&amp;page=3"' in text
    assert 'href="/decisions?action=allow&amp;version=fraud%2F1"' in text
    assert '<option value="fraud/1" selected>' in text


def test_decision_tells_its_whole_story(home: Home) -> None:
    first = home.rows.row(0, named=True)
    text = check_markup(get(home.folder, f"/decisions/{first['decision_id']}").text).text
    assert f"Transaction t0-0: {first['action']}" in text
    for name in FEATURES.names:
        assert name in text
    assert "a hash said so" in text
    assert "by bank, in place of the earlier answer" in text
    assert "expected cost now" in text
    assert "log-odds of fraud" in text


def test_decision_is_explained_without_the_library_that_fitted(home: Home) -> None:
    # A fresh process: importing LightGBM takes seconds on a busy machine, and a person waits for the page.
    asked = f"/decisions/{home.rows['decision_id'][0]}"
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from tests.console.conftest import get\n"
        f"print(get(Path({str(home.folder)!r}), {asked!r}).text)\n"
        "print('lightgbm' in sys.modules, 'onnxruntime' in sys.modules, 'sklearn' in sys.modules)\n"
    )
    # The fixtures' module fits models; it must not have imported the library either.
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True
    )
    page, told = done.stdout.rstrip().rsplit("\n", 1)
    assert "What each feature did to the log-odds of fraud" in page
    assert told == "False False False"


def test_reasons_are_those_of_the_library_that_fitted(home: Home) -> None:
    # Oracle: LightGBM's own contributions, by the function behind /v1/decisions/{id}.
    registry = Registry(home.folder)
    try:
        for decision_id in home.rows["decision_id"].head(5):
            story = decision_story(home.folder, decision_id)
            assert list(story.reasons) == reasons(registry, story.decision)
    finally:
        registry.close()


def test_features_say_what_they_are(home: Home) -> None:
    text = check_markup(get(home.folder, "/features").text).text
    assert f"{len(FEATURES.names)} features" in text
    assert FEATURES.version in text
    for view in FEATURES.views:
        assert view.owner in text
        assert view.description in text
    assert "fraud/3" in text
    customer = check_markup(get(home.folder, "/features/customer").text).text
    assert "in steps of 5 min" in customer


def test_models_show_metrics_and_gates(home: Home) -> None:
    text = check_markup(get(home.folder, "/models").text).text
    assert METRIC_NAMES["average_precision"] in text
    assert "0.6" in text
    assert "refused" in text
    one = check_markup(get(home.folder, "/models/3").text).text
    assert "1 of 2 checks failed: average_precision 0.1 is below 0.5" in one
    assert "Model card" in one
    assert "version 3" in one.lower()


def test_drift_names_what_moved(home: Home) -> None:
    page = get(home.folder, "/drift").text
    text = check_markup(page).text
    assert "customer_count_15m on 8 Jul 2018" in text
    assert "fraud/1, 8 days" in text
    assert page.count('class="strip heat"') == len(FEATURES.names) - 2 + 1
    assert "No drift is looked for in is_weekend, is_night." in text
    assert f"customer_count_15m, {N_DAYS} Jul 2018: PSI excess" in text
    assert "Nothing to compare yet" in get(home.folder, "/drift?version=fraud%2F3").text


def test_alerts_name_the_next_step(home: Home) -> None:
    text = check_markup(get(home.folder, "/alerts").text).text
    assert "Data drift of fraud/1" in text
    assert "Next: look at the source." in text
    assert "0.4 against 0.5" in text
    assert text.index("Past alerts") < text.index("quality")


def test_alerts_say_who_is_told_and_where_they_are_filed(home: Home) -> None:
    page = get(home.folder, "/alerts").text
    assert "Nobody is told until" in check_markup(page).text
    assert 'href="/incidents/incident-0001"' in page


def test_overview_names_open_incidents(home: Home) -> None:
    text = check_markup(get(home.folder, "/").text).text
    assert "Open incidents 1 1 step to approve" in text
    assert "Likeliest cause: quality. 1 action standing. 1 step to approve." in text
    assert "Performance before the labels are in" in text


def test_incidents_are_listed_with_what_waits(home: Home) -> None:
    text = check_markup(get(home.folder, "/incidents").text).text
    assert "incident-0001 critical fraud/1 quality: precision fell" in text
    assert "retrain is not done by the loop, but proposed to people" in text
    assert "rule data_drift bo known" in text
    assert "How it ended" in text
    assert "the cable of" in text


def test_incident_is_read_from_the_top_and_gone_on_with(home: Home) -> None:
    page = get(home.folder, "/incidents/incident-0001").text
    text = check_markup(page).text
    assert "Waits for your word" in text
    key = re.search(r"vitok incidents approve incident-0001 (\S+/retrain) --by YOUR-NAME", text)
    assert key is not None
    assert text.index("Waits for your word") < text.index("Done, and standing") < text.index("What was seen")
    assert "vitok incidents undo incident-0001 " in text
    assert "It ends by itself 5 Jul 2018 00:00." in text
    assert "Triage of alert 1: quality" in text
    assert "null share of" in text
    assert "ruled out" in text
    assert "precision where channel is web found 0.3 against 0.7" in text
    assert "Changed before" in text
    assert "vitok incidents resolve incident-0001 'THE CAUSE, AND ITS END' --by YOUR-NAME --home" in text
    assert "a label-arrival trigger" in text
    ended = check_markup(get(home.folder, "/incidents/incident-0002").text).text
    assert "How it ended: the cable of" in ended
    assert "Waits for your word" not in ended
    assert "Go on with it" not in ended


def test_estimates_stand_beside_what_came_true(home: Home) -> None:
    page = get(home.folder, "/estimates").text
    text = check_markup(page).text
    assert "Average precision of fraud/1" in text
    assert "too early 6 of 20 windows have their labels" in text
    assert "2 windows have no labels yet" in text
    assert page.count('class="dot inside" x1') == 5 + 1
    assert page.count('class="dot outside" x1') == 1 + 1
    assert "realised 0.5 from 100 % of the labels, estimated 0.7 (0.65 to 0.75)" in text


def test_calibration_shows_both_what_was_said_and_how_well_it_ranks(home: Home) -> None:
    text = check_markup(get(home.folder, "/calibration").text).text
    assert "What fraud/1 said, and what happened" in text
    assert "Brier score" in text
    assert "less discrimination" in text
    assert "Calibrated as far as can be seen" in text
    assert "Area under the ROC curve" in text


def test_outcomes_say_how_late_labels_are(home: Home) -> None:
    text = check_markup(get(home.folder, "/outcomes").text).text
    assert "Half of fraud by 2 d 2 d before" in text
    assert "Fraud: share of the labels by age" in text


def test_detectors_name_their_run_length(home: Home) -> None:
    text = check_markup(get(home.folder, "/detectors").text).text
    for name in ("Page-Hinkley", "HDDM-W", "ADWIN"):
        assert f"{name} quiet" in text or f"{name} alarm" in text
    assert "Expected run to a false alarm" in text
    assert "Higher is worse." in text


def test_drift_can_be_held_against_other_days(home: Home) -> None:
    text = check_markup(get(home.folder, "/drift?against=healthy").text).text
    assert "of healthy, 1 Jul 2018 to" in text
    text = check_markup(get(home.folder, "/drift?against=last+week").text).text
    assert "of last week, 1 Jul 2018 to 2 Jul 2018" in text
    text = check_markup(get(home.folder, "/drift?against=last+year").text).text
    assert "There is nothing to hold this day against: nothing was decided then" in text


@pytest.mark.parametrize(
    ("path", "file"),
    [
        ("/estimates", "monitoring/estimates.sqlite"),
        ("/drift", "monitoring/sketches.sqlite"),
        ("/alerts", "monitoring/alerts.sqlite"),
        ("/incidents", "monitoring/delivery.sqlite"),
        ("/releases", "loop/releases.sqlite"),
        ("/detectors", "challenger/learner.online"),
    ],
)
def test_damaged_store_of_the_watch(home: Home, tmp_path: Path, path: str, file: str) -> None:
    copy = tmp_path / "home"
    shutil.copytree(home.folder / "registry", copy / "registry")
    (copy / file).parent.mkdir(parents=True, exist_ok=True)
    (copy / file).write_bytes(b"this is no database, whatever its name says" * 30)
    answer = get(copy, path)
    assert answer.status == 503
    check_markup(answer.text)


def test_packages_that_cannot_be_reached_are_a_page_that_says_so(home: Home, tmp_path: Path) -> None:
    copy = tmp_path / "home"
    shutil.copytree(home.folder, copy)
    shutil.rmtree(copy / "registry" / "packages")
    decision = f"/decisions/{home.rows['decision_id'][0]}"
    found = {path: get(copy, path) for path in (*EMPTY, "/models/1", decision)}
    for path, answer in found.items():
        assert answer.status in (200, 404, 503), path
        check_markup(answer.text)
    # What needs no package is as it was.
    for path in ("/decisions", "/outcomes", "/alerts", "/incidents", "/estimates"):
        assert found[path].status == 200, path


@pytest.mark.parametrize("path", EMPTY)
def test_one_decision_is_enough_for_a_page(tmp_path: Path, path: str) -> None:
    log = decisions.DecisionLog(tmp_path / "log" / "decisions", log_schema())
    log.append(one_decision())
    log.close()
    with decisions.OutcomeLog(tmp_path / "log" / "outcomes") as outcomes:
        outcomes.append([Outcome(request_id="only", kind=ODD, value=1.0, event_time=START, ingest_time=START + DAY)])
    answer = get(tmp_path, path)
    assert answer.status == 200
    check_markup(answer.text)


def one_decision() -> decisions.DecisionBlock:
    return decisions.DecisionBlock(
        decision_id=[ids.uuid7()],
        request_id=["only"],
        event_time=[START],
        ingest_time=[START],
        entities=[["c"], ["t"]],
        request=[[20.0]],
        features=np.full((1, len(FEATURES.names)), np.nan),
        feature_status=["missing"],
        model_version=["rules"],
        stage=["None"],
        route=["fallback"],
        route_reason=["no model"],
        score=[0.1],
        probability=[float("nan")],
        shadow_version=[None],
        shadow_probability=[float("nan")],
        policy_version=["rules"],
        action=["allow"],
        propensity=[1.0],
        latency_us=[900],
        cost=[2e-5],
    )


def test_damaged_store_is_a_page_too(tmp_path: Path) -> None:
    (tmp_path / "registry").mkdir()
    (tmp_path / "registry" / "ledger.sqlite").write_bytes(b"this is no database, whatever its name says" * 30)
    answer = get(tmp_path, "/models")
    assert answer.status == 503
    check_markup(answer.text)


def test_link_leaves_out_what_is_not_set() -> None:
    assert link("/decisions", {"customer": "a&b=c"}, page=None) == "/decisions?customer=a%26b%3Dc"
    assert link("/drift") == "/drift"


def test_invalid_page_is_an_error_of_vitok(home: Home) -> None:
    from vitok.console.reading import decisions_page

    with pytest.raises(InvalidInput, match="page"):
        decisions_page(home.folder, page=0)
