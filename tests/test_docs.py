"""What the documents say of the code is there."""

import re
from pathlib import Path

import pytest

from l2lkit.results.recorded import recorded

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
PLACES = re.findall(r"`(l2lkit/[\w/]+\.py):(\d+)` \| `(.+?)` \|", TEXT)


def test_there_are_places_to_look_up():
    assert len(PLACES) >= 8


@pytest.mark.parametrize(("path", "line", "code"), PLACES)
def test_the_code_stands_where_the_table_says(path, line, code):
    lines = (ROOT / path).read_text(encoding="utf-8").splitlines()
    assert code in lines[int(line) - 1]


def test_the_modules_and_names_that_are_named_exist():
    rooms = "job|results|runs|game|checks|show|recipes"
    for name in set(re.findall(rf"`((?:{rooms})(?:\.\w+)+)", TEXT)):
        if name.endswith(".py"):
            continue
        head, *rest = name.split(".")
        place = ROOT / "l2lkit" / head
        while rest and (place / rest[0]).is_dir():
            place /= rest.pop(0)
        file = place.with_suffix(".py")
        if place.is_dir():
            file = place / f"{rest.pop(0)}.py"
            if not file.is_file():  # a name of the room itself
                file = place / "__init__.py"
                assert name.split(".")[1] in file.read_text(encoding="utf-8"), name
                continue
        source = file.read_text(encoding="utf-8")
        for part in rest:
            assert re.search(rf"\b(def|class) {part}\b|^\s*{part}\b", source, re.M), name


def test_the_longer_games_are_those_of_the_record():
    rows = recorded("l2l_da-mnist-stopped")["rows"]
    games = [row for row in rows if row["recipe"] == "l2l-da/full@code"]
    told = {
        (
            f"{row['iterations']:,}",
            *(f"{100 * row[a]:.1f}" for a in ("Clean", "PGD-100", "C&W-100")),
        )
        for row in games
    }
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    table = text.split("| `full@code` | iterations")[1].split("\n\n")[0].splitlines()[2:]
    assert {tuple(cell.strip() for cell in line.split("|")[2:6]) for line in table} == told
    assert len(table) == len(games) == 7
