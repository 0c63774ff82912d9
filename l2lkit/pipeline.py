"""The main job: train and measure what the notebooks need, execute them, write the report."""

import base64
import io
import multiprocessing
import os
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import nbformat
import papermill
from papermill.exceptions import PapermillExecutionError
from PIL import Image
from tqdm import tqdm

from l2lkit import checklist, diverse, experiments, report
from l2lkit.attacks import CW, FGSM, PGM
from l2lkit.errors import InputError
from l2lkit.recipes import DEFENCES, SLIM, TODAY, Diverse, Free, Learned, Recipe
from l2lkit.store import ROOT, Store, write_atomically, write_text

NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
WITHOUT_MODELS = {"01", "08"}
FREE_BYTES = 2 * 10**9
ROWS = (*DEFENCES, *SLIM, *TODAY)
PASS = 0.0006  # seconds; a guess that only splits the time left among the tasks


@dataclass
class Task:
    """One line of the progress: what it is, about how many seconds it takes, the work, which
    returns None or the name of what failed, and the `what` of the tasks that come before it."""

    what: str
    seconds: float
    work: Callable[[Store], str | None]
    needs: set[str] = field(default_factory=set)


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
    workers, precision = store.workers(), store.recipe("plain").precision
    print(
        f"{data.title}: {len(data.train_images):,} training and {len(data.test_images):,} test "
        f"images; profile {store.profile.name} on {store.device} in {precision}, seeds "
        f"{', '.join(map(str, store.seeds))}, {workers} at a time",
        flush=True,
    )
    models: list[Task] = []
    if any(path.name[:2] not in WITHOUT_MODELS for path in notebooks):
        models = model_tasks(store)
        models += measurement_tasks(store, models)
    diverse_games = []
    if any(path.name[:2] == "07" for path in notebooks):
        diverse_games = diverse_tasks(store)
    games = imitation_tasks(store) if any(path.name[:2] == "08" for path in notebooks) else []
    last = [
        Task(f"notebook {path.stem}", 12, partial(execute, path=path),
             needs(games if path.name[:2] == "08" else
                   models + diverse_games if path.name[:2] == "07" else
                   models if path.name[:2] not in WITHOUT_MODELS else []))
        for path in notebooks
    ]  # fmt: skip
    last.append(Task("report", 4, write_report, needs(last)))
    tasks = models + diverse_games + games + last
    failed = [outcome for outcome in work_off(store, tasks, workers) if outcome]
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
        probe.unlink(missing_ok=True)  # another process may check too
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
    if isinstance(attack, Diverse):
        return 3 + 5 * attack.steps  # two draws
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


def needs(tasks: Sequence[Task]) -> set[str]:
    return {task.what for task in tasks}


def write_report(store: Store) -> None:
    report.write(store)


def model_tasks(store: Store) -> list[Task]:
    """The models of the tables that are missing, each after the one it starts from."""
    needed = [(name, seed) for seed in store.seeds for name in ROWS]
    if len(store.seeds) == 1:
        needed += [(name, store.seed + 1) for name in experiments.SURROGATES]
    return _training_tasks(store, needed)


def diverse_tasks(store: Store) -> list[Task]:
    """Notebook 07's games that are missing, and what it measures on them and on others."""
    seeds = diverse.seeds(store)
    names = diverse.games(store)
    games = _training_tasks(store, [(name, seed) for seed in seeds for name in names])
    n = len(store.data.test_images)
    table, few = store.profile.eval_images or n, store.profile.curve_images or n
    measured = [
        Task(
            f"attacks of L2L-DA on {store.recipe(name).defence}, seed {seed}",
            PASS * table * 300, partial(diverse.measure, name=name, seed=seed),
            needs(games) | {_training(store, n, seed) for n in diverse.OTHERS},
        )
        for seed in seeds for name in (*diverse.OTHERS, *names)
    ]  # fmt: skip
    curves = [
        Task(
            f"measure losses of L2L-DA, seed {seed}", PASS * few * 600,
            partial(diverse.measure_curves, seed=seed),
            needs(games) | {_training(store, "pgm", seed)},
        )
        for seed in seeds
    ]  # fmt: skip
    return games + measured + curves


def _training_tasks(store: Store, needed: Sequence[tuple[str, int]]) -> list[Task]:
    images = len(store.data.train_images)
    tasks = []
    for name, seed in needed:
        recipe = store.recipe(name)
        if not store.finished(recipe, seed):
            seconds = PASS * images * recipe.epochs * (passes(recipe) + 0.5)
            before = set()
            start = recipe.warm_start
            if isinstance(start, str) and not store.finished(start, seed):
                before = {_training(store, start, seed)}
            work = partial(train, name=name, seed=seed)
            tasks.append(Task(_training(store, name, seed), seconds, work, before))
    return tasks


def _training(store: Store, name: str, seed: int) -> str:
    return f"train {store.recipe(name).defence}, seed {seed}"


def measurement_tasks(store: Store, models: Sequence[Task]) -> list[Task]:
    """What the notebooks measure, each once those of `models` (`model_tasks`) that it looks at are
    trained."""
    p, n = store.profile, len(store.data.test_images)
    table, curves = min(p.eval_images or n, n), min(p.curve_images or n, n)
    every = table * 250 + curves * (300 + 12 * len(experiments.EPSILONS))

    def trained(names: Sequence[str], seed: int) -> set[str]:
        return needs(models) & {_training(store, name, seed) for name in names}

    tasks = [
        Task(
            f"measure {store.recipe(name).defence}, seed {seed}",
            PASS * (every + (curves * 500 if name in DEFENCES else 0)),
            partial(measure, name=name, seed=seed),
            trained([name], seed),
        )
        for seed in store.seeds
        for name in ROWS
    ]
    for seed in store.seeds:
        curve = partial(experiments.measure_curves, seed=seed)
        tasks.append(
            Task(f"measure losses, seed {seed}", PASS * curves * 450, curve, trained(ROWS, seed))
        )
    transfer = experiments.measure_transfer
    tasks.append(Task("measure transfer", PASS * table * 80, transfer, needs(models)))
    return tasks


def imitation_tasks(store: Store) -> list[Task]:
    """The games of notebook 08 that are missing. Raises InputError where the memory is too small
    for one of them."""
    from l2lkit import gail  # Gymnasium and Stable-Baselines3 take seconds to import

    tasks = []
    for environment in gail.ENVIRONMENTS:
        for method in gail.METHODS:
            recipe = gail.recipe(environment, method, store.profile.name)
            for seed in gail.seeds(store):
                if not gail.finished(store, environment, method, seed):
                    gail.check_memory(gail.updated(recipe), str(store.device))
                    work = partial(imitate, environment=environment, method=method, seed=seed)
                    what = f"{method}, {environment}, seed {seed}"
                    tasks.append(Task(what, 0.12 * recipe.iterations, work))
    return tasks


def imitate(store: Store, environment: str, method: str, seed: int) -> None:
    from l2lkit import gail

    gail.played(store, environment, method, seed)


_worker: Store  # of a worker process


def _start_worker(parameters: dict) -> None:
    global _worker
    _worker = Store(**parameters)
    # For the kernels that execute notebooks: two side by side, each with as many threads as there
    # are cores, wait for one another (notebook 06 takes 32 s so, and 20 s with one thread).
    os.environ["OMP_NUM_THREADS"] = str(_worker.profile.threads)
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


def work_off(store: Store, tasks: Sequence[Task], workers: int) -> list[str | None]:
    """Do the tasks, each after those it needs, `workers` at a time, each in a process of its own
    where there are several; returns their outcomes. Of the tasks that may start, the longest does,
    so that no core waits for another at the end.

    A terminal shows a bar with the time left, a log a line a task. Ctrl-C stops at once.
    """
    total, started = sum(task.seconds for task in tasks), time.monotonic()
    done = 0.0
    outcomes: list[str | None] = []
    waiting, missing = sorted(tasks, key=lambda task: -task.seconds), needs(tasks)
    # The bar keeps to a terminal (disable=None); in a log the lines stand alone.
    bar = tqdm(
        total=total, disable=None, leave=False,
        bar_format="{percentage:3.0f}%|{bar:24}| {elapsed}, about {remaining} left · {desc}",
    )  # fmt: skip

    def start() -> Task | None:
        task = next((task for task in waiting if not task.needs & missing), None)
        if task:
            waiting.remove(task)
        return task

    def finished(task: Task, outcome: str | None, seconds: float) -> None:
        nonlocal done
        done += task.seconds
        missing.discard(task.what)
        outcomes.append(outcome)
        bar.update(done - bar.n)
        now = time.monotonic() - started
        tqdm.write(
            f"[{_clock(now)}, about {_clock(now * (total - done) / done)} left] "
            f"{len(outcomes)}/{len(tasks)} {task.what} ({seconds:.0f} s)"
        )

    def on_progress(task: Task, what: str, share: float) -> None:
        bar.set_description_str(what, refresh=False)
        bar.update(share * task.seconds)

    with bar:
        if workers == 1:
            while task := start():
                store.on_progress = partial(on_progress, task)
                bar.set_description_str(task.what)
                began = time.monotonic()
                finished(task, task.work(store), time.monotonic() - began)
            return outcomes
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(workers, context, _start_worker, (store.parameters(),))
        running: dict[Future, Task] = {}
        try:
            while True:
                while len(running) < workers and (task := start()):
                    running[pool.submit(_in_worker, task.work)] = task
                if not running:
                    break
                bar.set_description_str(", ".join(task.what for task in running.values()))
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    finished(running.pop(future), *future.result())
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
