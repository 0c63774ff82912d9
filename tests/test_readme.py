"""What the README says can be run."""

import json
import re
import shlex
from pathlib import Path

import pytest

from l2lkit import recipes
from l2lkit.__main__ import parser
from l2lkit.runs import machine

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_ten_line_attacker_runs_and_attacks(monkeypatch, tmp_path, capsys):
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    (code,) = [block for block in blocks if "class Universal" in block]
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
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(machine, "repository", lambda: None)
    names: dict = {}
    exec(code.replace("range(50)", "range(5)"), names)
    assert "universal" in capsys.readouterr().out
    attack, f, x, y = (names[n] for n in ("attack", "f", "x", "y"))
    delta = attack(f, x, y)
    assert 0 < delta.abs().max() <= 0.031 + 1e-6
    assert attack.pattern.abs().max() > 0  # it climbed
    # And as a player of its own, in the last lines of the code.
    model = names["model"]
    assert isinstance(model.attack, names["Universal"]) and model.recipe.name == "iclr2020/grad"
    assert model.attack.pattern.abs().max() > 0


@pytest.mark.parametrize("line", re.findall(r"^\.venv/bin/python -m l2lkit (.*)$", README, re.M))
def test_its_commands_parse(line):
    args = vars(parser().parse_args(shlex.split(line, comments=True)))
    for name in [args["recipe"]] if args.get("recipe") else args.get("recipes", []):
        recipes.recipe(name if "/" in name else f"iclr2020/{name}")


def test_its_files_exist():
    root = Path(__file__).parents[1]
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (root / target).exists(), target


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[1] / "results/recorded").glob("white_box-*.json"))
)
def test_its_tables_are_the_recorded_ones(path):
    rows = json.loads(path.read_text())["rows"]
    for row in rows:
        shown = [c for c in row if c not in ("FGSM", "Random", "Own attacker", "seeds")]
        cells = [row[c] for c in shown]
        assert f"| {' | '.join(cells)} |" in README, f"{path.name}: {row['defence']}"
