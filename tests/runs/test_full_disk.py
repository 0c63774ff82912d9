"""A disk that fills up at any moment: one sentence, and the same command goes on with more room.

Needs the right to mount a small file system in memory.
"""

import subprocess
from dataclasses import replace

import nbformat
import pandas as pd
import pytest
import tiny
from nbformat.v4 import new_code_cell, new_notebook

from l2lkit import InputError, Store, files, job, names, recipes

SIZE = 4_000_000
TINY = replace(tiny.TINY, plain_epochs=3, epochs=2)


@pytest.fixture
def disk(tmp_path, monkeypatch):
    """A file system of four megabytes."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(place)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no right to mount a file system")
    monkeypatch.setattr(files, "FREE_BYTES", 0)
    monkeypatch.setitem(recipes.PROFILES, "smoke", TINY)
    yield place
    subprocess.run(["umount", str(place)], check=True)


def leave(disk, room):
    """Fill the disk but for `room` bytes."""
    filler = disk / "filler"
    filler.unlink(missing_ok=True)
    free = files.shutil.disk_usage(disk).free
    filler.write_bytes(b"0" * max(0, free - room))


def store(folder, output):
    return Store("smoke", dataset="tiny", data=folder, device="cpu", output=output)


def logs(output):
    found = output.rglob("log.csv")
    return {p.parts[-3]: pd.read_csv(p).drop(columns="seconds").to_dict("list") for p in found}


@pytest.mark.slow
def test_training_goes_on_from_wherever_the_disk_was_full(disk, folder, tmp_path):
    store(folder, tmp_path / "large").model("grad")
    expected, output, refused, kept = logs(tmp_path / "large"), disk / "out", 0, []
    for room in (0, 4_000, 40_000, 200_000, 400_000, 500_000, 600_000, 700_000, 900_000, 2_000_000):
        leave(disk, room)
        try:
            store(folder, output).model("grad")
        except InputError as error:
            refused += 1
            assert "Cannot write" in str(error) and "Finished work is kept" in str(error)
        done = sorted(p.name for p in output.rglob("checkpoint.*.pt"))
        assert len(done) >= len(kept)  # finished work is kept
        kept = done
        assert not [p for p in output.rglob(".*") if p.is_file() and p.name != ".lock"]
    assert refused >= 2 and logs(output) == expected


@pytest.mark.slow
def test_a_run_goes_on_when_there_is_room_for_notebook_and_report(
    disk, folder, tmp_path, monkeypatch
):
    book = tmp_path / "01_prints.ipynb"
    cells = [
        new_code_cell("settings = {}", metadata={"tags": ["parameters"]}),
        new_code_cell("print('x' * 300_000)"),
    ]
    language = {"language_info": {"name": "python"}}
    nbformat.write(new_notebook(cells=cells, metadata=language), book)
    monkeypatch.setattr(names, "notebooks", lambda: [book])
    output, refused = disk / "out", 0
    for room in (20_000, 310_000, 2_500_000):  # too little for models, for notebooks; enough
        leave(disk, room)
        try:
            assert job.run(store(folder, output)) == 0
        except InputError as error:
            refused += 1
            assert "Cannot write" in str(error)
            assert not (output / "runs" / "smoke" / "report" / "index.html").exists()
    assert refused == 2
    page = output / "runs" / "smoke" / "report" / "tiny-01_prints.html"
    assert "x" * 300_000 in page.read_text()
