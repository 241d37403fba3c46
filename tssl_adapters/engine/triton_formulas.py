"""A neuron's formulas in plain arithmetic, as functions that Triton compiles.

Triton's ``/`` is fast rather than rounded to the nearest, and torch rounds a half-precision tensor
after every operation. So a formula is rewritten first: each division and, where asked for, each
operation becomes a call of a function below.
"""

from __future__ import annotations

import ast
import inspect
import linecache
import textwrap
from collections.abc import Callable
from functools import cache
from typing import Any

import triton
import triton.language as tl

_HALF = ("float16", "bfloat16")


@triton.jit
def divided(left, right):
    """``left / right``, rounded to the nearest."""
    if left.dtype == tl.float64:
        return left / right
    else:
        return tl.div_rn(left, right)


@triton.jit
def divided_by_number(left, right):
    """``left / right`` as torch does it on a GPU where ``right`` is a number: by its reciprocal."""
    return left * tl.div_rn(1.0, right)


@triton.jit
def to_float16(value):
    """A float32 rounded to float16."""
    return value.to(tl.float16).to(tl.float32)


@triton.jit
def to_bfloat16(value):
    """A float32 rounded to bfloat16."""
    return value.to(tl.bfloat16).to(tl.float32)


class _Rewritten(ast.NodeTransformer):
    """Arithmetic with the rounding spelt out."""

    def __init__(self, rounds: bool) -> None:
        self.rounds = rounds

    def visit_BinOp(self, node: ast.BinOp) -> ast.expr:
        left, right = self.visit(node.left), self.visit(node.right)
        found: ast.expr = ast.BinOp(left, node.op, right)
        if isinstance(node.op, ast.Div):
            found = _called("divided", left, right)
        return _called("rounded", found) if self.rounds else found


def _called(name: str, *arguments: ast.expr) -> ast.expr:
    return ast.Call(ast.Name(name, ast.Load()), list(arguments), [])


@cache
def compiled(formula: Callable[..., Any], dtype: str, on_gpu: bool) -> Any:
    """A formula for drives of this dtype; half-precision numbers come as float32.

    Half precision has no kernels in the libraries, so that torch's own operations are the measure
    there; in float32 SpikingJelly's kernels are, which divide.
    """
    rounds = dtype in _HALF
    tree = ast.parse(textwrap.dedent(inspect.getsource(formula)))
    (function,) = tree.body
    assert isinstance(function, ast.FunctionDef)
    function.returns, function.decorator_list = None, []
    for argument in function.args.args:
        argument.annotation = None
    source = ast.unparse(ast.fix_missing_locations(_Rewritten(rounds).visit(tree)))
    scope = {
        "divided": divided_by_number if rounds and on_gpu else divided,
        "rounded": to_float16 if dtype == "float16" else to_bfloat16,
        "tl": tl,  # which Triton wants in sight
        "__name__": formula.__module__,
    }
    # Triton reads a function's source, which inspect finds there.
    file = f"<{formula.__module__}.{formula.__qualname__}, {dtype}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    exec(compile(source, file, "exec"), scope)
    return triton.jit(scope[function.name])


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels, on the CPU."""
    return not isinstance(divided, triton.runtime.JITFunction)
