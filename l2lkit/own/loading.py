"""A classifier of anybody's from a SPEC, with its weights and its normalisation."""

import os
import pickle
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from l2lkit.errors import InputError
from l2lkit.own.options import SPEC, attacker_at, check_file

PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and torch.compile
INSIDE = ("state_dict", "model_state_dict", "model", "net", "network", "ema")  # of checkpoints


class Normalised(nn.Module):
    """A classifier that takes images in [0, 1] and hands (x − mean) / deviation to another."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, classifier: nn.Module, mean: Sequence[float], deviation: Sequence[float]):
        super().__init__()
        self.classifier = classifier
        for name, values in (("mean", mean), ("deviation", deviation)):
            self.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        if self.mean.shape[1] not in (1, x.shape[1]):
            raise InputError(
                f"--mean has {self.mean.shape[1]} numbers and the images {x.shape[1]} channels: "
                "give one number, or one for each channel."
            )
        return self.classifier((x - self.mean.to(x.dtype)) / self.deviation.to(x.dtype))


class Program(nn.Module):
    """A program of torch.export, which is in the mode that it was exported in and knows no other:
    kept where `eval` and `train` do not reach it."""

    program: nn.Module

    def __init__(self, program: nn.Module):
        super().__init__()
        self.__dict__["program"] = program

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> "Program":
        self.program._apply(fn, recurse)  # another device or precision
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.program(x)


def load_classifier(
    spec: str,
    *,
    classes: int,
    weights: str | Path | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> nn.Module:
    """The classifier that `spec` names (one of `options.SPEC`), in eval mode, on the CPU.

    A function is called without arguments and returns a torch module; a name that is one is taken
    as it is. torchvision's have random weights and `classes` outputs, or as many as the weights.
    `weights` is a state dict, .safetensors or of torch.save, read without running any code that it
    holds; the prefixes of PREFIXES are taken off. With `mean` and `std`, a number a channel or one
    for all, images are normalised first. Raises InputError for whatever is missing or does not fit.
    """
    state = read_weights(Path(weights)) if weights else None
    network = _make(spec, classes, state)
    if state is not None:
        fit(network, state, str(weights))
    if (mean is None) != (std is None):
        raise InputError("--mean and --std come together: (x - mean) / std.")
    if mean is not None and std is not None:
        if len(mean) != len(std) or min(std) <= 0:
            raise InputError("--mean and --std take equally many numbers, those of --std above 0.")
        network = Normalised(network, mean, std)
    return network.eval()


def _make(spec: str, classes: int, state: dict[str, Tensor] | None) -> nn.Module:
    place, _, name = spec.rpartition(":")
    if place == "torchvision":
        # The last tensor of a classifier's weights is its last layer's.
        return _torchvision(name, len(list(state.values())[-1]) if state else classes)
    if not place or (Path(spec).is_file() and not place.endswith(".py")):
        return _program(Path(spec))
    module = module_at(place)
    if not hasattr(module, name):
        own = [
            k for k, v in vars(module).items() if getattr(v, "__module__", "") == module.__name__
        ]
        raise InputError(f"{place} has no '{name}': it has {', '.join(own) or 'no function'}.")
    thing = getattr(module, name)
    if not isinstance(thing, nn.Module):
        if not callable(thing):
            raise InputError(f"{spec} is a {type(thing).__name__}: it must return a torch module.")
        try:
            thing = thing()
        except Exception as error:  # a person's own code raises anything
            words = f"{type(error).__name__}: {error}"
            raise InputError(
                f"{spec}() fails ({words}): it must take no arguments and return a torch module."
            ) from error
    if not isinstance(thing, nn.Module):
        raise InputError(
            f"{spec}() returns a {type(thing).__name__}: it must return a torch module."
        )
    return thing


def module_at(place: str) -> ModuleType:
    """The module of a file or of a dotted name, imported. InputError if there is none or it fails.

    A file's is imported by its name, so that its classes know their module, and what they name in
    it can be read."""
    try:
        if not place.endswith(".py"):
            _beside(os.getcwd())
            return import_module(place)
        check_file(place, f"a classifier is {SPEC}")
        spec = spec_from_file_location(Path(place).stem, place)
        assert spec is not None and spec.loader is not None
        module = sys.modules[spec.name] = module_from_spec(spec)
        _beside(os.path.dirname(os.path.abspath(place)))
        spec.loader.exec_module(module)
        return module
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        words = f"{type(error).__name__}: {error}"
        raise InputError(f"{place} cannot be imported ({words}): mend it first.") from error


def named_by(place: str, kind: str) -> Any:
    """What is at FILE.py:NAME and can be called, or is a Solver. InputError if there is nothing;
    `kind` says what is wanted."""
    path, name = attacker_at(place)
    thing = getattr(module_at(path), name, None)
    if not callable(thing):
        raise InputError(f"{path} has no '{name}' that {kind}.")
    return thing


def _beside(folder: str) -> None:
    """Let what is imported import what lies in this folder."""
    if folder not in sys.path:
        sys.path.append(folder)


def _torchvision(name: str, classes: int) -> nn.Module:
    from torchvision import models  # takes a second

    plain = [n for n in models.list_models() if not n.startswith(("quantized_", "raft"))]
    if name not in plain:
        near = [n for n in plain if n.startswith(name[:4])] or plain[:8]
        raise InputError(f"torchvision has no classifier '{name}': take {', '.join(near)}.")
    options = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
    return models.get_model(name, weights=None, num_classes=classes, **options)


def _program(path: Path) -> nn.Module:
    check_file(path, f"a classifier is {SPEC}")
    try:
        if path.suffix == ".pt2":
            with _weights_only():
                return Program(torch.export.load(path).module())
        return torch.jit.load(path, map_location="cpu")
    except Exception as error:
        raise InputError(
            f"{path} is no program that this torch can read: a classifier is {SPEC}; weights go "
            "to --weights, beside the function that makes the module."
        ) from error


@contextmanager
def _weights_only() -> Iterator[None]:
    """Inside, torch unpickles no code: torch.export would where it meets an object it does not
    know."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


# Weights ---------------------------------------------------------------------------------------


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict, on the CPU, without the prefixes of PREFIXES. No code that the
    file may hold is run. InputError for anything else."""
    check_file(path, "--weights takes a state dict")
    if path.suffix == ".safetensors":
        content: Any = _safetensors(path)
    else:
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, zipfile.BadZipFile) as error:
            raise InputError(
                f"{path} is no plain state dict, and pickled code is not run: save "
                "model.state_dict() with torch.save, or as safetensors."
            ) from error
    for name in INSIDE:
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    if not isinstance(content, dict) or not content:
        raise InputError(f"{path} holds no state dict: save model.state_dict().")
    wrong = [k for k, v in content.items() if not isinstance(v, Tensor)]
    if wrong:
        raise InputError(
            f"{path} holds no state dict, its '{wrong[0]}' is no tensor: save model.state_dict()."
        )
    for _ in range(4):
        for prefix in PREFIXES:
            if all(k.startswith(prefix) for k in content):
                content = {k.removeprefix(prefix): v for k, v in content.items()}
    return content


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        words = "Reading .safetensors needs that library: pip install safetensors."
        raise InputError(words) from error
    try:
        return load_file(path)
    except Exception as error:  # the library's own, which torch does not know
        words = f"{path} is no intact safetensors file ({error}): write it anew."
        raise InputError(words) from error


def fit(network: nn.Module, state: dict[str, Tensor], where: str) -> None:
    """Load the weights. InputError says which do not fit."""
    own = network.state_dict()
    missing = sorted(own.keys() - state.keys())
    extra = sorted(state.keys() - own.keys())
    shapes = [
        f"{k} is {tuple(state[k].shape)} and not {tuple(own[k].shape)}"
        for k in own
        if k in state and state[k].shape != own[k].shape
    ]
    kinds = (("missing", missing), ("unknown", extra))
    problems = [f"{name} {_some(keys)}" for name, keys in kinds if keys]
    if shapes:
        problems.append(_some(shapes))
    if problems:
        raise InputError(
            f"The weights of {where} do not fit the classifier: {'; '.join(problems)}. Take the "
            "function that made the network they were saved from."
        )
    network.load_state_dict(state)


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
