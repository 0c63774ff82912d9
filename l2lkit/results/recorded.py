"""Runs that were recorded with their provenance, and come with the repository."""

import json
from typing import Any

import pandas as pd

from l2lkit.files import repository
from l2lkit.runs.store import Store


def recorded(name: str) -> dict[str, Any] | None:
    """The record `name` of results/recorded/; None where there is none, or no repository."""
    root = repository()
    path = root / "results" / "recorded" / f"{name}.json" if root else None
    return json.loads(path.read_text(encoding="utf-8")) if path and path.is_file() else None


def five_seeds(store: Store) -> tuple[pd.DataFrame, str] | None:
    """The recorded rows of this profile and dataset, as `checklist.by_seed` has them, and their
    caption (`benchmarks/white_box.py`); None where none are recorded, or not of these images."""
    scale = "" if store.profile.name == "quick" else f"-{store.profile.name}"
    record = recorded(f"by_seed{scale}-{store.dataset}")
    if record is None or record["provenance"]["data_fingerprint"] != store.data.fingerprint:
        return None
    return pd.DataFrame(record["rows"]), record["caption"]


def night(name: str = "night-cifar10") -> tuple[pd.DataFrame, str] | None:
    """The models that were trained for a night on all training images (`benchmarks/night.py`):
    columns recipe, defence, seed, status, seconds, device, attack, accuracy, and the caption."""
    record = recorded(name)
    if record is None:
        return None
    about = ("recipe", "defence", "seed", "status", "seconds", "device")
    rows = [
        {key: row[key] for key in about} | {"attack": attack, "accuracy": accuracy}
        for row in record["rows"]
        for attack, accuracy in row["accuracy"].items()
    ]
    first = record["rows"][0]
    devices = sorted({row["device"] for row in record["rows"]})
    images = f"{max(first['images'].values())} test images"
    caption = f"{first['dataset']}, profile {first['profile']}, {images}, on {', '.join(devices)}."
    return pd.DataFrame(rows), f"{record['caption']} {caption}"
