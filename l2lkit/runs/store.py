"""Where results live: runs, resuming, provenance.

    runs/<profile>/models/<dataset>/<recipe>-<fingerprint>/seed-<n>/   checkpoint, log, record
    runs/<profile>/measurements/<dataset>/…                            per-image outcomes
    runs/<profile>/tables/<dataset>/, notebooks/<dataset>/, report/
    figures/<profile>-<dataset>/                                       PNG, SVG and captions

What exists and fits is never computed again. A model is told from others by its recipe, the images
and the recipe it starts from; a measurement by the classifier's weights and the keys of the attacks
on it. Both remember which code made them: a result of other code than now is used, and the caption
says so, until a store with `retrain` makes it anew.
"""

import copy
import json
import os
import platform
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from l2lkit import data as datasets
from l2lkit import distributed, files, names, recipes
from l2lkit.checks.attacks import Budget, auto_attack
from l2lkit.checks.subject import Subject
from l2lkit.errors import InputError, whole_number
from l2lkit.game import loop
from l2lkit.game.cpu import keep_memory
from l2lkit.game.identity import code, fingerprint
from l2lkit.game.recipe import Recipe
from l2lkit.game.solver import Solver
from l2lkit.runs import box as boxes
from l2lkit.runs import machine
from l2lkit.runs.model import Model

LAYOUT = "2"  # of the folder runs/<profile>; raised whenever older folders would be misread
TRAINING = ("data", "diverse", "game")  # the rooms whose code decides a model's numbers
MEASURING = (*TRAINING, "checks")  # and a measurement's


class Store:
    """The models and measurements of one profile on one dataset, computed when first asked for.

    `profile`: smoke, quick, night or paper. `dataset`, `data`: as `l2lkit.load` takes them.
    `device`: auto, cpu or cuda. `seed`: the first of the seeds, `seeds`: how many (default: the
    profile's number). `output`: the directory that gets runs/ and figures/ (default: the project's
    checkout, else the current folder). `retrain`: what other code than this made is made anew.
    `box`: where nothing has been trained yet, take the run that comes with the package (`box`).
    Raises InputError for an unknown name and for results of an older layout, at once; the data are
    read when first needed.
    """

    def __init__(
        self,
        profile: str = "quick",
        dataset: str = "digits",
        data: str | Path | None = None,
        device: str = "auto",
        seed: int = 0,
        seeds: int | None = None,
        output: str | Path | None = None,
        retrain: bool = False,
        box: bool = False,
        on_progress: Callable[[str, float], None] | None = None,
    ):
        names.check_seeds(seed, seeds)
        names.check_dataset(dataset)
        self.profile = recipes.profile(profile)
        self.asked_seeds = seeds is not None
        if seeds is not None:
            self.profile = replace(self.profile, seeds=seeds)
        if "" in (data, output):
            raise InputError("--data and --output are empty: name a place, or leave them out.")
        self.dataset, self.seed = dataset, seed
        self._data = os.path.expanduser(data) if data else None
        self.device = machine.pick_device(device)
        if not machine.has_bfloat16(self.device):
            self.profile = replace(self.profile, precision="float32")
        self.on_progress = on_progress or (lambda what, share: None)
        self.output = Path(os.path.expanduser(output)) if output else files.default_output()
        self.runs = self.output / "runs" / profile
        self.figures = self.output / "figures" / f"{profile}-{dataset}"
        self.retrain = retrain
        self.of_other_code: set[str] = set()  # results that were used and other code made
        self._models: dict[str, Model] = {}
        self._check_layout()
        self.boxed: dict[str, Any] | None = None  # the card of the box that this store works on
        usual = data is None and seed == 0 and seeds in (None, recipes.profile(profile).seeds)
        if box and usual and not (self.runs / "models" / dataset).exists():
            self.boxed, self.runs = boxes.opened(self.runs, dataset)
        if self.boxed:
            self.profile = replace(self.profile, precision=self.boxed["precision"])

    @classmethod
    def here(cls, **settings: Any) -> "Store":
        """The store with these settings; those left out are taken from the environment, from
        L2LKIT_PROFILE, L2LKIT_DATASET, _DATA, _DEVICE, _SEED, _SEEDS and _OUTPUT. With `box`."""
        settings = {"box": True} | settings
        for name in ("profile", "dataset", "data", "device", "seed", "seeds", "output"):
            variable = f"L2LKIT_{name.upper()}"
            value = os.environ.get(variable)
            if value and name not in settings:
                settings[name] = whole_number(variable, value) if "seed" in name else value
        return cls(**settings)

    def _check_layout(self) -> None:
        mark = self.runs / "layout"
        old = any(os.path.isdir(self.runs / part) for part in ("models", "measurements", "gail"))
        kept = "1" if old else LAYOUT
        if os.path.isfile(mark):
            kept = mark.read_text(errors="replace").strip()
        if kept != LAYOUT:
            raise InputError(
                f"{self.runs} was written by another version of l2lkit (layout {kept}, this one "
                f"reads {LAYOUT}): move it away, or name another directory with --output."
            )

    def prepare(self) -> None:
        """Make the folder of the runs. InputError if it cannot be written."""
        if not (self.runs / "layout").is_file():
            files.write_text(self.runs / "layout", LAYOUT + "\n")

    @cached_property
    def data(self) -> datasets.Dataset:
        """The dataset at the profile's size, on the device."""
        whole = distributed.in_turn(lambda: datasets.load(self.dataset, self._data, download=True))
        p = self.profile
        return whole.subset(p.train_images, p.test_images).to(self.device)

    @property
    def seeds(self) -> list[int]:
        return list(range(self.seed, self.seed + self.profile.seeds))

    # Models ------------------------------------------------------------------------------------

    def recipe(self, name: str | Recipe) -> Recipe:
        """The recipe at this profile's scale, by a name as `recipes.recipe` takes it: `grad` is
        what is recommended, `iclr2020/grad` what that text prints. A recipe is taken as it is."""
        if isinstance(name, Recipe):
            return name
        return recipes.at_scale(recipes.recipe(name), self.profile)

    def _key(self, recipe: Recipe) -> str:
        parents = [self._key(self.recipe(recipe.warm_start))] if recipe.warm_start else []
        return fingerprint(recipe.key(), self.data.fingerprint, parents)

    def where(self, recipe: Recipe, seed: int) -> Path:
        name = f"{recipe.name.replace('/', '-')}-{self._key(recipe)}"
        return self.runs / "models" / self.dataset / name / f"seed-{seed}"

    def finished(self, name: str | Recipe, seed: int) -> bool:
        """Whether the model is there, and not to be made anew."""
        path = self.where(self.recipe(name), seed) / "record.json"
        return self.has_record(path, TRAINING)

    def has_record(self, path: Path, rooms: Sequence[str]) -> bool:
        """Whether a result is there, and not to be made anew."""
        return path.exists() and not (self._other_code(path, rooms) and self.retrain)

    def model(self, name: str | Recipe, seed: int | None = None) -> Model:
        """The trained model of a recipe and seed; trained now, or further, if it is not finished.

        A recipe object may be passed in place of a name, to train a setting of one's own.
        """
        recipe = self.recipe(name)
        seed = self.seed if seed is None else seed
        directory = self.where(recipe, seed)
        if str(directory) not in self._models:
            self.prepare()
            with files.alone(directory):
                self._models[str(directory)] = self._load_or_train(recipe, seed, directory)
        return self._models[str(directory)]

    def models(
        self,
        names: Sequence[str | Recipe] = recipes.DEFENCES,
        seeds: Sequence[int] | None = None,
    ) -> list[Model]:
        """Every named recipe with every seed, by default those of the profile."""
        return [self.model(n, s) for n in names for s in (self.seeds if seeds is None else seeds)]

    def _load_or_train(self, recipe: Recipe, seed: int, directory: Path) -> Model:
        resume, made_by = distributed.in_turn(lambda: self.left(directory, TRAINING))
        start_from = None
        if recipe.warm_start and resume is None:
            start = self.model(recipe.warm_start, seed)
            start_from = start.classifier.state_dict()
            made_by = list(dict.fromkeys([*start.record["code"].split("+"), *made_by]))

        def on_epoch(state: dict) -> None:
            files.save_checkpoint(directory, "checkpoint", state | {"code": made_by})
            self._keep_epoch(directory, seed, state)
            self.on_progress(
                f"{recipe.defence}, seed {seed}, epoch {state['epoch']}/{recipe.epochs}",
                1 / recipe.epochs,
            )

        with self.computing():
            players, log, status = loop.train(
                recipe,
                self.data,
                seed=seed,
                start_from=start_from,
                resume=resume,
                on_epoch=on_epoch,
            )

        about = {
            "id": f"{directory.parent.name}-seed-{seed}",
            "status": status,
            "recipe": recipe.key(),
            "seed": seed,
            "wall_seconds": float(log["seconds"].sum()),
            **self.provenance(),
        }
        kept = distributed.in_turn(lambda: self.record(directory, log, about, made_by, TRAINING))
        return Model(recipe, seed, players.classifier, players.attack, log, kept)

    def left(self, directory: Path, rooms: Sequence[str]) -> tuple[dict | None, list[str]]:
        """The checkpoint that an earlier run left in this directory, if it is to be used, and the
        digests of all code that will have made the result when this code goes on from there."""
        path, now = directory / "record.json", code(*rooms)
        if self.retrain and path.exists() and self._other_code(path, rooms):
            path.unlink()
            return None, [now]
        state = files.load_checkpoint(directory, "checkpoint") if directory.exists() else None
        if path.exists() and (state is None or not files.is_json(path)):
            path.unlink()  # it is written anew, after more training if need be
        return state, list(dict.fromkeys([*(state["code"] if state else []), now]))

    def record(
        self,
        directory: Path,
        log: pd.DataFrame,
        about: dict,
        made_by: Sequence[str],
        rooms: Sequence[str],
    ) -> dict:
        """Write a finished run's log and record, unless they are there; the record."""
        path = directory / "record.json"
        if not path.exists():
            files.write_atomically(directory / "log.csv", lambda p: log.to_csv(p, index=False))
            finished = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            files.write_json(path, about | {"finished": finished, "code": "+".join(made_by)})
        self._other_code(path, rooms)
        return json.loads(path.read_text())

    def _keep_epoch(self, directory: Path, seed: int, state: dict) -> None:
        """For `epoch`: both players in half precision, a few hundred kB a small model."""
        if seed != self.seed or not self.profile.small:
            return
        players = {
            part: {k: v.half() if v.is_floating_point() else v for k, v in tensors.items()}
            for part, tensors in state["players"].items()
            if part in ("f", "g")
        }
        files.save_checkpoint(directory / "epochs", f"epoch-{state['epoch']}", players)

    def epoch(self, name: str, epoch: int) -> Model:
        """The first seed's model as it was after an epoch (from 1), in half precision, with the
        log so far. Where its epochs were not kept it is trained again: the same game, move by
        move. Raises InputError for an epoch it did not have, and at the large profiles."""
        model = self.model(name, self.seed)
        directory = self.where(model.recipe, self.seed)
        if not 1 <= epoch <= len(model.log):
            raise InputError(f"{model.defence} has epochs 1 to {len(model.log)}, not {epoch}.")
        if not self.profile.small:
            raise InputError("Epochs are kept at the small profiles only: use smoke or quick.")
        with files.alone(directory):
            kept = files.load_checkpoint(directory / "epochs", f"epoch-{epoch}")
            if kept is None:
                self._play_again(model, directory)
                kept = files.load_checkpoint(directory / "epochs", f"epoch-{epoch}")
        assert kept is not None
        classifier, attack = copy.deepcopy((model.classifier, model.attack))
        classifier.load_state_dict(kept["f"])
        if isinstance(attack, nn.Module):
            attack.load_state_dict(kept["g"])
        return replace(model, classifier=classifier, attack=attack, log=model.log[:epoch])

    def _play_again(self, model: Model, directory: Path) -> None:
        """Train a finished model once more, for the epochs that were not kept."""
        start, first = model.recipe.warm_start, None
        if start:
            first = self.model(start, self.seed).classifier.state_dict()
        keep = partial(self._keep_epoch, directory, self.seed)
        with self.computing():
            loop.train(model.recipe, self.data, seed=self.seed, start_from=first, on_epoch=keep)

    def _other_code(self, record: Path, rooms: Sequence[str]) -> bool:
        """Whether other code than now made the result of this record, which is noted."""
        try:
            other = json.loads(record.read_text()).get("code") != code(*rooms)
        except ValueError:
            return False  # damaged: it is made anew in any case
        (self.of_other_code.add if other else self.of_other_code.discard)(os.fspath(record))
        return other

    # Measurements ------------------------------------------------------------------------------

    def images(self, count: int | None) -> tuple[torch.Tensor, torch.Tensor]:
        """The first `count` test images as floats in [0, 1], and their labels."""
        return self.data.test(count)

    @property
    def budget(self) -> Budget:
        """What an examination may cost at this profile."""
        p = self.profile
        strongest = auto_attack(not p.small, self.data.num_classes)
        return Budget(p.eval_images, p.curve_images, p.random_draws, strongest)

    def subject(self, model: Model) -> Subject:
        """The model on all test images, for measurements that this store remembers."""
        x, y = self.images(None)

        def remember(what: str, settings: object, compute: Callable[[], Any]) -> Any:
            return self.measured(what, [model.key, settings], compute)

        return Subject(model.classifier, x, y, seed=model.seed, remember=remember)

    def correct(
        self, model: Model, attacks: Mapping[str, Solver | None], count: int | None
    ) -> dict[str, np.ndarray]:
        """Whether `model` is right on each of the first `count` test images, attack by attack."""
        return self.subject(model).correct(attacks, count)

    def measured(
        self,
        what: str,
        settings: object,
        compute: Callable[[], Any],
        rooms: Sequence[str] = MEASURING,
    ) -> Any:
        """What `compute` returned (plain JSON data) when first asked for these settings; kept
        with its provenance under measurements/. `rooms` are those whose code decides it."""
        key = fingerprint(what, settings, self.data.fingerprint)
        path = self.runs / "measurements" / self.dataset / f"{what}-{key}.json"
        if self.has_record(path, rooms):
            try:
                return json.loads(path.read_text())["result"]
            except (ValueError, KeyError):
                warnings.warn(f"{path} is damaged and is measured again.", stacklevel=2)
        started = time.perf_counter()
        with self.computing():
            result = compute()
        content = {"what": what, "settings": settings, "code": code(*rooms), **self.provenance()}
        content |= {"wall_seconds": time.perf_counter() - started, "result": result}
        self.prepare()
        files.write_json(path, content)
        self.of_other_code.discard(os.fspath(path))
        return json.loads(path.read_text())["result"]

    # Provenance, tables and captions -----------------------------------------------------------

    def provenance(self) -> dict:
        """Dataset and its variant, profile, seeds, device, library versions and commit."""
        about = {"dataset": self.data.title, "data_fingerprint": self.data.fingerprint}
        return about | self.machine()

    def machine(self) -> dict:
        """Profile, device, library versions and commit: what a result needs beside its data."""
        return {
            "profile": self.profile.name,
            "seeds": self.seeds,
            "device": machine.hardware(self.device, self.profile.threads),
            "python": platform.python_version(),
            "versions": machine.versions(),
            "commit": machine.commit(),
        }

    @property
    def code(self) -> str:
        """The digest of the code that decides what the tables and figures show."""
        return code(*MEASURING)

    def workers(self) -> int:
        """How many models to train side by side: one a core (at most eight, for memory) where a
        model takes one thread, also on a GPU, which one small network leaves idle; else one."""
        return min(machine.cores(), 8) if self.profile.threads == 1 else 1

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Inside, the profile's number of threads, and on a CPU memory that is kept; the number of
        threads is afterwards what it was."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.profile.threads or before)
        if self.device.type == "cpu":
            keep_memory()
        try:
            yield
        finally:
            torch.set_num_threads(before)

    def parameters(self) -> dict[str, Any]:
        """What opens this store again, in a notebook or another process."""
        return {
            "profile": self.profile.name,
            "dataset": self.dataset,
            "data": os.fspath(Path(self._data).resolve()) if self._data else None,
            "device": str(self.device),
            "seed": self.seed,
            "seeds": self.profile.seeds,
            "output": os.fspath(self.output.resolve()),
            "retrain": self.retrain,
            "box": self.boxed is not None,
        }

    def save_table(self, frame: pd.DataFrame, name: str, caption: str) -> pd.DataFrame:
        """Write `frame` as CSV and as JSON with caption and provenance, under
        runs/<profile>/tables/<dataset>/; returns it for display."""
        directory = self.runs / "tables" / self.dataset
        provenance = self.provenance() if "data" in vars(self) else self.machine()
        provenance["code"] = self.code
        files.write_atomically(directory / f"{name}.csv", lambda p: frame.to_csv(p, index=False))
        rows = json.loads(frame.to_json(orient="records"))
        content = {"caption": caption, "rows": rows, "provenance": provenance}
        files.write_json(directory / f"{name}.json", content)
        return frame

    def caption(self, seeds: int | None = None, images: int | str | None = None) -> str:
        """The part every caption ends with: data, profile and seeds, and whether any result that
        this store has handed out was made by other code than now."""
        n = self.profile.seeds if seeds is None else seeds
        parts = [self.data.title, f"profile {self.profile.name}", f"{n} seed{'s' * (n != 1)}"]
        sentences = [", ".join([*parts, f"{images} test images"] if images else parts) + "."]
        if self.boxed:
            sentences += [f"Made at commit {self.boxed['commit']}; comes with l2lkit."]
        return " ".join(filter(None, [*sentences, self.other_code()]))

    def other_code(self) -> str:
        """One sentence if results of other code have been used, else nothing."""
        words = "of the results used were made by other code than this; --retrain makes them anew."
        return f"{len(self.of_other_code)} {words}" if self.of_other_code else ""
