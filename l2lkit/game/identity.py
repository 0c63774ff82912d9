"""What a thing is, as plain data that stays the same from run to run and changes with the thing.

Caches are told apart by this and by nothing else: never by a label, never by a class's name alone.
"""

import ast
import hashlib
import inspect
import json
import linecache
import textwrap
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import fields, is_dataclass
from functools import cache, partial
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import nn

PACKAGE = "l2lkit"
PLAIN = (bool, int, float, str, tuple, type(None))


def fingerprint(*parts: object) -> str:
    """Ten hex digits that change with any part; the order of a dictionary's keys does not count."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def identity(thing: Any) -> dict[str, Any]:
    """The class of `thing` with its settings; for a module a digest of its weights; for code from
    outside this package a digest of its source. A function, a class or a `functools.partial` of
    either has its name in place of a class's."""
    if isinstance(thing, partial):
        bound = {str(i): _plain(a) for i, a in enumerate(thing.args)}
        bound |= {k: _plain(v) for k, v in thing.keywords.items()}
        return identity(thing.func) | {"settings": bound}
    named = thing if isinstance(thing, type | FunctionType) else type(thing)
    about: dict[str, Any] = {"class": named.__qualname__}
    if named is not thing:
        about["settings"] = settings(thing)
    if isinstance(thing, nn.Module):
        about["weights"] = weights(thing)
    if _outside(named):
        about["source"] = source(named)
    return about


def settings(thing: Any) -> dict[str, Any]:
    """The fields of a dataclass; of any other object its public attributes."""
    if is_dataclass(thing):
        return {f.name: _plain(getattr(thing, f.name)) for f in fields(thing)}
    public = {k: v for k, v in vars(thing).items() if not k.startswith("_") and k != "training"}
    return {name: _plain(value) for name, value in public.items()}


def _plain(value: Any) -> Any:
    """`value` as JSON keeps it: a tensor by its digest, code and dataclasses by their identity, any
    other object by how it prints, or by its class where that is an address."""
    if isinstance(value, bool | int | float | str | type(None)):
        return value
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    if isinstance(value, set | frozenset):
        return sorted(str(v) for v in value)
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, torch.Tensor):
        return digest_of({"": value})
    if is_dataclass(value) or isinstance(value, type | FunctionType | partial | nn.Module):
        return identity(value)
    text = repr(value)
    return type(value).__qualname__ if " at 0x" in text else text


def weights(module: nn.Module) -> str:
    """16 hex digits that change with any weight or buffer of a module."""
    return digest_of(module.state_dict())


def digest_of(tensors: dict[str, torch.Tensor]) -> str:
    """16 hex digits that change with any of the tensors, its name, type or shape."""
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(flat.numpy().data)
    return digest.hexdigest()[:16]


# Source ---------------------------------------------------------------------------------------


def _outside(thing: type | FunctionType) -> bool:
    return thing.__module__.split(".")[0] not in (PACKAGE, "torch", "builtins", "abc", "typing")


def source(thing: type | FunctionType) -> str:
    """16 hex digits of the source of a class or function from outside the package, of those it
    inherits from, and of the functions, classes and plain values of its own module that they name
    or that are bound to them, as defaults or from around them.
    Comments, formatting and docstrings do not count. What has no source to read (typed at Python's
    prompt) counts as its bytecode."""
    digest, seen, open_ends = hashlib.sha256(), set(), [thing]
    while open_ends:
        part = open_ends.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        if isinstance(part, type):
            open_ends += [c for c in part.__mro__ if _outside(c)]
        text, names = _read(part)
        digest.update(f"{part.__qualname__}\n{text}\n".encode())
        space = inspect.getmodule(part).__dict__ if inspect.getmodule(part) else {}
        used = [(name, space[name]) for name in sorted(names & space.keys())]
        for name, value in [*used, *(pair for f in _functions(part) for pair in _bound(f))]:
            if isinstance(value, PLAIN):
                digest.update(f"{name} = {value!r}\n".encode())
            elif isinstance(value, type | FunctionType) and value.__module__ == part.__module__:
                open_ends.append(value)
    return digest.hexdigest()[:16]


def _read(thing: type | FunctionType) -> tuple[str, set[str]]:
    """The normalised source, and the names it uses."""
    codes = [code for f in _functions(thing) for code in _codes(f.__code__)]
    try:
        linecache.checkcache()
        tree = _tree(thing, codes)
    except (OSError, TypeError, SyntaxError):
        plain = [[x for x in c.co_consts if isinstance(x, PLAIN)] for c in codes]
        text = repr([(c.co_code.hex(), c.co_names, p) for c, p in zip(codes, plain, strict=True)])
        return text, {name for c in codes for name in c.co_names}
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    return ast.dump(_bare(tree)), used


def _tree(thing: type | FunctionType, codes: list[CodeType]) -> ast.AST:
    """The syntax tree of a class or function, also of one from a notebook's cell, where `inspect`
    finds functions and not always classes. A lambda has none: two may share a line."""
    if thing.__name__ == "<lambda>":
        raise OSError("a lambda is told by its bytecode")
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(thing)))
    except (OSError, TypeError):
        lines = linecache.getlines(codes[0].co_filename) if codes else []
    for node in ast.walk(ast.parse("".join(lines))):
        if isinstance(node, ast.ClassDef) and node.name == thing.__name__:
            return node
    raise OSError(f"no source of {thing}")


def _functions(thing: type | FunctionType) -> Iterator[FunctionType]:
    """The function itself, or those that a class defines."""
    for value in [thing] if isinstance(thing, FunctionType) else vars(thing).values():
        inner = getattr(value, "fget", None) or getattr(value, "__func__", None) or value
        if isinstance(inner, FunctionType):
            yield inner


def _codes(outer: CodeType) -> Iterator[CodeType]:
    yield outer
    for const in outer.co_consts:
        if isinstance(const, CodeType):
            yield from _codes(const)


def _bound(f: FunctionType) -> Iterator[tuple[str, Any]]:
    """A function's defaults, and the values that it takes from around it."""
    yield from ((f"default {i}", value) for i, value in enumerate(f.__defaults__ or ()))
    yield from (f.__kwdefaults__ or {}).items()
    for name, cell in zip(f.__code__.co_freevars, f.__closure__ or (), strict=True):
        with suppress(ValueError):  # a cell that is still empty
            yield name, cell.cell_contents


def _bare(tree: ast.AST) -> ast.AST:
    """Without docstrings."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            value = body[0].value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                node.body = body[1:] or [ast.Pass()]  # type: ignore[attr-defined]  # not every node has one
    return tree


@cache
def code(*rooms: str) -> str:
    """16 hex digits of the package's own code in these rooms (`game`, `data`, …): what a record
    keeps to say which code made it. Comments, formatting and docstrings do not count."""
    digest, package = hashlib.sha256(), Path(__file__).parents[1]
    for room in sorted(rooms):
        for path in sorted((package / room).rglob("*.py")):
            tree = _bare(ast.parse(path.read_text(encoding="utf-8")))
            digest.update(f"{path.relative_to(package).as_posix()}\n{ast.dump(tree)}\n".encode())
    return digest.hexdigest()[:16]
