"""How loops and their pieces are compiled, and the names under which they are kept on disk.

Numba numbers what it compiles in the order in which a process comes to it, and machine code that is
loaded from disk is linked by names made of those numbers: two processes that compile different
pieces under one name hand a third one each other's. So the name of a piece, and of a loop, is a
hash of all that goes into it.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from functools import cache
from hashlib import sha256
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, TypeVar

import llvmlite
import numba
import numpy
from numba import njit, types
from numba.core.registry import CPUDispatcher, cpu_target

F = TypeVar("F", bound=Callable[..., Any])

_KINDS = {"int": types.int64, "float": types.float64}


@cache
def _surroundings() -> str:
    """What every loop is made of and with: these sources, the compiler, Python, the processor."""
    folder = Path(__file__).parent
    files = [folder / "kernels.py", *sorted(folder.glob("numba_*.py"))]
    return repr((
        numba.__version__, llvmlite.__version__, numpy.__version__, platform.python_version(),
        platform.python_implementation(), cpu_target.target_context.codegen().magic_tuple(),
        *(file.read_text(encoding="utf-8") for file in files),
    ))  # fmt: skip


def _code(code: CodeType) -> Iterator[str]:
    """A function's instructions and constants, those of functions within it too."""
    yield repr((code.co_code, code.co_names, code.co_varnames, code.co_freevars, code.co_flags))
    for constant in code.co_consts:
        yield from _code(constant) if isinstance(constant, CodeType) else _value(constant)


def _names(code: CodeType) -> Iterator[str]:
    """Every global and attribute that a function asks for."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _value(value: Any) -> Iterator[str]:
    """What a function refers to, in words that are the same in every process."""
    if value is None or isinstance(value, bool | int | float | str | bytes | numpy.generic):
        yield f"{type(value).__name__} {value!r}"
    elif isinstance(value, tuple):
        yield f"{type(value).__name__} of {len(value)}"
        for item in value:
            yield from _value(item)
    elif isinstance(value, CPUDispatcher):  # named by its contents, if it is ours
        yield f"compiled {value.py_func.__module__}.{value.py_func.__qualname__}"
    elif isinstance(value, ModuleType):
        yield f"module {value.__name__}"
    elif hasattr(value, "__qualname__"):  # a class or a function of numba's, numpy's or ours
        yield f"{value.__module__}.{value.__qualname__}"
    else:
        raise TypeError(f"compiled code that refers to {value!r} has no name to be kept under")


def named(function: F) -> F:
    """Name a function by all that goes into its machine code.

    Raises:
        TypeError: it refers to something that is not the same in every process.
    """
    told = [_surroundings(), function.__module__, *_code(function.__code__)]
    for cell in function.__closure__ or ():
        told += _value(cell.cell_contents)
    for name in sorted({*_names(function.__code__)} & {*function.__globals__}):
        told += [name, *_value(function.__globals__[name])]
    digest = sha256("\n".join(told).encode()).hexdigest()[:32]
    function.__name__ = function.__qualname__ = f"{function.__name__.strip('<>')}_{digest}"
    return function


def compiled(loop: F) -> F:
    """Compile a loop of integers and floats that gives nothing back, and keep it on disk.

    It has one signature, so that the file of its name never holds anything else.
    """
    count = loop.__code__.co_argcount
    kinds = [_KINDS[loop.__annotations__[name]] for name in loop.__code__.co_varnames[:count]]
    return njit(types.void(*kinds), nogil=True, error_model="numpy", cache=True)(named(loop))
