"""What the platform adds to the trials of a search, against Ray Tune on the same two cores; what large studies take."""

from __future__ import annotations

import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
from dlmesh_platform.client import Client
from dlmesh_platform.launch import RunningPlatform, launch
from fill_study import fill
from report import Row, announce

HERE = Path(__file__).resolve().parent
PEERS = HERE.parent / ".bench"
RAY = "ray[tune]==2.60.0"
# Of half a second each, two at a time; the two platforms take turns.
TRIALS, PARALLEL, TURNS = 40, 2, 3
TRIAL_SECONDS = 0.5
SEQUENTIAL_TRIALS = 40
# What a page is that says nothing of its length, and a long one.
MANY_TRIALS, PAGE, LONG_PAGE, PAGES = 50_000, 100, 1_000, 20
MOST_PAUSE_MS, MOST_PAGE_MS = 300.0, 100.0

# A trial notes its first and its last moment.
PROGRAM = """
import time
began = time.time()
import json, os
config = json.load(open("config.json"))
time.sleep(config["seconds"])
with open(os.path.join(os.environ["RESULT_DIR"], "val_dict_list.json"), "w") as file:
    json.dump([{"step": 1, "loss": (config["rate"] - 0.3) ** 2, "began": began, "ended": time.time()}], file)
"""


def measure_tuning() -> list[Row]:
    """Rows of the section `tuning`."""
    with tempfile.TemporaryDirectory(prefix="dlmesh-bench-", ignore_cleanup_errors=True) as folder:
        with launch(Path(folder), {"DLMESH_SLOTS": str(PARALLEL)}) as platform:
            client = Client.of_home(platform.home, platform.url)
            _search(client, "warm", trials=4, parallel=PARALLEL, seconds=0.0)
            return [_pauses(client), *_against_ray(client), *_many_trials(client, platform)]


def _search(client: Client, name: str, *, trials: int, parallel: int, seconds: float) -> list[Mapping[str, float]]:
    """Run it; of each trial when it began and ended, by number."""
    rate = {"name": "rate", "type": "Range", "dataType": "double", "minDbVal": 0, "maxDbVal": 1}
    fixed = {"name": "seconds", "type": "Fix", "dataType": "double", "fixedVal": seconds}
    data = {
        "hpoName": name,
        "modelSpec": {"sigName": "local", "args": "--exec-start PyTorch --model-main main.py"},
        "algoDef": {
            "algorithm": "TPE",
            "maxJobNum": trials,
            "maxParalleJobNum": parallel,
            "objectiveMetric": "loss",
            "objective": "minimize",
        },
        "hyperParams": [rate, fixed],
    }
    parts = {"file": ("main.py", PROGRAM), "data": (None, json.dumps(data))}
    client.request("POST", "/hypersearch", files=parts)
    path = f"/hypersearch/{name}"
    client.until(lambda: client.get(path)["state"] not in ("SUBMITTED", "RUNNING"), seconds=600)
    detail = client.get(path)
    if detail["state"] != "FINISHED" or detail["complete"] != trials:
        raise RuntimeError(detail["statusMessage"])
    found = [{one["name"]: one["latest"] for one in trial["metrics"]} for trial in detail["experiments"]]
    client.delete(path)
    return found


def _pauses(client: Client) -> Row:
    announce(f"{SEQUENTIAL_TRIALS} trials, one after the other")
    times = _search(client, "pauses", trials=SEQUENTIAL_TRIALS, parallel=1, seconds=0.1)
    pauses = [(after["began"] - before["ended"]) * 1e3 for before, after in itertools.pairwise(times)]
    median = statistics.median(pauses)
    bare = statistics.median(_bare_start_ms() for _ in range(10))
    return Row(
        "last instruction of a trial -> first one of the next, TPE, p50",
        f"{median:.0f} ms (p90 {sorted(pauses)[int(0.9 * len(pauses))]:.0f})",
        f"{bare:.0f} ms a bare start of Python with torch",
        f"{median / bare:.2f}",
        f"at most {MOST_PAUSE_MS:.0f} ms",
        median <= MOST_PAUSE_MS,
    )


def _bare_start_ms() -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import torch"], check=True)
    return (time.perf_counter() - began) * 1e3


def _against_ray(client: Client) -> list[Row]:
    ray = _ray()
    ours, fresh, reused = [], [], []
    for turn in range(TURNS):
        announce(f"{TRIALS} trials of {TRIAL_SECONDS} s, {PARALLEL} at a time, turn {turn + 1} of {TURNS}")
        times = _search(client, f"turn-{turn}", trials=TRIALS, parallel=PARALLEL, seconds=TRIAL_SECONDS)
        ours.append(_per_hour([(one["began"], one["ended"]) for one in times]))
        fresh.append(_per_hour(ray("fresh")))
        reused.append(_per_hour(ray("reused")))
    mine, peer, bound = statistics.median(ours), statistics.median(fresh), statistics.median(reused)
    return [
        Row(
            f"trials of {TRIAL_SECONDS} s an hour, {PARALLEL} at a time, each in a process of its own",
            f"{mine:,.0f}",
            f"{peer:,.0f} Ray Tune",
            f"{mine / peer:.2f}",
            "at least 2.0",
            mine >= 2 * peer,
        ),
        Row(
            "the same against trials in processes that others had",
            f"{mine:,.0f}",
            f"{bound:,.0f} Ray Tune with `reuse_actors`",
            f"{mine / bound:.2f}",
            "",
            None,
        ),
    ]


def _per_hour(times: Sequence[tuple[float, float]]) -> float:
    """From the first beginning to the last end: what starts once is not counted."""
    return len(times) / (max(ended for _, ended in times) - min(began for began, _ in times)) * 3600


def _ray() -> Any:
    """What runs Ray Tune once and answers when its trials began and ended. It has an environment of its own, and a
    network of its own that leads nowhere."""
    python = PEERS / "ray" / "bin" / "python"
    if not python.exists():
        announce("installing Ray for comparison")
        subprocess.run([sys.executable, "-m", "venv", str(PEERS / "ray")], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", RAY], check=True)

    def run(processes: str) -> list[tuple[float, float]]:
        words = ["unshare", "--net", str(python), str(HERE / "ray_trials.py")]
        words += [str(TRIALS), str(PARALLEL), str(TRIAL_SECONDS), processes]
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "DLMESH"))}
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=900)
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])
        found: list[tuple[float, float]] = [tuple(one) for one in json.loads(done.stdout.splitlines()[-1])]
        return found

    return run


def _many_trials(client: Client, platform: RunningPlatform) -> list[Row]:
    announce(f"a study of {MANY_TRIALS:,} trials")
    _search(client, "small", trials=1, parallel=1, seconds=0.0)
    service = psutil.Process(platform.pids()["tuning"])
    before = service.memory_info().rss
    fill(platform.home, "many", MANY_TRIALS)
    median, long_median = _page_ms(client, "", PAGE), _page_ms(client, f"&length={LONG_PAGE}", LONG_PAGE)
    began = time.perf_counter()
    best = client.get("/hypersearch/many/experiments?sort=metricVal&length=100")
    by_loss = (time.perf_counter() - began) * 1e3
    if [one["metricVal"] for one in best] != sorted(one["metricVal"] for one in best):
        raise RuntimeError("not sorted")
    client.put("/hypersearch/many/restart?maxJobNum=50010")
    client.until(lambda: client.get("/hypersearch/many")["state"] == "FINISHED", seconds=600)
    grown = (service.memory_info().rss - before) / 2**20
    return [
        Row(
            f"a page of {PAGE:,} of {MANY_TRIALS:,} trials through the gateway, p50",
            f"{median:.0f} ms; {long_median:.0f} ms one of {LONG_PAGE:,}",
            f"{by_loss:.0f} ms the best 100",
            "",
            f"at most {MOST_PAGE_MS:.0f} ms",
            median <= MOST_PAGE_MS,
        ),
        Row(
            f"memory of the service after ten more trials of {MANY_TRIALS:,}",
            f"{grown:+.0f} MB",
            f"{before / 2**20:.0f} MB before",
            f"{1 + grown * 2**20 / before:.2f}",
            "at most 1.5",
            grown * 2**20 <= 0.5 * before,
        ),
    ]


def _page_ms(client: Client, length: str, expected: int) -> float:
    """Median of pages all over the study."""
    times = []
    for index in range(PAGES):
        start = index * (MANY_TRIALS // PAGES)
        began = time.perf_counter()
        page = client.get(f"/hypersearch/many/experiments?start={start}{length}")
        times.append((time.perf_counter() - began) * 1e3)
        if len(page) != expected or page[0]["id"] != start + 1:
            raise RuntimeError(f"page {start}: {len(page)} trials")
    return statistics.median(times)


if __name__ == "__main__":
    for row in measure_tuning():
        print(json.dumps(row.cells))
