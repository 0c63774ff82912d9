"""The main job: train and measure what the notebooks need, execute them, write the report."""

import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import nbformat
import papermill
from papermill.exceptions import PapermillExecutionError
from tqdm import tqdm

from l2lkit import experiments, report
from l2lkit.attacks import CW, FGSM, PGM
from l2lkit.errors import InputError
from l2lkit.recipes import DEFENCES, Learned, Recipe
from l2lkit.store import ROOT, Store, write_atomically, write_text

NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
WITHOUT_MODELS = {"01"}
FREE_BYTES = 2 * 10**9
PASS = 0.0003  # seconds; a guess that only splits the time left among the tasks


@dataclass
class Task:
    """One line of the progress: what it is, about how many seconds it takes, and the work."""

    what: str
    seconds: float
    work: Callable[[], object]


def run(store: Store, only: str | None = None, publish: bool = False) -> int:
    """Train, measure, execute the notebooks, write the report; returns how many notebooks failed.

    What an earlier run of the same profile finished is used as it is. `only` is a list of
    notebook numbers, as "01,05". With `publish` the executed notebooks replace those of
    notebooks/. Raises InputError for a wrong selection, missing data, an output directory that
    cannot be written or a disk without room, before any long work.
    """
    notebooks = select(only)
    check_output(store)
    data = store.data
    print(
        f"{data.title}: {len(data.train_images):,} training and {len(data.test_images):,} test "
        f"images; profile {store.profile.name} on {store.device}, seeds "
        f"{', '.join(map(str, store.seeds))}",
        flush=True,
    )
    failed: list[str] = []
    tasks = []
    if any(path.name[:2] not in WITHOUT_MODELS for path in notebooks):
        tasks += model_tasks(store) + measurement_tasks(store)
    for path in notebooks:
        tasks.append(Task(f"notebook {path.stem}", 12, partial(execute, store, path, failed)))
    tasks.append(Task("report", 4, lambda: report.write(store)))
    work_off(store, tasks)
    if publish:
        for path in notebooks:
            if path.stem not in failed:
                publish_notebook(store, path)
    print(f"Figures  {store.figures}\nTables   {store.runs / 'tables' / store.dataset}")
    print(f"Report   {store.runs / 'report' / 'index.html'}")
    if failed:
        where = executed(store, notebooks[0]).parent
        print(f"FAILED   {', '.join(failed)}; as far as they got: {where}")
    return len(failed)


def select(only: str | None) -> list[Path]:
    """The notebooks that `only` names, all without it."""
    chosen = []
    for number in only.split(",") if only is not None else [p.name[:2] for p in NOTEBOOKS]:
        found = [path for path in NOTEBOOKS if path.name[:2] == number.strip()]
        if not found:
            raise InputError(
                f"There is no notebook '{number}': --only takes the numbers of "
                f"{', '.join(path.stem for path in NOTEBOOKS)}."
            )
        chosen += found
    return chosen


def check_output(store: Store) -> None:
    """Raise InputError now, not after an hour, if results cannot be written."""
    for directory in (store.runs, store.figures):
        probe = directory / ".can-write"
        write_text(probe, "")
        probe.unlink()
    free = shutil.disk_usage(store.runs).free
    if free < FREE_BYTES:
        raise InputError(
            f"Only {free / 1e9:.1f} GB are free for {store.runs}: make room for 2 GB, or name a "
            "directory on another disk with --output."
        )


def passes(recipe: Recipe) -> float:
    """About how many forward and backward passes one image costs in one epoch."""
    attack = recipe.attack
    if attack is None:
        return 1
    if isinstance(attack, FGSM):
        return 2
    if isinstance(attack, (PGM, CW)):
        return 1 + attack.steps
    assert isinstance(attack, Learned)
    return 2 + 3 * attack.steps


def model_tasks(store: Store, names: Sequence[str] = DEFENCES) -> list[Task]:
    images = len(store.data.train_images)
    tasks = []
    for seed in store.seeds:
        for name in names:
            recipe = store.recipe(name)
            if not store.finished(recipe, seed):
                seconds = PASS * images * recipe.epochs * (passes(recipe) + 0.5)
                what = f"train {recipe.defence}, seed {seed}"
                tasks.append(Task(what, seconds, partial(store.model, name, seed)))
    return tasks


def measurement_tasks(store: Store) -> list[Task]:
    p, n = store.profile, len(store.data.test_images)
    table, curves = min(p.eval_images or n, n), min(p.curve_images or n, n)
    each = 3 * PASS * len(store.seeds)
    tasks = [
        Task(
            f"measure {store.recipe(name).defence}",
            each * (table * 250 + curves * 10 * len(experiments.EPSILONS)),
            partial(experiments.measure, store, name),
        )
        for name in DEFENCES
    ]
    transfer = partial(experiments.black_box, store)
    losses = partial(experiments.loss_curves, store)
    return tasks + [
        Task("measure transfer", 3 * PASS * table * 50, transfer),
        Task("measure losses", each * curves * 120, losses),
    ]


def work_off(store: Store, tasks: Sequence[Task]) -> None:
    """Do the tasks in order: a bar with the time left on a terminal, a line a task in a log."""
    started, done = time.monotonic(), 0.0
    total = sum(task.seconds for task in tasks)
    # The bar keeps to a terminal (disable=None); in a log the lines stand alone.
    bar = tqdm(
        total=total, disable=None, leave=False,
        bar_format="{percentage:3.0f}%|{bar:24}| {elapsed}, about {remaining} left · {desc}",
    )  # fmt: skip
    with bar:
        for number, task in enumerate(tasks, 1):
            began, reported = time.monotonic(), 0.0

            def on_progress(what: str, share: float, task: Task = task) -> None:
                nonlocal reported
                step = min(share * task.seconds, task.seconds - reported)
                reported += step
                bar.set_description_str(what, refresh=False)
                bar.update(step)

            store.on_progress = on_progress
            bar.set_description_str(task.what)
            task.work()
            bar.update(task.seconds - reported)
            done += task.seconds
            now = time.monotonic()
            left = (now - started) * (total - done) / done
            tqdm.write(
                f"[{_clock(now - started)}, about {_clock(left)} left] {number}/{len(tasks)} "
                f"{task.what} ({now - began:.0f} s)"
            )


def _clock(seconds: float) -> str:
    return tqdm.format_interval(round(seconds))


def executed(store: Store, path: Path) -> Path:
    return store.runs / "notebooks" / store.dataset / path.name


def execute(store: Store, path: Path, failed: list[str]) -> None:
    """Execute one notebook with papermill in this environment's kernel; a failure is noted, shown
    and does not stop the others."""
    target = executed(store, path)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        papermill.execute_notebook(
            path, target, parameters=store.parameters(), kernel_name="python3",
            progress_bar=False, cwd=path.parent, extra_arguments=["--log-level=ERROR"],
        )  # fmt: skip
    except PapermillExecutionError as error:
        failed.append(path.stem)
        tqdm.write(f"{path.name}, cell {error.exec_count}: {error.ename}: {error.evalue}")


def publish_notebook(store: Store, path: Path) -> None:
    """Put the executed notebook in place of the source: outputs as they came, without papermill's
    parameter cell, timings and paths."""
    notebook = nbformat.read(executed(store, path), as_version=4)
    notebook.metadata.pop("papermill", None)
    injected = "injected-parameters"
    notebook.cells = [c for c in notebook.cells if injected not in c.metadata.get("tags", [])]
    for cell in notebook.cells:
        for key in ("papermill", "execution"):
            cell.metadata.pop(key, None)
        if cell.metadata.get("tags") == []:
            del cell.metadata["tags"]
    write_atomically(path, lambda p: nbformat.write(notebook, os.fspath(p)))
