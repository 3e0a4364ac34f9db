"""Finds, in the source of a script, a loop around the loop over its batches, which would be one over epochs."""

from __future__ import annotations

import ast
import linecache
from collections.abc import Iterator, Mapping
from types import CodeType, FrameType


def lines_of(frame: FrameType | None) -> dict[CodeType, int]:
    """Return the line at which each function on the stack is that ends with `frame`."""
    found: dict[CodeType, int] = {}
    while frame is not None:
        found.setdefault(frame.f_code, frame.f_lineno)
        frame = frame.f_back
    return found


def loop_around(frame: FrameType, began: Mapping[CodeType, int]) -> int | None:
    """Return the line of a loop around that which `frame` is at, in the same function.

    A loop in which all began that belongs to the batches, at the lines `began` (see `lines_of`), is none: it is one over runs.
    None if there is no such loop, or no source.
    """
    try:
        tree = ast.parse("".join(linecache.getlines(frame.f_code.co_filename)))
    except (SyntaxError, ValueError):
        return None
    line = began.get(frame.f_code, 0)
    around = [loop for loop in _loops_at(tree, frame.f_lineno) if not _has(loop, line)]
    return around[0].lineno if len(around) > 1 else None


def _loops_at(node: ast.AST, line: int) -> list[ast.For | ast.While]:
    """Return the loops around `line`, from the outermost to the innermost, inside the innermost function."""
    found: list[ast.For | ast.While] = []
    for inner in _path_to(node, line):
        if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            found.clear()
        elif isinstance(inner, ast.For | ast.While):
            found.append(inner)
    return found


def _path_to(node: ast.AST, line: int) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt) and _has(child, line):
            yield child
            yield from _path_to(child, line)
        elif not isinstance(child, ast.stmt):  # such as a branch of `except`, which is no statement
            yield from _path_to(child, line)


def _has(node: ast.stmt, line: int) -> bool:
    return node.lineno <= line <= (node.end_lineno or node.lineno)
