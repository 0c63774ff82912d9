"""What training and attacking cost on this machine: seconds, FLOPs and memory.

    python benchmarks/bench.py [--classifier NAME] [--batch N] [--rounds N] [--threads N]
                               [--device NAME] [--output DIR] [--json]

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

import argparse
import ctypes
import json
import math
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from tqdm import tqdm

from l2lkit.data import Dataset
from l2lkit.errors import InputError, check_positive
from l2lkit.files import write_json
from l2lkit.game.cpu import PReLU, keep_memory
from l2lkit.game.evaluate import evaluating
from l2lkit.game.fixed import FGSM, PGM
from l2lkit.game.learned import GradAttacker, NaiveAttacker
from l2lkit.game.orders import step_in_turns
from l2lkit.game.recipe import Recipe
from l2lkit.game.solver import Solver
from l2lkit.game.step import Players, step
from l2lkit.recipes import recipe
from l2lkit.results import published
from l2lkit.runs import machine

ROOT = Path(__file__).resolve().parents[1]
DEFENCES = ("plain", "fgsm", "pgm", "naive", "grad", "2step")
ROWS = (
    *(recipe(name).name for name in DEFENCES),
    *("l2l-da-cifar10/full", "today/free", "today/fgsm-rs"),
)
PAPER_ROWS = tuple(recipe(name).name for name in ("plain", "pgm", "grad", "2step"))
REFERENCES = PAPER_ROWS[2:]
PRECISIONS = ("float32", "bfloat16")
EPOCH = 50_000  # CIFAR's training images
ATTACKS: dict[str, Callable[[], Solver]] = {
    "FGSM": FGSM,
    "PGM-20": PGM,
    "Naive L2L attacker": NaiveAttacker,
    "Grad L2L attacker": GradAttacker,
    "2-Step L2L attacker": partial(GradAttacker, steps=2),
}


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
AIMS = (
    ("bfloat16", "Grad L2L", "≥ 4"),
    ("bfloat16", "2-Step L2L", "≥ 3.5"),
    ("float32", "Grad L2L", "≥ 2"),
    ("float32", "2-Step L2L", "≥ 2"),
)
TO_REFERENCE = [
    Ratio(f"{row} ({kind})", "float32", row, precision, aim if kind == "reference" else None)
    for kind in ("reference", "alternating")
    for precision, row, aim in AIMS
]
TABLE_3 = (
    ("Grad L2L", "PGM Net", "≤ 0.30", 617.5 / 1310.8),
    ("2-Step L2L", "PGM Net", "≤ 0.45", 805.1 / 1310.8),
    ("Grad L2L", "Plain Net", "≤ 3.6", 617.5 / 106.5),
)
PUBLISHED = [
    Ratio(row, precision, over, precision, target, ratio)
    for precision in PRECISIONS
    for row, over, target, ratio in TABLE_3
]


def authors_step(players: Players, x: Tensor, y: Tensor) -> None:
    """One iteration as the authors' code runs it: in each player's turn the gradient goes back
    through both networks, though one of them moves. The players end where `step_in_turns`
    takes them, for twice the FLOPs of `step`."""
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
    """One step of a recipe's training, on a batch of noise 32×32×3: the loop's, or the authors'.
    Alternating steps have the authors' contiguous images and torch's PReLU too."""

    recipe: Recipe
    move: Callable[[Players, Tensor, Tensor], object] = step

    @property
    def names(self) -> dict[str, str]:
        row = self.recipe.defence
        if self.recipe.update == "alternating":
            row += " (reference)" if self.move is authors_step else " (alternating)"
        return {"row": row, "precision": self.recipe.precision}

    def prepare(self, device: torch.device) -> Callable[[], object]:
        """Build the players; what is returned plays one step."""
        players, images, labels = noise(self.recipe, device)
        layout = torch.channels_last
        if self.recipe.update == "alternating":
            layout = torch.contiguous_format
            for part in (players.classifier, players.attack):
                if isinstance(part, nn.Module):
                    part.to(memory_format=layout)
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
    names: Sequence[str],
    classifier: str,
    batch_size: int,
    references: Sequence[str] = (),
    precisions: Sequence[str] = PRECISIONS,
) -> list[Step]:
    """A step of every named recipe in every precision, and those of the references, as the authors
    run them and without the gradients that nobody uses, on that classifier."""

    def at(name: str) -> Recipe:
        return replace(recipe(name), classifier=classifier, batch_size=batch_size)

    ours = [Step(replace(at(name), precision=p)) for p in precisions for name in names]
    turns = [replace(at(name), update="alternating") for name in references]
    return ours + [Step(t, move) for move in (authors_step, step_in_turns) for t in turns]


class Flops(TorchDispatchMode):
    """Counts with torch's formulas. Its own FlopCounterMode also hooks into modules, and those
    hooks fail where a step asks for the gradient of its images."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
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
    plays: list[Callable[[], object]] = []
    counted: list[dict[str, float]] = []
    rows: list[dict[str, Any]] = []
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
    limit = {}
    for precision in precisions:
        kind: dict[str, Any] = {"device": device, "dtype": getattr(torch, precision)}
        a = torch.rand(2048, 2048, **kind)
        x = torch.rand(8, 128, 32, 32, **kind).contiguous(memory_format=torch.channels_last)
        weight = torch.rand(128, 128, 3, 3, **kind).contiguous(memory_format=torch.channels_last)
        work = {
            2 * 2048**3: partial(torch.mm, a, a),
            2 * 8 * 32 * 32 * 9 * 128**2: partial(F.conv2d, x, weight, padding=1),
        }
        rates = [
            flop / seconds(once, device) / 1e9
            for flop, once in work.items()
            for _ in range(rounds + 1)
        ]
        limit[precision] = max(rates)
    return limit


def summary(frame: pd.DataFrame, limit: Mapping[str, float], batch_size: int) -> pd.DataFrame:
    """A row a step: seconds (median over rounds), low and high, how many rounds, minutes for an
    epoch of 50,000 images, GFLOP and GFLOP/s, the share of the limit's GFLOP/s, and peak memory
    in MB."""
    table = frame.groupby(["row", "precision"], sort=False).agg(
        seconds=("seconds", "median"),
        low=("seconds", "min"),
        high=("seconds", "max"),
        rounds=("seconds", "size"),
        gflop=("gflop", "first"),
        peak_mb=("peak_mb", "first"),
    )
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
        row: dict[str, Any] = {"row": pair.row, "precision": pair.precision, "over": pair.over}
        row |= {"its_precision": pair.its_precision, "ratio": ratio.median(), "low": ratio.min()}
        row |= {"high": ratio.max(), "rounds": len(ratio), "target": pair.target}
        row |= {"met": pair.met(ratio.median()), "published": pair.published}
        rows.append(row | {"flop_ratio": gflop[first] / gflop[second]})
    return pd.DataFrame(rows)


def throughput(
    classifier: str,
    batch_size: int,
    device: torch.device,
    rounds: int,
    on_progress: Callable[[str], None],
) -> Iterator[pd.DataFrame]:
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
        with evaluating(f, attack, labels=labels) as seen:
            once = partial(attack, seen, images, labels)
            once()
            rates = [batch_size / seconds(once, device) for _ in range(rounds)]
        row = {"row": name, "precision": "float32", "images_per_second": median(rates)}
        rows.append(row | {"low": min(rates), "high": max(rates), "rounds": rounds})
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


def run(
    path: Path,
    device: torch.device,
    classifier: str,
    batch_size: int,
    rounds: int,
    on_progress: Callable[[str, float], None],
) -> dict[str, pd.DataFrame]:
    """All tables of the benchmark by name, also written to `path`, anew after every round:
    `training` steps on `classifier`, `ratios` to the reference, `paper ratios` on WRN-34-10, and
    `attacks`. `on_progress` hears what begins, and the share of the whole that it is."""
    if device.type == "cpu":
        keep_memory()
    kinds = PRECISIONS if machine.has_bfloat16(device) else PRECISIONS[:1]
    tasks = steps(ROWS, classifier, batch_size, REFERENCES, kinds)
    # The paper's networks on a batch that a CPU can wait for.
    paper_batch = 128 if device.type == "cuda" else 8
    paper_tasks = steps(PAPER_ROWS, "wrn-34-10", paper_batch, precisions=kinds)
    jobs = 1 + (1 + rounds) * (len(tasks) + len(paper_tasks)) + len(ATTACKS)

    def tell(what: str) -> None:
        on_progress(what, 1 / jobs)

    tell("arithmetic limit")
    limit = limits(device, rounds, kinds)
    tables: dict[str, pd.DataFrame] = {}
    about = {"classifier": classifier, "batch_size": batch_size, "paper_batch_size": paper_batch}
    about |= {"rounds": rounds, "limit_gflop_per_second": limit, "machine": description(device)}

    def save(**made: pd.DataFrame) -> None:
        tables.update({name.replace("_", " "): table for name, table in made.items()})
        rows = {name: json.loads(t.to_json(orient="records")) for name, t in tables.items()}
        write_json(path, about | {"tables": rows})

    save()
    for frame in measure(tasks, device, rounds, tell):
        save(training=summary(frame, limit, batch_size), ratios=ratios(frame, TO_REFERENCE))
    for frame in measure(paper_tasks, device, rounds, tell):
        table = summary(frame, limit, paper_batch)
        save(paper_training=table, paper_ratios=ratios(frame, PUBLISHED))
    for frame in throughput(classifier, batch_size, device, rounds, tell):
        save(attacks=frame)
    return tables


def description(device: torch.device) -> dict[str, Any]:
    """The machine, the versions and the commit that the times belong to."""
    return {
        "device": machine.hardware(device, None),
        "python": platform.python_version(),
        "versions": machine.versions(),
        "commit": machine.commit(),
    }


def parser() -> argparse.ArgumentParser:
    words = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    option = words.add_argument
    option("--classifier", default="wrn-34-2", metavar="NAME", help="or resnet-18, …")
    option("--batch", type=int, default=32, metavar="N", help="images a step")
    option("--rounds", type=int, default=5, metavar="N", help="how often each is timed")
    option("--threads", type=int, metavar="N", help="CPU threads; all if not given")
    option("--device", default="auto", metavar="NAME", help="auto, cpu or cuda")
    option("--output", type=Path, default=ROOT, metavar="DIR", help="gets results/bench.json")
    option("--json", action="store_true", help="print all rows as JSON")
    words.formatter_class = argparse.ArgumentDefaultsHelpFormatter
    return words


def main(argv: Sequence[str] | None = None) -> int:
    """Time everything and print the tables; the exit status (0 fine, 130 interrupted)."""
    words = parser()
    args = words.parse_args(argv)
    path = args.output / "results" / "bench.json"
    look = "{percentage:3.0f}%|{bar:20}| {elapsed} {desc}"
    try:
        check_positive(batch_size=args.batch, rounds=args.rounds, threads=args.threads or 1)
        if args.threads:
            torch.set_num_threads(args.threads)
        device = machine.pick_device(args.device)
        with tqdm(total=1, disable=None, bar_format=look, leave=False) as bar:

            def report(what: str, share: float) -> None:
                bar.update(share)
                bar.set_description_str(what)

            tables = run(path, device, args.classifier, args.batch, args.rounds, report)
    except InputError as error:
        words.error(str(error))
    except KeyboardInterrupt:
        print(f"\nInterrupted. The rounds that were over are in {path}.", file=sys.stderr)
        return 130
    if args.json:
        rows = pd.concat(table.assign(table=name) for name, table in tables.items())
        print(rows.to_json(orient="records", indent=1, force_ascii=False))
        return 0
    print(f"{args.classifier}, batches of {args.batch}, {machine.hardware(device, None)}; {path}")
    for name, table in tables.items():
        print(f"\n{name}\n{published.text(table)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
