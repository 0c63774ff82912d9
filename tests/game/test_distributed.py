"""Several processes play the game of one: torchrun with two gloo processes against a run here, the
same models begun on one and ended on two and the reverse, and two jobs in one store."""

import os
import re
import subprocess
import sys
import threading
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import image_folder
from torch import nn

from l2lkit import distributed
from l2lkit.__main__ import main
from l2lkit.diverse.advgan import AdvGAN
from l2lkit.errors import InputError
from l2lkit.files import alone
from l2lkit.game.classifiers import make_classifier
from l2lkit.game.fixed import PGM
from l2lkit.game.free import Free
from l2lkit.game.loop import train
from l2lkit.game.recipe import Optimiser, Recipe
from l2lkit.recipes import PROFILES, RECIPES, against, at_scale
from l2lkit.runs.machine import processor
from l2lkit.runs.store import Store

ROOT = Path(__file__).parents[2]
SCALE = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def untimed(log):
    return log.drop(columns="seconds")


# The same game ------------------------------------------------------------------------------


def games() -> list[Recipe]:
    """One of every kind of step, drawing no random numbers: each process would draw its own."""

    def small(name: str, **changes) -> Recipe:
        whole = at_scale(RECIPES[name], PROFILES["smoke"])
        return replace(
            whole,
            name=name,
            epochs=2,
            batch_size=15,
            precision="float32",
            warm_start=None,
            optimiser=Optimiser(lr=0.01, milestones=(0.5,)),
            **changes,
        )

    diverse = small("l2l-da/full")
    slow, fixed = Optimiser(lr=0.05), replace(diverse.attack, latent=0, steps=2)
    free = Free(epsilon=0.1, replays=2)
    pgm = PGM(steps=2, step_size=0.01, start="zero")
    return [
        small("v2/pgm", attack=pgm),
        small("today/trades", attack=pgm),
        small("today/free", attack=free, attacker_optimiser=free.optimiser),
        small("iclr2020/grad@ours", clean_weight=0.5),
        small("2018/grad"),
        small("iclr2020/2step@ours", update="alternating"),
        replace(diverse, attack=fixed, attacker_optimiser=slow),
        replace(diverse, attack=AdvGAN(width=1 / 16), attacker_optimiser=slow),
        replace(against(diverse, fixed, slow, "alone", epochs=2), warm_start=None),
    ]


SCRIPT = """
import sys
sys.path[:0] = {tests!r}
from test_distributed import *
from l2lkit import __main__
from l2lkit.game import loop as training

torch.set_num_threads(1)
work, epoch = __main__._work, training._epoch
given = torch.load("given", weights_only=False)

def and_more(args, device):
    work(args, device)
    assert distributed.size() == 2
    found = []
    with exact():
        for game, half in zip(games(), given["halves"], strict=True):
            found.append(course(game, given["data"]))
            found[-1]["resumed"] = course(game, given["data"], half)
    if distributed.rank() == 0:
        torch.save(found, "found")
    training._epoch = one_fails
    Store("smoke", dataset="tiny", data="images", device="cpu", output="two", seed=1).model("plain")

def one_fails(players, data, seed, number):
    if number == 2 and distributed.rank() == 1:
        raise RuntimeError("the second process has no memory left")
    return epoch(players, data, seed, number)

__main__._work = and_more
sys.exit(main(sys.argv[1:]))
"""
WORDS = ["train", "grad", "--profile=smoke", "--dataset=tiny", "--data=images", "--device=cpu"]


@contextmanager
def exact():
    """Float64, so that only rounding errors of 1e-16 tell the sums of one and of two processes
    apart, and no batch norm, whose statistics on a CPU are those of each process's own share."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn, "BatchNorm2d", nn.Identity)
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        torch.set_default_dtype(torch.float64)
        # `train` brings back float32 where the default is another: here it shall not see one.
        patch.setattr(torch, "get_default_dtype", lambda: torch.float32)
        yield
        torch.set_default_dtype(torch.float32)


def course(game, data, half=None):
    """The log of a run, and what was left of it after each epoch."""
    kept = []
    # Rounding decides whether a perturbation that starts at zero takes padding out of the range.
    data = replace(data, augment=not isinstance(game.attack, Free))
    _, log, _ = train(game, data, seed=3, resume=half, on_epoch=lambda s: kept.append(deepcopy(s)))
    return {"log": log, "kept": kept}


@pytest.fixture(scope="module")
def both(colours, tmp_path_factory):
    """Each game's course in one process and in two, 33 images of 8×8 in batches of 15: shares of 8
    and 7, then of 2 and 1. And a folder in which both have trained Grad L2L from the command line,
    two processes on a Plain Net that one had begun; then one of the two failed in the third epoch
    of another."""
    place = tmp_path_factory.mktemp("distributed")
    images, labels = colours.train_images[:33, :, ::2, ::2], colours.train_labels[:33]
    data = replace(
        colours,
        train_images=images.clamp(13, 242),
        train_labels=labels,
        test_images=colours.test_images[:, :, ::2, ::2],
    )
    with exact():
        one = [course(game, data) for game in games()]
    torch.save({"data": data, "halves": [c["kept"][0] for c in one]}, place / "given")
    image_folder(place / "images")
    folders = [str(p) for p in Path(__file__).parents[:2]]
    (place / "script.py").write_text(SCRIPT.format(tests=folders))
    keep = Store._keep_epoch

    def interrupted(store, directory, seed, state):
        keep(store, directory, seed, state)
        if state["epoch"] == 3:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert main([*WORDS, "--output=one"]) == 0
        patch.setattr(Store, "_keep_epoch", interrupted)
        assert main([*WORDS, "--output=two"]) == 130
    # The script's name stands for -m l2lkit.
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node=2",
        "--rdzv-backend=c10d",
        "--rdzv-endpoint=localhost:0",
        "script.py",
    ]
    done = subprocess.run(
        [*command, *WORDS, "--output=two"],
        cwd=place,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert (place / "found").exists(), done.stderr
    two = torch.load(place / "found", weights_only=False)
    with exact():
        for game, there in zip(games(), two, strict=True):
            there["resumed here"] = course(game, data, there["kept"][0])
    return one, two, place, done


@pytest.mark.slow
@pytest.mark.parametrize("i", range(len(games())), ids=[f"{g.name} {g.update}" for g in games()])
def test_two_processes_play_the_game_of_one(both, i):
    one, two = (runs[i] for runs in both[:2])
    courses = [two, two["resumed"], two["resumed here"]]  # the last: begun in one, begun in two
    for other in courses:
        pd.testing.assert_frame_equal(untimed(one["log"]), untimed(other["log"]), rtol=1e-7)
        here, there = one["kept"][-1]["players"], other["kept"][-1]["players"]
        for part in {"f", "g"} & set(here):
            assert here[part].keys() == there[part].keys()
            for name, value in here[part].items():
                torch.testing.assert_close(there[part][name], value, rtol=1e-6, atol=1e-9)


def opened(place, name, **options):
    return Store(
        "smoke", dataset="tiny", data=place / "images", device="cpu", output=place / name, **options
    )


@pytest.mark.slow
def test_torchrun_on_the_command_line(both):
    """Batch norm sees half of a batch, so that the curve is only near that of one process.

    How near depends on the processor. A single epoch may differ by far (0.34 on one EPYC), so
    that the mean over the epochs is what must be near; that the game is the same is the test
    above.
    """
    place, done = both[2:]
    assert done.stdout.count("train_loss") == done.stdout.count("Grad L2L: ") == 1
    one, two = (opened(place, name) for name in ("one", "two"))
    for name in ("plain", "grad"):
        assert one.finished(name, 0) and two.finished(name, 0)
        a, b = one.model(name), two.model(name)
        assert a.id == b.id and b.record["device"].startswith(f"2 × {processor()}")
        alone, shared = untimed(a.log), untimed(b.log)
        if name == "plain":
            pd.testing.assert_frame_equal(alone[:3], shared[:3], check_exact=True)
        assert len(alone) == len(shared)
        assert (alone.train_loss - shared.train_loss).abs().mean() < 0.15
        assert (alone.delta - shared.delta).abs().mean() < 0.1


@pytest.mark.slow
def test_a_process_that_fails_ends_the_others_and_another_number_goes_on(both):
    place, done = both[2:]
    assert done.returncode != 0 and "the second process has no memory left" in done.stderr
    two = opened(place, "two", seed=1)
    directory = two.where(two.recipe("plain"), 1)
    assert not (directory / "record.json").exists()
    begun = torch.load(next(directory.glob("checkpoint.*.pt")))
    network = make_classifier(two.recipe("plain").classifier, 4, 3, 8)
    assert begun["epoch"] == 2 and begun["players"]["f"].keys() == network.state_dict().keys()
    model = two.model("plain")
    assert model.log.epoch.tolist() == list(range(1, two.recipe("plain").epochs + 1))
    pd.testing.assert_frame_equal(model.log[:2], pd.DataFrame(begun["log"]), check_exact=True)


# What is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["run"], ["evaluate", "plain"], ["recipes"]])
def test_other_commands_are_for_one_process(words, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == "" and re.fullmatch(rf"error: torchrun is for `train`: .*`{words[0]}`.*\n", err)


def test_more_processes_than_gpus(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with (
        pytest.raises(InputError, match="There are 2 GPUs here"),
        distributed.group(torch.device("cuda")),
    ):
        pass


@pytest.mark.parametrize(("batch", "processes"), [(2, 3), (100, 65), (61, 4), (31, 3)])
def test_a_batch_that_cannot_be_shared(colours, monkeypatch, batch, processes):
    """Of 64 images: too small a batch, too few images, 3 left over, 2 left over."""
    monkeypatch.setattr(distributed, "size", lambda: processes)
    with pytest.raises(InputError, match=f"{processes} processes cannot share 64 images"):
        train(replace(games()[0], batch_size=batch), colours, seed=0)


def test_an_attack_that_looks_at_the_whole_batch(colours, monkeypatch):
    monkeypatch.setattr(distributed, "size", lambda: 2)
    game = next(g for g in games() if g.name == "iclr2020/grad@ours")
    with pytest.raises(InputError, match="looks at the whole batch"):
        train(replace(game, attack=replace(game.attack, gradient="batch-max")), colours, seed=0)


def test_shares_are_all_of_the_batch(monkeypatch):
    monkeypatch.setattr(distributed, "size", lambda: 3)
    parts = []
    for rank in range(3):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        parts.append(distributed.share(torch.arange(8)).tolist())
    assert [len(p) for p in parts] == [3, 3, 2] and sorted(sum(parts, [])) == list(range(8))


def test_every_process_draws_its_own_random_numbers(colours, monkeypatch):
    game = next(g for g in games() if g.name == "v2/pgm")
    game = replace(game, attack=replace(game.attack, start="uniform"))
    logs = []
    for rank in (0, 1, 1, 2):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        logs.append(untimed(train(game, colours, seed=0)[1]))
    pd.testing.assert_frame_equal(logs[1], logs[2], check_exact=True)
    assert len({log.train_loss[0] for log in logs}) == 3


# Two jobs in one store ----------------------------------------------------------------------


@pytest.mark.slow
def test_the_readmes_grid(folder, tmp_path, capsys):
    """Its array job, two tasks at a time, which both need the same Plain Net first."""
    (job,) = re.findall(r"```bash\n(.*?)```", SCALE, re.S)
    (line,) = re.findall(r"^seq 0 14 (\| xargs .*?)  #", SCALE, re.M)
    words = f"--profile smoke --dataset tiny --data {folder} --device cpu"
    job = job.replace("--profile paper --dataset cifar10", words)
    (tmp_path / "grid.sh").write_text(job.replace(".venv/bin/python", sys.executable))
    done = subprocess.run(
        ["bash", "-c", f"printf '0\\n5\\n' {line}"],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.count("PGM Net: ok") == done.stdout.count("Grad L2L: ok") == 1

    there, here = (
        Store("smoke", dataset="tiny", data=folder, device="cpu", output=tmp_path / name)
        for name in ("grid", "alone")
    )
    for name in ("plain", "pgm", "grad"):
        assert there.finished(name, 0)
        a, b = there.model(name), here.model(name)
        pd.testing.assert_frame_equal(untimed(a.log), untimed(b.log), check_exact=True)
    files = {p.name for p in there.output.rglob("*") if p.is_file() and p.suffix != ".pt"}
    assert files == {".lock", "layout", "log.csv", "record.json"}


def test_a_model_belongs_to_one_job_at_a_time(tmp_path):
    entered = threading.Event()

    def second():
        with alone(tmp_path / "model"):
            entered.set()

    with alone(tmp_path / "model"), alone(tmp_path / "another"):
        thread = threading.Thread(target=second)
        thread.start()
        assert not entered.wait(0.3)
    assert entered.wait(10)
    thread.join()
