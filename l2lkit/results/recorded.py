"""Runs that were recorded with their provenance, and come with the repository."""

import json
from typing import Any

from l2lkit.runs.machine import repository


def recorded(name: str) -> dict[str, Any] | None:
    """The record `name` of results/recorded/; None where there is none, or no repository."""
    root = repository()
    path = root / "results" / "recorded" / f"{name}.json" if root else None
    return json.loads(path.read_text(encoding="utf-8")) if path and path.is_file() else None
