"""Where results live: runs, resuming, provenance.

    runs/<profile>/models/<dataset>/<recipe>-<fingerprint>/seed-<n>/   checkpoint, log, record
    runs/<profile>/measurements/<dataset>/…                            per-image outcomes
    runs/<profile>/tables/<dataset>/, notebooks/<dataset>/, report/
    figures/<profile>-<dataset>/                                       PNG, SVG and captions

Everything is written to a temporary name and moved into place, so that a killed run leaves no
half file; what exists and fits is never computed again. A fingerprint covers the recipe, the
images and the recipe it starts from: change any and the model is another model.
"""

import copy
import ctypes
import fcntl
import hashlib
import io
import json
import os
import platform
import re
import secrets
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib.figure
import numpy as np
import pandas as pd
import torch
from torch import nn

from l2lkit import data as datasets
from l2lkit import distributed, evaluation, figures, recipes, training
from l2lkit.attacks import Attack
from l2lkit.errors import InputError

ROOT = Path(__file__).resolve().parents[1]


def pick_device(name: str) -> torch.device:
    """`cpu`, `cuda`, `cuda:1`, … or `auto` (CUDA if there is one). InputError if it is absent."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"Unknown device '{name}': choose auto, cpu or cuda.") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError("No CUDA device here: use --device cpu, or --device auto to let it pick.")
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"Device '{name}' is not supported: choose auto, cpu or cuda.")
    return device


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device has arithmetic in bfloat16, which then takes less time than float32.

    CUDA GPUs do from Ampere on (compute capability 8), x86 processors with AVX512-BF16 or AMX.
    Elsewhere torch computes in bfloat16 all the same, but by way of float32. Measured on one core
    with AVX512-BF16, a training step of the profile `quick` takes two thirds of float32's time;
    with those instructions switched off twice as long as float32, without oneDNN, which has no
    bfloat16 on AVX2, ten times and more. GPUs, AMX and ARM were not tried; ARM counts as having
    none.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    found = torch.cpu.get_capabilities()
    native = found.get("avx512_bf16", False) or found.get("amx_bf16", False)
    return native and torch.backends.mkldnn.is_available()


def processor() -> str:
    """The name that the system gives its processor, with family and model where Linux tells them:
    what one name covers may differ by a factor of two in speed."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
        facts = dict(re.split(r"\s*:\s*", line, maxsplit=1) for line in lines if ":" in line)
        return f"{facts['model name']} (family {facts['cpu family']}, model {facts['model']})"
    except (OSError, KeyError):
        pass
    with suppress(OSError, subprocess.CalledProcessError):  # macOS
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.check_output(command, text=True, stderr=subprocess.DEVNULL).strip()
    return platform.processor() or platform.machine()


def keep_memory() -> None:
    """Let this process keep the memory of freed tensors for the next ones. By default glibc gives
    every large block back to the system and gets it anew, page by page, which is a fifth to a
    third of a small network's time on a CPU. Other C libraries are left as they are."""
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: never shrink the heap
        mallopt(-3, 2**25)  # M_MMAP_THRESHOLD: blocks up to 32 MB, the most it allows, live there


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then move it there in one step.

    Raises InputError if the directory cannot be written or the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):  # the parent may be a file: then there is nothing to remove
            temporary.unlink()
        raise InputError(
            f"Cannot write {path}: {error.strerror or error}; free some space or name another "
            "directory with --output. Finished work is kept."
        ) from error


@contextmanager
def alone(directory: Path) -> Iterator[None]:
    """Inside, this process (of a group, the first) has the directory for itself; others wait,
    also on other machines that share the disk. Who is killed lets go. A disk that cannot be
    written, or that knows no locks, gives none."""
    with ExitStack() as held:
        if distributed.rank() == 0:
            with suppress(OSError):
                directory.mkdir(parents=True, exist_ok=True)
                fcntl.flock(held.enter_context((directory / ".lock").open("w")), fcntl.LOCK_EX)
        yield


def write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda p: p.write_text(text, encoding="utf-8"))


def write_json(path: Path, content: object) -> None:
    write_text(path, json.dumps(content, indent=1, default=_plain) + "\n")


def _plain(value: object) -> object:
    if isinstance(value, (np.generic, torch.Tensor)):
        return value.item()
    return str(value)


def save_checkpoint(directory: Path, name: str, content: object) -> None:
    """Save as `<name>.<first 16 hex digits of the SHA-256>.pt` and drop older ones of the name."""
    buffer = io.BytesIO()  # torch.save to a path reports a full disk as a RuntimeError
    torch.save(content, buffer)
    digest = hashlib.sha256(buffer.getbuffer()).hexdigest()[:16]
    final = directory / f"{name}.{digest}.pt"
    write_atomically(final, lambda p: p.write_bytes(buffer.getbuffer()))
    for old in [*directory.glob(f"{name}.*.pt"), *directory.glob(f".{name}.*")]:
        if old != final:
            old.unlink()


def load_checkpoint(directory: Path, name: str) -> dict | None:
    """The newest undamaged checkpoint of that name, or None.

    A file whose bytes do not give the digest in its name, or that torch cannot read, is moved
    aside to `damaged-…` with a warning that names it; it is never used.
    """
    found = sorted(directory.glob(f"{name}.*.pt"), key=lambda p: p.stat().st_mtime, reverse=True)
    for path in found:
        try:
            if path.suffixes[-2].lstrip(".") != _digest(path):
                raise ValueError("its content does not match the digest in its name")
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            aside = path.with_name(f"damaged-{path.name}")
            path.replace(aside)
            warnings.warn(
                f"Checkpoint {path} is damaged ({error}); moved to {aside.name}. That model is "
                "trained again.",
                stacklevel=2,
            )
    return None


def _readable(record: Path) -> bool:
    try:
        return "status" in json.loads(record.read_text())
    except ValueError:
        return False


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def fingerprint(*parts: object) -> str:
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


@dataclass(frozen=True)
class Model:
    """A trained defence: its recipe and seed, the classifier and the attack it was trained with
    (both in eval mode), the log of its training, and `record`, its provenance."""

    recipe: recipes.Recipe
    seed: int
    classifier: nn.Module
    attack: Attack | None
    log: pd.DataFrame
    record: dict

    @property
    def defence(self) -> str:
        return self.recipe.defence

    @property
    def status(self) -> str:
        return self.record["status"]

    @property
    def id(self) -> str:
        return self.record["id"]


class Store:
    """The models and measurements of one profile on one dataset, computed when first asked for.

    `profile`: smoke, quick or paper. `dataset`, `data`: as `l2lkit.data.load` takes them.
    `device`: auto, cpu or cuda. `seed`: the first of the seeds, `seeds`: how many (default: the
    profile's number). `output`: the directory that gets runs/ and figures/ (default: the
    project's). Raises InputError for an unknown name
    at once; the data are read when first needed.
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
        on_progress: Callable[[str, float], None] | None = None,
    ):
        self.profile = recipes.profile(profile)
        if seeds is not None:
            self.profile = replace(self.profile, seeds=seeds)
        self.dataset, self._data, self.seed = dataset, data, seed
        self.device = pick_device(device)
        if not has_bfloat16(self.device):
            self.profile = replace(self.profile, precision="float32")
        if self.device.type == "cpu":
            keep_memory()
        self.on_progress = on_progress or (lambda what, share: None)
        self.output = Path(output) if output else ROOT
        self.runs = self.output / "runs" / profile
        self.figures = self.output / "figures" / f"{profile}-{dataset}"
        self._models: dict[str, Model] = {}
        if Path(dataset).name != dataset:
            raise InputError(
                f"The dataset's name must be a plain word, not '{dataset}': --data takes the path."
            )
        if not 0 <= seed < 2**31:
            raise InputError(f"--seed must be 0 or more and below 2^31, not {seed}.")
        if self.profile.seeds < 1:
            raise InputError(f"--seeds must be 1 or more, not {seeds}.")

    @cached_property
    def data(self) -> datasets.Dataset:
        """The dataset at the profile's size, on the device."""
        whole = distributed.in_turn(
            lambda: datasets.load(self.dataset, self._data, download=True)
        )
        p = self.profile
        return whole.subset(p.train_images, p.test_images).to(self.device)

    @property
    def seeds(self) -> list[int]:
        return list(range(self.seed, self.seed + self.profile.seeds))

    def recipe(self, name: str) -> recipes.Recipe:
        """The recipe at this profile's scale: a short name like `grad` means `iclr2020/grad`."""
        full = recipes.recipe(name if "/" in name else f"iclr2020/{name}")
        return recipes.at_scale(full, self.profile)

    def _recipe(self, name: str | recipes.Recipe) -> recipes.Recipe:
        return self.recipe(name) if isinstance(name, str) else name

    def _key(self, recipe: recipes.Recipe) -> str:
        parents = []
        if recipe.warm_start:
            parents.append(self._key(self._recipe(recipe.warm_start)))
        return fingerprint(recipe.as_dict(), self.data.fingerprint, parents)

    def where(self, recipe: recipes.Recipe, seed: int) -> Path:
        name = f"{recipe.name.replace('/', '-')}-{self._key(recipe)}"
        return self.runs / "models" / self.dataset / name / f"seed-{seed}"

    def finished(self, name: str | recipes.Recipe, seed: int) -> bool:
        recipe = self._recipe(name)
        return (self.where(recipe, seed) / "record.json").exists()

    def model(self, name: str | recipes.Recipe, seed: int | None = None) -> Model:
        """The trained model of a recipe and seed; trained now, or further, if it is not finished.

        A recipe object may be passed in place of a name, to train a setting of one's own.
        """
        recipe = self._recipe(name)
        seed = self.seed if seed is None else seed
        directory = self.where(recipe, seed)
        if str(directory) not in self._models:
            with alone(directory):
                self._models[str(directory)] = self._load_or_train(recipe, seed, directory)
        return self._models[str(directory)]

    def models(self, names: Sequence[str] = recipes.DEFENCES) -> list[Model]:
        """Every named recipe with every seed of the profile."""
        return [self.model(name, seed) for name in names for seed in self.seeds]

    def _load_or_train(self, recipe: recipes.Recipe, seed: int, directory: Path) -> Model:
        record_path = directory / "record.json"

        def left() -> dict | None:
            found = load_checkpoint(directory, "checkpoint") if directory.exists() else None
            if record_path.exists() and (found is None or not _readable(record_path)):
                record_path.unlink()  # it is written anew, after more training if need be
            return found

        resume = distributed.in_turn(left)
        start_from = None
        if recipe.warm_start and resume is None:
            start_from = self.model(recipe.warm_start, seed).classifier.state_dict()

        def on_epoch(state: dict) -> None:
            save_checkpoint(directory, "checkpoint", state)
            self._keep_epoch(directory, seed, state)
            self.on_progress(
                f"{recipe.defence}, seed {seed}, epoch {state['epoch']}/{recipe.epochs}",
                1 / recipe.epochs,
            )

        with self.threads():
            players, log, status = training.train(
                recipe, self.data, seed=seed, start_from=start_from, resume=resume,
                on_epoch=on_epoch,
            )  # fmt: skip

        def record() -> dict:
            if not record_path.exists():
                log_path = directory / "log.csv"
                write_atomically(log_path, lambda p: log.to_csv(p, index=False))
                write_json(
                    record_path,
                    {
                        "id": f"{directory.parent.name}-seed-{seed}",
                        "status": status,
                        "recipe": recipe.as_dict(),
                        "seed": seed,
                        "wall_seconds": float(log["seconds"].sum()),
                        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                        **self.provenance(),
                    },
                )
            return json.loads(record_path.read_text())

        kept = distributed.in_turn(record)
        return Model(recipe, seed, players.classifier, players.attack, log, kept)

    def _keep_epoch(self, directory: Path, seed: int, state: dict) -> None:
        """For `epoch`: both players in half precision, a few hundred kB a small model."""
        if seed != self.seed or self.profile.name == "paper":
            return
        players = {
            part: {k: v.half() if v.is_floating_point() else v for k, v in tensors.items()}
            for part, tensors in state["players"].items()
            if part in ("f", "g")
        }
        save_checkpoint(directory / "epochs", f"epoch-{state['epoch']}", players)

    def epoch(self, name: str, epoch: int) -> Model:
        """The first seed's model as it was after an epoch (from 1), in half precision, with the
        log so far. Where its epochs were not kept it is trained again: the same game, move by
        move. Raises InputError for an epoch it did not have, and at profile paper."""
        model = self.model(name, self.seed)
        directory = self.where(model.recipe, self.seed)
        if not 1 <= epoch <= len(model.log):
            raise InputError(f"{model.defence} has epochs 1 to {len(model.log)}, not {epoch}.")
        if self.profile.name == "paper":
            raise InputError("Epochs are kept at the small profiles only: use smoke or quick.")
        kept = load_checkpoint(directory / "epochs", f"epoch-{epoch}")
        if kept is None:
            start = model.recipe.warm_start
            with self.threads():
                training.train(
                    model.recipe, self.data, seed=self.seed,
                    start_from=self.model(start, self.seed).classifier.state_dict() if start
                    else None,
                    on_epoch=partial(self._keep_epoch, directory, self.seed),
                )  # fmt: skip
            kept = load_checkpoint(directory / "epochs", f"epoch-{epoch}")
            assert kept is not None
        classifier, attack = copy.deepcopy((model.classifier, model.attack))
        classifier.load_state_dict(kept["f"])
        if isinstance(attack, nn.Module):
            attack.load_state_dict(kept["g"])
        return replace(model, classifier=classifier, attack=attack, log=model.log[:epoch])

    def provenance(self) -> dict:
        """Dataset and its variant, profile, seeds, device, library versions and commit."""
        return {"dataset": self.data.title, "data_fingerprint": self.data.fingerprint,
                **self.machine()}  # fmt: skip

    def workers(self) -> int:
        """How many models to train side by side: one a core (at most eight, for memory) where a
        model takes one thread, else one."""
        if self.device.type != "cpu" or self.profile.threads != 1:
            return 1
        cores = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))(0)
        return min(len(cores), 8)

    @contextmanager
    def threads(self) -> Iterator[None]:
        """The profile's number of threads inside, what it was afterwards."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.profile.threads or before)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    def parameters(self) -> dict[str, Any]:
        """What a notebook's parameter cell needs to open this store again."""
        return {
            "profile": self.profile.name, "dataset": self.dataset,
            "data": os.fspath(Path(self._data).resolve()) if self._data else None,
            "device": str(self.device), "seed": self.seed, "seeds": self.profile.seeds,
            "output": os.fspath(self.output.resolve()),
        }  # fmt: skip

    def machine(self) -> dict:
        """Profile, device, library versions and commit: what a result needs beside its data."""
        packages = ("torch", "torchvision", "numpy", "pandas")
        device = processor()
        if self.device.type == "cuda":
            device = torch.cuda.get_device_name(self.device)
        if distributed.size() > 1:
            device = f"{distributed.size()} × {device}"
        return {
            "profile": self.profile.name,
            "seeds": self.seeds,
            "device": f"{device}, {self.profile.threads or torch.get_num_threads()} threads",
            "python": platform.python_version(),
            "versions": {name: version(name) for name in packages},
            "commit": commit(),
        }

    # Measurements ------------------------------------------------------------------------------

    def images(self, count: int | None) -> tuple[torch.Tensor, torch.Tensor]:
        """The first `count` test images as floats in [0, 1], and their labels."""
        return self.data.test_images[:count].float() / 255, self.data.test_labels[:count]

    def measured(self, what: str, settings: object, compute: Callable[[], Any]) -> Any:
        """What `compute` returned (plain JSON data) when first asked for these settings; kept
        with its provenance under measurements/."""
        key = fingerprint(what, settings, self.data.fingerprint)
        path = self.runs / "measurements" / self.dataset / f"{what}-{key}.json"
        if path.exists():
            try:
                return json.loads(path.read_text())["result"]
            except (ValueError, KeyError):
                warnings.warn(f"{path} is damaged and is measured again.", stacklevel=2)
        started = time.perf_counter()
        with self.threads():
            result = compute()
        content = {"what": what, "settings": settings, **self.provenance()}
        content |= {"wall_seconds": time.perf_counter() - started, "result": result}
        write_json(path, content)
        return json.loads(path.read_text())["result"]

    def correct(
        self, model: Model, attacks: Mapping[str, Attack | None], count: int | None
    ) -> dict[str, np.ndarray]:
        """Whether `model` is right on each of the first `count` test images, attack by attack."""

        def compute() -> dict[str, list[int]]:
            x, y = self.images(count)
            found = evaluation.correct(model.classifier, attacks, x, y, seed=model.seed)
            return {name: right.int().tolist() for name, right in found.items()}

        settings = [model.id, count, {name: self.describe(a) for name, a in attacks.items()}]
        result = self.measured("correct", settings, compute)
        return {name: np.array(right, dtype=bool) for name, right in result.items()}

    def describe(self, attack: Attack | None) -> str:
        """Words that name the attack and all its settings. A learned attacker is named by its
        model; InputError if it belongs to none of this store's."""
        for model in self._models.values():
            if attack is model.attack and isinstance(attack, nn.Module):
                return f"the attacker of {model.id}"
        if isinstance(attack, nn.Module):
            raise InputError("A learned attacker must be the attack of one of the store's models.")
        return repr(attack)

    # Tables and figures ------------------------------------------------------------------------

    def save_table(self, frame: pd.DataFrame, name: str, caption: str) -> pd.DataFrame:
        """Write `frame` as CSV and as JSON with caption and provenance, under
        runs/<profile>/tables/<dataset>/; returns it for display."""
        directory = self.runs / "tables" / self.dataset
        provenance = self.provenance() if "data" in vars(self) else self.machine()
        write_atomically(directory / f"{name}.csv", lambda p: frame.to_csv(p, index=False))
        rows = json.loads(frame.to_json(orient="records"))
        write_json(
            directory / f"{name}.json",
            {"caption": caption, "rows": rows, "provenance": provenance},
        )
        return frame

    def save_figure(self, figure: matplotlib.figure.Figure, name: str, caption: str) -> Path:
        """Write PNG, SVG and a caption file under figures/<profile>-<dataset>/."""
        return figures.save(figure, self.figures, name, caption, self.machine())

    def caption(self, seeds: int | None = None, images: int | None = None) -> str:
        """The part every caption ends with: data, profile and seeds."""
        n = self.profile.seeds if seeds is None else seeds
        tested = f", {images} test images" if images else ""
        return (
            f"{self.data.title}, profile {self.profile.name}, "
            f"{n} seed{'s' if n != 1 else ''}{tested}."
        )


def commit() -> str:
    """The git commit of the code, with "+" if the package differs from it; "unknown" outside."""
    def git(*words: str) -> str:
        return subprocess.check_output(
            ["git", *words], cwd=ROOT, text=True, stderr=subprocess.DEVNULL
        ).strip()

    try:
        head = git("rev-parse", "--short=12", "HEAD")
        return head + ("+" if git("status", "--porcelain", "-uno", "--", "l2lkit") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
