"""One page that shows every figure and table of a profile, beside the executed notebooks."""

import base64
import html
import json
from pathlib import Path

import nbformat
import pandas as pd
from nbconvert import HTMLExporter

from l2lkit.store import Store, write_text

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 62rem;
       margin: 2rem auto; padding: 0 1rem; }
figure { margin: 2rem 0; } img { max-width: 100%; } figcaption { color: #444; }
table { border-collapse: collapse; font-size: .9rem; display: block; overflow-x: auto; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child { text-align: left; } nav a { margin-right: 1rem; }
details { color: #444; font-size: .85rem; }
"""


def write(store: Store) -> Path:
    """Write runs/<profile>/report/index.html and an HTML copy of each executed notebook beside
    it; returns the page's path. Every dataset the profile was run on has its section."""
    directory = store.runs / "report"
    datasets = sorted(
        p.name for p in (store.runs / "notebooks").glob("*") if any(p.glob("*.ipynb"))
    )
    sections = [_section(store, directory, name) for name in datasets]
    links = " ".join(f'<a href="#{name}">{html.escape(name)}</a>' for name in datasets)
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
    parts = [f'<h2 id="{dataset}">{html.escape(dataset)}</h2><p>Notebooks: ']
    for path in sorted((store.runs / "notebooks" / dataset).glob("*.ipynb")):
        name = f"{dataset}-{path.stem}.html"
        body, _ = HTMLExporter().from_notebook_node(nbformat.read(path, as_version=4))
        write_text(directory / name, body)
        parts.append(f'<a href="{name}">{html.escape(path.stem)}</a> ')
    parts.append("</p>")
    figures = store.figures.parent / f"{store.profile.name}-{dataset}"
    for path in sorted(figures.glob("*.png")):
        about = json.loads(path.with_suffix(".json").read_text())
        image = base64.b64encode(path.read_bytes()).decode()
        caption = html.escape(about["caption"])
        parts.append(
            f'<figure id="{dataset}-{path.stem}"><img alt="{caption}" '
            f'src="data:image/png;base64,{image}"><figcaption>{caption}</figcaption>'
            f"{_provenance(about['provenance'])}</figure>"
        )
    for path in sorted((store.runs / "tables" / dataset).glob("*.json")):
        about = json.loads(path.read_text())
        table = pd.DataFrame(about["rows"]).to_html(index=False, border=0, na_rep="", max_rows=60)
        parts.append(
            f'<figure id="{dataset}-table-{path.stem}">'
            f"<figcaption>{html.escape(about['caption'])}</figcaption>{table}"
            f"{_provenance(about['provenance'])}</figure>"
        )
    return "".join(parts)


def _provenance(provenance: dict) -> str:
    text = html.escape(json.dumps(provenance, indent=1))
    return f"<details><summary>provenance</summary><pre>{text}</pre></details>"
