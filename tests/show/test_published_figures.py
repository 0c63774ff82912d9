"""The pictures that README and the notebooks show are those of the present code."""

import json
from pathlib import Path

import pytest

from l2lkit.game.identity import code
from l2lkit.runs.store import MEASURING
from l2lkit.show import style

PUBLISHED = Path(__file__).parents[2] / "figures" / "published"


def stale(folder: Path) -> list[str]:
    """The pictures without a record, or that other code has measured or drawn than now."""
    now = {"code": code(*MEASURING), "drawn": style.drawing()}
    names = []
    for path in sorted(folder.rglob("*.png")):
        record = path.with_suffix(".json")
        about = json.loads(record.read_text())["provenance"] if record.exists() else {}
        if any(about.get(part) != digest for part, digest in now.items()):
            names.append(path.stem)
    return names


def test_a_picture_of_other_code_or_of_none_is_stale(tmp_path):
    now = {"code": code(*MEASURING), "drawn": style.drawing(), "commit": "abc"}
    for name, change in {"fresh": {}, "old": {"code": "x"}, "drawn": {"drawn": "x"}}.items():
        (tmp_path / f"{name}.png").touch()
        (tmp_path / f"{name}.json").write_text(json.dumps({"provenance": now | change}))
    (tmp_path / "bare.png").touch()
    assert stale(tmp_path) == ["bare", "drawn", "old"]


def test_published_pictures_are_of_the_present_code():
    records = [json.loads(p.read_text())["provenance"] for p in PUBLISHED.rglob("*.json")]
    if not any("drawn" in about for about in records):
        pytest.skip("published before pictures named what drew them: ./run_all.sh --publish")
    old = stale(PUBLISHED)
    assert not old, f"make these anew with ./run_all.sh --publish: {', '.join(old)}"
