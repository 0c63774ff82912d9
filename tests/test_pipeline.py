"""The main job's plumbing: which notebooks, what fails, what is published."""

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from l2lkit import InputError, Store, pipeline


@pytest.fixture
def notebooks(tmp_path, monkeypatch):
    """Two notebooks without models: the first fails, the second prints its parameter."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    parameters = new_code_cell('profile = "?"', metadata={"tags": ["parameters"]})
    sources = {"01_fails": ["1 / 0"], "02_works": ["print(profile)"]}
    for name, cells in sources.items():
        language = {"language_info": {"name": "python"}}
        book = new_notebook(cells=[parameters, *map(new_code_cell, cells)], metadata=language)
        nbformat.write(book, folder / f"{name}.ipynb")
    paths = sorted(folder.glob("*.ipynb"))
    monkeypatch.setattr(pipeline, "NOTEBOOKS", paths)
    monkeypatch.setattr(pipeline, "WITHOUT_MODELS", {"01", "02"})
    return paths


@pytest.fixture
def store(folder, tmp_path):
    return Store("smoke", dataset="tiny", data=folder, device="cpu", output=tmp_path / "out")


def outputs(path):
    cells = nbformat.read(path, as_version=4).cells
    return [o.get("text", o.get("ename")) for c in cells for o in c.get("outputs", [])]


def test_a_failing_notebook_is_named_and_does_not_stop_the_others(notebooks, store, capfd):
    assert pipeline.run(store, publish=True) == 1
    out = capfd.readouterr().out
    assert "ZeroDivisionError" in out and "FAILED   01_fails;" in out
    assert outputs(pipeline.executed(store, notebooks[1])) == ["smoke\n"]
    page = (store.runs / "report" / "index.html").read_text()
    assert "tiny-01_fails.html" in page and "tiny-02_works.html" in page
    # Published is what worked, as it was written, with its outputs.
    assert outputs(notebooks[0]) == []
    published = nbformat.read(notebooks[1], as_version=4)
    assert [c.source for c in published.cells] == ['profile = "?"', "print(profile)"]
    assert outputs(notebooks[1]) == ["smoke\n"]
    assert "papermill" not in notebooks[1].read_text()


def test_only_takes_numbers(notebooks):
    assert pipeline.select("02, 01") == [notebooks[1], notebooks[0]]
    assert pipeline.select(None) == notebooks
    with pytest.raises(InputError, match="no notebook '07'.*01_fails, 02_works"):
        pipeline.select("01,07")


def test_models_come_after_the_one_they_start_from_and_finished_ones_are_left_out(
    store, monkeypatch
):
    ready = store.recipe("pgm")
    monkeypatch.setattr(Store, "finished", lambda self, recipe, seed: recipe == ready)
    tasks = {t.what: t for t in pipeline.model_tasks(store)}
    # With one seed the surrogates of the black box are the next seed's.
    plain = {"train Plain Net, seed 0", "train Plain Net, seed 1"}
    others = {f"train {store.recipe(name).defence}, seed 0" for name in pipeline.ROWS}
    assert set(tasks) == (others | plain | {"train FGSM Net, seed 1"}) - {"train PGM Net, seed 0"}
    for what, task in tasks.items():
        assert task.needs == (set() if what in plain else {f"train Plain Net, {what[-6:]}"})
    measured = {t.what: t for t in pipeline.measurement_tasks(store, list(tasks.values()))}
    assert measured["measure Grad L2L, seed 0"].needs == {"train Grad L2L, seed 0"}
    assert measured["measure PGM Net, seed 0"].needs == set()
    assert measured["measure transfer"].needs == set(tasks)


def test_no_room_is_said_before_the_work(store, monkeypatch):
    monkeypatch.setattr(pipeline, "FREE_BYTES", 10**18)
    with pytest.raises(InputError, match="are free .* --output"):
        pipeline.run(store)


@pytest.mark.parametrize("workers", [1, 2])
def test_every_task_is_done_after_those_it_needs(store, workers, tmp_path):
    needed = {"0": set(), "1": {"0"}, "2": {"0", "1", "done by an earlier run"}, "3": {"2"}}
    tasks = [
        pipeline.Task(what, 1 + int(what), Touch(tmp_path, what, before & set(needed)), before)
        for what, before in reversed(needed.items())
    ]
    found = pipeline.work_off(store, tasks, workers)
    assert sorted(o for o in found if o) == ["1", "2", "3"]
    assert sorted(p.name for p in tmp_path.glob("[0-9]")) == ["0", "1", "2", "3"]


def test_of_the_tasks_that_may_start_the_longest_does(store, tmp_path):
    tasks = [
        pipeline.Task(what, seconds, Touch(tmp_path, what, set()), before)
        for what, seconds, before in (("1", 1, set()), ("5", 5, {"1"}), ("3", 3, set()))
    ]
    assert pipeline.work_off(store, tasks, 1) == ["3", "1", "5"]


class Touch:
    """A task's work that can travel to a worker; it may not start before what it needs is done."""

    def __init__(self, folder, what, before):
        self.folder, self.what, self.before = folder, what, before

    def __call__(self, store):
        assert all((self.folder / name).exists() for name in self.before)
        (self.folder / self.what).touch()
        return self.what.strip("0")


def test_the_games_of_notebook_08_are_tasks_until_they_are_finished(store, monkeypatch):
    from l2lkit import gail

    tasks = pipeline.imitation_tasks(store)
    assert {t.what for t in tasks} == {
        f"{method}, {environment}, seed 0"
        for environment in ("CartPole-v1", "MountainCar-v0")
        for method in ("GAIL", "L2L GAIL", "L2L GAIL (shared)")
    }
    monkeypatch.setattr(gail, "finished", lambda *_: True)
    assert pipeline.imitation_tasks(store) == []
