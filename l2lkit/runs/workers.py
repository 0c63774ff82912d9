"""Many tasks on the cores of one machine, each after those it needs, the longest first."""

import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence, Set
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from graphlib import TopologicalSorter
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from tqdm import tqdm

from l2lkit.errors import InputError
from l2lkit.files import repository, write_json
from l2lkit.game.recipe import Recipe
from l2lkit.game.step import Players, step
from l2lkit.runs.store import Store


@dataclass(frozen=True)
class Task:
    """A piece of work: its name, which no other task has, the words that the progress shows, the
    work, which returns None or the name of what failed, the names of the tasks that come before it,
    and the recipe of a task that trains. Names that are no task of the run count as done."""

    name: str
    words: str
    work: Callable[[Store], str | None]
    needs: Set[str] = frozenset()
    recipe: Recipe | None = None


class Durations:
    """How long each task took when it was last done here, or else in the recorded run, in
    proportion to this machine's speed; of a training without a record, what its steps will take.
    It decides the order, and the time left."""

    def __init__(self, store: Store):
        self.path = store.runs / "seconds.json"
        root, name = repository(), f"seconds-{store.profile.name}.json"
        recorded = _read(root / "results" / "recorded" / name) if root else {}
        own = _read(self.path)
        self.store, self.one_core = store, store.profile.threads == 1  # else a step takes long
        # Four steps of the paper's network take minutes on a core, and it has no record.
        self.step = own.get("step") or (step_seconds(store) if self.one_core else 0.0)
        scale = self.step / recorded["step"] if self.step and recorded.get("step") else 1.0
        self.known = {task: s * scale for task, s in recorded.get("seconds", {}).items()}
        self.known |= own.get("seconds", {})
        self.by_step: dict[str, float] = {}

    def estimate(self, task: Task) -> float | None:
        """Seconds: the task's own, else by a step of its recipe, else the mean of its kind; None
        where there is nothing like it."""
        if task.name in self.known:
            return self.known[task.name]
        if task.recipe and self.one_core:
            if task.recipe.name not in self.by_step:
                self.by_step[task.recipe.name] = training_seconds(self.store, task.recipe)
            return self.by_step[task.recipe.name]
        kind = task.name.split("/")[0] + "/"
        alike = [seconds for name, seconds in self.known.items() if name.startswith(kind)]
        return mean(alike) if alike else None

    def expected(self, task: Task) -> float:
        """Seconds: those of what is like the task, else the mean of all, else 1."""
        seconds = self.estimate(task)
        return mean(self.known.values() or [1.0]) if seconds is None else seconds

    def keep(self, task: Task, seconds: float) -> bool:
        """Remember, unless it took less than a tenth of the last time, for then it was found done;
        returns whether it was work."""
        if seconds < self.known.get(task.name, 0) / 10:
            return False
        self.known[task.name] = round(seconds, 1)
        own = _read(self.path).get("seconds", {}) | {task.name: round(seconds, 1)}
        write_json(self.path, {"step": self.step, "seconds": own})
        return True


def training_seconds(store: Store, recipe: Recipe) -> float:
    """What training this recipe will take here, by two of its steps."""
    steps = -(-len(store.data.train_images) // recipe.batch_size) * recipe.epochs
    return steps * step_seconds(store, recipe, 2)


def step_seconds(store: Store, recipe: Recipe | None = None, times: int = 4) -> float:
    """Seconds that one batch takes here in training, on one worker's threads: the shortest of so
    many. Without a recipe it is the Plain Net's, which tells how fast this machine is."""
    recipe, data = recipe or store.recipe("plain"), store.data
    with store.computing(), torch.random.fork_rng():
        players = Players.build(recipe, data, store.device)
        x, y = data.train_images[: recipe.batch_size].float() / 255, data.train_labels
        seconds = []
        for _ in range(times):  # the first allocates
            began = time.perf_counter()
            for _ in range(players.attack.replays if players.attack else 1):
                loss = step(players, x, y[: len(x)])[0]
            loss.item()  # waits for the device
            seconds.append(time.perf_counter() - began)
    return min(seconds)


def _read(path: Path) -> dict[str, Any]:
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
        return read if isinstance(read.get("seconds"), dict) else {}
    except (OSError, ValueError, AttributeError):
        return {}


class TimeLeft:
    """What is left of the expected seconds, corrected by how long finished tasks took in proportion
    to what was expected of them. Tasks that were found done tell nothing."""

    def __init__(self, expected: Mapping[str, float], workers: int):
        self.expected, self.workers = dict(expected), workers
        self.began: dict[str, float] = {}
        self.taken, self.promised = 30.0, 30.0  # half a minute as promised, to begin with

    def start(self, name: str) -> None:
        self.began[name] = time.monotonic()

    def finish(self, name: str, seconds: float | None) -> None:
        """`seconds` is None where the task was found done."""
        if seconds is not None:
            self.taken += seconds
            self.promised += self.expected[name]
        self.expected.pop(name), self.began.pop(name, None)

    def seconds(self) -> float:
        pace, now = self.taken / self.promised, time.monotonic()
        left = [
            max(0.0, expected * pace - (now - self.began.get(name, now)))
            for name, expected in self.expected.items()
        ]
        return max(sum(left) / self.workers, max(left, default=0.0))


def work_off(store: Store, tasks: Sequence[Task], workers: int) -> list[str]:
    """Do the tasks, `workers` at a time, each in a process of its own where there are several;
    returns the names of what failed. Of the tasks that may start, the longest does, so that no core
    waits for another at the end.

    A terminal shows a bar with the time left, a log a line a task. Ctrl-C stops at once.
    """
    durations, by_name = Durations(store), {task.name: task for task in tasks}
    expected = {task.name: durations.expected(task) for task in tasks}
    graph = {task.name: task.needs & by_name.keys() for task in tasks}
    sorter, ready = TopologicalSorter(graph), list[str]()
    sorter.prepare()
    started, over, failed = time.monotonic(), list[str](), list[str]()
    left = TimeLeft(expected, workers)
    # The bar keeps to a terminal (disable=None); in a log the lines stand alone.
    look = "{percentage:3.0f}%|{bar:24}| {elapsed}{postfix} · {desc}"
    bar = tqdm(total=sum(expected.values()), disable=None, leave=False, bar_format=look)

    def start() -> Task | None:
        ready.extend(sorter.get_ready())
        ready.sort(key=lambda name: expected[name])
        if not ready:
            return None
        left.start(ready[-1])
        return by_name[ready.pop()]

    def finished(task: Task, outcome: str | None, seconds: float) -> None:
        left.finish(task.name, seconds if durations.keep(task, seconds) else None)
        sorter.done(task.name)
        over.append(task.name)
        if outcome:
            failed.append(outcome)
        bar.update(sum(expected[name] for name in over) - bar.n)
        remaining = clock(left.seconds())
        bar.set_postfix_str(f"about {remaining} left", refresh=False)
        tqdm.write(
            f"[{clock(time.monotonic() - started)}, about {remaining} left] "
            f"{len(over)}/{len(tasks)} {task.words} ({seconds:.0f} s)"
        )

    def on_progress(task: Task, what: str, share: float) -> None:
        bar.set_description_str(what, refresh=False)
        bar.set_postfix_str(f"about {clock(left.seconds())} left", refresh=False)
        bar.update(share * expected[task.name])

    with bar:
        if workers == 1:
            while task := start():
                store.on_progress = partial(on_progress, task)
                bar.set_description_str(task.words)
                began = time.monotonic()
                finished(task, task.work(store), time.monotonic() - began)
            return failed
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(workers, context, _start_worker, (store.parameters(),))
        running: dict[Future, Task] = {}
        try:
            while True:
                while len(running) < workers and (task := start()):
                    running[_submit(pool, task.work)] = task
                if not running:
                    break
                bar.set_description_str(", ".join(task.words for task in running.values()))
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    finished(running.pop(future), *future.result())
        except BaseException as error:
            for process in multiprocessing.active_children():
                process.terminate()
            pool.shutdown(wait=False, cancel_futures=True)
            if isinstance(error, BrokenProcessPool):
                raise InputError(
                    "A worker process was killed, most often by the system when memory runs out: "
                    "close other programs. The same command goes on from here."
                ) from error
            raise
        pool.shutdown()
    return failed


def _submit(pool: ProcessPoolExecutor, work: Callable[[Store], str | None]) -> Future:
    """Hand the work to a process, which if it is new starts deaf to Ctrl-C: a terminal sends that
    to all, and the run ends its workers itself."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return pool.submit(_in_worker, work)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


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


def clock(seconds: float) -> str:
    """As 01:05, or 1:01:05."""
    return tqdm.format_interval(round(seconds))
