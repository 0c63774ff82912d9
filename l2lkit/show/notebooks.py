"""The notebooks: what each needs, its execution, and its way back into the repository."""

import base64
import io
import json
import os
import shutil
from pathlib import Path

import nbformat
import papermill
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError
from PIL import Image
from tqdm import tqdm

from l2lkit import names
from l2lkit.files import alone, cannot_write, is_json, write_atomically, write_json
from l2lkit.results import experiments
from l2lkit.runs.store import Store


def needs(path: Path) -> list[str]:
    """The groups of `results.plan` that a notebook says it needs, in its metadata."""
    return nbformat.read(path, as_version=4).metadata.get("l2lkit", {}).get("needs", [])


def executed(store: Store, path: Path) -> Path:
    return store.runs / "notebooks" / store.dataset / path.name


class ThisPython(AsyncKernelManager):
    """A kernel of the Python that runs this, whatever kernels the user has installed under the name
    python3."""

    @property
    def kernel_spec(self) -> KernelSpec:
        return KernelSpec(**get_kernel_dict())


def execute(store: Store, path: Path) -> str | None:
    """Execute one notebook with papermill in a kernel of this Python. Its name is returned if it
    fails, also if its kernel dies: the failure is shown and does not stop the others. InputError if
    it cannot be written."""
    target = executed(store, path)
    making = target.parent / ".making" / path.stem / path.name  # so that it appears as a whole
    with alone(making.parent):
        try:
            return _execute(store, path, making)
        except OSError as error:
            raise cannot_write(target, error) from error
        finally:
            if making.exists() and is_json(making):
                making.replace(target)


def _execute(store: Store, path: Path, making: Path) -> str | None:
    try:
        papermill.execute_notebook(
            path,
            making,
            parameters={"settings": store.parameters()},
            kernel_name="python3",
            progress_bar=False,
            cwd=path.parent,
            kernel_manager_class=ThisPython,
            extra_arguments=["--log-level=CRITICAL"],
        )
    except PapermillExecutionError as error:
        tqdm.write(f"{path.name}, cell {error.exec_count}: {error.ename}: {error.evalue}")
        return path.stem
    except DeadKernelError:
        tqdm.write(
            f"{path.name}: its kernel was killed, most often by the system when memory runs out; "
            "close other programs and start the same command again."
        )
        return path.stem
    return None


def publish(store: Store, path: Path) -> None:
    """Put the executed notebook in place of the source: outputs as they came but for pictures in
    256 colours, a third of the size, and without papermill's parameter cell, timings and paths."""
    notebook = nbformat.read(executed(store, path), as_version=4)
    notebook.metadata.pop("papermill", None)
    injected = "injected-parameters"
    notebook.cells = [c for c in notebook.cells if injected not in c.metadata.get("tags", [])]
    for cell in notebook.cells:
        for key in ("papermill", "execution"):
            cell.metadata.pop(key, None)
        if cell.metadata.get("tags") == []:
            del cell.metadata["tags"]
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = _smaller(output.data["image/png"])
    write_atomically(path, lambda p: nbformat.write(notebook, os.fspath(p)))


def publish_figures(store: Store) -> None:
    """Copy the figures of this profile and dataset over those in figures/published/."""
    target = names.notebooks()[0].parents[1] / "figures" / "published" / store.figures.name
    shutil.copytree(store.figures, target, dirs_exist_ok=True)


def publish_seconds(store: Store) -> None:
    """Record how long each task of the first seed's run took, its surrogates' among them, for the
    time left of other people's runs: what `--only-rows` and other seeds took stays out."""
    name = f"seconds-{store.profile.name}.json"
    target = names.notebooks()[0].parents[1] / "results" / "recorded" / name
    about = json.loads((store.runs / "seconds.json").read_text())
    others = tuple(f"/{seed}" for seed in range(1, 1000))
    other, rows = experiments.surrogate_seed(store), experiments.SURROGATES
    surrogates = {f"train/{store.recipe(name).name}/{other}" for name in rows}
    kept = {
        name: seconds
        for name, seconds in about["seconds"].items()
        if name in surrogates or not (name.startswith("row/") or name.endswith(others))
    }
    write_json(target, about | {"seconds": kept, "provenance": store.machine()})


def _smaller(png: str) -> str:
    buffer = io.BytesIO()
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    picture.quantize(256, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()
