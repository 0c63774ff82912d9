"""The main job's plumbing: which notebooks, what fails, what is published."""

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from l2lkit import InputError, Store, pipeline, recipes


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


def test_models_others_start_from_come_first_and_finished_ones_are_left_out(store, monkeypatch):
    monkeypatch.setattr(Store, "finished", lambda self, recipe, seed: recipe.defence == "PGM Net")
    first, second = pipeline.model_stages(store)
    seeds = [store.seed, store.seed + 1]  # one seed only: the surrogates are of the next
    assert {t.what for t in first} == {f"train Plain Net, seed {s}" for s in seeds}
    assert {t.what for t in second} == {"train FGSM Net, seed 0", "train FGSM Net, seed 1"} | {
        f"train {recipes.recipe(f'iclr2020/{n}').defence}, seed 0"
        for n in ("naive", "grad", "2step", *recipes.SLIM)
    } | {f"train {recipes.recipe(n).defence}, seed 0" for n in recipes.TODAY}


def test_no_room_is_said_before_the_work(store, monkeypatch):
    monkeypatch.setattr(pipeline, "FREE_BYTES", 10**18)
    with pytest.raises(InputError, match="are free .* --output"):
        pipeline.run(store)


@pytest.mark.parametrize("workers", [1, 2])
def test_every_task_is_done_stage_by_stage(store, workers, tmp_path):
    tasks = [pipeline.Task(f"task {i}", 1 + i, Touch(tmp_path / str(i), i)) for i in range(4)]
    found = pipeline.work_off(store, [tasks[:2], [], tasks[2:]], workers)
    assert sorted(o for o in found if o) == ["1", "2", "3"]
    assert sorted(p.name for p in tmp_path.glob("[0-9]")) == ["0", "1", "2", "3"]


class Touch:
    """A task's work that can travel to a worker; it may not start before its stage."""

    def __init__(self, path, number):
        self.path, self.number = path, number

    def __call__(self, store):
        if self.number > 1:
            assert (self.path.parent / "0").exists() and (self.path.parent / "1").exists()
        self.path.touch()
        return str(self.number or "")


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
