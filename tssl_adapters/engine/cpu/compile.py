"""Compiles LLVM code for this machine into functions that Python calls, all in memory.

A function takes Python integers directly: its entry point is generated with it, so that a call
costs less than a microsecond.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from functools import cache
from typing import Any

from llvmlite import binding

from tssl_adapters.engine.cpu.function import COUNTS, Source

SMALL = 2**16
"""Calls on fewer values keep the GIL: releasing it would take as long as the call."""
_FAST_CALL = 0x80
_API = ("PyLong_AsLongLong", "PyEval_SaveThread", "PyEval_RestoreThread", "Py_IncRef")
_MEMORY = ("PyMem_RawMalloc", "PyMem_RawFree")
_lock = threading.Lock()
_kept: list[Any] = []
"""What compiled functions need as long as the process runs."""


class _Method(ctypes.Structure):
    """CPython's ``PyMethodDef``."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("function", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("doc", ctypes.c_char_p),
    )


def _entry(source: Source) -> str:
    """The function that Python calls: integers in, ``None`` out."""
    lines, arguments = [], []
    for k, name in enumerate(source.parameters):
        lines += [
            f"  %a{k} = getelementptr ptr, ptr %args, i64 {k}",
            f"  %o{k} = load ptr, ptr %a{k}",
            f"  %i{k} = call i64 @PyLong_AsLongLong(ptr %o{k})",
        ]
        if name in COUNTS:
            arguments.append(f"i64 %i{k}")
        else:
            lines.append(f"  %p{k} = inttoptr i64 %i{k} to ptr")
            arguments.append(f"ptr %p{k}")
    call = f"  call void @{source.name}({', '.join(arguments)})"
    return "\n".join(
        [
            "declare i64 @PyLong_AsLongLong(ptr)",
            "declare ptr @PyEval_SaveThread()",
            "declare void @PyEval_RestoreThread(ptr)",
            "declare void @Py_IncRef(ptr)",
            f"define ptr @{source.name}.entry(ptr %self, ptr %args, i64 %count) {{",
            *lines,
            "  %neurons = sub i64 %i1, %i0",
            "  %work = mul i64 %neurons, %i2",
            f"  %large = icmp sgt i64 %work, {SMALL}",
            "  br i1 %large, label %free, label %held",
            "free:",
            "  %state = call ptr @PyEval_SaveThread()",
            call,
            "  call void @PyEval_RestoreThread(ptr %state)",
            "  br label %done",
            "held:",
            call,
            "  br label %done",
            "done:",
            f"  %none = inttoptr i64 {id(None)} to ptr",
            "  call void @Py_IncRef(ptr %none)",
            "  ret ptr %none",
            "}",
        ]
    )


@cache
def _machine() -> binding.TargetMachine:
    """This machine as an LLVM target."""
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    try:
        features = binding.get_host_cpu_features().flatten()
    except RuntimeError:  # unknown to LLVM on some systems
        features = ""
    target = binding.Target.from_triple(binding.get_process_triple())
    return target.create_target_machine(
        cpu=binding.get_host_cpu_name(), features=features, opt=3, jit=True
    )


def optimised(text: str, machine: binding.TargetMachine) -> binding.ModuleRef:
    """A module's text, verified and optimised for a machine, with vectorised loops."""
    module = binding.parse_assembly(text)
    module.triple = machine.triple
    module.data_layout = str(machine.target_data)
    module.verify()
    options = binding.create_pipeline_tuning_options(speed_level=3)
    options.loop_vectorization = True
    builder = binding.create_pass_builder(machine, options)
    builder.getModulePassManager().run(module, builder)
    return module


def whole(source: Source) -> str:
    """A source with its entry point."""
    return f"{source.text}\n{_entry(source)}\n"


@cache
def _engine() -> binding.ExecutionEngine:
    for name in (*_API, *_MEMORY):
        address = ctypes.cast(getattr(ctypes.pythonapi, name), ctypes.c_void_p).value
        binding.add_symbol(name, address)
    for name, function in (
        ("memcpy", ctypes.memmove),
        ("memmove", ctypes.memmove),
        ("memset", ctypes.memset),
    ):
        binding.add_symbol(name, ctypes.cast(function, ctypes.c_void_p).value)
    return binding.create_mcjit_compiler(binding.parse_assembly(""), _machine())


def compiled(source: Source) -> Callable[..., None]:
    """A source as a Python function of its parameters, which are integers."""
    with _lock:
        engine = _engine()
        engine.add_module(optimised(whole(source), _machine()))
        engine.finalize_object()
        address = engine.get_function_address(f"{source.name}.entry")
    method = _Method(source.name.encode(), address, _FAST_CALL, None)
    make = ctypes.pythonapi.PyCFunction_NewEx
    make.restype, make.argtypes = (
        ctypes.py_object,
        (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p),
    )
    function: Callable[..., None] = make(ctypes.addressof(method), None, None)
    _kept.append(method)
    return function
