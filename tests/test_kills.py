"""benchmarks/kills.py with a small job of its own in the place of the main one: what it lets pass,
and what it finds."""

import subprocess
import sys

import pytest
from scripts import load

kills = load("kills")
# Three results, a fifth of a second each, which a job goes on from. `{spoil}` is what a bad job
# does.
JOB = """
import json, os, sys, time
from pathlib import Path
print("training and", flush=True)
place = Path(sys.argv[1]) / "runs" / "smoke"
began = place.exists()
for i in range(3):
    folder = place / f"model-{i}"
    folder.mkdir(parents=True, exist_ok=True)
    record = folder / "record.json"
    if record.exists():
        continue
    {spoil}
    time.sleep(0.2)
    (folder / "log.csv").write_text("epoch,seconds\\n1,2\\n")
    (folder / ".half-1-2").write_text(json.dumps({"accuracy": i, "seconds": time.time()}))
    os.replace(folder / ".half-1-2", record)
"""
LEFT = "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])"


def killed(monkeypatch, tmp_path, spoil):
    def start(output, only, log):
        program = JOB.replace("{spoil}", spoil)
        with log.open("w") as file:
            return subprocess.Popen(
                [sys.executable, "-c", program, str(output)],
                stdout=file,
                stderr=subprocess.STDOUT,
                env=kills.os.environ | {kills.MARK: str(output)},
                start_new_session=True,
            )

    monkeypatch.setattr(kills, "start", start)
    monkeypatch.setattr(kills, "PATIENCE", 0.5)
    return kills.run(kills=3, only="", longest=0.6, seed=1, place=tmp_path)


def test_a_job_that_goes_on_has_no_problems(monkeypatch, tmp_path):
    outcome = killed(monkeypatch, tmp_path, "pass")
    assert outcome["kills"] == 3 and outcome["results"] == 6 and not outcome["problems"]


@pytest.mark.parametrize(
    "spoil, problem",
    [
        ("i += 10 * began", "other results"),  # goes on from elsewhere than it was
        ("(folder / 'log.csv').write_text('')", "log.csv: "),  # written anew before it counts
        (f"import subprocess; {LEFT}", "still there"),
    ],
)
def test_what_a_bad_job_does_is_found(monkeypatch, tmp_path, spoil, problem):
    outcome = killed(monkeypatch, tmp_path, spoil)
    for process in kills.processes(tmp_path / "tried") + kills.processes(tmp_path / "alone"):
        process.kill()
    assert any(problem in found for found in outcome["problems"])
