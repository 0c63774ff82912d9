"""The report: its explorer holds what the attacks do, and its pictures have words."""

import base64
import json
import re
from io import BytesIO

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from l2lkit import recipes
from l2lkit.game.evaluate import perturb
from l2lkit.results import experiments
from l2lkit.runs.store import Store
from l2lkit.show import answers, cards, report


@pytest.fixture
def store(folder, tmp_path, monkeypatch):
    sizes = {"eval_images": 8, "curve_images": 4, "random_draws": 2, "batch_size": 8}
    sizes |= {"train_images": 24, "test_images": 8, "width": 1 / 32, "plain_epochs": 3, "epochs": 1}
    tiny = recipes.Profile(name="smoke", seeds=1, precision="float32", **sizes)
    monkeypatch.setitem(recipes.PROFILES, "smoke", tiny)
    return Store("smoke", dataset="tiny", data=folder, device="cpu", output=tmp_path / "out")


def test_report_without_models_trains_none(store):
    path = report.write(store)
    assert "iframe title" not in path.read_text() and not (store.runs / "models").exists()


def test_page_holds_the_perturbations_and_probabilities(store):
    store.models(recipes.DEFENCES)
    index = report.write(store)
    notebooks = store.runs / "notebooks" / "tiny"
    png = BytesIO()
    Image.new("RGB", (2, 2)).save(png, "PNG")
    picture = {"image/png": base64.b64encode(png.getvalue()).decode()}
    words = {"image/png": {"alt": "Four <pixels>"}}
    output = new_output("display_data", picture, metadata=words)
    notebooks.mkdir(parents=True)
    book = new_notebook(cells=[new_code_cell("1", outputs=[output])])
    nbformat.write(book, notebooks / "n.ipynb")
    text = report.write(store).read_text()
    assert index.exists() and "<iframe title" in text
    copy = (index.parent / "tiny-n.html").read_text()
    assert re.search(r'<img[^>]*alt="Four &lt;pixels&gt;"', copy)

    page = (index.parent / "explorer-tiny.html").read_text()
    assert not re.search(r"(?:src|href)=.?(?:https?:|//)|import\(|fetch\(", page)
    assert cards.Deck()._esm in page  # one renderer for notebooks and page
    content = re.search(r'<script type="application/json" id=data>(.*?)</script>', page, re.DOTALL)
    data = json.loads(content[1])
    attack, step = data["attacks"].index("PGM-20"), data["epsilons"].index(0.031)
    defence = data["defences"].index("PGM Net")
    cell = data["cells"][defence][attack]
    sprite = np.asarray(Image.open(BytesIO(base64.b64decode(cell["deltas"].split(",")[1]))))
    classifier = store.model("pgm").classifier
    known = experiments.named_attacks(store, store.seed, 0.031)["PGM-20"]
    for k, image in enumerate(data["images"]):
        i = image["index"]
        x, y = store.data.test_images[i : i + 1].float() / 255, store.data.test_labels[i : i + 1]
        delta = perturb(classifier, known, x, y, seed=i)
        part = sprite[8 * k : 8 * k + 8, 8 * (step - 1) : 8 * step].transpose(2, 0, 1)
        stored = 0.031 * (part.astype(float) - 128) / 127
        np.testing.assert_allclose(stored, delta[0].numpy(), atol=0.031 / 127)
        with torch.no_grad():
            clean, after = classifier(torch.cat([x, x + delta])).softmax(1).numpy()
        np.testing.assert_allclose(data["clean"][defence][k], 1000 * clean, atol=0.51)
        np.testing.assert_allclose(cell["after"][step - 1][k], 1000 * after, atol=0.51)
    assert len(data["images"]) == cards.PAGE_IMAGES


def test_what_the_notebooks_say_stands_at_the_top(store):
    assert "Nothing yet" in answers.everything(store).data
    (store.runs / "notebooks" / "tiny").mkdir(parents=True)
    nbformat.write(new_notebook(), store.runs / "notebooks" / "tiny" / "03_robustness.ipynb")
    answers.say(store, "03_robustness", "PGM Net keeps <b>60%</b>.")
    answers.say(store, "01_limiting_cycle", "It leaves.")
    assert answers.everything(store).data.splitlines() == [
        "- [01](01_limiting_cycle.ipynb): It leaves.",
        "- [03](03_robustness.ipynb): PGM Net keeps <b>60%</b>.",
    ]
    page = report.write(store).read_text()
    assert page.index(">01</a>: It leaves.</li>") < page.index("PGM Net keeps &lt;b&gt;60%")


def test_the_report_tells_the_story_in_the_order_of_the_notebooks(store):
    png = BytesIO()
    Image.new("RGB", (2, 2)).save(png, "PNG")
    store.figures.mkdir(parents=True)
    outputs = []
    for name, caption in (("z_first", "Of step 1."), ("a_second", "Of step 2.")):
        about = {"caption": caption, "provenance": {}}
        (store.figures / f"{name}.png").write_bytes(png.getvalue())
        (store.figures / f"{name}.json").write_text(json.dumps(about))
        picture = {"image/png": base64.b64encode(png.getvalue()).decode()}
        words = {"image/png": {"alt": caption}}
        outputs.append(new_output("display_data", picture, metadata=words))
    widget = {"application/vnd.jupyter.widget-view+json": {"model_id": "1"}, "text/plain": "VBox()"}
    drawn = new_code_cell("1", outputs=[new_output("display_data", widget), *outputs])
    setting = new_code_cell("settings = {}", metadata={"tags": ["injected-parameters"]})
    store.save_table(pd.DataFrame({"a": [1]}), "numbers", "Some numbers.")
    notebooks = store.runs / "notebooks" / "tiny"
    notebooks.mkdir(parents=True)
    cells = [new_markdown_cell("# 01 · One\n\n**Question.** Why?"), setting, drawn]
    cells.append(new_code_cell('store.save_table(frame, "numbers", "Some numbers.")'))
    nbformat.write(new_notebook(cells=cells), notebooks / "01_one.ipynb")
    nbformat.write(
        new_notebook(cells=[new_markdown_cell("# 02 · Two")]), notebooks / "02_two.ipynb"
    )
    page = report.write(store).read_text()
    order = ["<nav", "01 · One</h2>", "Why?", "tiny-z_first", "tiny-a_second"]
    order += ["tiny-table-numbers", "02 · Two</h2>"]
    places = [page.index(mark) for mark in order]
    assert places == sorted(places) and "Of other runs" not in page
    linked = set(re.findall(r'href="([^"#]+)"', page))
    assert linked == {"tiny-01_one.html", "tiny-02_two.html"}
    copy = (store.runs / "report" / "tiny-01_one.html").read_text()
    assert 'href="index.html"' in copy and 'href="tiny-02_two.html"' in copy
    assert "VBox()" not in copy and "settings = {}" not in copy
