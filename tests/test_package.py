"""The wheel, installed where no repository is: what works there, and what it leaves alone."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from conftest import image_folder
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "l2lkit"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Two commands, in one process that imports torch once.
WORK = """
import sys
from l2lkit.__main__ import main
options = f"--profile=smoke --dataset=colours --data={sys.argv[1]} --device=cpu".split()
assert main(["train", "plain", *options]) == 0
assert main(["evaluate", "plain", "--attacks=clean,fgsm", "--images=4", *options]) == 0
print(*sys.modules)
"""


def files(folder):
    """All files below a folder, but for what Python compiles."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(p.relative_to(folder)) for p in paths if "__pycache__" not in p.parts}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with nothing in it but the installed wheel."""
    source, site = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, source)
    compiled = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PACKAGE, source / "l2lkit", ignore=compiled)
    uv = [sys.executable, "-m", "uv", "--quiet", "--offline"]
    build = ["build", "--wheel", "--no-build-isolation", "--python", sys.executable]
    subprocess.run([*uv, *build, "--out-dir", source / "dist", source], check=True)
    (wheel,) = (source / "dist").glob("*.whl")
    install = ["pip", "install", "--python", sys.executable, "--no-deps", "--target", site, wheel]
    subprocess.run([*uv, *install], check=True)
    return site


@pytest.fixture
def python(site, tmp_path):
    """Runs this Python on the wheel, in an empty folder; what it printed."""
    here = tmp_path / "here"
    here.mkdir()
    kept = {k: v for k, v in os.environ.items() if not k.startswith("L2LKIT_")}
    environment = kept | {"PYTHONPATH": str(site)}

    def run(*words):
        command = [sys.executable, *map(str, words)]
        done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.mark.slow
def test_the_wheel_holds_the_whole_package_and_nothing_else(site):
    installed = {name for name in files(site) if not name.split("/")[0].endswith(".dist-info")}
    scripts = {name for name in installed if name.startswith("bin/")}
    assert scripts == {"bin/l2lkit"}
    assert installed - scripts - {".lock"} == {f"l2lkit/{name}" for name in files(PACKAGE)}


@pytest.mark.slow
def test_every_public_name_resolves_and_the_shipped_files_are_read(python, site):
    code = """
import l2lkit as l2l
from l2lkit.gail.demonstrations import load
from l2lkit.gail.environments import ENVIRONMENTS
print(l2l.__file__)
for name in l2l.__all__:
    getattr(l2l, name)
print(*(len(load(name).actions) for name in ENVIRONMENTS))
"""
    place, pairs = python("-c", code).splitlines()
    assert Path(place).parent == site / "l2lkit"
    assert all(int(count) > 0 for count in pairs.split())


@pytest.mark.slow
def test_the_command_line_answers(python):
    assert "published" in python("-m", "l2lkit", "--help")
    listed = json.loads(python("-m", "l2lkit", "recipes", "--json"))
    assert "iclr2020/grad@code" in {row["recipe"] for row in listed}
    printed = json.loads(python("-m", "l2lkit", "published", "--version", "iclr2020", "--json"))
    assert {row["version"] for row in printed} == {"iclr2020"}


@pytest.mark.slow
def test_training_and_measuring_write_in_the_current_folder_and_need_no_plot(
    python, site, tmp_path
):
    images, before = image_folder(tmp_path / "images"), files(site)
    printed = python("-c", WORK, images)
    assert "Plain Net: ok" in printed or "Plain Net: collapsed" in printed
    *_, measured, loaded = printed.splitlines()
    assert re.search(r"seed 0 .*: clean \d+\.\d%  fgsm \d+\.\d%", measured)
    presentation = {"seaborn", "IPython", "ipywidgets", "anywidget", "matplotlib.pyplot"}
    assert "l2lkit.game.loop" in loaded.split() and not presentation & set(loaded.split())
    assert files(site) == before
    made = files(tmp_path / "here")
    assert {name.split("/")[0] for name in made} == {"runs"}
    assert any(name.endswith("seed-0/record.json") for name in made)
    assert {path.name for path in tmp_path.iterdir()} == {"images", "here"}


def test_what_the_package_imports_is_declared():
    imported = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module.split(".")[0])
    known = packages_distributions()
    needed = {canonicalize_name(known[name][0]) for name in imported & set(known)} - {"l2lkit"}
    extra = PROJECT["optional-dependencies"]["autoattack"]
    declared = {canonicalize_name(Requirement(r).name) for r in PROJECT["dependencies"] + extra}
    assert needed <= declared
    assert not imported - set(known) - sys.stdlib_module_names - {"l2lkit", "pyautoattack"}
