"""Compiles LLVM code for this machine into functions that Python calls, all in memory.

A loop takes the address of its parameters. Python calls all of them through one compiled function,
which makes numbers of Python's integers, so that a call costs less than a microsecond.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from functools import cache
from typing import Any

from llvmlite import binding

from tssl_adapters.engine.cpu.function import Source

SMALL = 2**16
"""Calls on fewer values keep the GIL: releasing it would take as long as the call."""
MOST = 256
"""The most parameters that a loop may have."""
_FAST_CALL = 0x80
_API = ("PyLong_AsLongLong", "PyEval_SaveThread", "PyEval_RestoreThread", "Py_IncRef")
_MEMORY = ("PyMem_RawMalloc", "PyMem_RawFree")
_lock = threading.Lock()


class _Method(ctypes.Structure):
    """CPython's ``PyMethodDef``."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("function", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("doc", ctypes.c_char_p),
    )


_CALL = f"""\
declare i64 @PyLong_AsLongLong(ptr)
declare ptr @PyEval_SaveThread()
declare void @PyEval_RestoreThread(ptr)
declare void @Py_IncRef(ptr)
define ptr @call(ptr %self, ptr %args, i64 %count) {{
start:
  %given = alloca [{MOST} x i64]
  %address = call i64 @PyLong_AsLongLong(ptr %self)
  %loop = inttoptr i64 %address to ptr
  br label %take
take:
  %k = phi i64 [ 0, %start ], [ %next, %take ]
  %from = getelementptr ptr, ptr %args, i64 %k
  %object = load ptr, ptr %from
  %value = call i64 @PyLong_AsLongLong(ptr %object)
  %to = getelementptr i64, ptr %given, i64 %k
  store i64 %value, ptr %to
  %next = add i64 %k, 1
  %more = icmp slt i64 %next, %count
  br i1 %more, label %take, label %taken
taken:
  %first = load i64, ptr %given
  %at.last = getelementptr i64, ptr %given, i64 1
  %last = load i64, ptr %at.last
  %at.steps = getelementptr i64, ptr %given, i64 2
  %steps = load i64, ptr %at.steps
  %neurons = sub i64 %last, %first
  %work = mul i64 %neurons, %steps
  %large = icmp sgt i64 %work, {SMALL}
  br i1 %large, label %free, label %held
free:
  %state = call ptr @PyEval_SaveThread()
  call void %loop(ptr %given)
  call void @PyEval_RestoreThread(ptr %state)
  br label %done
held:
  call void %loop(ptr %given)
  br label %done
done:
  %none = inttoptr i64 {id(None)} to ptr
  call void @Py_IncRef(ptr %none)
  ret ptr %none
}}
"""
"""What Python calls, with the address of a loop as its object: integers in, ``None`` out."""


@cache
def _features() -> Any:
    """What instructions this machine has, as llvmlite says it; none where LLVM does not know."""
    try:
        return binding.get_host_cpu_features()
    except RuntimeError:
        return binding.FeatureMap()


@cache
def vector_bits() -> int:
    """The size of this machine's vectors."""
    return 512 if _features().get("avx512f") else 256 if _features().get("avx") else 128


@cache
def _machine() -> binding.TargetMachine:
    """This machine as an LLVM target."""
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    target = binding.Target.from_triple(binding.get_process_triple())
    return target.create_target_machine(
        cpu=binding.get_host_cpu_name(), features=_features().flatten(), opt=3, jit=True
    )


def optimised(text: str, machine: binding.TargetMachine) -> binding.ModuleRef:
    """A module's text, verified and optimised for a machine.

    What more optimisation makes, copies of a loop for each value of a condition that is the same
    for all neurons and unrolled loops, takes half as long again to compile and runs no faster.
    """
    module = binding.parse_assembly(text)
    module.triple = machine.triple
    module.data_layout = str(machine.target_data)
    module.verify()
    options = binding.create_pipeline_tuning_options(speed_level=2)
    options.loop_unrolling = False
    builder = binding.create_pass_builder(machine, options)
    builder.getModulePassManager().run(module, builder)
    return module


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


def _address(text: str, name: str) -> int:
    """Compile a module; returns the address of a function in it."""
    engine = _engine()
    engine.add_module(optimised(text, _machine()))
    engine.finalize_object()
    address: int = engine.get_function_address(name)
    return address


@cache
def _method() -> tuple[_Method, Callable[..., Any]]:
    """What Python needs to call :data:`_CALL`, and its maker of such functions."""
    make = ctypes.pythonapi.PyCFunction_NewEx
    make.restype = ctypes.py_object
    make.argtypes = (ctypes.c_void_p, ctypes.py_object, ctypes.c_void_p)
    return _Method(b"loop", _address(_CALL, "call"), _FAST_CALL, None), make


def compiled(source: Source) -> Callable[..., None]:
    """A source as a Python function of its parameters, which are integers."""
    if len(source.parameters) > MOST:
        raise ValueError(f"{len(source.parameters)} parameters, more than {MOST}")
    with _lock:
        method, make = _method()
        address = _address(source.text, source.name)
    function: Callable[..., None] = make(ctypes.addressof(method), address, None)
    return function
