"""What tells defences apart, and how a figure is saved."""

import json
from types import SimpleNamespace

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from PIL import Image

from l2lkit import files
from l2lkit.errors import InputError
from l2lkit.show import style

pytestmark = pytest.mark.usefixtures("theme")


def store(figures) -> SimpleNamespace:
    """What `save` takes of a Store: where figures go, and their provenance."""
    return SimpleNamespace(figures=figures, machine=lambda: {"seed": 3}, code="abc")


def curve() -> plt.Figure:
    fig, ax = plt.subplots()
    ax.plot([0, 1], [1, 0])
    ax.set_title("ε = 0.031")
    return fig


def test_save_writes_picture_vector_and_caption(tmp_path):
    path = style.save(store(tmp_path / "new" / "place"), curve(), "one", "A line, ε ± 0.")
    assert path == tmp_path / "new" / "place" / "one.png"
    assert sorted(p.name for p in path.parent.iterdir()) == ["one.json", "one.png", "one.svg"]
    about = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    made = {"seed": 3, "code": "abc", "drawn": style.drawing()}
    assert about == {"caption": "A line, ε ± 0.", "provenance": made}
    assert json.loads(Image.open(path).info["Description"]) == about
    assert path.stat().st_size < 600_000
    assert "A line, ε ± 0." in path.with_suffix(".svg").read_text(encoding="utf-8")


def test_saving_twice_gives_the_same_bytes(tmp_path):
    for place in ("a", "b", "b"):  # the second "b" writes over the first
        style.save(store(tmp_path / place), curve(), "one", "A line.")
    for ending in ("png", "svg", "json"):
        first, second = (tmp_path / d / f"one.{ending}" for d in "ab")
        assert first.read_bytes() == second.read_bytes()


def test_a_notebook_shows_the_caption_below_and_as_the_pictures_text(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(style, "get_ipython", lambda: SimpleNamespace(kernel=None))
    monkeypatch.setattr(style, "display", lambda what, **more: shown.append((what, more)))
    fig = curve()
    style.save(store(tmp_path), fig, "one", "A line. ")
    (picture, more), (words, _) = shown
    assert picture is fig and more["metadata"] == {"image/png": {"alt": "A line. "}}
    assert words.data == "*A line.*" and not plt.get_fignums()


def test_unwritable_directory_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="file"):
        style.save(store(tmp_path / "file"), curve(), "one", "")
    with pytest.raises(InputError, match="plain file name"):
        style.save(store(tmp_path), curve(), "../one", "")


def test_a_failed_write_keeps_the_old_file_and_leaves_no_scrap(tmp_path, monkeypatch):
    path = style.save(store(tmp_path), curve(), "one", "first")
    before = path.read_bytes()

    def fails(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "replace", fails)
    with pytest.raises(InputError, match="No space left"):
        style.save(store(tmp_path), curve(), "one", "second")
    assert path.read_bytes() == before
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".json", ".png", ".svg"]


LEARNED = [name for name in style.DEFENCES if name.endswith("L2L")]
SIZED = [f"{name} ({size})" for name in LEARNED for size in "SW"]


def test_styles_tell_names_apart_without_colour():
    attackers = [f"{name} attacker" for name in (*LEARNED, *SIZED)]
    looks = style.styles([*style.DEFENCES, *SIZED, *attackers, "L2L-DA", "AdvGAN Net", "GAP Net"])
    shapes = {(s["marker"], s["fillstyle"], s["ls"]) for s in looks.values()}
    assert len(shapes) == len(looks) == 10 + 6 + 9 + 3
    assert len({s["color"] for s in looks.values()}) == 13
    assert {"Free", "FGSM-RS", "TRADES"} <= set(style.DEFENCES)
    for name in SIZED:
        same = looks[name[:-4]]
        assert looks[name]["color"] == same["color"] and looks[name]["marker"] == same["marker"]


def test_a_heat_map_goes_by_the_number_that_a_cell_begins_with():
    cells = {"a": ["0.0 ± 0.0", "99.0 (98.5)", "2 of 2"], "b": ["50.0", "3 fails", "text"]}
    shown = style.heat(pd.DataFrame(cells))._compute().ctx
    looks = {place: dict(css) for place, css in shown.items()}
    colours = {k: c["background-color"] for k, c in looks.items() if "background-color" in c}
    assert set(colours) == {(0, 0), (1, 0), (0, 1), (1, 1)}  # no number, no colour
    light = {k: sum(bytes.fromhex(c[1:])) for k, c in colours.items()}
    assert light[0, 0] > light[0, 1] > light[1, 0]


def test_a_plain_table_has_its_caption_and_no_index_without_a_meaning():
    table = pd.DataFrame({"loss": [0.123456, float("nan")]})
    html = style.plain(table, "Of two images.").to_html()
    assert "Of two images." in html and ">0.12<" in html and "nan" not in html
    assert "row_heading" not in html
    assert "row_heading" in style.plain(table.set_axis(["a", "b"])).to_html()
