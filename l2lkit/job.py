"""The main job: train and measure what the notebooks need, execute them, write the report."""

import json
from collections.abc import Sequence
from contextlib import suppress
from functools import partial

from l2lkit.files import check_place, check_writable
from l2lkit.names import select_notebooks
from l2lkit.results import checklist, plan, published
from l2lkit.runs.store import Store
from l2lkit.runs.workers import Durations, Task, clock, work_off
from l2lkit.show import notebooks, report


def run(
    store: Store, only: str | None = None, publish: bool = False, plan_only: bool = False
) -> int:
    """Train, measure, execute the notebooks, write the report; returns how many notebooks failed.

    What an earlier run of the same profile finished is used as it is. `only` is a list of
    notebook numbers, as "01,05". With `publish` the executed notebooks replace those of
    notebooks/, and the figures go to figures/published/. With `plan_only` the tasks are printed,
    and nothing is done.
    Raises InputError for a wrong selection, missing data, an output directory that
    cannot be written or a disk without room, before any long work.
    """
    chosen = select_notebooks(only)
    workers = begin(store, plan_only)
    groups: dict[str, list[Task]] = {}
    last: list[Task] = []
    for path in sorted(chosen, key=lambda path: "answers" in notebooks.needs(path)):
        before: set[str] = set()
        for name in notebooks.needs(path):
            if name == "answers":  # what the other notebooks say
                before |= {task.name for task in last}
                continue
            groups.setdefault(name, plan.GROUPS[name](store))
            before |= {task.name for task in groups[name]}
        work = partial(notebooks.execute, path=path)
        last.append(Task(f"notebook/{path.stem}", f"notebook {path.stem}", work, frozenset(before)))
    after = frozenset(task.name for task in last)
    tasks = {task.name: task for group in groups.values() for task in group}
    tasks |= {task.name: task for task in last}
    tasks["report"] = Task("report", "report", write_report, after)
    if plan_only:
        return print_plan(store, list(tasks.values()), workers)
    failed = work_off(store, list(tasks.values()), workers)
    if publish:
        for path in chosen:
            if path.stem not in failed:
                notebooks.publish(store, path)
        notebooks.publish_figures(store)
        notebooks.publish_seconds(store)
    print(f"Figures  {store.figures}\nTables   {store.runs / 'tables' / store.dataset}")
    print(f"Report   {store.runs / 'report' / 'index.html'}")
    if failed:
        where = notebooks.executed(store, chosen[0]).parent
        print(f"FAILED   {', '.join(failed)}; as far as they got: {where}")
    return len(failed)


def run_rows(store: Store, names: Sequence[str], plan_only: bool = False) -> int:
    """Train and measure these recipes alone, and print the white-box table. As for `run`, what is
    there is used, and the same command goes on where another was interrupted."""
    for name in names:
        store.recipe(name)
    workers = begin(store, plan_only)
    tasks = plan.rows(store, names)
    if plan_only:
        return print_plan(store, tasks, workers)
    work_off(store, tasks, workers)
    print(published.text(checklist.table(checklist.by_seed(store, names)).reset_index()))
    return 0


def begin(store: Store, plan_only: bool) -> int:
    """Say what is about to happen; returns how many tasks run side by side. InputError for missing
    data and for places that cannot be written."""
    check_place(store.output)
    data = store.data
    if not plan_only:
        store.prepare()
        check_writable(store.runs, store.figures)
    workers, precision = store.workers(), store.recipe("plain").precision
    print(
        f"{data.title}: {len(data.train_images):,} training and {len(data.test_images):,} test "
        f"images; profile {store.profile.name} on {store.device} in {precision}, seeds "
        f"{', '.join(map(str, store.seeds))}; {workers} models at a time",
        flush=True,
    )
    if others := in_other_precision(store, precision):
        print(
            f"Of the models there, {others} of {store.dataset} were trained in another precision "
            f"than {precision}, which is what is fast on this machine. They stay, but this machine "
            "trains its own: to go on with them, use a machine like the one that made them.",
            flush=True,
        )
    return workers


def in_other_precision(store: Store, precision: str) -> int:
    """How many finished models of the store's dataset were trained in another precision, by GPUs
    and processors with bfloat16 or by those without. They are other models, with other keys."""
    count = 0
    for path in (store.runs / "models" / store.dataset).glob("*/seed-*/record.json"):
        with suppress(OSError, ValueError, KeyError, TypeError):  # a broken one is made anew
            count += json.loads(path.read_text())["recipe"]["precision"] != precision
    return count


def print_plan(store: Store, tasks: Sequence[Task], workers: int) -> int:
    """A line a task with the time it is expected to take, "?" where nothing like it is on record,
    and the sum; returns 0."""
    durations = Durations(store)
    seconds = [durations.estimate(task) for task in tasks]
    for task, one in zip(tasks, seconds, strict=True):
        print(f"{'?' if one is None else clock(one):>9}  {task.words}")
    known = [one for one in seconds if one is not None]
    total = max(sum(known) / workers, max(known, default=0.0))
    without = ", without what has a ?" if len(known) < len(tasks) else ""
    print(f"{len(tasks)} tasks, about {clock(total)}{without}; what is measured already is found.")
    return 0


def write_report(store: Store) -> None:
    report.write(store)
