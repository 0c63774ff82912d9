"""Kill the main job at random moments, again and again, and see that it ends as if nothing had
happened: the same records, logs and measurements, no half files, no process left.

    python benchmarks/kills.py --kills 100 --only 00,08

A run that is left alone comes first. Then the same job in another folder is killed with SIGKILL
(every tenth time with Ctrl-C or SIGTERM, which have to say one sentence and give 130 or 143), at a
moment drawn anew each time, until it has been killed that often; the last one is let finish. Once
the job is done its folder is emptied and it begins anew.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import psutil
import torch

TIMES = {"seconds", "wall_seconds", "finished", "commit"}  # what may differ between two runs
PATIENCE = 60  # seconds: a worker looks for its parent once it has imported torch
MARK = "L2LKIT_KILLS"  # in the environment of every process that a run starts


def start(output: Path, only: str, log: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "l2lkit", "run", "--profile", "smoke", "--device", "cpu"]
    with log.open("w") as file:
        return subprocess.Popen(
            [*command, "--output", str(output), *(["--only", only] if only else [])],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=os.environ | {MARK: str(output)},
            start_new_session=True,
        )


def processes(output: Path) -> list[psutil.Process]:
    """Those that runs in this folder have started and that are still there."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == str(output) and process.status() != "zombie":
                found.append(process)
        except psutil.Error:
            continue
    return found


def left_over(output: Path, patience: float) -> list[psutil.Process]:
    """Processes that are still there after this many seconds."""
    end = time.monotonic() + patience
    while (found := processes(output)) and time.monotonic() < end:
        time.sleep(0.2)
    return found


def damaged(runs: Path) -> Iterator[str]:
    """Files that are there under their own name and not whole."""
    for path in runs.rglob("*"):
        if path.is_dir() or any(part.startswith(".") for part in path.relative_to(runs).parts):
            continue
        try:
            if path.suffix == ".json":
                json.loads(path.read_text())
            elif path.suffix == ".csv":
                pd.read_csv(path)
            elif path.suffix == ".ipynb":
                nbformat.read(path, as_version=4)
            elif path.suffix == ".pt":
                torch.load(path, weights_only=True)
        except Exception as error:
            yield f"{path}: {error}"


def results(output: Path) -> dict[str, Any]:
    """All that a run computed, by its place, without the times it took."""
    kept: dict[str, Any] = {}
    for path in sorted((output / "runs" / "smoke").rglob("*")):
        name = path.relative_to(output).as_posix()
        measured = path.suffix == ".json" and "measurements" in path.parts
        if path.name == "record.json" or measured:
            kept[name] = {k: v for k, v in json.loads(path.read_text()).items() if k not in TIMES}
        elif path.name == "log.csv":
            kept[name] = pd.read_csv(path).drop(columns="seconds").to_dict("list")
    return kept


def run(kills: int, only: str, longest: float, seed: int, place: Path) -> dict[str, Any]:
    """Kill `kills` times, after at most `longest` seconds each; what came of it. place/alone
    has, or gets, the run that was left alone."""
    rng = random.Random(seed)
    alone, tried, log = place / "alone", place / "tried", place / "log.txt"
    assert start(alone, only, log).wait() == 0, log.read_text()
    expected, problems, finished, done = results(alone), [], 0, 0
    while done <= kills:
        process = start(tried, only, log)
        number = signal.SIGKILL
        if done % 10 == 9:
            number = rng.choice([signal.SIGINT, signal.SIGTERM])
        try:
            limit = rng.uniform(0, longest) if done < kills else None
            status = process.wait(limit)
            finished += 1
            if status or results(tried) != expected:
                problems.append(f"after {done} kills: status {status}, other results: {tried}")
            if done == kills:
                break
            shutil.rmtree(tried)
            continue
        except subprocess.TimeoutExpired:
            done += 1
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # as a terminal does
        else:
            process.send_signal(number)
        status, text = process.wait(), ""
        if number != signal.SIGKILL:
            text = log.read_text()
            begun = "training and" in text  # before that Python may be at its own start
            if begun and (status != 128 + number or "Traceback" in text):
                problems.append(f"signal {number}: status {status}, {text[-300:]}")
        problems += [f"still there: {p.pid}" for p in left_over(tried, PATIENCE)]
        problems += damaged(tried / "runs") if tried.exists() else []
        print(f"{done} of {kills} kills, {finished} finished, {problems}", flush=True)
    hidden = [str(p) for p in tried.rglob(".*-*-*") if p.is_file()]
    problems += [f"left: {path}" for path in hidden]
    return {"kills": done, "finished": finished, "results": len(expected), "problems": problems}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--only", default="", help="notebooks, as of `run`; default: all")
    parser.add_argument("--longest", type=float, default=40, help="seconds to the kill, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="folder of the runs; default: one that goes")
    args = parser.parse_args()
    # What a shell starts in the background ignores Ctrl-C, and so would all that this starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    place = args.output or Path(tempfile.mkdtemp(prefix="l2lkit-kills-"))
    place.mkdir(parents=True, exist_ok=True)
    outcome = run(args.kills, args.only, args.longest, args.seed, place)
    if not args.output and not outcome["problems"]:
        shutil.rmtree(place)
    print(json.dumps(outcome, indent=1))
    sys.exit(bool(outcome["problems"]))
