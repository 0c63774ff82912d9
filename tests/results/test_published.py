"""The transcription against second readings: printed shapes, sums, minima, and the tables that
repeat each other.

The sums were added up from the papers' text by another route than the file was made; in
hundredths, so that they are exact.
"""

import pandas as pd
import pytest

from l2lkit.errors import InputError
from l2lkit.recipes import RECIPES
from l2lkit.results import published

KEY = ["version", "table", "dataset", "method", "network", "surrogate", "attack"]
FRAME = published.load()
OTHERS = ("l2l-da", "independent")  # than the L2L papers


def table(version, name, dataset=None):
    return published.select(FRAME, version=version, table=name, dataset=dataset)


def hundredths(values):
    return (100 * values.fillna(0)).round().astype(int)


def test_the_columns_and_their_words():
    assert list(FRAME) == [*KEY, "value", "deviation", "unit", "recipe", "note"]
    assert set(published.STATISTIC) == {"2018", "v2", "iclr2020", "l2l-da"}
    assert set(FRAME.version) == {*published.STATISTIC, "independent"}
    assert set(FRAME.dataset) == {"cifar10", "cifar100", "svhn", "mnist", ""}
    assert set(FRAME[FRAME.dataset == ""].table) == {"Appendix B"}
    assert set(FRAME.network) == {"2018", "slim", "wide", "iclr2020", ""}
    ours = FRAME[~FRAME.version.isin(OTHERS)]
    assert set(ours.attack) == {
        "Clean",
        "FGSM",
        "PGM-10",
        "PGM-20",
        "PGM-100",
        "CW",
        "Random",
        "Own attacker",
        "epoch time",
    }
    assert set(ours.surrogate) == {"", "Plain Net", "FGSM Net", "PGM Net", "Grad L2L"}
    learned = ours.method.str.endswith("L2L")
    assert ((ours.network != "") == learned).all()


def test_numbers_are_in_range():
    assert FRAME.value.notna().all()
    percent = FRAME[FRAME.unit == "%"]
    seconds, losses = (FRAME[FRAME.unit == unit] for unit in ("s", "loss"))
    assert len(percent) + len(seconds) + len(losses) == len(FRAME)
    assert losses.value.tolist() == [1.64, 1.90]  # L2L-DA, section 4.3
    assert percent.value.between(0, 100).all()
    assert (seconds.value > 0).all() and set(seconds.attack) == {"epoch time"}
    assert "epoch time" not in set(percent.attack)
    assert (FRAME.deviation.dropna() > 0).all()


def test_no_cell_is_there_twice():
    assert not FRAME.duplicated(KEY).any()


def test_no_clean_accuracy_is_below_that_under_attack():
    white = FRAME[(FRAME.unit == "%") & (FRAME.surrogate == "") & FRAME.table.str.contains("Table")]
    for _, cells in white.groupby(["version", "table", "dataset", "method", "network"]):
        assert cells.value.max() == cells.value[cells.attack == "Clean"].item()


SHAPES = {  # rows × columns as printed, less the dashes
    ("2018", "Table 1"): 2 * 5 * (3 + 4 * 2),
    ("2018", "Table 2"): 5,
    ("v2", "Table 2"): 9 * 8 - 2,
    ("v2", "Table 3"): 6 * 6,
    ("v2", "Table 4"): 9,
    ("v2", "Table 5"): 9 * 4,
    ("v2", "Table 6"): 6 * 6,
    ("v2", "Table 7"): 6 * 6,
    ("iclr2020", "Table 2"): 23 + 6 + 3,  # the lines, and one clean accuracy a defence
    ("iclr2020", "section 3"): 1,
    ("iclr2020", "Table 3"): 2 * 5,
    ("iclr2020", "Table 4"): 6 * 6,
    ("iclr2020", "Table 5"): 6 * 6,
    ("iclr2020", "Table 6"): 6 * 6,
    ("iclr2020", "Table 8"): 3 * 8,
    ("iclr2020", "Appendix B"): 2,
    ("l2l-da", "Table 1a"): 5 * 5,
    ("l2l-da", "Table 1b"): 4 * 5,
    ("l2l-da", "Table 2"): 2 * 6 * 10,
    ("l2l-da", "Table 3"): 6 * 10,
    ("l2l-da", "section 4.3"): 2,
    ("l2l-da", "section 5.2"): 1,
    ("independent", "AutoAttack"): 3,
}


def test_the_tables_have_their_printed_shapes():
    assert FRAME.groupby(["version", "table"]).size().to_dict() == SHAPES


SUMS = {  # of the rows, then of the columns, in the printed order
    ("2018", "Table 1", "cifar10"): (
        [56834, 76010, 78294, 61032, 81646],
        [45658, 23117, 9764, 33434, 28838, 41942, 40665, 33746, 33185, 32338, 31129],
    ),
    ("2018", "Table 1", "cifar100"): (
        [37789, 46356, 48771, 36921, 53649],
        [34586, 10863, 4675, 20186, 19021, 28031, 27240, 20320, 20589, 19316, 18659],
    ),
    ("v2", "Table 2", "cifar10"): (
        [11800, 17177, 22948, 12286, 17357, 22279, 10208, 24839, 22918],
        [77270, 42199, 22872, 19471],
    ),
    ("v2", "Table 2", "cifar100"): (
        [8572, 12305, 12815, 8379, 10494, 12948, 6967, 15088, 15357],
        [59116, 21897, 11549, 10363],
    ),
    ("v2", "Table 3", "cifar10"): (
        [32859, 46269, 47074, 36867, 49001, 48700],
        [42048, 37527, 50708, 49449, 40857, 40181],
    ),
    ("v2", "Table 5", "svhn"): (
        [11585, 18679, 20459, 15520, 17228, 23378, 14589, 21220, 22381],
        [83054, 53173, 18673, 10139],
    ),
    ("v2", "Table 6", "cifar100"): (
        [21607, 27940, 30999, 21441, 32055, 32746],
        [25780, 24751, 33770, 33152, 24573, 24762],
    ),
    ("v2", "Table 7", "svhn"): (
        [20978, 30821, 42570, 39945, 43464, 41460],
        [37066, 33052, 40815, 37495, 38660, 32150],
    ),
    ("iclr2020", "Table 8", "cifar10"): ([12286, 23849, 22249], [25508, 14607, 9915, 8354]),
    ("iclr2020", "Table 8", "cifar100"): ([8379, 13769, 12908], [19610, 6097, 4765, 4584]),
    ("l2l-da", "Table 1a", "mnist"): (
        [13804, 45593, 46870, 47804, 48190],
        [49368, 42585, 36840, 36897, 36571],
    ),
    ("l2l-da", "Table 1b", "mnist"): (
        [48190, 47616, 47274, 47194],
        [39388, 38593, 37341, 37611, 37341],
    ),
    ("l2l-da", "Table 2", "mnist"): (
        [16844, 93594, 92835, 23037, 23662, 96157],
        [59246, 34311, 27849, 27457, 50516, 27730, 30526, 29996, 31245, 27253],
    ),
    ("l2l-da", "Table 2", "cifar10"): (
        [15095, 44648, 50008, 31737, 19793, 50617],
        [51650, 26560, 12850, 11838, 11739, 11503, 36043, 33142, 8539, 8034],
    ),
    ("l2l-da", "Table 3", "mnist"): (
        [39047, 95149, 95096, 46932, 75466, 95799],
        [35788, 44000, 56813, 37845, 44816, 55622, 37387, 44157, 55273, 35788],
    ),
}
DEVIATIONS = {
    ("v2", "Table 2", "cifar10"): (
        [564, 1010, 302, 1009, 271, 522, 249, 252, 158],
        [539, 2876, 490, 432],
    ),
    ("v2", "Table 2", "cifar100"): (
        [108, 656, 277, 78, 109, 189, 59, 103, 169],
        [590, 724, 237, 197],
    ),
    ("v2", "Table 5", "svhn"): (
        [223, 412, 332, 490, 111, 263, 266, 380, 471],
        [497, 1594, 496, 361],
    ),
}


@pytest.mark.parametrize(
    ("where", "column", "sums"),
    [(w, "value", s) for w, s in SUMS.items()]
    + [(w, "deviation", s) for w, s in DEVIATIONS.items()],
    ids=str,
)
def test_rows_and_columns_add_up(where, column, sums):
    cells = table(*where)
    cells = cells.assign(number=hundredths(cells[column]))
    rows = cells.groupby(["method", "network"], sort=False).number.sum()
    columns = cells.groupby(["surrogate", "attack"], sort=False).number.sum()
    assert (rows.tolist(), columns.tolist()) == sums


def test_the_attacks_and_methods_of_iclr2020_table_2_add_up():
    cells = table("iclr2020", "Table 2")
    attacks = hundredths(cells.value).groupby([cells.dataset, cells.attack]).sum().to_dict()
    assert attacks == {
        ("cifar10", "Clean"): 53291,
        ("cifar10", "PGM-20"): 19858,
        ("cifar10", "PGM-100"): 9984,
        ("cifar10", "CW"): 11057,
        ("cifar10", "Random"): 16577,
        ("cifar10", "Own attacker"): 10239,
        ("cifar100", "Clean"): 18581,
        ("cifar100", "PGM-20"): 8345,
        ("cifar100", "PGM-100"): 7850,
        ("cifar100", "CW"): 8788,
    }
    methods = hundredths(cells.value).groupby([cells.dataset, cells.method]).sum().to_dict()
    assert methods == {
        ("cifar10", "Zheng et al. (2016)"): 9479,
        ("cifar10", "Kurakin et al. (2016)"): 13114,
        ("cifar10", "Madry et al. (2017)"): 13434,
        ("cifar10", "Naive L2L"): 9454,
        ("cifar10", "Grad L2L"): 37058,
        ("cifar10", "2-Step L2L"): 38467,
        ("cifar100", "PGM Net"): 13444,
        ("cifar100", "Grad L2L"): 14719,
        ("cifar100", "2-Step L2L"): 15401,
    }


@pytest.mark.parametrize(
    ("where", "value", "deviation"),
    [
        (("2018", "Table 2"), 80144, 276),
        (("v2", "Table 4"), 162235, 551),
        (("iclr2020", "Table 3", "cifar10"), 313360, 3300),
        (("iclr2020", "Table 3", "cifar100"), 321950, 3310),
    ],
    ids=str,
)
def test_the_epoch_times_add_up(where, value, deviation):
    cells = table(*where)
    assert hundredths(cells.value).sum() == value
    assert hundredths(cells.deviation).sum() == deviation


def test_the_times_of_the_slim_network_stand_in_appendix_b():
    cells = table("iclr2020", "Appendix B").set_index("network")
    assert cells.value.to_dict() == {"slim": 480, "iclr2020": 620}
    assert cells.deviation.isna().all()


def numbers(cells, attack=None):
    """The values by (method, network, surrogate, attack)."""
    cells = cells.assign(attack=cells.attack.replace(attack or {}))
    return cells.set_index(["method", "network", "surrogate", "attack"]).value.to_dict()


def differences(one, two):
    """Where both have a number and the numbers differ."""
    return {k: (one[k], two[k]) for k in one.keys() & two.keys() if one[k] != two[k]}


REPEATS = [("Table 3", "Table 4"), ("Table 6", "Table 5"), ("Table 7", "Table 6")]


@pytest.mark.parametrize(("v2", "iclr2020"), REPEATS)
def test_iclr2020_repeats_the_black_box_of_v2(v2, iclr2020):
    assert numbers(table("v2", v2)) == numbers(table("iclr2020", iclr2020))
    assert set(table("iclr2020", iclr2020).note) == {f"as v2 {v2}, whose setting it is"}


@pytest.mark.parametrize(("dataset", "v2"), [("cifar10", "Table 3"), ("cifar100", "Table 6")])
def test_v2_repeats_the_black_box_of_2018(dataset, v2):
    """The slim network took over from the six-layer one; of the rows, only Grad L2L's changed."""
    old = numbers(table("2018", "Table 1", dataset).replace({"network": {"2018": "slim"}}))
    new = numbers(table("v2", v2))
    old = {key: value for key, value in old.items() if key[0] != "Grad L2L"}
    shared = old.keys() & new.keys()
    assert len(shared) == 4 * 6
    known = {
        ("Plain Net", "", "Plain Net", "FGSM"): (40.05, 40.03),
        ("Plain Net", "", "Plain Net", "PGM-10"): (5.54, 5.60),
    }
    assert differences(old, new) == (known if dataset == "cifar10" else {})


def test_iclr2020_table_8_repeats_the_slim_rows_of_v2():
    """v2 calls the attack PGM-10, ICLR 2020 calls it PGM-20; Grad L2L was trained anew."""
    known = {
        "cifar10": {("2-Step L2L", "slim", "", "PGM-20"): (46.42, 46.12)},
        "cifar100": {("2-Step L2L", "slim", "", "PGM-20"): (20.63, 20.23)},
    }
    for dataset, expected in known.items():
        old = numbers(table("v2", "Table 2", dataset), {"PGM-10": "PGM-20"})
        new = numbers(table("iclr2020", "Table 8", dataset))
        differ = differences(old, new)
        grad = {key for key in differ if key[0] == "Grad L2L"}
        assert len(grad) == 3  # v2 has no CW for it
        assert {k: v for k, v in differ.items() if k not in grad} == expected


def test_v2_repeats_the_times_of_2018():
    old = numbers(table("2018", "Table 2").replace({"network": {"2018": "slim"}}))
    new = numbers(table("v2", "Table 4"))
    assert len(old) == 5 and {k: new[k] for k in old} == old


def test_the_text_of_iclr2020_disagrees_with_its_table_once():
    (text,) = table("iclr2020", "section 3").itertuples()
    cell = published.select(
        version="iclr2020",
        table="Table 2",
        dataset="cifar10",
        method=text.method,
        attack=text.attack,
    )
    assert (text.value, cell.value.item()) == (52.07, 52.12)
    assert "52.12" in text.note and "52.07" in cell.note.item()


def test_the_minima_of_l2l_da_are_minima():
    cells = published.select(version="l2l-da")
    cells = cells[cells.table.str.startswith("Table")]
    for _, row in cells.groupby(["table", "dataset", "method"]):
        minimum = row[row.attack == "Min"].value.item()
        assert minimum == row[~row.attack.isin(["Clean", "Min"])].value.min()


def test_l2l_da_repeats_its_full_model():
    """Rows of the ablations that are one model: Table 1a's last, 1b's first, Table 2's last."""
    full = {
        "Table 1a": "L2L-DA (R yes, D yes)",
        "Table 1b": "L2L-DA (δ yes, y yes)",
        "Table 2": "L2L-DA (full)",
    }
    a, b, whole = (
        published.select(version="l2l-da", table=t, dataset="mnist", method=m)
        .set_index("attack")
        .value
        for t, m in full.items()
    )
    pd.testing.assert_series_equal(a, b)
    pd.testing.assert_series_equal(a.drop("Min"), whole[a.drop("Min").index])
    old = published.select(version="l2l-da", table="Table 1a", method="L2L*").set_index("attack")
    new = published.select(version="l2l-da", table="Table 2", dataset="mnist", method="L2L*")
    pd.testing.assert_series_equal(old.value, new.set_index("attack").value[old.index])


def test_l2l_da_improves_by_what_its_text_says():
    """Section 5.2: points gained in the minimum, and lost without δ and y (PGD-100)."""

    def value(name, method, attack="Min", dataset="mnist"):
        cells = {"table": name, "method": method, "attack": attack, "dataset": dataset}
        return published.select(version="l2l-da", **cells).value.item()

    def gain(more, less, **other):
        return round(value(*more, **other) - value(*less, **other), 2)

    a, b, two = "Table 1a", "Table 1b", "Table 2"
    neither = (a, "L2L-DA (R no, D no)")
    assert gain((a, "L2L-DA (R yes, D no)"), neither) == 7.85
    assert gain((a, "L2L-DA (R no, D yes)"), neither) == 4.33
    assert gain((a, "L2L-DA (R yes, D yes)"), (a, "L2L-DA (R yes, D no)")) == 1.18
    whole = (b, "L2L-DA (δ yes, y yes)")
    assert gain(whole, (b, "L2L-DA (δ no, y yes)"), attack="PGD-100") == 2.69
    assert gain(whole, (b, "L2L-DA (δ yes, y no)"), attack="PGD-100") == 1.71
    assert gain((two, "L2L-DA (full)"), (two, "PGD-100")) == 5.68
    assert gain((two, "L2L-DA (full)"), (two, "PGD-100"), dataset="cifar10") == 1.60


def test_every_row_of_l2l_da_names_the_recipe_that_answers_it():
    for row in published.select(version="l2l-da").itertuples():
        recipe = RECIPES[row.recipe]
        assert row.recipe.startswith("l2l-da-cifar10/") == (row.dataset == "cifar10")
        whole = ("L2L-DA (R yes, D yes)", "L2L-DA (δ yes, y yes)")  # Tables 1a, 1b
        assert recipe.defence == ("L2L-DA (full)" if row.method in whole else row.method)


def test_every_row_of_the_l2l_papers_names_the_recipe_that_answers_it():
    ours = FRAME[~FRAME.version.isin(OTHERS)]
    without = ours[ours.recipe == ""]
    assert set(without.method) == {"Zheng et al. (2016)", "Kurakin et al. (2016)"}
    answered = ours[ours.recipe != ""]
    assert set(answered.recipe) <= set(RECIPES)
    for row in answered.itertuples():
        recipe = RECIPES[row.recipe]
        version, key = row.recipe.split("/")
        repeated = row.version == "iclr2020" and row.table in ("Table 4", "Table 5", "Table 6")
        assert version.removesuffix("-svhn") == ("v2" if repeated else row.version)
        assert (version == "v2-svhn") == (row.dataset == "svhn")
        method = "PGM Net" if row.method == "Madry et al. (2017)" else row.method
        method += {"slim": " (S)", "wide": " (W)"}.get(row.network, "")
        assert recipe.defence.removesuffix(", as printed") == method
        assert ("-" in key) == (row.network in ("slim", "wide"))


def test_every_l2l_recipe_answers_a_row():
    papers = {n for n in RECIPES if n.startswith(("2018/", "v2/", "v2-svhn/", "iclr2020/"))}
    rows = {n for n in papers if "@" not in n}
    # ICLR 2020 has an FGSM Net only in the black-box tables that it repeats from v2.
    assert rows - set(FRAME.recipe) == {"iclr2020/fgsm"}


def test_what_two_versions_print_says_so():
    keys = ["dataset", "method", "surrogate", "attack"]
    old, new = (published.select(FRAME, version=v).query("surrogate != ''") for v in ("2018", "v2"))
    shared = new.merge(old, on=keys, suffixes=("", "_2018"))
    same = shared.value == shared.value_2018
    assert (len(shared), same.sum()) == (60, 46)  # as the audit of the texts counted
    assert ((shared.note == "as 2018 Table 1") == same).all()
    assert same[shared.method == "Naive L2L"].all()


def test_a_loaded_frame_is_the_callers_own():
    frame = published.load()
    frame["value"] = 0
    pd.testing.assert_frame_equal(published.load(), FRAME)


def test_select_narrows():
    cells = published.select(version="v2", method="Grad L2L", dataset="cifar10", table=None)
    assert set(cells.version) == {"v2"} and set(cells.table) == {"Table 2", "Table 3", "Table 4"}
    assert len(published.select(cells, attack="Clean")) == 2  # slim and wide
    white = published.select(surrogate="", version="v2", unit="%")
    assert len(white) == 70 + 36
    for name in ("grad", "grad@code", "iclr2020/grad@ours"):
        pd.testing.assert_frame_equal(
            published.select(recipe=name), published.select(recipe="iclr2020/grad")
        )
    pd.testing.assert_frame_equal(published.select(table="1a"), published.select(table="Table 1a"))
    assert len(published.select()) == len(FRAME)


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ({"version": "2019"}, "version '2019': choose 2018, v2, iclr2020, l2l-da, independent."),
        ({"version": "2018", "attack": "CW"}, "attack 'CW': choose Clean, FGSM, PGM-10, epoch"),
        ({"recipe": "today/free"}, "recipe 'today/free': choose 2018/plain, "),
        ({"version": "l2l-da", "recipe": "grad"}, "'iclr2020/grad': choose l2l-da/l2l-star"),
        ({"atack": "CW"}, "no column 'atack': choose version, table, dataset"),
    ],
)
def test_select_names_the_choices(wanted, says):
    with pytest.raises(InputError) as error:
        published.select(**wanted)
    assert says in str(error.value)


def test_the_text_has_a_line_a_row_and_no_nan():
    cells = published.select(version="2018", dataset="cifar10")
    lines = published.text(cells).splitlines()
    assert len(lines) == 1 + len(cells)
    assert "nan" not in published.text(cells).lower()
    assert "95.22" in lines[1]
