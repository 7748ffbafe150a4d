"""What searches can do beyond the reference, through the gateway: limits, points to begin with, several objectives."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from dlmesh_platform.client import ApiError, Client
from dlmesh_platform.launch import RunningPlatform, launch
from search_room import PROGRAM, RATE, WAIT, ended, refusal, search, start, values

pytestmark = [pytest.mark.platform, pytest.mark.slow]

FAILS = {"name": "fails", "type": "Fix", "dataType": "int", "fixedVal": 1}


@pytest.fixture(autouse=True)
def cleared(admin: Client) -> Iterator[None]:
    """No search is left."""
    yield
    admin.delete("/hypersearch")


def given(name: str, rates: Sequence[float], **algorithm: Any) -> dict[str, Any]:
    """A search that tries these rates, one after the other."""
    experiments = [
        {"id": index, "hyperParams": [{"name": "rate", "dataType": "double", "fixedVal": rate}]}
        for index, rate in enumerate(rates, 1)
    ]
    return search(name, algorithm="ExperimentGridSearch", experiments=experiments, **{"maxJobNum": -1, **algorithm})


def rates(detail: Mapping[str, Any]) -> list[float]:
    return [float(values(one)["rate"]) for one in detail["experiments"]]


def test_it_ends_when_the_goal_is_reached(admin: Client) -> None:
    detail = ended(admin, start(admin, given("goal", [0.9, 0.35, 0.3, 0.2], goal=0.06)))
    assert (detail["state"], rates(detail)) == ("FINISHED", [0.9, 0.35])
    assert detail["statusMessage"] == "loss reached the goal, 0.06"


def test_a_goal_of_what_is_maximized(admin: Client) -> None:
    data = given("goal", [0.9, 0.5, 0.2, 0.1], goal=0.75, objectiveMetric="accuracy", objective="maximize")
    detail = ended(admin, start(admin, data))
    assert (detail["state"], rates(detail)) == ("FINISHED", [0.9, 0.5, 0.2])
    assert detail["best"]["metricVal"] == pytest.approx(0.8)
    assert detail["statusMessage"] == "accuracy reached the goal, 0.75"


def test_it_ends_when_nothing_better_came_for_long(admin: Client) -> None:
    detail = ended(admin, start(admin, given("patience", [0.9, 0.5, 0.35, 0.6, 0.1, 0.3], patience=2)))
    assert (detail["state"], rates(detail), detail["best"]["id"]) == ("FINISHED", [0.9, 0.5, 0.35, 0.6, 0.1], 3)
    assert detail["statusMessage"] == "2 trials brought nothing better"


def test_it_ends_when_too_many_failed(admin: Client) -> None:
    detail = ended(admin, start(admin, search("failures", RATE, FAILS, maxJobNum=10, maxFailedTrials=2)))
    assert (detail["state"], detail["failed"], detail["progress"]) == ("FAILED", 2, "2/10")
    assert "2 trials failed, maxFailedTrials is 2" in detail["statusMessage"]
    assert "this trial fails" in detail["statusMessage"]


def test_it_ends_when_its_time_is_over(admin: Client) -> None:
    detail = ended(admin, start(admin, search("minutes", RATE, WAIT, maxRunTime=0.05, maxJobNum=10)))
    assert [(one["state"], one["statusMessage"]) for one in detail["experiments"]] == [
        ("STOPPED", "maxRunTime was over")
    ]
    assert detail["state"] == "FAILED"
    assert detail["statusMessage"].endswith("maxRunTime, 0.05 minutes, is over")


def test_points_to_begin_with_come_first(admin: Client) -> None:
    points = [{"rate": 0.25, "layers": 2}, {"rate": "0.75", "layers": 1}]
    layers = {"name": "layers", "type": "range", "dataType": "INT", "minIntVal": 1, "maxIntVal": 3}
    detail = ended(admin, start(admin, search("points", RATE, layers, FAILS | {"fixedVal": 0}, startPoints=points)))
    tried = [values(one) for one in detail["experiments"]]
    assert tried[:2] == [
        {"rate": "0.25", "layers": "2", "fails": "0"},
        {"rate": "0.75", "layers": "1", "fails": "0"},
    ]
    assert len(tried) == 3
    assert detail["best"]["metricVal"] <= 0.05 + 0.05**2


def test_what_an_earlier_search_found_is_tried_first(admin: Client) -> None:
    ended(admin, start(admin, search("earlier", maxJobNum=6, algoParams=[{"name": "RandomSeed", "value": "3"}])))
    best = admin.get("/hypersearch/earlier")["best"]
    seed = [{"name": "RandomSeed", "value": "4"}]
    for algorithm in ("TPE", "Bayesian"):
        data = search(f"after-{algorithm}", algorithm=algorithm, warmStart=["earlier"], maxJobNum=2, algoParams=seed)
        detail = ended(admin, start(admin, data))
        assert values(detail["experiments"][0]) == values(best)
        assert detail["experiments"][0]["metricVal"] == best["metricVal"]
        assert rates(detail)[1] != rates(detail)[0]


def test_several_objectives_have_a_front_and_parameters_their_importance(admin: Client) -> None:
    idle = {"name": "idle", "type": "Discrete", "dataType": "str", "discreateStrVal": ["a", "b"]}
    data = search(
        "front",
        RATE,
        idle,
        algorithm="TPE",
        objectives=[{"metric": "accuracy", "objective": "maximize"}],
        algoParams=[{"name": "RandomSeed", "value": "1"}],
        maxJobNum=12,
        maxParalleJobNum=2,
    )
    detail = ended(admin, start(admin, data))
    assert (detail["state"], detail["complete"]) == ("FINISHED", 12), detail["statusMessage"]

    def objectives(trial: Mapping[str, Any]) -> tuple[float, float]:
        latest = {one["name"]: one["latest"] for one in trial["metrics"]}
        return latest["loss"], -latest["accuracy"]

    def is_beaten(trial: Mapping[str, Any], by: Mapping[str, Any]) -> bool:
        ours, others = objectives(trial), objectives(by)
        return ours != others and all(other <= one for one, other in zip(ours, others, strict=True))

    trials = detail["experiments"]
    front = [one for one in trials if not any(is_beaten(one, other) for other in trials)]
    found = admin.get("/hypersearch/front/experiments?pareto=true")
    assert found == sorted(front, key=lambda one: one["metricVal"])
    assert 1 <= len(found) < 12
    importance = admin.get("/hypersearch/front/importance")
    assert [one["name"] for one in importance] == ["rate", "idle"]
    assert sum(one["importance"] for one in importance) == pytest.approx(1.0)
    assert importance[0]["importance"] > 0.8

    status, message = refusal(admin, "GET", "/hypersearch/nothing/importance")
    assert (status, "'nothing'" in message) == (404, True)


def test_too_few_trials_to_compare(admin: Client) -> None:
    ended(admin, start(admin, search("few", maxJobNum=2)))
    status, message = refusal(admin, "GET", "/hypersearch/few/importance")
    assert (status, "at least 8 finished trials" in message) == (400, True)
    assert [one["id"] for one in admin.get("/hypersearch/few/experiments?pareto=true")] == [
        admin.get("/hypersearch/few")["best"]["id"]
    ]


# Three steps, the last loss is the rate. Some write the first of them and wait for a sign.
STEPS = """
import json, os, pathlib, time
config = json.load(open("config.json"))
rows = [{"step": step, "loss": config["rate"] + 0.1 * (3 - step)} for step in range(1, 4)]

def write(count):
    draft = os.path.join(os.environ["RESULT_DIR"], "draft")
    with open(draft, "w") as file:
        json.dump(rows[:count], file)
    os.replace(draft, os.path.join(os.environ["RESULT_DIR"], "val_dict_list.json"))

if "waits_at" in config:
    write(config["waits_at"])
    while not pathlib.Path(config["sign"]).exists():
        time.sleep(0.05)
write(3)
"""


def test_trials_without_hope_are_ended(tmp_path: Path) -> None:
    """Of three that run at once and are no better than the median in the end: one is ended for what it shows, one has
    been better, of one it is too early to say."""
    # All three have to run at once, whatever the machine has.
    with launch(tmp_path, {"DLMESH_SLOTS": "3"}) as platform:
        _one_of_three_is_ended(Client.of_home(platform.home, platform.url), platform)


def _one_of_three_is_ended(admin: Client, platform: RunningPlatform) -> None:
    sign = platform.home / "data" / "sign-of-early-stopping"
    sign.unlink(missing_ok=True)

    def experiment(number: int, rate: float, waits_at: int = 0) -> dict[str, Any]:
        parameters = [{"name": "rate", "dataType": "double", "fixedVal": rate}]
        if waits_at:
            parameters += [
                {"name": "waits_at", "dataType": "int", "fixedVal": waits_at},
                {"name": "sign", "dataType": "str", "fixedVal": str(sign)},
            ]
        return {"id": number, "hyperParams": parameters}

    experiments = [
        *(experiment(number, rate) for number, rate in ((1, 0.2), (2, 0.3), (3, 0.4))),
        *(experiment(number, rate, at) for number, rate, at in ((4, 0.31, 2), (5, 0.29, 2), (6, 0.9, 1))),
    ]
    data = search(
        "early",
        algorithm="ExperimentGridSearch",
        experiments=experiments,
        maxJobNum=-1,
        maxParalleJobNum=3,
        earlyStopping={"rule": "median", "minSteps": 2, "minTrials": 3},
    )
    start(admin, data, STEPS)

    def state(number: int) -> str:
        found = {one["id"]: one["state"] for one in admin.get("/hypersearch/early")["experiments"]}
        return found.get(number, "")

    admin.until(lambda: state(4) == "STOPPED", seconds=240)
    assert (state(5), state(6)) == ("RUNNING", "RUNNING")
    sign.touch()
    detail = ended(admin, "early")
    assert (detail["state"], detail["best"]["id"]) == ("FINISHED", 1), detail["statusMessage"]
    trials = {one["id"]: one for one in detail["experiments"]}
    assert trials[4]["statusMessage"] == "worse than the median of the others"
    # What it had come to is known.
    assert trials[4]["metricVal"] == pytest.approx(0.41)
    assert {number for number, one in trials.items() if one["state"] == "FINISHED"} == {1, 2, 3, 5, 6}
    sign.unlink()


def test_a_larger_budget(admin: Client) -> None:
    """As many trials more as the new budget has; the search goes on where it was."""
    seed = [{"name": "RandomSeed", "value": "9"}]
    whole = search("whole", algorithm="TPE", maxJobNum=6, algoParams=[*seed, {"name": "WarmUp", "value": "2"}])
    ended(admin, start(admin, whole))
    parts = {**whole, "hpoName": "parts", "algoDef": {**whole["algoDef"], "maxJobNum": 3}}
    before = ended(admin, start(admin, parts))
    assert before["progress"] == "3/3"
    for budget in ("maxJobNum=0", "maxJobNum=3", "maxJobNum=100001", "maxRunTime=0"):
        status, message = refusal(admin, "PUT", f"/hypersearch/parts/restart?{budget}")
        assert (status, message.startswith(budget.partition("=")[0])) == (400, True), message
    assert admin.get("/hypersearch/parts") == before
    admin.put("/hypersearch/parts/restart?maxJobNum=6&maxRunTime=600")
    after = ended(admin, "parts")
    assert (after["state"], after["progress"]) == ("FINISHED", "6/6")
    assert after["experiments"][:3] == before["experiments"]
    # As if it had had them from the beginning.
    assert rates(after) == rates(admin.get("/hypersearch/whole"))


@pytest.mark.parametrize(
    ("algorithm", "field", "says"),
    [
        ({"goal": "soon"}, "algoDef.goal", "a number"),
        ({"patience": -2}, "algoDef.patience", "1 to"),
        ({"maxTrialMinutes": -5}, "algoDef.maxTrialMinutes", "minutes, up to"),
        ({"maxFailedTrials": 1.5}, "algoDef.maxFailedTrials", "a whole number"),
        ({"earlyStopping": {"rule": "mean"}}, "algoDef.earlyStopping.rule", "median"),
        ({"earlyStopping": {"minSteps": 0}}, "algoDef.earlyStopping.minSteps", "1 to"),
        ({"startPoints": [{"rate": 2}]}, "algoDef.startPoints[0].rate", "a value of the search space"),
        ({"startPoints": [{}]}, "algoDef.startPoints[0].rate", "it has to be given"),
        ({"startPoints": [{"rate": 0.5, "speed": 1}]}, "algoDef.startPoints[0].speed", "values of rate"),
        ({"algorithm": "TPE", "warmStart": ["nothing"]}, "algoDef.warmStart", "names of studies of yours"),
        ({"warmStart": ["nothing"]}, "algoDef.warmStart", "none with Random"),
        ({"objectives": [{"metric": "loss", "objective": "minimize"}]}, "algoDef.objectives[0].metric", "no objective"),
        ({"objectives": [{"metric": "seconds"}]}, "algoDef.objectives[0].objective", "it has to be given"),
    ],
)
def test_what_will_not_do_is_named(admin: Client, algorithm: Mapping[str, Any], field: str, says: str) -> None:
    with pytest.raises(ApiError) as caught:
        start(admin, search("wrong", **algorithm))
    assert caught.value.status == 400
    assert caught.value.message.startswith(f"{field}: ")
    assert says in caught.value.message
    assert refusal(admin, "GET", "/hypersearch/wrong")[0] == 400


def test_settings_of_older_clients_are_refused_or_read(admin: Client) -> None:
    """Both spellings at once, numbers as text, words in other letters, what notebooks send with every algorithm."""
    data = search("loose", maxJobNum="2", maxParalleJob="2", maxRunTime="-1", hyperbandEta=3.0, objective="MINIMIZE")
    literal = json.loads(json.dumps(data))
    literal["algoDef"]["algorithm"] = "rAnDoM"
    detail = ended(admin, start(admin, repr(literal), PROGRAM))
    assert (detail["state"], detail["progress"]) == ("FINISHED", "2/2")
