"""Files that appear whole or not at all, and checkpoints that are not believed when damaged.

Only what needs torch imports it, so that the command line can look at a place without."""

import hashlib
import io
import json
import os
import platform
import re
import secrets
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from filelock import FileLock

from l2lkit.errors import InputError

FREE_BYTES = 2 * 10**9
PACKAGE = Path(__file__).resolve().parent


def repository() -> Path | None:
    """The project's checkout that this package lies in, None for an installed one."""
    root = PACKAGE.parent
    return root if (root / "pyproject.toml").is_file() and (root / "notebooks").is_dir() else None


def default_output() -> Path:
    """Where results go: the project's checkout if the package lies in one, else the current folder.
    Nothing is ever written beside an installed package."""
    return repository() or Path.cwd()


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then move it there in one step. A process
    that is killed meanwhile leaves that file, with its own number in the name, for `sweep`.

    Raises InputError if the directory cannot be written or the disk is full.
    """
    mark = f"{platform.node()}-{os.getpid()}-{secrets.token_hex(4)}"
    temporary = path.with_name(f".{path.name}.{mark}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):  # the parent may be a file: then there is nothing to remove
            temporary.unlink()
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError) -> InputError:
    return InputError(
        f"Cannot write {path}: {error.strerror or error}; free some space or name another "
        "directory with --output. Finished work is kept."
    )


def write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda p: p.write_text(text, encoding="utf-8"))


def write_json(path: Path, content: object) -> None:
    write_text(path, json.dumps(content, indent=1, default=_plain) + "\n")


def is_json(path: Path) -> bool:
    """Whether the file holds whole JSON."""
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return True


def sweep(directory: Path) -> None:
    """Remove the temporary files below that killed processes of this machine left."""
    left = re.compile(rf"\..+\.{re.escape(platform.node())}-(\d+)-[0-9a-f]{{8}}")
    for path in directory.rglob(".*"):
        if (named := left.fullmatch(path.name)) and not psutil.pid_exists(int(named[1])):
            path.unlink(missing_ok=True)


def check_place(directory: Path) -> None:
    """Raise InputError if the directory can plainly not be made or written, without making it."""
    there = next(p for p in (directory, *directory.parents) if os.path.exists(p))
    if not os.path.isdir(there):
        raise cannot_write(directory, NotADirectoryError(f"{there} is no directory"))
    if not os.access(there, os.W_OK):
        raise cannot_write(directory, PermissionError(f"{there} is not yours to write"))


def check_writable(*directories: Path) -> None:
    """Raise InputError now, not after an hour, if results cannot be written, or FREE_BYTES are not
    free. What a killed run left half written goes."""
    for directory in directories:
        sweep(directory)
        probe = directory / ".can-write"
        write_text(probe, "")
        probe.unlink(missing_ok=True)  # another process may check too
    free = shutil.disk_usage(directories[0]).free
    if free < FREE_BYTES:
        raise InputError(
            f"Only {free / 1e9:.1f} GB are free for {directories[0]}: make room for "
            f"{FREE_BYTES / 1e9:.0f} GB, or name a directory on another disk with --output."
        )


def _plain(value: object) -> object:
    return value.item() if hasattr(value, "item") else str(value)  # of numpy and of torch


def save_checkpoint(directory: Path, name: str, content: object) -> None:
    """Save as `<name>.<first 16 hex digits of the SHA-256>.pt` and drop older ones of the name."""
    import torch

    buffer = io.BytesIO()  # torch.save to a path reports a full disk as a RuntimeError
    torch.save(content, buffer)
    digest = hashlib.sha256(buffer.getbuffer()).hexdigest()[:16]
    final = directory / f"{name}.{digest}.pt"
    write_atomically(final, lambda p: p.write_bytes(buffer.getbuffer()))
    for old in [*directory.glob(f"{name}.*.pt"), *directory.glob(f".{name}.*")]:
        if old != final:
            old.unlink()


def load_checkpoint(directory: Path, name: str) -> dict | None:
    """The newest undamaged checkpoint of that name, or None.

    A file whose bytes do not give the digest in its name, or that torch cannot read, is moved
    aside to `damaged-…` with a warning that names it; it is never used.
    """
    import torch

    kept = sorted(directory.glob(f"{name}.*.pt"), key=lambda p: p.stat().st_mtime, reverse=True)
    for path in kept:
        try:
            if path.suffixes[-2].lstrip(".") != _digest(path):
                raise ValueError("its content does not match the digest in its name")
            with torch.inference_mode(False):  # training goes on with them, whatever the caller's
                return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            aside = path.with_name(f"damaged-{path.name}")
            path.replace(aside)
            warnings.warn(
                f"Checkpoint {path} is damaged ({error}); moved to {aside.name}. That model is "
                "trained again.",
                stacklevel=2,
            )
    return None


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


@contextmanager
def alone(directory: Path) -> Iterator[None]:
    """Inside, this process (of a group, the first) has the directory for itself; others wait,
    also on other machines that share the disk. Who is killed lets go. A disk that cannot be
    written, or that knows no locks, gives none."""
    from l2lkit import distributed

    lock = FileLock(directory / ".lock")
    if distributed.rank() == 0:
        with suppress(OSError, NotImplementedError):  # no room or no locks there: work without
            directory.mkdir(parents=True, exist_ok=True)
            lock.acquire()
    try:
        yield
    finally:
        lock.release()
