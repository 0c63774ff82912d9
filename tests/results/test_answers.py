"""The sentences about outcomes say what the tables say, also where a run came out otherwise."""

import pandas as pd
import pytest

from l2lkit.results import answers, gail


def white_box(**worst):
    """Rows of `experiments.white_box` for two seeds; PGM-20 is 4 points above the worst."""
    rows = []
    for name, values in worst.items():
        for seed, value in enumerate(values):
            for attack, more in (("Worst", 0), ("PGM-100", 1), ("PGM-20", 4)):
                about = {"defence": NAMES[name], "seed": seed, "status": "ok", "attack": attack}
                rows.append(about | {"accuracy": (value + more) / 100})
    return pd.DataFrame(rows)


NAMES = {"plain": "Plain Net", "pgm": "PGM Net", "grad": "Grad L2L", "two": "2-Step L2L"}


@pytest.mark.parametrize(
    ("grad", "words"),
    [
        ((50, 56), "Grad L2L is 7.0 ± 1.4 points below PGM Net there (the paper: at least as"),
        ((62, 62), "Grad L2L is 2.0 ± 2.8 points above PGM Net"),
        ((57, 61), "at least as robust on 0 of 2 seeds"),
    ],
)
def test_robustness_compares_by_seed(grad, words):
    frame = white_box(plain=(0, 2), pgm=(58, 62), grad=grad)
    text = answers.robustness(frame)
    assert words in text
    assert "Plain Net least: 1.0%" in text and "From PGM-20 to PGM-100, PGM Net 3.0" in text


def test_robustness_without_the_learned_rows_says_what_is_left():
    text = answers.robustness(white_box(plain=(0, 0), pgm=(58, 62)))
    assert "PGM Net keeps most: 60.0%" in text and "L2L" not in text


def test_robustness_without_a_difference():
    text = answers.robustness(white_box(pgm=(50, 60), grad=(50, 60)))
    assert "all keep 55.0%" in text and "Grad L2L is level with PGM Net there" in text


def test_a_failed_model_is_not_averaged():
    frame = white_box(plain=(0, 0), pgm=(58, 62), grad=(50, 90))
    frame.loc[(frame.defence == "Grad L2L") & (frame.seed == 1), "status"] = "collapsed"
    assert "Grad L2L is 8.0 points below PGM Net there" in answers.robustness(frame)


def test_loss_curves_name_the_steps():
    gaps = pd.DataFrame(
        {
            "defence": ["Grad L2L", "Grad L2L", "2-Step L2L"],
            "own attacker": [0.5, 0.6, 0.9],
            "PGM-20": [0.7, 0.7, 0.8],
            "PGM steps matched": ["9", "11", ""],
        }
    )
    text = answers.loss_curves(gaps)
    assert "On Grad L2L, its own attacker reaches the loss of PGM's step 9 to 11" in text
    assert "PGM-20 ends above it on 2 of 2 seeds" in text
    assert "more than PGM's 20 steps; PGM-20 ends above it on 0 of 1 seeds" in text


def test_training_gives_price_and_size():
    log = pd.DataFrame(
        {
            "defence": ["PGM Net", "Grad L2L", "Grad L2L", "Free"],
            "seed": 0,
            "status": ["ok", "ok", "ok", "diverged"],
            "delta": [0.9, 0.5, 0.8, 1.0],
        }
    )
    times = pd.DataFrame(
        {"defence": ["PGM Net", "Grad L2L"], "relative": [1, 0.44], "iclr2020": [1, 0.47]}
    )
    text = answers.training(log, times)
    assert "An epoch of Grad L2L takes 0.44 of PGM Net's time (ICLR 2020: 0.47)." in text
    assert "PGM Net's 90% and Grad L2L's 80%" in text and "1 of 3 models" in text


def test_perturbations_do_not_claim_what_is_not_so():
    rough = pd.DataFrame(
        {
            "defence": ["PGM Net", "PGM Net", "2-Step L2L", "2-Step L2L"],
            "status": "ok",
            "attack": ["PGM-20", "2-Step L2L attacker"] * 2,
            "roughness": [0.5, 0.6, 0.58, 0.42],
        }
    )
    text = answers.perturbations(rough)
    assert "On PGM Net the 2-Step attacker's perturbations are no smoother than PGM-20's" in text
    assert "on 2-Step L2L" in text.replace("On 2", "on 2") and "0.42 against 0.58" in text


def test_the_checklist_names_what_does_not_hold():
    verdicts = pd.DataFrame(
        {
            "topic": ["masking", "masking", "strength", "strength"],
            "item": ["a", "a", "b", "c"],
            "defence": ["PGM Net", "Grad L2L", "PGM Net", "PGM Net"],
            "verdict": ["holds", "holds", "mixed", ""],
        }
    )
    text = answers.checklist(verdicts)
    assert text == (
        "Masking: 2 of 2 verdicts hold. Strength: 0 of 1 verdicts hold; not “b” (PGM Net)."
    )


def test_diverse_reads_the_effects():
    effects = pd.DataFrame(
        {
            "adding": ["recursion", "diversity", "diversity"],
            "": ["with diversity", "in one step", "with recursion"],
            "under": "PGD-100",
            "points": ["29.0 ± 7.0", "", "-0.9 ± 4.2"],
            "seeds that gain": ["3 of 3", "0 of 0", "1 of 3"],
            "published": ["+3.75", "", "+1.18"],
        }
    )
    assert answers.diverse(effects) == (
        "Recursion with diversity adds 29.0 ± 7.0 points under PGD-100 (the paper: +3.75); it is "
        "a gain on 3 of 3 seeds. Diversity with recursion takes away 0.9 ± 4.2 points under "
        "PGD-100 (the paper: +1.18); it is a gain on 1 of 3 seeds."
    )


def test_longer_stands_beside_the_papers_number():
    games = pd.DataFrame({"iterations": [2400, 1800], "PGD-100": [0.83, 0.66]})
    assert answers.longer(games) == (
        "As the authors' code plays it, on all of MNIST, L2L-DA keeps 83.0% under PGD-100 after "
        "2,400 iterations on one seed (the paper: 95.15 after 100,000)."
    )


def test_held_is_the_mean_over_seeds_beside_pgd():
    accuracies = {"l2l-da/full@code": (0.88, 0.84), "l2l-da/pgd10": (0.9, 0.9)}
    rows = [
        {"recipe": recipe, "seed": seed, "attack": attack, "accuracy": value - lower}
        for recipe, values in accuracies.items()
        for seed, value in enumerate(values)
        for attack, lower in (("PGD-100", 0), ("C&W-100", 0.05))
    ]
    assert answers.held(pd.DataFrame(rows), 5000) == (
        "Smaller, and with a rate that never falls, it keeps 86.0 ± 2.8% after 5,000 iterations, "
        "PGD-10 training 90.0 ± 0.0% (2 seeds)."
    )


def test_imitation_counts_the_runs_that_reached():
    columns = {"environment": "CartPole-v1", "seed": 0}
    steady = [{**columns, "defence": "GAIL", "score": 1.0, "return": 500.0}] * 10
    never = [{**columns, "defence": "L2L GAIL", "score": 0.5, "return": 250.0}] * 10
    text = answers.imitation(gail.stability_table(pd.DataFrame(steady + never)))
    assert "GAIL reaches the expert in 1 of 1 runs and is then below 80% of it in 0%" in text
    assert text.endswith("L2L GAIL reaches the expert in 0 of 1 runs.")


def test_the_cycle_is_the_closed_form():
    text = answers.cycle(0.1, 314)
    assert f"simultaneous steps ({1.01**157:.3g}) leave" in text
    assert "alternating steps" in text and "go round" in text


def test_the_night_by_hand():
    accuracies = {  # of seeds 0 and 1; Free has one seed more
        ("PGM Net", "Clean"): (0.60, 0.62),
        ("PGM Net", "PGM-100"): (0.35, 0.33),
        ("PGM Net", "Worst"): (0.31, 0.29),
        ("Grad L2L", "Clean"): (0.66, 0.66),
        ("Grad L2L", "PGM-100"): (0.33, 0.33),
        ("Grad L2L", "Worst"): (0.30, 0.28),
        ("2-Step L2L", "Clean"): (0.64, 0.64),
        ("2-Step L2L", "PGM-100"): (0.36, 0.34),
        ("2-Step L2L", "Worst"): (0.31, 0.29),
        ("Free", "Worst"): (0.33, 0.31, 0.5),
        ("FGSM-RS", "Worst"): (0.20, 0.20),
    }
    seconds = {"PGM Net": 50, "Grad L2L": 20, "2-Step L2L": 40, "Free": 30, "FGSM-RS": 10}
    rows = pd.DataFrame(
        {"defence": d, "seed": s, "status": "ok", "attack": a, "accuracy": v}
        | {"seconds": seconds[d] + 2 * s, "device": "one"}
        for (d, a), values in accuracies.items()
        for s, v in enumerate(values)
    )
    text = answers.night(rows)
    assert "AutoAttack" not in text
    assert "Grad L2L is 1.0 ± 1.4 points below PGM Net under PGM-100 (2 seeds of both)." in text
    assert "2-Step L2L is 1.0 ± 0.0 points above PGM Net under PGM-100" in text
    assert "2-Step L2L is level with PGM Net in the worst case" in text
    assert "2-Step L2L is 1.0 ± 0.0 points above Grad L2L in the worst case" in text
    assert "Free is 2.0 ± 0.0 points above PGM Net in the worst case (2 seeds of both)." in text
    assert "from PGM Net's 61.0%: Grad L2L +5.0 and 2-Step L2L +3.0." in text
    # Seed 2 is Free's alone. 2-Step and PGM Net take longer than Free and are less robust.
    fast = "FGSM-RS (20.0% after 11 s), Grad L2L (29.0% after 21 s) and Free (32.0% after 31 s)"
    assert f"in the mean of seeds 0 and 1: no faster row is as robust as {fast}." in text
    assert "at least as robust as 2-Step L2L (30.0%, 41 s) and PGM Net (30.0%, 51 s)." in text
    # Seconds of two devices are not compared.
    rows.loc[(rows.seed == 1) & (rows.defence == "Free"), "device"] = "another"
    assert "seconds" not in answers.night(rows)
    # AutoAttack on the first images, of those models that it was tried on.
    attacked = [("PGM Net", 0, 0.32, 0.30), ("PGM Net", 1, 0.30, 0.29), ("Grad L2L", 0, 0.31, 0.26)]
    more = [
        {"defence": d, "seed": s, "status": "ok", "attack": a, "accuracy": v, "device": "one"}
        for d, s, worst, auto in attacked
        for a, v in (("Worst, first 200", worst), ("AutoAttack", auto))
    ]
    text = answers.night(pd.concat([rows, pd.DataFrame(more)]))
    assert "more of the first 200 images: PGM Net 1.5 and Grad L2L 5.0." in text


def test_who_is_caught_and_who_is_accused():
    columns = ["classifier", "cheats", "seeds", "accused"]
    rows = [("TRADES", False, 2, 0), ("noisy", True, 2, 2), ("cut off", True, 2, 2)]
    text = answers.real(pd.DataFrame(rows, columns=columns))
    assert text == (
        "2 of 2 classifiers that cheat are caught. The list accuses none of the 1 honest ones."
    )
    rows[0], rows[1] = ("TRADES", False, 2, 1), ("noisy", True, 2, 1)
    text = answers.real(pd.DataFrame(rows, columns=columns))
    assert "1 of 2 classifiers that cheat are caught, not noisy." in text
    assert "The list accuses TRADES of the 1 honest ones." in text


def test_where_no_model_learned_the_answers_say_so():
    raw = pd.DataFrame(
        {"defence": d, "seed": 0, "status": "collapsed", "attack": a, "accuracy": 0.1}
        for d in ("PGM Net", "Grad L2L")
        for a in ("Clean", "PGM-20", "PGM-100", "Worst")
    )
    assert answers.robustness(raw) == answers.NOTHING
    log = pd.DataFrame(
        {"defence": d, "seed": 0, "status": "collapsed", "delta": 0.5} for d in ("PGM Net", "Free")
    )
    times = pd.DataFrame({"defence": ["PGM Net"], "relative": [None], "iclr2020": [0.47]})
    assert answers.training(log, times) == "2 of 2 models failed to learn."


def question(worst, learned=(), field="Worst"):
    """Rows of benchmarks/questions.py: a defence's accuracies in %, seed by seed."""
    return pd.DataFrame(
        {"defence": name, "seed": seed, "status": "ok", "learned": name in learned, field: v / 100}
        | {"cpu_seconds": 25.0 if name in learned else 10.0}
        for name, values in worst.items()
        for seed, v in enumerate(values)
    )


def test_why_it_lags_by_hand():
    causes = question(
        {
            "Grad L2L": (60, 62, 64, 66, 68),
            "FGSM Net": (70, 72, 74, 76, 78),
            answers.CORRECTED: (61, 63, 65, 67, 69),
            "pool": (61, 61, 61, 61, 61),
            "few seeds": (99, 99),
        },
        learned=("Grad L2L", answers.CORRECTED, "pool", "few seeds"),
    )
    equal = {"N-FGSM": (84, 85, 86, 87, 88), "own": (83, 84, 85, 86, 87), "Free": (80,) * 5}
    seconds = question(equal, ("own",), "AutoAttack, fewer")
    text = answers.lags(causes, seconds)
    assert "FGSM Net is 10.0 ± 0.0 points above Grad L2L" in text
    assert f"better than Grad L2L on every seed: “{answers.CORRECTED}” (1.0 ± 0.0" in text
    assert "is 9.0 ± 0.0 points below FGSM Net, and takes 2.5 times its seconds" in text
    assert "Not better on every seed: “pool”" in text and "few seeds" not in text
    assert "(“own”) is 1.0 ± 0.0 points below the best fixed one (N-FGSM)" in text
    assert "on 0 of 5 seeds: no cure" in text
    better = question(equal | {"own": (90, 90, 90, 90, 90)}, ("own",), "AutoAttack, fewer")
    assert "on 5 of 5 seeds: a cure" in answers.lags(causes, better)


def test_why_it_lags_without_a_record():
    assert answers.lags(pd.DataFrame(), pd.DataFrame()) == "Nothing has been recorded."
