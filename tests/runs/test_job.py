"""The main job's plumbing: which notebooks, what fails, what is published."""

import errno
import json
import math
import os
import platform
import re
import signal
import subprocess
import sys

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from l2lkit import InputError, Store, files, job, names
from l2lkit.results import gail, plan
from l2lkit.runs import workers
from l2lkit.runs.workers import Task, work_off
from l2lkit.show import notebooks as books


@pytest.fixture
def notebooks(tmp_path, monkeypatch):
    """Two notebooks without models: the first fails, the second prints its parameter."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    parameters = new_code_cell("settings = {}", metadata={"tags": ["parameters"]})
    draws = """import l2lkit, matplotlib.pyplot as plt
from l2lkit.show import style
style.save(l2lkit.Store.here(**settings), plt.figure(), "dot", "Nothing");"""
    sources = {"01_fails": ["1 / 0"], "02_works": ['print(settings["profile"])', draws]}
    for name, cells in sources.items():
        language = {"language_info": {"name": "python"}}
        book = new_notebook(cells=[parameters, *map(new_code_cell, cells)], metadata=language)
        nbformat.write(book, folder / f"{name}.ipynb")
    paths = sorted(folder.glob("*.ipynb"))
    monkeypatch.setattr(names, "notebooks", lambda: paths)
    return paths


@pytest.fixture
def store(folder, tmp_path):
    return Store("smoke", dataset="tiny", data=folder, device="cpu", output=tmp_path / "out")


def outputs(path):
    cells = nbformat.read(path, as_version=4).cells
    return [o.get("text", o.get("ename")) for c in cells for o in c.get("outputs", [])]


def test_a_failing_notebook_is_named_and_does_not_stop_the_others(notebooks, store, capfd):
    assert job.run(store, publish=True) == 1
    out = capfd.readouterr().out
    assert "ZeroDivisionError" in out and "FAILED   01_fails;" in out
    assert outputs(books.executed(store, notebooks[1]))[0] == "smoke\n"
    page = (store.runs / "report" / "index.html").read_text()
    assert "tiny-01_fails.html" in page and "tiny-02_works.html" in page
    # Published is what worked, as it was written, with its outputs.
    assert outputs(notebooks[0]) == []
    published = nbformat.read(notebooks[1], as_version=4)
    sources = [c.source for c in published.cells[:2]]
    assert sources == ["settings = {}", 'print(settings["profile"])']
    assert outputs(notebooks[1])[0] == "smoke\n"
    assert "papermill" not in notebooks[1].read_text()
    # And its figure, beside the run's own.
    path = notebooks[1].parents[1] / "figures" / "published" / "smoke-tiny" / "dot.png"
    assert path.read_bytes() == (store.figures / "dot.png").read_bytes()


def test_the_notebook_of_the_answers_comes_last(notebooks, store, monkeypatch):
    def given(store, tasks, workers):
        order.extend((task.name, task.needs) for task in tasks)
        return []

    order = []
    first = nbformat.read(notebooks[0], as_version=4)
    first.metadata["l2lkit"] = {"needs": ["answers"]}
    nbformat.write(first, notebooks[0])
    monkeypatch.setattr(job, "work_off", given)
    job.run(store)
    assert order[:2] == [
        ("notebook/02_works", frozenset()),
        ("notebook/01_fails", frozenset({"notebook/02_works"})),
    ]


def test_only_takes_numbers(notebooks):
    assert names.select_notebooks("02, 01") == [notebooks[1], notebooks[0]]
    assert names.select_notebooks(None) == notebooks
    with pytest.raises(InputError, match="no notebook '07'.*01_fails, 02_works"):
        names.select_notebooks("01,07")


def test_a_notebook_says_itself_what_it_needs():
    declared = {path.name[:2]: books.needs(path) for path in names.notebooks()}
    assert len(declared) == 11
    assert declared["01"] == [] and declared["07"] == ["defences", "l2l-da"]
    assert declared["06"] == ["defences", "interpolation"]
    assert declared["09"] == ["defences", "cheats"] and declared["10"] == ["defences"]
    groups = {group for needs in declared.values() for group in needs}
    assert groups == {*plan.GROUPS, "answers"} and "answers" in declared["00"]


def test_models_come_after_the_one_they_start_from_and_finished_ones_are_left_out(
    store, monkeypatch
):
    ready = store.recipe("pgm")
    monkeypatch.setattr(Store, "finished", lambda self, recipe, seed: recipe == ready)
    tasks = {task.name: task for task in plan.defences(store)}
    trained = {name: task for name, task in tasks.items() if name.startswith("train/")}
    # With one seed the surrogates of the black box are the next seed's.
    plain = {"train/iclr2020/plain/0", "train/iclr2020/plain/1"}
    rows = {f"train/{store.recipe(name).name}/0" for name in plan.ROWS}
    assert set(trained) == (rows | plain | {"train/iclr2020/fgsm/1"}) - {
        "train/iclr2020/pgm@ours/0"
    }
    for name, task in trained.items():
        start = f"train/iclr2020/plain/{name[-1]}"
        assert task.needs == (frozenset() if name in plain else {start})
    assert tasks["measure/iclr2020/grad@ours/0"].needs == {"train/iclr2020/grad@ours/0"}
    assert tasks["transfer"].needs == set(trained)


def test_interpolation_is_played_with_the_first_seed_of_a_small_profile(store):
    tasks = {task.name: task for task in plan.interpolation(store)}
    names = [f"today/{n}" for n in ("interpolation", "grad-interpolation", "2step-interpolation")]
    trained = {f"train/{n}/{store.seed}" for n in names}
    assert set(tasks) == trained | {f"measure/{n}/{store.seed}" for n in names}
    for name in names:
        assert tasks[f"train/{name}/0"].needs == {"train/iclr2020/plain/0"}
        assert tasks[f"measure/{name}/0"].needs == {f"train/{name}/0"}


def test_the_collapsed_classifier_is_trained_for_its_check(store):
    tasks = {task.name: task for task in plan.cheating(store)}
    assert tasks["train/cheats/fgsm/0"].needs == {"train/cheats/plain/0"}
    assert tasks["check/collapsed FGSM/0"].needs == {"train/cheats/fgsm/0"}
    assert tasks["check/noisy/0"].needs == {"train/iclr2020/plain/0"}
    assert len(tasks) == 2 + len(plan.cheats.NAMES)


def test_rows_of_one_defence_and_two_versions_are_two_tasks(store):
    one, two = (plan._trains(store.recipe(name), 0) for name in ("pgm", "v2/pgm"))
    assert one != two


def test_no_room_is_said_before_the_work(store, monkeypatch):
    monkeypatch.setattr(files, "FREE_BYTES", 10**18)
    with pytest.raises(InputError, match="are free .* --output"):
        job.run(store)


@pytest.mark.parametrize("count", [1, 2])
def test_every_task_is_done_after_those_it_needs(store, count, tmp_path):
    needed = {"0": set(), "1": {"0"}, "2": {"0", "1", "done by an earlier run"}, "3": {"2"}}
    tasks = [
        Task(name, name, Touch(tmp_path, name, before & set(needed)), frozenset(before))
        for name, before in reversed(needed.items())
    ]
    assert sorted(work_off(store, tasks, count)) == ["1", "2", "3"]
    assert sorted(p.name for p in tmp_path.glob("[0-9]")) == ["0", "1", "2", "3"]


def test_of_the_tasks_that_may_start_the_longest_does_by_the_last_record(store, tmp_path, capsys):
    order = (("1", set()), ("5", {"1"}), ("3", set()))
    tasks = [
        Task(f"task/{name}", name, Touch(tmp_path, name, set()), frozenset(f"task/{b}" for b in b4))
        for name, b4 in order
    ]
    workers.write_json(
        store.runs / "seconds.json", {"seconds": {f"task/{n}": float(n) for n, _ in order}}
    )
    assert work_off(store, tasks, 1) == ["3", "1", "5"]
    # They took next to no time, so they count as found done, and the record stays.
    durations = workers.Durations(store)
    assert [durations.known[task.name] for task in tasks] == [1.0, 5.0, 3.0]
    durations.keep(tasks[1], 4.0)
    assert workers.Durations(store).known["task/5"] == 4.0


def test_a_task_without_a_record_is_taken_for_the_mean_of_its_kind(store):
    durations = workers.Durations(store)
    durations.known = {"train/a/0": 2.0, "train/b/0": 4.0, "measure/a/0": 9.0}
    expected = [
        durations.expected(Task(name, "", Touch(None, "", ())))
        for name in ("train/a/0", "train/c/0", "other")
    ]
    assert expected == [2.0, 3.0, 5.0]


def test_a_plan_leaves_open_what_nothing_is_known_of(store, monkeypatch, capsys):
    monkeypatch.setattr(workers, "step_seconds", lambda store, recipe=None, times=4: 0.5)
    read = workers._read
    recorded = {"step": 1.0, "seconds": {"row/a/0": 50.0, "row/b/0": 70.0, "train/c/0": 9.0}}
    monkeypatch.setattr(
        workers, "_read", lambda p: recorded if p.parent.name == "recorded" else read(p)
    )
    work = Touch(None, "", ())
    tasks = [Task("row/c/0", "row c", work), Task("train/c/0", "train c", work)]
    assert job.print_plan(store, tasks, 2) == 0
    lines = capsys.readouterr().out.splitlines()
    # This machine is twice as fast as the recorded one; the longer of the two is what it takes.
    assert [line.split() for line in lines[:2]] == [["00:30", "row", "c"], ["00:04", "train", "c"]]
    assert lines[2].startswith("2 tasks, about 00:30; ")
    job.print_plan(store, [*tasks, Task("other", "other", work)], 2)
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split() == ["?", "other"]
    assert lines[3].startswith("3 tasks, about 00:30, without what has a ?; ")


def test_recorded_seconds_are_taken_in_proportion_to_this_machines_speed(store, monkeypatch):
    recorded = {"step": 0.5, "seconds": {"train/a/0": 10.0, "train/b/0": 4.0}}
    read = workers._read
    monkeypatch.setattr(
        workers, "_read", lambda p: recorded if p.parent.name == "recorded" else read(p)
    )
    monkeypatch.setattr(workers, "step_seconds", lambda _: 1.5)  # three times as slow
    durations = workers.Durations(store)
    assert durations.known == {"train/a/0": 30.0, "train/b/0": 12.0}
    durations.keep(Task("train/a/0", "", Touch(None, "", ())), 24.0)
    assert workers.Durations(store).known == {"train/a/0": 24.0, "train/b/0": 12.0}


def test_the_speed_of_this_machine_is_that_of_a_step_of_the_plain_net(store):
    assert 0 < workers.step_seconds(store) < 5


def test_time_left_by_hand(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(workers.time, "monotonic", lambda: now[0])
    left = workers.TimeLeft({"a": 60.0, "b": 60.0, "c": 60.0, "d": 20.0}, 2)
    assert left.seconds() == 100.0  # 200 seconds of work for two
    left.start("a"), left.start("b")
    now[0] += 30
    assert left.seconds() == 70.0
    left.finish("a", None)  # found done at once: nothing is learnt about the pace
    assert left.seconds() == 60.0  # c alone; what is left for two would take 55
    left.finish("b", 120.0)  # twice as long as expected: (30 + 120) for (30 + 60)
    assert left.seconds() == pytest.approx(max((60 + 20) / 2, 60) * 150 / 90)
    left.start("c")
    now[0] += 1000  # longer than anything: what runs counts as about to end
    assert left.seconds() == pytest.approx(20 * 150 / 90)


class Touch:
    """A task's work that can travel to a worker; it may not start before what it needs is done."""

    def __init__(self, folder, name, before):
        self.folder, self.name, self.before = folder, name, before

    def __call__(self, store):
        assert all((self.folder / name).exists() for name in self.before)
        (self.folder / self.name).touch()
        return self.name.strip("0")


def test_the_games_of_notebook_08_are_tasks_until_they_are_finished(store, monkeypatch):
    assert {task.name for task in plan.imitation(store)} == {
        f"play/{environment}/{method}/0"
        for environment in ("CartPole-v1", "MountainCar-v0")
        for method in ("GAIL", "L2L GAIL", "L2L GAIL (shared)")
    }
    monkeypatch.setattr(gail, "finished", lambda *_: True)
    assert plan.imitation(store) == []


def write_notebook(path, source):
    language = {"language_info": {"name": "python"}}
    parameters = new_code_cell("settings = {}", metadata={"tags": ["parameters"]})
    cells = [parameters, new_code_cell(source)]
    nbformat.write(new_notebook(cells=cells, metadata=language), path)


def test_a_kernel_that_is_killed_is_named_and_does_not_stop_the_others(
    notebooks, store, monkeypatch, capfd
):
    monkeypatch.setattr(Store, "workers", lambda self: 1)  # no process that imports torch anew
    write_notebook(notebooks[0], "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    write_notebook(notebooks[1], 'print(settings["profile"])')
    assert job.run(store) == 1
    out = capfd.readouterr().out
    assert "01_fails.ipynb: its kernel was killed" in out and "FAILED   01_fails;" in out
    assert outputs(books.executed(store, notebooks[1]))[0] == "smoke\n"
    assert (store.runs / "report" / "index.html").exists()


def test_notebooks_run_in_this_python_whatever_kernels_there_are(
    notebooks, store, tmp_path, monkeypatch
):
    """Somebody's kernel python3, first on Jupyter's path, is another program."""
    spec = tmp_path / "jupyter" / "kernels" / "python3"
    spec.mkdir(parents=True)
    about = {"argv": ["/bin/false"], "display_name": "theirs", "language": "python"}
    (spec / "kernel.json").write_text(json.dumps(about))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    write_notebook(notebooks[1], "import sys; print(sys.executable)")
    assert books.execute(store, notebooks[1]) is None
    assert outputs(books.executed(store, notebooks[1])) == [f"{sys.executable}\n"]


def test_a_notebook_that_cannot_be_written_leaves_the_last_one_alone(notebooks, store, monkeypatch):
    write_notebook(notebooks[1], "print(1)")
    assert books.execute(store, notebooks[1]) is None
    before = books.executed(store, notebooks[1]).read_bytes()

    def full(path, output, **_):
        output.write_text('{"cells": [')
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(books.papermill, "execute_notebook", full)
    with pytest.raises(InputError, match="02_works.ipynb: No space left .* Finished work is kept"):
        books.execute(store, notebooks[1])
    assert books.executed(store, notebooks[1]).read_bytes() == before


class Killed:
    def __call__(self, store):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_is_killed_is_one_sentence(store):
    with pytest.raises(InputError, match="A worker process was killed.* goes on from here"):
        work_off(store, [Task("a", "a", Killed()), Task("b", "b", Killed())], 2)


def test_what_killed_processes_left_half_written_goes(store):
    gone = subprocess.Popen(["true"])
    gone.wait()
    store.prepare()
    folder, node = store.runs / "models", platform.node()
    folder.mkdir()
    left = folder / f".record.json.{node}-{gone.pid}-0123abcd"
    kept = [
        folder / f".record.json.{node}-{os.getpid()}-0123abcd",  # being written
        folder / ".record.json.elsewhere-1-0123abcd",
        folder / ".lock",
    ]
    for path in (left, *kept):
        path.write_text("")
    files.check_writable(store.runs)
    assert not left.exists() and all(path.exists() for path in kept)


def test_rows_alone_are_trained_and_measured_and_nothing_else(store, monkeypatch, capsys):
    monkeypatch.setattr(store, "workers", lambda: 1)
    assert job.run_rows(store, ["grad"], plan_only=True) == 0
    planned = capsys.readouterr().out
    assert not store.runs.exists() and planned.count("train ") == 2 and "3 tasks, about" in planned
    assert job.run_rows(store, ["grad"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"Grad L2L +\d", out) and "with AutoAttack" in out
    made = sorted(p.parts[-3].rsplit("-", 1)[0] for p in store.runs.rglob("record.json"))
    assert made == ["iclr2020-grad@ours", "iclr2020-plain"]
    assert not (store.runs / "notebooks").exists() and not (store.runs / "gail").exists()
    job.run_rows(store, ["grad"], plan_only=True)
    assert "train " not in capsys.readouterr().out


@pytest.mark.parametrize("here, there", [("float32", "bfloat16"), ("bfloat16", "float32")])
def test_models_from_a_machine_of_another_precision_are_mentioned(
    store, folder, monkeypatch, capsys, here, there
):
    """A folder copied from such a machine is not silently trained anew."""
    monkeypatch.setattr("l2lkit.runs.machine.has_bfloat16", lambda device: there == "bfloat16")
    copied = Store(**store.parameters())
    path = copied.where(copied.recipe("plain"), 0)
    copied.prepare()
    files.write_json(path / "record.json", {"recipe": copied.recipe("plain").key()})
    files.write_text(path.with_name("seed-1") / "record.json", "{half")
    assert job.run_rows(copied, ["plain"], plan_only=True) == 0
    assert "another precision" not in capsys.readouterr().out
    monkeypatch.setattr("l2lkit.runs.machine.has_bfloat16", lambda device: here == "bfloat16")
    assert job.run_rows(Store(**store.parameters()), ["plain"], plan_only=True) == 0
    out = capsys.readouterr().out
    assert f"1 of tiny were trained in another precision than {here}" in out and "train " in out


def test_rows_that_do_not_exist_are_refused_before_any_work(store):
    with pytest.raises(InputError, match="Unknown recipe 'iclr2020/gard'"):
        job.run_rows(store, ["plain", "gard"])
    assert not store.runs.exists()


def test_a_training_without_a_record_is_estimated_by_its_steps(store, monkeypatch):
    monkeypatch.setattr(workers, "step_seconds", lambda store, recipe=None, times=4: 0.25)
    (plain, grad, _) = plan.rows(store, ["grad"])
    recipe, images = store.recipe("grad"), len(store.data.train_images)
    batches = math.ceil(images / recipe.batch_size)
    durations = workers.Durations(store)
    durations.known = {}
    assert durations.expected(grad) == 0.25 * batches * recipe.epochs
    durations.known[grad.name] = 9.0
    assert durations.expected(grad) == 9.0
    assert durations.expected(plain) == 0.25 * batches * store.recipe("plain").epochs
