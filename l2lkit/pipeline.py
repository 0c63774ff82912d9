"""The main job: train and measure what the notebooks need, execute them, write the report."""

import base64
import io
import multiprocessing
import os
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import nbformat
import papermill
from papermill.exceptions import PapermillExecutionError
from PIL import Image
from tqdm import tqdm

from l2lkit import checklist, experiments, report
from l2lkit.attacks import CW, FGSM, PGM
from l2lkit.errors import InputError
from l2lkit.recipes import DEFENCES, SLIM, TODAY, Free, Learned, Recipe
from l2lkit.store import ROOT, Store, write_atomically, write_text

NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
WITHOUT_MODELS = {"01", "08"}
FREE_BYTES = 2 * 10**9
ROWS = (*DEFENCES, *SLIM, *TODAY)
PASS = 0.0006  # seconds; a guess that only splits the time left among the tasks


@dataclass
class Task:
    """One line of the progress: what it is, about how many seconds it takes, and the work, which
    returns None or the name of what failed. Tasks of one stage do not need one another."""

    what: str
    seconds: float
    work: Callable[[Store], str | None]


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
    workers = store.workers()
    print(
        f"{data.title}: {len(data.train_images):,} training and {len(data.test_images):,} test "
        f"images; profile {store.profile.name} on {store.device}, seeds "
        f"{', '.join(map(str, store.seeds))}, {workers} at a time",
        flush=True,
    )
    stages = []
    if any(path.name[:2] not in WITHOUT_MODELS for path in notebooks):
        stages += model_stages(store) + measurement_stages(store)
    if any(path.name[:2] == "08" for path in notebooks):
        stages.append(imitation_tasks(store))
    stages.append(
        [Task(f"notebook {path.stem}", 12, partial(execute, path=path)) for path in notebooks]
    )
    stages.append([Task("report", 4, write_report)])
    failed = [outcome for outcome in work_off(store, stages, workers) if outcome]
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
    if isinstance(attack, Free):
        return attack.replays
    if isinstance(attack, FGSM):
        return 2
    if isinstance(attack, (PGM, CW)):
        return 1 + attack.steps + (1.5 if recipe.trades else 0)
    assert isinstance(attack, Learned)
    return 2 + 3 * attack.steps


def train(store: Store, name: str, seed: int) -> None:
    store.model(name, seed)


def measure(store: Store, name: str, seed: int) -> None:
    """What the notebooks want to know of one model; the whole checklist for the papers' main
    rows, AutoAttack for all."""
    experiments.measure(store, name, seed)
    if name in DEFENCES:
        checklist.measure(store, name, seed)
    else:
        checklist.survivors(store, name, seed)


def write_report(store: Store) -> None:
    report.write(store)


def model_stages(store: Store, names: Sequence[str] = ROWS) -> list[list[Task]]:
    """The models that are missing: those others start from first."""
    images = len(store.data.train_images)
    needed = [(name, seed) for seed in store.seeds for name in names]
    if len(store.seeds) == 1:
        needed += [(name, store.seed + 1) for name in experiments.SURROGATES]
    stages: list[list[Task]] = [[], []]
    for name, seed in needed:
        recipe = store.recipe(name)
        if not store.finished(recipe, seed):
            seconds = PASS * images * recipe.epochs * (passes(recipe) + 0.5)
            what = f"train {recipe.defence}, seed {seed}"
            task = Task(what, seconds, partial(train, name=name, seed=seed))
            stages[0 if recipe.attack is None else 1].append(task)
    return [sorted(stage, key=lambda task: -task.seconds) for stage in stages]


def measurement_stages(store: Store) -> list[list[Task]]:
    p, n = store.profile, len(store.data.test_images)
    table, curves = min(p.eval_images or n, n), min(p.curve_images or n, n)
    every = table * 250 + curves * (300 + 12 * len(experiments.EPSILONS))
    tasks = [
        Task(
            f"measure {store.recipe(name).defence}, seed {seed}",
            PASS * (every + (curves * 500 if name in DEFENCES else 0)),
            partial(measure, name=name, seed=seed),
        )
        for seed in store.seeds
        for name in ROWS
    ]
    for seed in store.seeds:
        curve = partial(experiments.measure_curves, seed=seed)
        tasks.append(Task(f"measure losses, seed {seed}", PASS * curves * 450, curve))
    tasks.append(Task("measure transfer", PASS * table * 80, experiments.measure_transfer))
    return [tasks]


def imitation_tasks(store: Store) -> list[Task]:
    """The games of notebook 08 that are missing."""
    from l2lkit import gail  # Gymnasium and Stable-Baselines3 take seconds to import

    return [
        Task(f"{method}, {environment}, seed {seed}", 0.12 * recipe.iterations,
             partial(imitate, environment=environment, method=method, seed=seed))
        for environment in gail.ENVIRONMENTS
        for method in gail.METHODS
        for seed in gail.seeds(store)
        if not gail.finished(store, environment, method, seed)
        for recipe in [gail.recipe(environment, method, store.profile.name)]
    ]  # fmt: skip


def imitate(store: Store, environment: str, method: str, seed: int) -> None:
    from l2lkit import gail

    gail.played(store, environment, method, seed)


_worker: Store  # of a worker process


def _start_worker(parameters: dict) -> None:
    global _worker
    _worker = Store(**parameters)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed run leaves no worker behind that trains beside the next run."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _in_worker(work: Callable[[Store], str | None]) -> tuple[str | None, float]:
    began = time.monotonic()
    return work(_worker), time.monotonic() - began


def work_off(store: Store, stages: Sequence[Sequence[Task]], workers: int) -> list[str | None]:
    """Do the tasks, stage after stage, `workers` at a time, each in a process of its own where
    there are several; returns their outcomes.

    A terminal shows a bar with the time left, a log a line a task. Ctrl-C stops at once.
    """
    tasks = [task for stage in stages for task in stage]
    total, started = sum(task.seconds for task in tasks), time.monotonic()
    done = 0.0
    outcomes: list[str | None] = []
    # The bar keeps to a terminal (disable=None); in a log the lines stand alone.
    bar = tqdm(
        total=total, disable=None, leave=False,
        bar_format="{percentage:3.0f}%|{bar:24}| {elapsed}, about {remaining} left · {desc}",
    )  # fmt: skip

    def finished(task: Task, outcome: str | None, seconds: float) -> None:
        nonlocal done
        done += task.seconds
        outcomes.append(outcome)
        bar.update(done - bar.n)
        now = time.monotonic() - started
        tqdm.write(
            f"[{_clock(now)}, about {_clock(now * (total - done) / done)} left] "
            f"{len(outcomes)}/{len(tasks)} {task.what} ({seconds:.0f} s)"
        )

    def on_progress(what: str, share: float) -> None:
        bar.set_description_str(what, refresh=False)
        bar.update(share * task.seconds)

    with bar:
        if workers == 1:
            store.on_progress = on_progress
            for task in tasks:
                bar.set_description_str(task.what)
                began = time.monotonic()
                finished(task, task.work(store), time.monotonic() - began)
            return outcomes
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(workers, context, _start_worker, (store.parameters(),))
        try:
            for stage in stages:
                futures = {pool.submit(_in_worker, task.work): task for task in stage}
                bar.set_description_str(f"{len(stage)} tasks, {stage[0].what} …" if stage else "")
                for future in as_completed(futures):
                    finished(futures[future], *future.result())
        except BaseException:
            for process in multiprocessing.active_children():
                process.terminate()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        pool.shutdown()
    return outcomes


def _clock(seconds: float) -> str:
    return tqdm.format_interval(round(seconds))


def executed(store: Store, path: Path) -> Path:
    return store.runs / "notebooks" / store.dataset / path.name


def execute(store: Store, path: Path) -> str | None:
    """Execute one notebook with papermill in this environment's kernel. Its name is returned if it
    fails: the failure is shown and does not stop the others."""
    target = executed(store, path)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        papermill.execute_notebook(
            path, target, parameters=store.parameters(), kernel_name="python3",
            progress_bar=False, cwd=path.parent, extra_arguments=["--log-level=CRITICAL"],
        )  # fmt: skip
    except PapermillExecutionError as error:
        tqdm.write(f"{path.name}, cell {error.exec_count}: {error.ename}: {error.evalue}")
        return path.stem
    return None


def publish_notebook(store: Store, path: Path) -> None:
    """Put the executed notebook in place of the source: outputs as they came but for pictures in
    256 colours, a third of the size, and without papermill's parameter cell, timings and paths."""
    notebook = nbformat.read(executed(store, path), as_version=4)
    notebook.metadata.pop("papermill", None)
    injected = "injected-parameters"
    notebook.cells = [c for c in notebook.cells if injected not in c.metadata.get("tags", [])]
    for cell in notebook.cells:
        for key in ("papermill", "execution"):
            cell.metadata.pop(key, None)
        if cell.metadata.get("tags") == []:
            del cell.metadata["tags"]
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = _smaller(output.data["image/png"])
    write_atomically(path, lambda p: nbformat.write(notebook, os.fspath(p)))


def _smaller(png: str) -> str:
    buffer = io.BytesIO()
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    picture.quantize(256, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()
