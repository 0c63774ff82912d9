"""The main job: train and measure what the notebooks need, execute them, write the report."""

from functools import partial

from l2lkit.files import check_place, check_writable
from l2lkit.results.plan import GROUPS
from l2lkit.runs.store import Store
from l2lkit.runs.workers import Task, work_off
from l2lkit.show import notebooks, report


def run(store: Store, only: str | None = None, publish: bool = False) -> int:
    """Train, measure, execute the notebooks, write the report; returns how many notebooks failed.

    What an earlier run of the same profile finished is used as it is. `only` is a list of
    notebook numbers, as "01,05". With `publish` the executed notebooks replace those of
    notebooks/, and the figures go to figures/published/.
    Raises InputError for a wrong selection, missing data, an output directory that
    cannot be written or a disk without room, before any long work.
    """
    chosen = notebooks.select(only)
    check_place(store.output)
    data = store.data
    store.prepare()
    check_writable(store.runs, store.figures)
    workers, precision = store.workers(), store.recipe("plain").precision
    print(
        f"{data.title}: {len(data.train_images):,} training and {len(data.test_images):,} test "
        f"images; profile {store.profile.name} on {store.device} in {precision}, seeds "
        f"{', '.join(map(str, store.seeds))}, {workers} at a time",
        flush=True,
    )
    groups: dict[str, list[Task]] = {}
    last: list[Task] = []
    for path in sorted(chosen, key=lambda path: "answers" in notebooks.needs(path)):
        before: set[str] = set()
        for name in notebooks.needs(path):
            if name == "answers":  # what the other notebooks say
                before |= {task.name for task in last}
                continue
            groups.setdefault(name, GROUPS[name](store))
            before |= {task.name for task in groups[name]}
        work = partial(notebooks.execute, path=path)
        last.append(Task(f"notebook/{path.stem}", f"notebook {path.stem}", work, frozenset(before)))
    after = frozenset(task.name for task in last)
    tasks = {task.name: task for group in groups.values() for task in group}
    tasks |= {task.name: task for task in last}
    tasks["report"] = Task("report", "report", write_report, after)
    failed = work_off(store, list(tasks.values()), workers)
    if publish:
        for path in chosen:
            if path.stem not in failed:
                notebooks.publish(store, path)
        notebooks.publish_figures(store)
    print(f"Figures  {store.figures}\nTables   {store.runs / 'tables' / store.dataset}")
    print(f"Report   {store.runs / 'report' / 'index.html'}")
    if failed:
        where = notebooks.executed(store, chosen[0]).parent
        print(f"FAILED   {', '.join(failed)}; as far as they got: {where}")
    return len(failed)


def write_report(store: Store) -> None:
    report.write(store)
