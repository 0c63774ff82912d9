"""The machine and the code that a result was made on: what its provenance says."""

import os
import platform
import re
import subprocess
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import torch

from l2lkit import distributed, names
from l2lkit.errors import InputError
from l2lkit.files import repository


def pick_device(name: str) -> torch.device:
    """`cpu`, `cuda`, `cuda:1`, … or `auto` (CUDA if there is one). InputError if it is absent."""
    names.check_device(name)
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError("No CUDA device here: use --device cpu, or --device auto to let it pick.")
    return device


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device has arithmetic in bfloat16, which then takes less time than float32.

    CUDA GPUs do from Ampere on (compute capability 8), x86 processors with AVX512-BF16 or AMX.
    Elsewhere torch computes in bfloat16 all the same, but by way of float32. Measured on one core
    with AVX512-BF16, a training step of the profile `quick` takes two thirds of float32's time;
    with those instructions switched off twice as long as float32, without oneDNN, which has no
    bfloat16 on AVX2, ten times and more. AMX and ARM were not tried; ARM counts as having none.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    can = torch.cpu.get_capabilities()
    native = can.get("avx512_bf16", False) or can.get("amx_bf16", False)
    return native and torch.backends.mkldnn.is_available()


def processor() -> str:
    """The name that the system gives its processor, with family and model where Linux tells them:
    what one name covers may differ by a factor of two in speed."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
        facts = dict(re.split(r"\s*:\s*", line, maxsplit=1) for line in lines if ":" in line)
        return f"{facts['model name']} (family {facts['cpu family']}, model {facts['model']})"
    except (OSError, KeyError):
        pass
    with suppress(OSError, subprocess.CalledProcessError):  # macOS
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.check_output(command, text=True, stderr=subprocess.DEVNULL).strip()
    return platform.processor() or platform.machine()


def cores() -> int:
    """How many cores this process may use."""
    return len(getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))(0))


def commit() -> str:
    """The git commit of the code, with "+" if the package differs from it; "unknown" outside."""
    root = repository()
    if root is None:
        return "unknown"

    def git(*words: str) -> str:
        output = subprocess.check_output(["git", *words], cwd=root, stderr=subprocess.DEVNULL)
        return output.decode().strip()

    try:
        head = git("rev-parse", "--short=12", "HEAD")
        return head + ("+" if git("status", "--porcelain", "-uno", "--", "l2lkit") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def versions(*packages: str) -> dict[str, str]:
    """The installed version of each package, and of those that every number hangs on."""
    return {name: version(name) for name in ("torch", "torchvision", "numpy", "pandas", *packages)}


def hardware(device: torch.device, threads: int | None) -> str:
    """The processor or GPU in words, how many processes share the work, and how many threads each
    has (None: as many as torch takes)."""
    cuda = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if cuda else processor()
    if distributed.size() > 1:
        name = f"{distributed.size()} × {name}"
    return f"{name}, {threads or torch.get_num_threads()} threads"
