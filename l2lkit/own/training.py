"""`train SPEC --recipe NAME`: a person's own classifier against any recipe's attacker."""

import argparse
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from l2lkit.checks.examination import full_check
from l2lkit.data import Dataset
from l2lkit.errors import InputError, check_positive
from l2lkit.files import check_writable, write_atomically
from l2lkit.game import loop
from l2lkit.game.recipe import Recipe
from l2lkit.game.solver import Solver
from l2lkit.own import commands
from l2lkit.own.loading import Program, load_classifier, named_by
from l2lkit.runs.store import Store


@dataclass(frozen=True, kw_only=True)
class OwnClassifier:
    """Makes the classifier that a SPEC names; `content` is a digest of the files that decide it, so
    that a model of another content is another model."""

    spec: str
    weights: str | None
    mean: Sequence[float] | None
    std: Sequence[float] | None
    content: str

    def __call__(self, classes: int, channels: int, size: int) -> nn.Module:
        network = load_classifier(
            self.spec, classes=classes, weights=self.weights, mean=self.mean, std=self.std
        )
        if any(isinstance(m, Program) for m in network.modules()):
            raise InputError(
                f"{self.spec} is a program of torch.export, which cannot be trained: name the "
                "function that makes the module."
            )
        return network


def content(*places: str | None) -> str:
    """16 hex digits of these files, as far as they are some."""
    digest = hashlib.sha256()
    for place in places:
        path = Path((place or "").rpartition(":")[0] or place or "")
        if path.is_file():
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def own_recipe(store: Store, name: str, own: OwnClassifier, args: argparse.Namespace) -> Recipe:
    """The recipe of that name at the store's profile with this classifier. Where the profile starts
    from Plain Net it starts from this classifier trained on clean images, or from its weights."""
    recipe, plain = store.recipe(name), store.recipe("plain")
    start = replace(
        plain, name="own/plain", defence="Plain Net, own", classifier=own, warm_start=None
    )
    changes = {"batch_size": args.batch_size, "epochs": args.epochs}
    changes = {k: v for k, v in changes.items() if v is not None}
    check_positive(**changes)
    return replace(
        recipe,
        name=f"own/{recipe.name}",
        defence=f"{recipe.defence}, own",
        classifier=own,
        warm_start=start if recipe.warm_start and not own.weights else None,
        **changes,
    )


def own_attacker(recipe: Recipe, place: str) -> Recipe:
    """The recipe with the attacker at FILE.py:NAME in the place of its own. InputError if there is
    none, or the recipe trains against nothing that learns."""
    if not recipe.learned:
        raise InputError(f"{recipe.name} trains against no learned attacker: take grad, say.")
    wanted = "makes an attacker: it must be callable as (shape, classes) -> l2lkit.Attacker"
    attacker = named_by(place, wanted)
    if isinstance(attacker, Solver):
        raise InputError(f"{place} is a solver and nothing that {wanted}.")
    return replace(recipe, attack=attacker)


def rehearse(recipe: Recipe, data: Dataset, place: str) -> None:
    """One batch of the game with the attacker at this place, against a small classifier, before
    long work. InputError for whatever it raises, and for a δ that is none."""
    few = data.subset(recipe.batch_size, 4)
    game = replace(recipe, classifier="wrn-10-1", warm_start=None, epochs=1)
    try:
        players = loop.train(game, few, seed=0)[0]
        if players.attack:
            players.attack(players.classifier, *few.test(4))
    except InputError:
        raise
    except Exception as error:  # a person's own code raises anything
        words = f"{type(error).__name__}: {' '.join(str(error).split())[:150]}"
        raise InputError(f"{place} fails on one batch ({words}): mend it first.") from error


def train(args: argparse.Namespace) -> int:
    """Run the command; 1 where an item of the check at the end fails."""
    store = Store(
        args.profile, args.dataset, args.data, args.device, args.seed, output=args.output,
        retrain=args.retrain,
    )  # fmt: skip  # as in __main__
    own = OwnClassifier(
        spec=args.recipe,
        weights=args.weights,
        mean=args.mean,
        std=args.std,
        content=content(args.recipe, args.weights),
    )
    recipe = own_recipe(store, args.own, own, args)
    if args.attacker:
        recipe = own_attacker(recipe, args.attacker)
        rehearse(recipe, store.data, args.attacker)
    store.prepare()
    check_writable(store.runs)
    _try(own, store)
    with tqdm(disable=None, bar_format="{desc}", leave=False) as bar:
        store.on_progress = lambda what, share: bar.set_description_str(what)
        model = store.model(recipe)
    folder = store.where(recipe, args.seed)
    state = {k: v.cpu() for k, v in model.classifier.state_dict().items()}
    prefix = "classifier." if args.mean else ""
    state = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    write_atomically(folder / "weights.pt", lambda p: torch.save(state, p))
    print(model.log.round(4).to_string(index=False))
    print(f"{model.defence}: {model.status}; --weights {folder / 'weights.pt'}")
    images, labels = store.images(args.images)
    result = full_check(
        model.classifier,
        images,
        labels,
        epsilon=model.attack.epsilon if model.attack else 0.031,
        attacker=model.own_attack,
        seed=args.seed,
    )
    commands.print_rows(result.frame)
    print(commands.summary(result))
    return 1 if result.failed else 0


def _try(own: OwnClassifier, store: Store) -> None:
    """One batch through the classifier as training shows it, before long work."""
    data = store.data
    channels, _, width = data.train_images.shape[1:]
    network = own(data.num_classes, channels, width).to(store.device)
    x = data.train_images[:4].float() / 255
    try:
        logits = network.train()(x)
    except RuntimeError as error:
        first = str(error).strip().splitlines()[0][:150]
        raise InputError(
            f"The classifier cannot be trained on images of {'×'.join(map(str, x.shape[1:]))} "
            f"({first}): bring them to the size and channels it wants."
        ) from error
    if logits.shape[1:] != (data.num_classes,):
        raise InputError(
            f"The classifier answers with {'×'.join(map(str, logits.shape[1:]))} numbers an image, "
            f"and the data have {data.num_classes} classes: give it one output a class."
        )
