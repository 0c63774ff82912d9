"""Classifiers from SPECs: what each form gives, and how each mistake is said."""

import os
import pickle
import re

import pytest
import torch
from torch import nn

from l2lkit.errors import InputError
from l2lkit.own.loading import Normalised, load_classifier, read_weights

CODE = """
import torch
from torch import nn

def net(classes=4):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
                         nn.Linear(144, classes))

class Kind(nn.Linear):
    def __init__(self):
        super().__init__(3, 2)

ready = nn.Identity()
number = 3

def text():
    return "no module"

def broken():
    raise KeyError("gone")
"""
X = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(CODE)
    return str(path)


@pytest.fixture
def network(file):
    return load_classifier(f"{file}:net", classes=4)


def test_functions_classes_and_modules_of_a_file(file, network):
    assert not network.training and network(X).shape == (5, 4)
    assert isinstance(load_classifier(f"{file}:Kind", classes=4), nn.Linear)
    assert isinstance(load_classifier(f"{file}:ready", classes=4), nn.Identity)


def test_a_function_of_a_package(tmp_path, monkeypatch):
    (tmp_path / "mine_package").mkdir()
    (tmp_path / "mine_package" / "models.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    assert load_classifier("mine_package.models:net", classes=4)(X).shape == (5, 4)


def test_torchvisions_have_as_many_outputs_as_data_or_weights(tmp_path):
    network = load_classifier("torchvision:squeezenet1_1", classes=7)
    assert network(torch.rand(2, 3, 64, 64)).shape == (2, 7)
    torch.save(network.state_dict(), tmp_path / "w.pt")
    again = load_classifier("torchvision:squeezenet1_1", classes=3, weights=tmp_path / "w.pt")
    x = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(again(x), network(x))


def test_saved_programs_answer_as_their_network(network, tmp_path):
    torch.jit.trace(network, X).save(str(tmp_path / "n.pt"))
    batch = torch.export.Dim("batch", min=1, max=1000)
    torch.export.save(
        torch.export.export(network, (X,), dynamic_shapes=({0: batch},)), tmp_path / "n.pt2"
    )
    for name in ("n.pt", "n.pt2"):
        program = load_classifier(str(tmp_path / name), classes=4)
        torch.testing.assert_close(program(X[:3]), network(X[:3]))
        program.eval()


@pytest.mark.parametrize("wrap", ["{}", "module.{}", "_orig_mod.{}", "module._orig_mod.{}"])
@pytest.mark.parametrize("inside", [None, "state_dict", "model"])
def test_weights_with_prefixes_and_in_checkpoints(network, file, tmp_path, wrap, inside):
    with torch.no_grad():
        network[4].bias += 3
    state = {wrap.format(k): v for k, v in network.state_dict().items()}
    torch.save({inside: state, "epoch": 3} if inside else state, tmp_path / "w.pt")
    again = load_classifier(f"{file}:net", classes=4, weights=tmp_path / "w.pt")
    torch.testing.assert_close(again(X), network(X))


def test_safetensors(network, file, tmp_path):
    library = pytest.importorskip("safetensors.torch")
    with torch.no_grad():
        network[4].bias += 3
    library.save_file(network.state_dict(), tmp_path / "w.safetensors")
    again = load_classifier(f"{file}:net", classes=4, weights=tmp_path / "w.safetensors")
    torch.testing.assert_close(again(X), network(X))
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match="no intact safetensors"):
        read_weights(tmp_path / "x.safetensors")


def test_normalisation_is_the_first_layer(file, network):
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.2, 0.1]
    wrapped = load_classifier(f"{file}:net", classes=4, mean=mean, std=std)
    by_hand = torch.stack([(X[:, c] - mean[c]) / std[c] for c in range(3)], 1)
    torch.testing.assert_close(wrapped(X), network(by_hand))
    one = Normalised(network, [0.5], [0.5])
    torch.testing.assert_close(one(X), network(2 * X - 1))


class Planted:
    """What pickle would run."""

    def __reduce__(self):
        return os.mkdir, (os.environ["PLANTED"],)


def test_pickled_code_is_never_run(file, tmp_path, monkeypatch):
    monkeypatch.setenv("PLANTED", str(tmp_path / "planted"))
    torch.save({"net": Planted()}, tmp_path / "w.pt")
    (tmp_path / "p.pt").write_bytes(pickle.dumps(Planted()))
    for name in ("w.pt", "p.pt"):
        with pytest.raises(InputError, match="pickled code is not run"):
            load_classifier(f"{file}:net", classes=4, weights=tmp_path / name)
        with pytest.raises(InputError, match="no program"):
            load_classifier(str(tmp_path / name), classes=4)
    assert not (tmp_path / "planted").exists()


def test_mistakes_are_one_sentence_that_names_the_fix(file, network, tmp_path):
    state = network.state_dict()
    files = {
        "shape": {**state, "4.bias": torch.zeros(7)},
        "less": {k: v for k, v in state.items() if k != "4.bias"},
        "more": {**state, "5.bias": torch.zeros(7)},
        "list": [1, 2],
        "numbers": {"a": 1},
    }
    for name, content in files.items():
        torch.save(content, tmp_path / f"{name}.pt")
    (tmp_path / "text.pt").write_text("no weights")
    (tmp_path / "bad.py").write_text("import nothing_of_this_name")
    weights = {
        "shape": r"do not fit.*4\.bias is \(7,\) and not \(4,\)",
        "less": r"missing 4\.bias",
        "more": r"unknown 5\.bias",
        "list": "holds no state dict",
        "numbers": "its 'a' is no tensor",
        "text": "no plain state dict",
        "none": "There is no file",
    }
    cases = [
        (f"{file}:net", {"weights": tmp_path / f"{k}.pt"}, says) for k, says in weights.items()
    ]
    cases += [
        (f"{file}:nett", {}, "has no 'nett': it has net, Kind, text, broken"),
        (f"{file}:text", {}, "returns a str: it must return a torch module"),
        (f"{file}:number", {}, "is a int"),
        (f"{file}:broken", {}, r"fails \(KeyError: 'gone'\)"),
        ("none.py:net", {}, "There is no file none.py"),
        ("no_such_package:net", {}, "cannot be imported"),
        (f"{tmp_path / 'bad.py'}:net", {}, "cannot be imported.*nothing_of_this_name"),
        ("torchvision:resnet19", {}, "no classifier 'resnet19': take .*resnet18"),
        ("nothing", {}, "There is no file nothing: a classifier is"),
        (f"{file}:net", {"mean": [0.5]}, "come together"),
        (f"{file}:net", {"mean": [0.5], "std": [0.0]}, "above 0"),
        (f"{file}:net", {"mean": [0.5], "std": [1.0, 1.0]}, "equally many"),
    ]
    for spec, options, says in cases:
        with pytest.raises(InputError) as error:
            load_classifier(spec, classes=4, **options)
        assert re.search(says, str(error.value)) and "\n" not in str(error.value), spec
    two = load_classifier(f"{file}:net", classes=4, mean=[0.5, 0.5], std=[1.0, 1.0])
    with pytest.raises(InputError, match="--mean has 2 numbers and the images 3 channels"):
        two(X)
