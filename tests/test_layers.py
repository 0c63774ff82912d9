"""The order of the rooms: what pyproject.toml says of it holds, and a wrong import is noticed."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).resolve().parents[1]


def lint(folder):
    """import-linter on the package in this folder; its exit status and what it says."""
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache", "--no-logo"]
    environment = os.environ | {"PYTHONPATH": str(folder)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def copy(tmp_path):
    """The package's code and the contracts, to be spoiled."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    leave_out = shutil.ignore_patterns("__pycache__", "*.npz", "*.csv")
    shutil.copytree(ROOT / "l2lkit", tmp_path / "l2lkit", ignore=leave_out)
    return tmp_path


def test_the_rooms_keep_their_order():
    status, words = lint(ROOT)
    assert status == 0, words


@pytest.mark.parametrize(
    ("place", "line", "says"),
    [
        ("data/loading.py", "import l2lkit.game.loop", "l2lkit.data.loading -> l2lkit.game.loop"),
        ("game/loop.py", "def f():\n    from l2lkit.runs import store", "l2lkit.runs.store"),
        ("game/loop.py", "import seaborn", "l2lkit.game.loop -> seaborn"),
        ("checks/items.py", "from IPython.display import display", "-> IPython"),
        ("corner.py", "", "corner"),  # a module that no layer names
    ],
)
def test_a_wrong_import_is_noticed(copy, place, line, says):
    with open(copy / "l2lkit" / place, "a") as file:
        file.write(f"\n{line}\n")
    status, words = lint(copy)
    assert status == 1 and says in words


def test_what_is_imported_for_its_type_alone_does_not_count(copy):
    with open(copy / "l2lkit" / "data" / "load.py", "a") as file:
        file.write("\nfrom typing import TYPE_CHECKING\n")
        file.write("if TYPE_CHECKING:\n    from l2lkit.game.loop import Players\n")
    status, words = lint(copy)
    assert status == 0, words


def test_no_room_goes_back_to_the_front_door():
    graph = grimp.build_graph("l2lkit", cache_dir=None)
    assert not graph.find_modules_that_directly_import("l2lkit")


def test_no_module_needs_what_only_unix_has():
    for path in sorted((ROOT / "l2lkit").rglob("*.py")):
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        imported = {a.name for node in nodes if isinstance(node, ast.Import) for a in node.names}
        imported |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
        assert not imported & {"fcntl", "grp", "pwd", "resource", "termios"}, path
