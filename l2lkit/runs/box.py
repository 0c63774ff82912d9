"""The box: a finished small run that comes with the package, so that notebooks show their
pictures and sliders before anything has been trained here.

It is one zip, l2lkit/box/<profile>-<dataset>.zip: players as safetensors beside their logs and
records, measurements as JSON, and card.json, which says what it is and has the SHA-256 of every
file. A store that has trained nothing unpacks it into a folder of its own, runs/<profile>-box-…,
and goes on from there as from any run; what is trained here never mixes with it.
"""

import hashlib
import json
import re
import zipfile
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save

from l2lkit.errors import InputError
from l2lkit.files import alone, load_checkpoint, save_checkpoint, write_atomically
from l2lkit.names import recipe
from l2lkit.recipes import DEFENCES

REPLAYED = tuple(recipe(name) for name in DEFENCES)
LARGE = 10**6
BOXES = Path(__file__).resolve().parents[1] / "box"


def box_for(profile: str, dataset: str) -> Path | None:
    """The box of that profile and dataset; None where there is none."""
    path = BOXES / f"{profile}-{dataset}.zip"
    return path if path.is_file() else None


def opened(runs: Path, dataset: str) -> tuple[dict[str, Any] | None, Path]:
    """The card of the box for the profile that the folder `runs` is named after, and the folder
    beside it that the box is unpacked in, now if it was not before. Without a box None, and `runs`
    itself."""
    box = box_for(runs.name, dataset)
    if box is None:
        return None, runs
    about = card(box)
    folder = runs.with_name(f"{runs.name}-box-{about['digest']}")
    with alone(folder):
        if not (folder / "layout").is_file():
            unpack(box, folder)
    return about, folder


def card(box: Path) -> dict[str, Any]:
    """What the box says of itself: data, seeds, precision, commit, accuracies, what it is not for,
    `files`, the SHA-256 of each, and `digest`, one of them all. InputError for a damaged box."""
    try:
        with zipfile.ZipFile(box) as packed:
            return json.loads(packed.read("card.json"))
    except (OSError, zipfile.BadZipFile, KeyError, ValueError) as error:
        raise _damaged(box) from error


def pack(
    runs: Path, box: Path, about: Mapping[str, Any], models: Collection[Path] | None = None
) -> None:
    """Put the finished run in the folder `runs` (runs/<profile>) into a box: of its models those in
    the folders `models` (default: all), and what was measured on no others. Optimisers stay out,
    attackers that were tuned to one classifier, whose measurements come along, the epochs of all
    defences but those that notebook 02 replays, and of GAIL a U with more than `LARGE` numbers,
    which is the dense one. `about` goes to the card."""
    contents: dict[str, bytes] = {}
    folders = sorted(record.parent for record in runs.glob("models/**/record.json"))
    others = [f for f in folders if models is not None and f not in models]
    kept = [f for f in folders if f not in others and "+" not in f.parent.name]
    for folder in [*kept, *sorted(record.parent for record in runs.glob("gail/**/record.json"))]:
        record = folder / "record.json"
        for path in (record, folder / "log.csv"):
            contents[str(path.relative_to(runs))] = path.read_bytes()
        replayed = json.loads(record.read_text())["recipe"].get("name") in REPLAYED
        for place in [folder, *(folder.glob("epochs") if replayed else ())]:
            for path in sorted(place.glob("*.pt")):
                name = path.name.split(".")[0]
                state = load_checkpoint(place, name)
                assert state is not None
                contents[f"{place.relative_to(runs)}/{name}.safetensors"] = _packed(state)
    ids = {f"{f.parent.name}-{f.name}".encode() for f in others}
    texts = (runs.glob(place) for place in ("measurements/**/*.json", "answers/**/*.md", "layout"))
    for path in sorted(path for paths in texts for path in paths):
        content = path.read_bytes()
        if ids.isdisjoint(re.findall(rb'"model": "([^"]+)"', content)):
            contents[str(path.relative_to(runs))] = content
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    whole = hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()[:8]
    text = json.dumps({**about, "digest": whole, "files": digests}, indent=1, ensure_ascii=False)

    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
            for name, content in {"card.json": text.encode(), **contents}.items():
                fixed = zipfile.ZipInfo(name)  # without the time, so that equal runs give one zip
                fixed.compress_type = zipfile.ZIP_DEFLATED
                packed.writestr(fixed, content)

    write_atomically(box, write)


def unpack(box: Path, runs: Path) -> None:
    """Lay the box out as a finished run in the folder `runs`; the file `layout`, which makes it
    one, comes last. InputError where a file does not match its digest."""
    digests, root = card(box)["files"], runs.resolve()
    with zipfile.ZipFile(box) as packed:
        for name in sorted(digests, key="layout".__eq__):
            content, target = packed.read(name), root / name
            inside = root in target.resolve().parents
            if not inside or hashlib.sha256(content).hexdigest() != digests[name]:
                raise _damaged(box)
            if target.suffix == ".safetensors":
                save_checkpoint(target.parent, target.stem, _unpacked(content))
            else:
                write_atomically(target, partial(Path.write_bytes, data=content))


def _damaged(box: Path) -> InputError:
    return InputError(f"{box} is damaged: install l2lkit again, or fetch the file anew.")


def _packed(state: dict[str, Any]) -> bytes:
    """A checkpoint as safetensors: the tensors under their paths, all else as JSON beside them."""
    tensors: dict[str, torch.Tensor] = {}

    def walk(value: Any, path: str) -> Any:
        if isinstance(value, torch.Tensor):
            tensors[path] = value.contiguous()
            return {"tensor": path}
        if isinstance(value, dict):
            kept = {k: v for k, v in value.items() if not _left_out(f"{path}/{k}", v)}
            return {"dict": [[k, walk(v, f"{path}/{k}")] for k, v in kept.items()]}
        if isinstance(value, (list, tuple)):
            return {"list": [walk(v, f"{path}/{i}") for i, v in enumerate(value)]}
        return {"value": value}

    return save(tensors, {"rest": json.dumps(walk(state, ""))})


def _left_out(path: str, value: Any) -> bool:
    """Whether this part of a checkpoint stays out; `gail.game.Game.load` knows how to do without U,
    and a player that is over needs no optimiser, but for GAIL's agent, which is loaded with its
    own."""
    *_, owner, name = path.split("/")
    return (name.startswith("optimiser") and owner != "agent") or (
        name == "U" and sum(weight.numel() for weight in value.values()) > LARGE
    )


def _unpacked(content: bytes) -> dict[str, Any]:
    tensors = load(content)
    size = int.from_bytes(content[:8], "little")
    rest = json.loads(json.loads(content[8 : 8 + size])["__metadata__"]["rest"])

    def build(node: dict[str, Any]) -> Any:
        ((kind, value),) = node.items()
        if kind == "tensor":
            return tensors[value]
        if kind == "dict":
            return {key: build(child) for key, child in value}
        return [build(child) for child in value] if kind == "list" else value

    return build(rest)
