"""What training and attacking cost on this machine: `python -m l2lkit bench`.

Times of two runs do not compare, for machines are shared and grow warm; ratios within one run do.
So the rows are timed in turn, round after round, and every ratio is taken within a round. The
reference is the authors' procedure as their code runs it: a turn with passes of its own for each
player, every gradient of every turn, float32, contiguous images, torch's own PReLU. "Alternating"
are the same turns, images and PReLU without the gradients that nobody uses. FLOPs stand beside the
seconds, and the arithmetic limit is what one large product or convolution reaches here in the same
precision. Where the device has no arithmetic in bfloat16, float32 stands alone.

The default takes six to ten minutes on two CPU cores. results/bench.json is written again after
every round, so that a run that is stopped keeps all rounds that were over.
"""

import ctypes
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from l2lkit.attackers import GradAttacker, NaiveAttacker, PReLU
from l2lkit.attacks import FGSM, PGM, Attack
from l2lkit.data import Dataset
from l2lkit.evaluation import evaluating
from l2lkit.recipes import Recipe, recipe
from l2lkit.store import Store, has_bfloat16, keep_memory, write_json
from l2lkit.training import Players, play

ROWS = (
    "iclr2020/plain", "iclr2020/fgsm", "iclr2020/pgm", "iclr2020/naive", "iclr2020/grad",
    "iclr2020/2step", "l2l-da-cifar10/full", "today/free", "today/fgsm-rs",
)  # fmt: skip
PAPER_ROWS = ("iclr2020/plain", "iclr2020/pgm", "iclr2020/grad", "iclr2020/2step")
REFERENCES = ("iclr2020/grad", "iclr2020/2step")
PRECISIONS = ("float32", "bfloat16")
EPOCH = 50_000  # CIFAR's training images
ATTACKS: dict[str, Callable[[], Attack]] = {
    "FGSM": FGSM, "PGM-20": PGM, "Naive L2L attacker": NaiveAttacker,
    "Grad L2L attacker": GradAttacker, "2-Step L2L attacker": partial(GradAttacker, steps=2),
}  # fmt: skip


@dataclass(frozen=True)
class Ratio:
    """Seconds of one row over seconds of another, the target it is read against ("≥ 4"), if there
    is one, and what ICLR 2020 prints for CIFAR-10 (Table 3, seconds an epoch), where it does."""

    row: str
    precision: str
    over: str
    its_precision: str
    target: str | None
    published: float | None = None

    def met(self, ratio: float) -> bool | None:
        if self.target is None:
            return None
        sign, number = self.target.split()
        return ratio >= float(number) if sign == "≥" else ratio <= float(number)


# The targets are for two CPU cores; these for WRN-34-2 and batches of 32.
TO_REFERENCE = [
    Ratio(f"{row} ({kind})", "float32", row, precision, aim if kind == "reference" else None)
    for kind in ("reference", "alternating")
    for precision, row, aim in (
        ("bfloat16", "Grad L2L", "≥ 4"), ("bfloat16", "2-Step L2L", "≥ 3.5"),
        ("float32", "Grad L2L", "≥ 2"), ("float32", "2-Step L2L", "≥ 2"),
    )
]  # fmt: skip
PUBLISHED = [
    Ratio(row, precision, over, precision, target, published)
    for precision in PRECISIONS
    for row, over, target, published in (
        ("Grad L2L", "PGM Net", "≤ 0.30", 617.5 / 1310.8),
        ("2-Step L2L", "PGM Net", "≤ 0.45", 805.1 / 1310.8),
        ("Grad L2L", "Plain Net", "≤ 3.6", 617.5 / 106.5),
    )
]


def authors_step(players: Players, x: Tensor, y: Tensor) -> None:
    """One iteration as the authors' code runs it: in each player's turn the gradient goes back
    through both networks, though one of them moves. The players end where `play` with
    update="alternating" takes them, for twice the FLOPs of update="simultaneous"."""
    f, g = players.classifier, players.attack
    assert isinstance(g, nn.Module)
    for turn, moves, waits in (("classifier", f, g), ("attacker", g, f)):
        moves.train(), waits.eval()
        for optimiser in players.optimisers.values():
            optimiser.zero_grad(set_to_none=True)
        F.cross_entropy(f(x + g(f, x, y)), y).backward()
        players.optimisers[turn].step()


@dataclass(frozen=True)
class Step:
    """One step of a recipe's training, on a batch of noise 32×32×3: `play`'s, or the authors'.
    Alternating steps have the authors' contiguous images and torch's PReLU too."""

    recipe: Recipe
    move: Callable[[Players, Tensor, Tensor], object] = play

    @property
    def names(self) -> dict[str, str]:
        row = self.recipe.defence
        if self.recipe.update == "alternating":
            row += " (alternating)" if self.move is play else " (reference)"
        return {"row": row, "precision": self.recipe.precision}

    def prepare(self, device: torch.device) -> Callable[[], object]:
        """Build the players; what is returned plays one step."""
        players, images, labels = noise(self.recipe, device)
        layout = torch.channels_last
        if self.recipe.update == "alternating":
            layout = torch.contiguous_format
            for part in (players.classifier, players.attack):
                if isinstance(part, nn.Module):
                    # torch's own types leave out the memory format alone.
                    part.to(memory_format=layout)  # type: ignore[call-overload]
                    torchs_own(part)
        players.classifier.train()
        if isinstance(players.attack, nn.Module):
            players.attack.train()
        return partial(self.move, players, images.contiguous(memory_format=layout), labels)


def torchs_own(module: nn.Module) -> None:
    """Put torch's PReLU in place of the attackers' own, with the same parameters."""
    for name, part in module.named_children():
        if isinstance(part, PReLU):
            own = nn.PReLU()
            own.weight = part.weight
            setattr(module, name, own)
        torchs_own(part)


def noise(recipe: Recipe, device: torch.device) -> tuple[Players, Tensor, Tensor]:
    """New players for a recipe, and a batch of noise 32×32×3 with labels of ten classes."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randint(256, (recipe.batch_size, 3, 32, 32), generator=rng).to(torch.uint8)
    x, y = x.to(device), torch.randint(10, (len(x),), generator=rng).to(device)
    data = Dataset("noise", "noise", tuple("0123456789"), x, y, x, y, augment=False)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        players = Players.build(recipe, data, device)
    return players, x.float() / 255, y


def steps(
    names: Sequence[str], classifier: str, batch_size: int, references: Sequence[str] = (),
    precisions: Sequence[str] = PRECISIONS,
) -> list[Step]:  # fmt: skip
    """A step of every named recipe in every precision, and those of the references, as the authors
    run them and without the gradients that nobody uses, on that classifier."""

    def at(name: str) -> Recipe:
        return replace(recipe(name), classifier=classifier, batch_size=batch_size)

    found = [Step(replace(at(name), precision=p)) for p in precisions for name in names]
    turns = [replace(at(name), update="alternating") for name in references]
    return found + [Step(turn, move) for move in (authors_step, play) for turn in turns]


class Flops(TorchDispatchMode):
    """Counts with torch's formulas. Its own FlopCounterMode also hooks into modules, and those
    hooks fail where a step asks for the gradient of its images."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if formula := flop_registry.get(func.overloadpacket):
            self.total += formula(*args, **(kwargs or {}), out_val=out)
        return out


def measure(
    tasks: Sequence[Step], device: torch.device, rounds: int, on_progress: Callable[[str], None]
) -> Iterator[pd.DataFrame]:
    """Each step in each round: columns row, precision, round, seconds; and from a first step that
    is not timed, gflop and peak_mb (players, optimisers and activations). Yields all rows so far
    after every round."""
    plays, counted, rows = [], [], []
    for task in tasks:
        on_progress(f"{task.recipe.classifier}, first step: {', '.join(task.names.values())}")

        def first(task: Step = task) -> None:
            plays.append(task.prepare(device))
            with Flops() as flops:
                plays[-1]()
            counted.append({"gflop": flops.total / 1e9})

        memory = peak_memory(first, device)
        counted[-1]["peak_mb"] = math.nan if memory is None else memory
    for i in range(rounds):
        for task, once, numbers in zip(tasks, plays, counted, strict=True):
            what = f"{task.recipe.classifier}, round {i + 1} of {rounds}: "
            on_progress(what + ", ".join(task.names.values()))
            rows.append(task.names | numbers | {"round": i, "seconds": seconds(once, device)})
        yield pd.DataFrame(rows)


def seconds(once: Callable[[], object], device: torch.device) -> float:
    """How long a call takes, with what it left to the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    once()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def limits(
    device: torch.device, rounds: int, precisions: Sequence[str] = PRECISIONS
) -> dict[str, float]:
    """GFLOP/s, precision by precision, of the faster of a product of two matrices 2048×2048 and a
    3×3 convolution of 128 channels, each in its best round: some libraries do one well only."""
    found = {}
    for precision in precisions:
        kind = {"device": device, "dtype": getattr(torch, precision)}
        a = torch.rand(2048, 2048, **kind)
        x = torch.rand(8, 128, 32, 32, **kind).contiguous(memory_format=torch.channels_last)
        weight = torch.rand(128, 128, 3, 3, **kind).contiguous(memory_format=torch.channels_last)
        work = {
            2 * 2048**3: partial(torch.mm, a, a),
            2 * 8 * 32 * 32 * 9 * 128**2: partial(F.conv2d, x, weight, padding=1),
        }
        found[precision] = max(
            flop / seconds(once, device) / 1e9
            for flop, once in work.items() for _ in range(rounds + 1)
        )  # fmt: skip
    return found


def summary(frame: pd.DataFrame, limit: Mapping[str, float], batch_size: int) -> pd.DataFrame:
    """A row a step: seconds (median over rounds), low and high, how many rounds, minutes for an
    epoch of 50,000 images, GFLOP and GFLOP/s, the share of the limit's GFLOP/s, and peak memory
    in MB."""
    keys = ["row", "precision"]
    table = frame.groupby(keys, sort=False).agg(
        seconds=("seconds", "median"), low=("seconds", "min"), high=("seconds", "max"),
        rounds=("seconds", "size"),
        gflop=("gflop", "first"), peak_mb=("peak_mb", "first"),
    )  # fmt: skip
    table = table.reset_index()
    table["epoch_minutes"] = table.seconds * EPOCH / batch_size / 60
    table["gflop_per_second"] = table.gflop / table.seconds
    table["share_of_limit"] = table.gflop_per_second / table.precision.map(limit)
    return table


def ratios(frame: pd.DataFrame, pairs: Sequence[Ratio]) -> pd.DataFrame:
    """Each ratio within a round whose precisions `frame` has: median, low and high, its target and
    whether the median meets it, the published ratio, and the ratio of the FLOPs."""
    seconds = frame.pivot(index="round", columns=["row", "precision"], values="seconds")
    gflop = frame.groupby(["row", "precision"]).gflop.first()
    rows = []
    for pair in pairs:
        first, second = (pair.row, pair.precision), (pair.over, pair.its_precision)
        if not {pair.precision, pair.its_precision} <= set(frame.precision):
            continue
        ratio = seconds[first] / seconds[second]
        rows.append(
            {"row": pair.row, "precision": pair.precision, "over": pair.over,
             "its_precision": pair.its_precision, "ratio": ratio.median(), "low": ratio.min(),
             "high": ratio.max(), "rounds": len(ratio), "target": pair.target,
             "met": pair.met(ratio.median()), "published": pair.published,
             "flop_ratio": gflop[first] / gflop[second]}
        )  # fmt: skip
    return pd.DataFrame(rows)


def throughput(
    classifier: str, batch_size: int, device: torch.device, rounds: int,
    on_progress: Callable[[str], None],
) -> Iterator[pd.DataFrame]:  # fmt: skip
    """Images attacked in a second, float32 and eval mode as every evaluation is: columns row,
    precision, images_per_second (median), low, high, rounds. Yields all rows so far after every
    attack."""
    plain = replace(recipe("iclr2020/plain"), classifier=classifier, batch_size=batch_size)
    players, images, labels = noise(plain, device)
    f = players.classifier
    rows = []
    for name, build in ATTACKS.items():
        on_progress(f"{classifier}, attack: {name}")
        attack = build()
        if isinstance(attack, nn.Module):
            attack.to(device)
        with evaluating(f, attack), torch.no_grad():
            once = partial(attack, f, images, labels)
            once()
            rates = [batch_size / seconds(once, device) for _ in range(rounds)]
        found = pd.Series(rates)
        rows.append(
            {"row": name, "precision": "float32", "images_per_second": found.median(),
             "low": found.min(), "high": found.max(), "rounds": rounds}
        )  # fmt: skip
        yield pd.DataFrame(rows)


def peak_memory(call: Callable[[], object], device: torch.device) -> float | None:
    """MB that a call takes at its peak above what was held before; None where the system does not
    tell (on a CPU only Linux does)."""
    if device.type == "cuda":
        held = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        return (torch.cuda.max_memory_allocated(device) - held) / 1e6
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak is what is held now
    before = _kilobytes("VmRSS")
    call()
    peak = _kilobytes("VmHWM")
    return None if before is None or peak is None else (peak - before) / 1e3


def _kilobytes(field: str) -> float | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next(float(line.split()[1]) for line in lines if line.startswith(field))


def where(store: Store) -> Path:
    """The file that `run` writes."""
    return store.output / "results" / "bench.json"


def run(
    store: Store, classifier: str = "wrn-34-2", batch_size: int = 32, rounds: int = 5,
    on_progress: Callable[[str, float], None] = lambda what, share: None,
) -> dict[str, pd.DataFrame]:  # fmt: skip
    """All tables of the benchmark by name, also written to results/bench.json of the store's
    output, anew after every round: `training` steps on `classifier`, `ratios` to the reference,
    `paper ratios` on WRN-34-10, and `attacks`. `on_progress` is told what begins, and the share
    of the whole that it is."""
    device = store.device
    if device.type == "cpu":
        keep_memory()
    kinds = PRECISIONS if has_bfloat16(device) else PRECISIONS[:1]
    tasks = steps(ROWS, classifier, batch_size, REFERENCES, kinds)
    # The paper's networks on a batch that a CPU can wait for.
    few = 128 if device.type == "cuda" else 8
    paper_tasks = steps(PAPER_ROWS, "wrn-34-10", few, precisions=kinds)
    jobs = 1 + (1 + rounds) * (len(tasks) + len(paper_tasks)) + len(ATTACKS)

    def tell(what: str) -> None:
        on_progress(what, 1 / jobs)

    tell("arithmetic limit")
    limit = limits(device, rounds, kinds)
    found: dict[str, pd.DataFrame] = {}

    def save(**tables: pd.DataFrame) -> None:
        found.update({name.replace("_", " "): table for name, table in tables.items()})
        write_json(
            where(store),
            {"classifier": classifier, "batch_size": batch_size, "paper_batch_size": few,
             "rounds": rounds, "limit_gflop_per_second": limit,
             "tables": {k: json.loads(t.to_json(orient="records")) for k, t in found.items()},
             "machine": store.machine()},
        )  # fmt: skip

    save()
    for frame in measure(tasks, device, rounds, tell):
        save(training=summary(frame, limit, batch_size), ratios=ratios(frame, TO_REFERENCE))
    for frame in measure(paper_tasks, device, rounds, tell):
        save(paper_training=summary(frame, limit, few), paper_ratios=ratios(frame, PUBLISHED))
    for frame in throughput(classifier, batch_size, device, rounds, tell):
        save(attacks=frame)
    return found
