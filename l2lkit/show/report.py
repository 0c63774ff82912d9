"""One page that shows every figure and table of a profile, beside the executed notebooks, and the
perturbation explorer that needs no kernel."""

import base64
import html
import json
from pathlib import Path
from urllib.parse import quote

import nbformat
import pandas as pd
from nbconvert import HTMLExporter

from l2lkit.files import write_text
from l2lkit.recipes import DEFENCES
from l2lkit.runs.store import Store
from l2lkit.show import cards
from l2lkit.show.answers import said

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 62rem;
       margin: 2rem auto; padding: 0 1rem; }
figure { margin: 2rem 0; } img { max-width: 100%; } figcaption { color: #444; }
table { border-collapse: collapse; font-size: .9rem; display: block; overflow-x: auto; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child { text-align: left; } nav a { margin-right: 1rem; }
details { color: #444; font-size: .85rem; }
iframe { width: 100%; height: 46rem; border: 1px solid #bdbdbd; }
"""


def write(store: Store) -> Path:
    """Write runs/<profile>/report/index.html and an HTML copy of each executed notebook beside
    it; returns the page's path. Every dataset the profile was run on has its section, with the
    explorer of `cards.page` where the models are there: explorer-<dataset>.html, a file to share,
    which index.html holds too."""
    directory = store.runs / "report"
    if all(store.finished(name, store.seed) for name in DEFENCES):
        write_text(directory / f"explorer-{store.dataset}.html", cards.page(store))
    datasets = sorted(
        p.name for p in (store.runs / "notebooks").glob("*") if any(p.glob("*.ipynb"))
    )
    sections = [_section(store, directory, name) for name in datasets]
    links = " ".join(f'<a href="#{html.escape(name)}">{html.escape(name)}</a>' for name in datasets)
    page = (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width'>"
        f"<title>L2L companion: {store.profile.name}</title><style>{STYLE}</style>"
        f"<h1>Learning to defend by learning to attack: profile {store.profile.name}</h1>"
        f"<nav>{links}</nav>{''.join(sections)}</html>\n"
    )
    write_text(directory / "index.html", page)
    return directory / "index.html"


def _section(store: Store, directory: Path, dataset: str) -> str:
    shown = html.escape(dataset)
    parts = [f'<h2 id="{shown}">{shown}</h2><p>Notebooks: ']
    exporter = HTMLExporter()
    for path in sorted((store.runs / "notebooks" / dataset).glob("*.ipynb")):
        name = f"{dataset}-{path.stem}.html"
        body, _ = exporter.from_notebook_node(_described(nbformat.read(path, as_version=4)))
        write_text(directory / name, body)
        parts.append(f'<a href="{quote(name)}">{html.escape(path.stem)}</a> ')
    parts.append("</p>")
    if answers := said(store, dataset):
        items = "".join(
            f"<li>{name[:2]}: {html.escape(text)}</li>" for name, text in answers.items()
        )
        parts.append(f"<h3>What came out</h3><ul>{items}</ul>")
    explorer = directory / f"explorer-{dataset}.html"
    if explorer.exists():
        content = html.escape(explorer.read_text(encoding="utf-8"))
        parts.append(
            f'<h3>Explore</h3><p>As a file of its own: <a href="{quote(explorer.name)}">'
            f"{html.escape(explorer.name)}</a>.</p>"
            f'<iframe title="Perturbation explorer, {shown}" srcdoc="{content}"></iframe>'
        )
    figures = store.figures.parent / f"{store.profile.name}-{dataset}"
    for path in sorted(figures.glob("*.png")):
        about = json.loads(path.with_suffix(".json").read_text())
        image = base64.b64encode(path.read_bytes()).decode()
        caption = html.escape(about["caption"])
        parts.append(
            f'<figure id="{shown}-{html.escape(path.stem)}"><img alt="{caption}" '
            f'src="data:image/png;base64,{image}"><figcaption>{caption}</figcaption>'
            f"{_provenance(about['provenance'])}</figure>"
        )
    for path in sorted((store.runs / "tables" / dataset).glob("*.json")):
        about = json.loads(path.read_text())
        table = pd.DataFrame(about["rows"]).to_html(index=False, border=0, na_rep="", max_rows=60)
        parts.append(
            f'<figure id="{shown}-table-{html.escape(path.stem)}">'
            f"<figcaption>{html.escape(about['caption'])}</figcaption>{table}"
            f"{_provenance(about['provenance'])}</figure>"
        )
    return "".join(parts)


def _described(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Pictures with the alternative text of their metadata, which nbconvert leaves out."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            alt = output.get("metadata", {}).get("image/png", {}).get("alt")
            if alt and "image/png" in output.data:
                url = "data:image/png;base64," + output.data["image/png"].replace("\n", "")
                output.data["text/html"] = f'<img alt="{html.escape(alt)}" src="{url}">'
    return notebook


def _provenance(provenance: dict) -> str:
    text = html.escape(json.dumps(provenance, indent=1))
    return f"<details><summary>provenance</summary><pre>{text}</pre></details>"
