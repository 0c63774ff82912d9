"""What has to be trained and measured before notebooks run: the tasks, group by group.

A notebook declares the groups it needs in its metadata, as {"l2lkit": {"needs": ["defences"]}}.
"""

from collections.abc import Callable, Iterable
from functools import partial

from l2lkit.checks import measures
from l2lkit.game.recipe import Recipe
from l2lkit.recipes import DEFENCES, INTERPOLATION, SLIM, TODAY
from l2lkit.results import cheats, checklist, diverse, experiments
from l2lkit.runs.store import Store
from l2lkit.runs.workers import Task

ROWS = (*DEFENCES, *SLIM, *TODAY)


def train(store: Store, name: str | Recipe, seed: int) -> None:
    store.model(name, seed)


def measure(store: Store, name: str, seed: int) -> None:
    """What notebooks 03 and 06 ask of one model: the whole checklist of the papers' main rows,
    AutoAttack of all."""
    model = store.model(name, seed)
    experiments.white_box(store, [name], [seed])
    experiments.against_epsilon(store, [name], [seed])
    if name in DEFENCES:
        checklist.alone(store, model)
    else:
        measures.survivors(store.subject(model), store.budget, model.own_attack)


def measure_row(store: Store, name: str, seed: int) -> None:
    """The white-box table's accuracies of one model, and AutoAttack's."""
    model = store.model(name, seed)
    experiments.white_box(store, [name], [seed])
    measures.survivors(store.subject(model), store.budget, model.own_attack)


def measure_curves(store: Store, seed: int) -> None:
    """What notebooks 04 and 05 measure on the models of one seed."""
    experiments.loss_curves(store, seeds=[seed])
    experiments.roughness(store, seeds=[seed])


def measure_transfer(store: Store) -> None:
    experiments.black_box(store)


def measure_interpolation(store: Store, name: str, seed: int) -> None:
    """What notebook 06 asks of one model of adversarial interpolation."""
    checklist.under_each(store, [name], [seed])


def measure_diverse(store: Store, name: str, seed: int) -> None:
    """What notebook 07 asks of one model."""
    diverse.white_box(store, [store.recipe(name)], [seed], diverse.DESIGNED)
    if seed == store.seed and name in diverse.joint(store):
        diverse.everything(store, [name], seed)


def examine(store: Store, name: str) -> None:
    """What notebook 09 asks of one classifier."""
    cheats.examined(store, name, store.seed)


def measure_restarts(store: Store, seed: int) -> None:
    """What notebook 07's Figure 2 asks of the models of one seed."""
    full, star = (f"{experiments.family(store)}/{name}" for name in ("full", "l2l-star"))
    diverse.restarts(store, ["pgm", full], star, full, [seed])


def play(store: Store, environment: str, method: str, seed: int) -> None:
    from l2lkit.gail.game import gail_recipe
    from l2lkit.results import gail

    gail.played(store, gail_recipe(environment, method, store.profile.name), seed)


def defences(store: Store) -> list[Task]:
    """The models of the tables, each after the one it starts from, and what is measured on them."""
    wanted = [(name, seed) for seed in store.seeds for name in ROWS]
    other = experiments.surrogate_seed(store)
    surrogates = [(name, other) for name in experiments.SURROGATES]
    tasks = _training(store, dict.fromkeys([*wanted, *surrogates]))
    models = {name: store.recipe(name) for name in ROWS}
    for name, seed in wanted:
        recipe, work = models[name], partial(measure, name=name, seed=seed)
        words = f"measure {recipe.defence}, seed {seed}"
        tasks.append(Task(f"measure/{recipe.name}/{seed}", words, work, {_trains(recipe, seed)}))
    for seed in store.seeds:
        needs = {_trains(recipe, seed) for recipe in models.values()}
        work = partial(measure_curves, seed=seed)
        tasks.append(Task(f"losses/{seed}", f"measure losses, seed {seed}", work, needs))
    needs = {task.name for task in tasks if task.name.startswith("train/")}
    tasks.append(Task("transfer", "measure transfer", measure_transfer, needs))
    return tasks


def rows(store: Store, names: Iterable[str]) -> list[Task]:
    """These models alone, of all seeds, each after the one it starts from, and the white-box table
    of each."""
    names = list(dict.fromkeys(names))
    starts = [start for name in names if isinstance(start := store.recipe(name).warm_start, str)]
    tasks = _training(store, [(n, s) for s in store.seeds for n in _recipes(store, starts, names)])
    for name, seed in [(name, seed) for seed in store.seeds for name in names]:
        recipe, work = store.recipe(name), partial(measure_row, name=name, seed=seed)
        words = f"measure {recipe.defence}, seed {seed}"
        tasks.append(Task(f"row/{recipe.name}/{seed}", words, work, {_trains(recipe, seed)}))
    return tasks


def l2l_da(store: Store) -> list[Task]:
    """Notebook 07's games, and what it measures on them and on others."""
    seeds, names = diverse.seeds(store), diverse.games(store)
    everything = (*diverse.OTHERS, *names)
    tasks = _training(store, [(name, seed) for seed in seeds for name in names])
    for seed in seeds:
        trained = {name: _trains(store.recipe(name), seed) for name in everything}
        games = {trained[name] for name in names}
        for name in everything:
            recipe, work = store.recipe(name), partial(measure_diverse, name=name, seed=seed)
            words = f"attacks of L2L-DA on {recipe.defence}, seed {seed}"
            needs = games | {trained[name]}
            tasks.append(Task(f"attack/{recipe.name}/{seed}", words, work, needs))
        words, work = f"measure losses of L2L-DA, seed {seed}", partial(measure_restarts, seed=seed)
        tasks.append(Task(f"restarts/{seed}", words, work, games | {trained["pgm"]}))
    return tasks


def interpolation(store: Store) -> list[Task]:
    """Notebook 06's games of adversarial interpolation, on as many seeds as L2L-DA's, and what it
    measures on them."""
    wanted = [(name, seed) for seed in diverse.seeds(store) for name in INTERPOLATION]
    tasks = _training(store, wanted)
    for name, seed in wanted:
        words = f"measure {store.recipe(name).defence}, seed {seed}"
        work = partial(measure_interpolation, name=name, seed=seed)
        needs = frozenset({_trains(store.recipe(name), seed)})
        tasks.append(Task(f"measure/{name}/{seed}", words, work, needs))
    return tasks


def cheating(store: Store) -> list[Task]:
    """The checks of notebook 09 on the first seed: the collapsed classifier is trained for them,
    the others stand on models of `defences`."""
    recipe = cheats.collapsed(store)
    games = [game for game in (recipe.warm_start, recipe) if game]
    tasks = _training(store, [(game, store.seed) for game in games])
    for name in cheats.NAMES:
        needs = frozenset({_trains(cheats.base(store, name), store.seed)})
        work = partial(examine, name=name)
        tasks.append(Task(f"check/{name}/{store.seed}", f"check {name}", work, needs))
    return tasks


def imitation(store: Store) -> list[Task]:
    """The games of notebook 08 that are missing. Raises InputError where the memory is too small
    for one of them."""
    from l2lkit.gail import game  # Gymnasium and Stable-Baselines3 take seconds to import
    from l2lkit.gail.environments import ENVIRONMENTS
    from l2lkit.gail.networks import check_memory
    from l2lkit.results import gail

    tasks = []
    for environment in ENVIRONMENTS:
        for method in game.METHODS:
            recipe = game.gail_recipe(environment, method, store.profile.name)
            for seed in gail.seeds(store):
                if gail.finished(store, recipe, seed):
                    continue
                check_memory(game.updated(recipe), str(store.device))
                work = partial(play, environment=environment, method=method, seed=seed)
                words = f"{method}, {environment}, seed {seed}"
                tasks.append(Task(f"play/{environment}/{method}/{seed}", words, work))
    return tasks


GROUPS: dict[str, Callable[[Store], list[Task]]] = {
    "defences": defences,
    "interpolation": interpolation,
    "l2l-da": l2l_da,
    "cheats": cheating,
    "imitation": imitation,
}


def _recipes(store: Store, *groups: Iterable[str]) -> list[str]:
    """The names of all these, in full and each once."""
    return list(dict.fromkeys(store.recipe(name).name for group in groups for name in group))


def _trains(recipe: Recipe, seed: int) -> str:
    return f"train/{recipe.name}/{seed}"


def _training(store: Store, wanted: Iterable[tuple[str | Recipe, int]]) -> list[Task]:
    """A task for every model that is not there, after the one it starts from."""
    tasks = []
    for name, seed in wanted:
        recipe = store.recipe(name)
        if store.finished(recipe, seed):
            continue
        start = recipe.warm_start
        needs = {_trains(store.recipe(start), seed)} if start else set()
        words, work = f"train {recipe.defence}, seed {seed}", partial(train, name=name, seed=seed)
        tasks.append(Task(_trains(recipe, seed), words, work, needs, recipe))
    return tasks
