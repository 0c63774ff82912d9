"""What came out: said at the end of each notebook, and at the head of 00 and of the report."""

from pathlib import Path

from IPython.display import Markdown

from l2lkit.files import write_text
from l2lkit.runs.store import Store


def say(store: Store, notebook: str, text: str) -> Markdown:
    """Show the sentences of a notebook ("03_robustness") and keep them with the run, for `said`."""
    write_text(folder(store, store.dataset) / f"{notebook}.md", text.strip() + "\n")
    return Markdown(text)


def said(store: Store, dataset: str) -> dict[str, str]:
    """What each notebook of the last run on this dataset said, in their order; a run too small for
    an answer says nothing."""
    paths = sorted(folder(store, dataset).glob("*.md"))
    answers = {path.stem: path.read_text(encoding="utf-8").strip() for path in paths}
    return {name: text for name, text in answers.items() if text}


def everything(store: Store) -> Markdown:
    """All of it, with links to the notebooks."""
    lines = [
        f"- [{name[:2]}]({name}.ipynb): {text}" for name, text in said(store, store.dataset).items()
    ]
    return Markdown(
        "\n".join(lines) or "Nothing yet: `./run_all.sh` runs the other notebooks first."
    )


def folder(store: Store, dataset: str) -> Path:
    return store.runs / "answers" / dataset
