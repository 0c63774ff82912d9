"""The report of a profile: one site that opens from a file. Its first page tells the story in the
order of the notebooks, what came out on top, with every figure and table; beside it stand the
executed notebooks and the perturbation explorer that needs no kernel."""

import base64
import copy
import html
import json
import re
from collections.abc import Iterable
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
       margin: 0 auto; padding: 0 1rem 4rem; }
figure { margin: 1.5rem 0; } img { max-width: 100%; } figcaption { color: #444; }
h2 { margin-top: 3rem; border-top: 1px solid #ddd; padding-top: 1rem; }
table { border-collapse: collapse; font-size: .9rem; display: block; overflow-x: auto; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child { text-align: left; }
details { color: #444; font-size: .9rem; margin: .5rem 0; }
iframe { width: 100%; height: 40rem; border: 0; }
"""
NAV = """
.l2l-nav { position: sticky; top: 0; z-index: 20; background: #fff; padding: .5rem 0;
  border-bottom: 1px solid #bbb; font: 15px/1.6 system-ui, sans-serif; }
.l2l-nav a { margin-right: .9rem; color: #00598c; white-space: nowrap; }
"""
FIT = (  # a frame as high as what is in it
    "const s = () => this.style.height = this.contentDocument.documentElement.offsetHeight + 16 + "
    "'px'; s(); new ResizeObserver(s).observe(this.contentDocument.documentElement)"
)


def write(store: Store) -> Path:
    """Write runs/<profile>/report/index.html and an HTML copy of each executed notebook beside
    it; returns the page's path. Every dataset the profile was run on has its part, with the
    explorer of `cards.page` where the models are there: explorer-<dataset>.html, a file to share,
    which index.html holds too."""
    directory = store.runs / "report"
    if all(store.finished(name, store.seed) for name in DEFENCES):
        write_text(directory / f"explorer-{store.dataset}.html", cards.page(store))
    datasets = sorted(
        p.name for p in (store.runs / "notebooks").glob("*") if any(p.glob("*.ipynb"))
    )
    parts = "".join(_dataset(store, directory, name) for name in datasets)
    title = f"Learning to defend by learning to attack: profile {store.profile.name}"
    page = (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width'>"
        f"<title>{title}</title><style>{STYLE}{NAV}</style><h1>{title}</h1>{parts}</html>\n"
    )
    write_text(directory / "index.html", page)
    return directory / "index.html"


def _dataset(store: Store, directory: Path, dataset: str) -> str:
    paths = sorted((store.runs / "notebooks" / dataset).glob("*.ipynb"))
    notebooks = {path.stem: nbformat.read(path, as_version=4) for path in paths}
    shown = html.escape(dataset)
    links = [("index.html", f"Report: {dataset}")]
    links += [(f"{dataset}-{name}.html", name.replace("_", " ")) for name in notebooks]
    explorer = directory / f"explorer-{dataset}.html"
    if explorer.exists():
        links.append((explorer.name, "explorer"))
    exporter, head = HTMLExporter(), f"<style>{NAV}</style>{_navigation(links)}"
    for name, notebook in notebooks.items():
        body, _ = exporter.from_notebook_node(_described(notebook))
        start = body.index(">", body.index("<body")) + 1
        write_text(directory / f"{dataset}-{name}.html", body[:start] + head + body[start:])
    jumps = [(f"#{dataset}-{name}", name.replace("_", " ")) for name in notebooks]
    jumps += [(f"#{dataset}-explorer", "explorer")] if explorer.exists() else []
    parts = [_navigation([(f"#{dataset}", dataset), *jumps])]
    if answers := said(store, dataset):
        items = "".join(
            f'<li><a href="{quote(f"{dataset}-{name}.html")}">{name[:2]}</a>: '
            f"{html.escape(text)}</li>"
            for name, text in answers.items()
        )
        parts.append(f'<h2 id="{shown}">What came out on {shown}</h2><ul>{items}</ul>')
    figures, tables = _figures(store, dataset), _tables(store, dataset)
    for name, notebook in notebooks.items():
        parts.append(_chapter(f"{dataset}-{name}", notebook, figures, tables, answers.get(name)))
    if explorer.exists():
        content = html.escape(explorer.read_text(encoding="utf-8"))
        parts.append(
            f'<h2 id="{shown}-explorer">Explore</h2><p>As a file of its own: '
            f'<a href="{quote(explorer.name)}">{html.escape(explorer.name)}</a>.</p>'
            f'<iframe title="Perturbation explorer, {shown}" onload="{FIT}" '
            f'srcdoc="{content}"></iframe>'
        )
    if figures or tables:
        parts += ["<h2>Of other runs</h2>", *figures.values(), *tables.values()]
    return "".join(parts)


def _navigation(links: Iterable[tuple[str, str]]) -> str:
    every = (f'<a href="{quote(to, safe="#")}">{html.escape(name)}</a>' for to, name in links)
    return f'<nav class="l2l-nav">{" ".join(every)}</nav>'


def _chapter(
    name: str,
    notebook: nbformat.NotebookNode,
    figures: dict[str, str],
    tables: dict[str, str],
    answer: str | None,
) -> str:
    """A notebook's part of the first page: its question, its answer, and of `figures` (by caption)
    and `tables` (by name) those that are its own, in its order, which leave the two."""
    words = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    heading = next((w.splitlines()[0].lstrip("# ") for w in words if w.startswith("# ")), name)
    question = next((w for text in words for w in re.findall(r"\*\*Question\.\*\* (.*)", text)), "")
    parts = [f'<h2 id="{html.escape(name)}">{html.escape(heading)}</h2>']
    if question:
        parts.append(f"<p><b>Question.</b> {html.escape(question)}</p>")
    if answer:
        parts.append(f"<p><b>Answer.</b> {html.escape(answer)}</p>")
    parts.append(f'<p><a href="{quote(name)}.html">The whole notebook</a></p>')
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            alt = output.get("metadata", {}).get("image/png", {}).get("alt")
            parts.append(figures.pop(alt, ""))
        for table in re.findall(r"save_table\([^\"]*\"(\w+)\"", cell.source):
            parts.append(tables.pop(table, ""))
    return "".join(parts)


def _figures(store: Store, dataset: str) -> dict[str, str]:
    """The figures of a dataset as HTML, by caption."""
    figures = {}
    folder = store.figures.parent / f"{store.profile.name}-{dataset}"
    for path in sorted(folder.glob("*.png")):
        about = json.loads(path.with_suffix(".json").read_text())
        image = base64.b64encode(path.read_bytes()).decode()
        caption = html.escape(about["caption"])
        figures[about["caption"]] = (
            f'<figure id="{html.escape(f"{dataset}-{path.stem}")}"><img alt="{caption}" '
            f'src="data:image/png;base64,{image}"><figcaption>{caption}</figcaption>'
            f"{_provenance(about['provenance'])}</figure>"
        )
    return figures


def _tables(store: Store, dataset: str) -> dict[str, str]:
    """The tables of a dataset as HTML, folded, by name."""
    tables = {}
    for path in sorted((store.runs / "tables" / dataset).glob("*.json")):
        about = json.loads(path.read_text())
        table = pd.DataFrame(about["rows"]).to_html(index=False, border=0, na_rep="", max_rows=60)
        tables[path.stem] = (
            f'<details id="{html.escape(f"{dataset}-table-{path.stem}")}"><summary>Table: '
            f"{html.escape(about['caption'])}</summary>{table}"
            f"{_provenance(about['provenance'])}</details>"
        )
    return tables


def _described(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Pictures with the alternative text of their metadata, which nbconvert leaves out; without the
    cells of parameters, and without widgets, which need a kernel: the stills below them stay."""
    notebook = copy.deepcopy(notebook)
    notebook.metadata.pop("widgets", None)
    machinery = {"parameters", "injected-parameters"}
    notebook.cells = [c for c in notebook.cells if not machinery & {*c.metadata.get("tags", [])}]
    for cell in notebook.cells:
        outputs = cell.get("outputs", [])
        if outputs:
            widget = "application/vnd.jupyter.widget-view+json"
            cell.outputs = [o for o in outputs if widget not in o.get("data", {})]
        for output in cell.get("outputs", []):
            alt = output.get("metadata", {}).get("image/png", {}).get("alt")
            if alt and "image/png" in output.data:
                url = "data:image/png;base64," + output.data["image/png"].replace("\n", "")
                output.data["text/html"] = f'<img alt="{html.escape(alt)}" src="{url}">'
    return notebook


def _provenance(provenance: dict) -> str:
    text = html.escape(json.dumps(provenance, indent=1))
    return f"<details><summary>provenance</summary><pre>{text}</pre></details>"
