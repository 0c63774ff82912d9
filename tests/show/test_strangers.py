"""A store from strangers: what its files say is shown as text, and stays in its folder."""

import base64
import importlib.util
import json
import shutil
import warnings
from io import BytesIO

import nbformat
import pytest
import torch
from conftest import COLOURS, coloured
from nbformat.v4 import new_notebook
from PIL import Image

from l2lkit import InputError, Store, recipes
from l2lkit.files import load_checkpoint
from l2lkit.show import report

HIT = "<img src=x onerror='window.top.hit = 1'><script>window.top.hit = 1</script>"
QUOTE = "\"'><script>window.top.hit = 1<!script>".replace("!", "\u2215")  # a name has no slash
BROWSERS = map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
BROWSER = next(filter(None, BROWSERS), "")
needs_chromium = pytest.mark.skipif(
    not (BROWSER and importlib.util.find_spec("playwright")), reason="no Chromium or no Playwright"
)


@pytest.fixture
def store(tmp_path, monkeypatch):
    """Models of images whose classes have names that are HTML."""
    sizes = {"eval_images": 8, "curve_images": 4, "random_draws": 2, "batch_size": 8}
    sizes |= {"train_images": 24, "test_images": 8, "width": 1 / 32, "plain_epochs": 1, "epochs": 1}
    tiny = recipes.Profile(name="smoke", seeds=1, precision="float32", **sizes)
    monkeypatch.setitem(recipes.PROFILES, "smoke", tiny)
    images, labels = coloured(32, 8, 0)
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        name = f"{label} {HIT}".replace("/", "\u2215").replace("<\u2215", "<!") + QUOTE
        folder = tmp_path / "images" / ("train" if i < 24 else "test") / name
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.transpose(1, 2, 0)).save(folder / f"{i}.png")
    assert len(COLOURS) == 4
    data = tmp_path / "images"
    return Store("smoke", dataset="tiny", data=data, device="cpu", output=tmp_path / "out")


def strange(store):
    """Folders, figures, tables and notebooks with names, captions and cells that are HTML."""
    runs, name = store.runs, f"x{QUOTE}"
    notebooks, tables = runs / "notebooks" / name, runs / "tables" / name
    figures = store.figures.parent / f"smoke-{name}"
    for folder in (notebooks, tables, figures):
        folder.mkdir(parents=True)
    nbformat.write(new_notebook(), notebooks / f"n{QUOTE}.ipynb")
    about = {"caption": HIT, "provenance": {HIT: HIT}, "rows": [{HIT: HIT, "b": QUOTE}]}
    (tables / f"t{QUOTE}.json").write_text(json.dumps(about))
    (figures / f"f{QUOTE}.json").write_text(json.dumps(about))
    png = BytesIO()
    Image.new("RGB", (2, 2)).save(png, "PNG")
    (figures / f"f{QUOTE}.png").write_bytes(png.getvalue())
    assert base64.b64encode(png.getvalue())
    (runs / "notebooks" / "tiny").mkdir()
    nbformat.write(new_notebook(), runs / "notebooks" / "tiny" / "n.ipynb")


@needs_chromium
def test_no_name_or_caption_is_run_as_a_script(store):
    from playwright.sync_api import sync_playwright

    store.models(recipes.DEFENCES)
    strange(store)
    path = report.write(store)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        for name in ("index.html", "explorer-tiny.html"):
            page = browser.new_page()
            page.goto(f"file://{path.parent / name}")
            page.wait_for_timeout(1500)
            assert page.evaluate("window.hit") is None
            assert "window.top.hit" in page.content()  # the names are there, as text
            if name == "index.html":
                page.frame_locator("iframe").locator("section").first.wait_for()
            page.close()
        browser.close()


@pytest.mark.parametrize(
    "name", ["..", ".", "", "../x", "a/b", "a\\b", "<b>", ".hidden", "a" * 200]
)
def test_a_datasets_name_stays_in_its_folder(name, tmp_path):
    with pytest.raises(InputError, match="must be a plain word"):
        Store("smoke", dataset=name, output=tmp_path)


class Harm:
    """Pickled, it runs a command when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_checkpoint_is_weights_and_nothing_that_runs(tmp_path):
    import hashlib

    content = BytesIO()
    torch.save({"epoch": Harm(tmp_path / "harmed")}, content)
    digest = hashlib.sha256(content.getvalue()).hexdigest()[:16]
    (tmp_path / f"checkpoint.{digest}.pt").write_bytes(content.getvalue())
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert load_checkpoint(tmp_path, "checkpoint") is None
    assert "damaged" in str(said[0].message) and not (tmp_path / "harmed").exists()
