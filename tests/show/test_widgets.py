"""The explorers without a browser: what they compute, and which of several moves they answer."""

import re
import threading

import numpy as np
import pytest
import torch
from torch import nn

import l2lkit as l2l
from l2lkit import recipes
from l2lkit.errors import InputError
from l2lkit.game.cw import CW
from l2lkit.game.evaluate import perturb
from l2lkit.game.fixed import FGSM, PGM
from l2lkit.results import experiments
from l2lkit.runs.store import Store
from l2lkit.show import cards, widgets
from l2lkit.show.explorer import PGM_T, Latest, PerturbationExplorer, Superseded, Watched


@pytest.fixture
def store(folder, tmp_path, monkeypatch):
    sizes = {"eval_images": 8, "curve_images": 4, "random_draws": 2, "batch_size": 8}
    sizes |= {"train_images": 24, "test_images": 8, "width": 1 / 32, "plain_epochs": 3, "epochs": 2}
    tiny = recipes.Profile(name="smoke", seeds=1, precision="float32", **sizes)
    monkeypatch.setitem(recipes.PROFILES, "smoke", tiny)
    return Store("smoke", dataset="tiny", data=folder, device="cpu", output=tmp_path / "out")


def test_the_latest_job_wins_and_ends_the_running_one():
    started, several, done, ended = threading.Event(), threading.Event(), [], []

    def work(job):
        if job == 0:
            latest.check()  # nothing waits yet
            started.set()
            several.wait(20)
            try:
                latest.check()
            except Superseded:
                ended.append(job)
                raise
        done.append(job)

    latest = Latest(work)
    latest.submit(0)
    started.wait(20)
    latest.submit(1)  # while the first runs, several come
    latest.submit(2)
    several.set()
    latest.wait()
    assert ended == [0] and done == [2]
    latest.submit(3)
    latest.wait()
    assert done == [2, 3]


@pytest.mark.parametrize("attack", [FGSM(), PGM(steps=7), CW(steps=5)])
def test_any_attack_can_be_watched_and_stopped(colours, attack):
    x, y = colours.test_images[:1].float() / 255, colours.test_labels[:1]
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 4))
    with torch.no_grad():
        net[1].weight.zero_()
        net[1].bias.copy_(5.0 * torch.nn.functional.one_hot(y[0], 4))  # never fooled
    passes = []
    watched = perturb(Watched(net, lambda: passes.append(1)), attack, x, y)
    assert torch.equal(watched, perturb(net, attack, x, y))
    assert len(passes) == attack.passes

    def stop():
        raise Superseded

    with pytest.raises(Superseded):
        perturb(Watched(net, stop), attack, x, y)


def shown(deck):
    """Title -> (name of the attack, δ (C, H, W), probabilities before and after), as handed over;
    and the clean image of the same shape."""
    content = deck.content
    shape = content["height"], content["width"], -1

    def array(data, kind):
        return np.frombuffer(data, kind).reshape(shape).transpose(2, 0, 1)

    attacked = {
        card["title"]: (card["attack"], array(card["delta"], "<f4"), card["before"], card["after"])
        for card in content["cards"]
    }
    return attacked, array(content["image"], np.uint8)


def test_explorer_follows_its_controls(store):
    explorer = PerturbationExplorer(store, ("plain", "fgsm"), ("plain", "fgsm"))
    explorer.attack.value = "FGSM"
    explorer.wait()
    assert explorer.steps.layout.display == explorer.again.layout.display == "none"
    assert explorer.image.layout.display is None
    # The card holds what the attack makes, and what the classifier says to that.
    index, classifier = explorer.image.value, store.model("fgsm").classifier
    x, y = store.data.test_images[[index]].float() / 255, store.data.test_labels[[index]]
    expected = perturb(classifier, FGSM(), x, y)
    with torch.no_grad():
        chances = classifier(torch.cat([x, x + expected])).softmax(1).numpy()
    attacked, clean = shown(explorer.deck)
    assert list(attacked) == ["Plain Net", "FGSM Net"]
    attack, delta, before, after = attacked["FGSM Net"]
    assert attack == "FGSM" and explorer.deck.content["label"] == y.item()
    np.testing.assert_array_equal(clean, store.data.test_images[index])
    np.testing.assert_array_equal(delta, expected[0])
    np.testing.assert_allclose([before, after], chances, atol=1e-6)
    explorer.epsilon.value = 0
    explorer.wait()
    for _, delta, before, after in shown(explorer.deck)[0].values():
        assert not delta.any() and before == after
    explorer.classifiers[0].value = False
    explorer.wait()
    assert list(shown(explorer.deck)[0]) == ["FGSM Net"]
    first = explorer.image.value
    explorer.more.click()
    explorer.wait()
    labels = store.data.test_labels
    assert explorer.deck.content["index"] == explorer.image.value != first
    assert labels[explorer.image.value] == labels[first]


def test_every_attack_stays_in_its_ball_and_gives_probabilities(store):
    explorer = PerturbationExplorer(store, recipes.DEFENCES, ("grad",))
    named = experiments.named_attacks(store, store.seed)
    assert set(explorer.attack.options) == set(named) - {"PGM-20"} | {PGM_T, "CW"}
    for attack in explorer.attack.options:
        explorer.attack.value = attack
        for epsilon in (0, 0.01, 0.1):
            explorer.epsilon.value = epsilon
            explorer.wait()
            attacked, clean = shown(explorer.deck)
            _, delta, *chances = attacked["Grad L2L"]
            assert np.abs(delta).max() <= epsilon + 1e-6
            adversarial = clean / 255 + delta
            assert adversarial.min() >= -1e-6 and adversarial.max() <= 1 + 1e-6
            np.testing.assert_allclose(np.sum(chances, 1), 1, atol=1e-5)


def test_new_draw_and_steps_are_for_attacks_that_have_them(store):
    explorer = PerturbationExplorer(store, ("plain",), ("plain",))
    assert explorer.attack.value == PGM_T and explorer.steps.layout.display is None
    first = explorer.deck.content
    explorer.again.click()
    explorer.wait()
    drawn = explorer.deck.content
    assert drawn != first
    explorer.times.value = 5  # shows the same draw, not a third
    explorer.wait()
    assert explorer.deck.times == 5 and explorer.deck.content is drawn
    explorer.steps.value = 3
    explorer.wait()
    assert shown(explorer.deck)[0]["Plain Net"][0] == "PGM-3"
    another = PerturbationExplorer(store, ("plain",), ("plain",))
    assert another.deck.content == first  # the same seeds, the same draw


def test_bad_input_is_told_in_words(store, monkeypatch):
    explorer = PerturbationExplorer(store, ("plain",), ("plain",))
    before = explorer.deck.content

    def broken(*_):
        raise (
            InputError("ε must be smaller.") if explorer.epsilon.value == 0.05 else ValueError("<")
        )

    with monkeypatch.context() as patch:
        patch.setattr(cards, "attack_image", broken)
        explorer.epsilon.value = 0.05
        explorer.wait()
        assert explorer.status.value == "ε must be smaller." and explorer.deck.content is before
        explorer.epsilon.value = 0.06
        explorer.wait()
        assert explorer.status.value == "ValueError: &lt;"
    explorer.epsilon.value = 0  # and the next move is answered
    explorer.wait()
    assert not shown(explorer.deck)[0]["Plain Net"][1].any() and explorer.status.value == "&nbsp;"


def test_robustness_explorer_has_measured_and_published_side_by_side(store):
    box = widgets.robustness_explorer(store, ("plain", "pgm"))
    attack, place = box.children[0].children
    methods, image, table = box.children[1].children, *box.children[2:]
    attack.value = "PGM-T against T"
    place.value = 20
    measured = experiments.white_box(store, ("plain", "pgm"))
    pgm = measured[(measured.defence == "PGM Net") & (measured.attack == "PGM-20")]
    row = re.search(r"<td>PGM Net</td>(.*?)</tr>", table.value, re.DOTALL)[1]
    assert f"<td>{100 * pgm.accuracy.mean():.1f}</td>" in row
    assert "<td>47.04</td>" in row and "Table 2, cifar10" in row  # ICLR 2020
    picture = image.value
    place.value = 2  # no paper prints it
    row = re.search(r"<td>PGM Net</td>(.*?)</tr>", table.value, re.DOTALL)[1]
    assert "not printed" in row and image.value != picture
    methods[0].value = False
    assert "Plain Net" not in table.value and place.value == 2


def test_replay_shows_the_players_of_each_epoch(store):
    box = widgets.training_replay(store, ("grad",))
    epoch, deck = box.children[0].children[1], box.children[2]
    assert epoch.value == epoch.max == 2
    last = deck.content
    epoch.value = 1
    assert list(shown(deck)[0]) == ["PGM-20, after epoch 1", "own attacker, after epoch 1"]
    earlier = [card["delta"] for card in deck.content["cards"]]
    assert not {card["delta"] for card in last["cards"]} & set(earlier)
    epoch.value = 2
    assert deck.content == last


def test_epochs_are_those_of_the_training(store, folder):
    """Kept while training or trained again: the same; the last one is the finished model."""
    finished = store.model("grad")
    kept = store.epoch("grad", 1).classifier.state_dict()
    last = store.epoch("grad", 2)
    for name, value in finished.classifier.state_dict().items():
        torch.testing.assert_close(last.classifier.state_dict()[name], value, atol=1e-3, rtol=1e-3)
    assert len(last.log) == 2 and last.attack is not finished.attack
    for path in store.where(finished.recipe, 0).glob("epochs/*"):
        path.unlink()
    again = store.epoch("grad", 1).classifier.state_dict()
    assert all(torch.equal(kept[name], again[name]) for name in kept)
    assert not all(torch.equal(kept[name], v) for name, v in last.classifier.state_dict().items())
    with pytest.raises(InputError, match="epochs 1 to 2, not 3"):
        store.epoch("grad", 3)


def luminance(colour):
    values = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def test_white_words_on_the_verdicts_can_be_read():
    """Contrast of at least 4.5 (WCAG 2.1, 1.4.3)."""
    grounds = re.findall(r"\.l2l-(?:right|fooled|wrong) { background: (#\w{6});", cards.STYLE)
    assert len(grounds) == 3
    assert all(1.05 / (luminance(ground) + 0.05) >= 4.5 for ground in grounds)


def test_the_explorer_opens_on_a_classifier_of_ones_own(colours):
    x, y = colours.test()
    torch.manual_seed(0)
    own = nn.Sequential(nn.Flatten(), nn.Linear(768, 4))
    explorer = l2l.explore(own, x, y, epsilon=0.1, class_names=colours.class_names)
    attacked, clean = shown(explorer.deck)
    ((attack, delta, before, _),) = attacked.values()
    index = explorer.image.value
    assert (
        attack == "PGM-20" and explorer.epsilon.value == 0.1 and 0 < abs(delta).max() <= 0.1 + 1e-6
    )
    np.testing.assert_array_equal(clean, colours.test_images[index])
    np.testing.assert_allclose(before, own(x[[index]]).softmax(1)[0].detach(), atol=1e-6)
    with pytest.raises(InputError, match="2 class names for 4 classes"):
        l2l.explore(own, x, y, class_names=["a", "b"])
