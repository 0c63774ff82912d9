"""What the README and the pages of docs/ say can be run."""

import json
import re
import shlex
from pathlib import Path

import pytest

from l2lkit import files, recipes
from l2lkit.__main__ import parser
from l2lkit.data import digits

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {path: path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md")}
PAGES[ROOT / "README.md"] = README


def test_the_ten_line_attacker_runs_and_attacks(monkeypatch, tmp_path, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", PAGES[ROOT / "docs" / "extend.md"], re.S)
    small = recipes.Profile(
        name="quick",
        seeds=1,
        eval_images=8,
        curve_images=4,
        random_draws=2,
        train_images=64,
        test_images=16,
    )
    monkeypatch.setitem(recipes.PROFILES, "quick", small)
    monkeypatch.setattr(digits, "TRAIN", (64, 0))
    monkeypatch.setattr(digits, "TEST", (16, 1))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(files, "repository", lambda: None)
    names: dict = {}
    exec(code.replace("range(50)", "range(5)"), names)
    assert "universal" in capsys.readouterr().out
    attack, f, x, y = (names[n] for n in ("attack", "f", "x", "y"))
    delta = attack(f, x, y)
    assert 0 < delta.abs().max() <= 0.031 + 1e-6
    assert attack.pattern.abs().max() > 0  # it climbed
    # And as a player of its own, in the last lines of the code.
    model = names["model"]
    assert (
        isinstance(model.attack, names["Universal"]) and model.recipe.name == "iclr2020/grad@ours"
    )
    assert model.attack.pattern.abs().max() > 0


@pytest.mark.parametrize(
    "line", re.findall(r"^\.venv/bin/python -m l2lkit (.*)$", "\n".join(PAGES.values()), re.M)
)
def test_its_commands_parse(line):
    args = vars(parser().parse_args(shlex.split(line, comments=True)))
    own = args.pop("own", None)  # then the recipe is that, and the first word a classifier
    for name in [own or args["recipe"]] if args.get("recipe") else args.get("recipes", []):
        recipes.recipe(name)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_the_files_that_are_linked_exist(page):
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", PAGES[page]):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_the_benchmarks_that_remake_the_tables_exist(page):
    for script in re.findall(r"python (benchmarks/\w+\.py)", PAGES[page]):
        assert (ROOT / script).is_file(), script


def test_the_readme_is_short():
    assert len(README.split()) <= 900


@pytest.mark.parametrize(
    "path", sorted((ROOT / "results" / "recorded").glob("white_box-*.json")), ids=lambda p: p.stem
)
def test_the_tables_are_the_recorded_ones(path):
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    results = PAGES[ROOT / "docs" / "results.md"]
    for row in rows:
        shown = [c for c in row if c not in ("FGSM", "Random", "Own attacker", "seeds")]
        cells = [row[c] for c in shown]
        assert f"| {' | '.join(cells)} |" in results, f"{path.name}: {row['defence']}"


def test_the_table_of_the_readme_is_the_recorded_one():
    path = ROOT / "results" / "recorded" / "white_box-digits.json"
    recorded = {row["defence"]: row for row in json.loads(path.read_text(encoding="utf-8"))["rows"]}
    table = re.search(r"(\| defence \| Clean .*?)\n\n", README, re.S)
    assert table
    header, _, *lines = table[1].splitlines()
    columns = header.strip("| ").split(" | ")
    assert len(lines) == 6
    for line in lines:
        cells = dict(zip(columns, line.strip("| ").split(" | "), strict=True))
        row = recorded[cells["defence"]]
        assert cells == {column: row[column] for column in columns}
