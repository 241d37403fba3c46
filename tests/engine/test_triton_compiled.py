"""Triton's kernels compile for a GPU, without one, to instructions that round as torch does."""

from __future__ import annotations

import importlib
import os
import re
from typing import Any

import pytest
import torch
from cell_layers import RULES, drive, dtype_of, gradients, layers, steps, took, wrapped
from fused_cases import VARIANTS, a_neuron, call_of, other_rules

from tssl_adapters import _engines
from tssl_adapters.engine.call import pins
from tssl_adapters.engine.call.plan import Plan
from tssl_adapters.engine.compiled import deciding, launch, takes
from tssl_adapters.engine.compiled import steps as compiled_steps
from tssl_adapters.engine.compiled.kernels import backend
from tssl_adapters.engine.filter import SynapticCurrent
from tssl_adapters.engine.step import written
from tssl_adapters.engine.step.spec import link_size
from tssl_adapters.neuron import LinearCharge, Neuron, computes
from tssl_adapters.resets import ToValue
from tssl_adapters.rules import TSSLBP, Rule

triton = pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("Triton interprets here", allow_module_level=True)

STEPS = 19
NAMES = {
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
    torch.float64: "fp64",
    torch.uint8: "u8",
}
HOPPER = ("cuda", 90, 32)


def assembly(kernel: Any, arguments: tuple[Any, ...], fixed: dict[str, Any]) -> str:
    """The kernel as PTX, from what it would be launched with."""
    given = dict(zip(kernel.arg_names, arguments, strict=False)) | fixed
    signature = {}
    for name, value in given.items():
        if torch.is_tensor(value):
            signature[name] = "*" + NAMES[value.dtype]
        else:
            number = "fp32" if isinstance(value, float) else "i32"
            signature[name] = "constexpr" if name in fixed or value is None else number
    constants = {name: given[name] for name, kind in signature.items() if kind == "constexpr"}
    source = triton.compiler.ASTSource(kernel, signature, constants)
    target = triton.backends.compiler.GPUTarget(*HOPPER)
    options = {"enable_fp_fusion": False}
    text: str = triton.compile(source, target=target, options=options).asm["ptx"]
    return text


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Has the backend compile on the CPU what it would launch: PTX by kernel."""
    module = importlib.import_module("tssl_adapters.engine.triton.backend")
    found: dict[str, str] = {}

    def assembled(kernel: Any, drive: Any, neurons: int, *arguments: Any, **fixed: Any) -> None:
        found[kernel.__name__] = assembly(kernel, arguments, fixed | {"BLOCK": 128})

    monkeypatch.setattr(module, "_launch", assembled)
    monkeypatch.setattr(_engines, "_why_not", lambda name: None)
    monkeypatch.setattr(launch, "_try", lambda *_: True)  # nothing is computed
    monkeypatch.setattr(deciding, "_passes_trial", lambda *_: True)
    monkeypatch.setattr(module.TritonBackend, "takes", lambda self, drive: True)
    return found


def rounds_every_operation(ptx: str) -> bool:
    """No operation fused or flushed, none whose rounding is left to the assembler."""
    loose = r"\b(add|sub|mul)(\.ftz)?\.(f16|bf16|f32|f64)|\bfma\.|\.ftz\b|\bmad\.\w+\.f"
    return re.search(loose, ptx) is None


def plain_divided(v: Any, x: Any, tau: Any) -> Any:
    return (x - v) / tau + v


@computes(plain_divided)
def divided(v: Any, x: Any, tau: Any) -> Any:
    return (x - v) / tau + v


@pytest.mark.parametrize("tau_s", [1.0, 3.0])
@pytest.mark.parametrize("dtype", [d for d in NAMES if d.is_floating_point], ids=str)
def test_no_fused_operations(compiled: dict[str, str], dtype: torch.dtype, tau_s: float) -> None:
    neuron = Neuron(LinearCharge(0.7, 0.3, 0.0, divided, (3.3,)), ToValue(0.0), 1.0)
    plan = Plan(neuron, TSSLBP(), tau_s, link_size(neuron, TSSLBP()), False, True, False)
    drive = torch.zeros(STEPS, 5, dtype=dtype, requires_grad=True)
    given = (drive, torch.zeros_like(drive[0]), None)
    out, *_ = call_of(backend("triton"), plan, *given).run(*given, None, None, *neuron.values())
    out.sum().backward()
    assert rounds_every_operation(compiled["forward"])
    quotient = "div.rn.f64" if dtype == torch.float64 else "div.rn.f32"
    assert quotient in compiled["forward"]
    assert not re.search(r"div\.(full|approx)", compiled["forward"])
    # In float64 the exponential is a library's, which fuses. It is no part of a potential.
    assert dtype == torch.float64 or rounds_every_operation(compiled["backward"])
    assert quotient in compiled["backward"]


@pytest.mark.parametrize("variant", VARIANTS[2::9], ids=str)
def test_every_form_compiles(compiled: dict[str, str], variant: Any) -> None:
    neuron = a_neuron(variant.timing, variant.reset, variant.dense)
    rule = TSSLBP(reset_path=variant.path, fallback=variant.fallback)
    plan = Plan(neuron, rule, variant.tau_s, link_size(neuron, rule), False, True, False)
    drive = torch.zeros(STEPS, 3, 5, dtype=torch.float64, requires_grad=True)
    trace = torch.zeros_like(drive[0]) if variant.tau_s > 1 else None
    given = (drive, torch.zeros_like(drive[0]), trace)
    call = call_of(backend("triton"), plan, *given)
    out, states, *_ = call.run(*given, None, None, *neuron.values())
    (out.sum() + states.sum()).backward()
    assert rounds_every_operation(compiled["forward"])
    assert "st.global" in compiled["backward"]


@pytest.mark.parametrize("dtype", [d for d in NAMES if d.is_floating_point], ids=str)
@other_rules
def test_other_rules_compile(compiled: dict[str, str], rule: Rule, dtype: torch.dtype) -> None:
    neuron = Neuron(LinearCharge(0.9, 0.3, 0.0, divided, (3.3,)), ToValue(0.1), 0.77, "both")
    plan = Plan(neuron, rule, 3.0, 0, False, False, False)
    drive = torch.zeros(STEPS, 5, dtype=dtype, requires_grad=True)
    given = (drive, torch.zeros_like(drive[0]), None)
    out, *_ = call_of(backend("triton"), plan, *given).run(*given, None, None, *neuron.values())
    out.sum().backward()
    assert rounds_every_operation(compiled["backward"])
    assert not re.search(r"div\.(full|approx)|ex2", compiled["backward"])


@pytest.mark.parametrize("tau_s", [1.0, 3.0])
def test_a_step_that_keeps_the_potential_compiles(compiled: dict[str, str], tau_s: float) -> None:
    neuron = Neuron(LinearCharge(0.7, 0.3, 0.0, divided, (3.3,)), ToValue(0.0), 1.0)
    plan = Plan(neuron, TSSLBP(), tau_s, link_size(neuron, TSSLBP()), False, False, False)
    drive = torch.zeros(5, requires_grad=True)
    call = takes.call_of(plan, drive.dtype, False, False, backend("triton"))
    state, earlier = torch.zeros(2, 5)
    out, _, charged, *_ = call.run(drive, state, None, earlier, None, *neuron.values())
    out.sum().backward()
    assert charged.shape == drive.shape
    assert rounds_every_operation(compiled["forward"])
    assert "div.rn.f32" in compiled["forward"]
    # h is read, not computed: what is left to divide is 1/d, the fallback, and a gradient by tau_s.
    assert compiled["backward"].count("div.") == (2 if tau_s == 1.0 else 3)


def test_the_current_compiles(compiled: dict[str, str]) -> None:
    drive = torch.zeros(STEPS, 5, requires_grad=True)
    kernel = launch.Current("", backend("triton"), -0.3)
    out = SynapticCurrent.apply(drive, torch.zeros(5), -0.3, True, kernel)
    assert rounds_every_operation(compiled.pop("scan"))
    out.sum().backward()
    assert rounds_every_operation(compiled["scan"])


WITH_A_PSC = {"RSynaptic", "LSNNCell", "QIFNode", "RAFNode"}
"""Layers whose steps are compiled at tau_s > 1; the others at 1."""


def check_a_cell(
    compiled: dict[str, str],
    name: str,
    dtype: torch.dtype,
    rule: Any = "default",
    tau_s: float = 1.0,
) -> str:
    """All kernels of a layer's steps; returns the forward one."""
    layer = wrapped(name, RULES[rule], engine="triton", dtype=dtype, tau_s=tau_s)
    x = drive(dtype)[:2]
    found = steps(layer, x)
    assert took(found) > 0
    forward = list(compiled)[-1]
    gradients(found, x, layer)
    assert list(compiled)[-1] != forward
    for ptx in compiled.values():
        assert rounds_every_operation(ptx)
        assert not re.search(r"div\.(full|approx)", ptx)
        assert rule == "TSSL-BP" or "ex2" not in ptx
    return compiled[forward]


@layers
def test_steps_of_cells_compile(compiled: dict[str, str], name: str) -> None:
    check_a_cell(compiled, name, dtype_of(name), tau_s=3.0 if name in WITH_A_PSC else 1.0)


def test_a_cell_that_keeps_whether_a_neuron_is_active_compiles(compiled: dict[str, str]) -> None:
    forward = check_a_cell(compiled, "LSNNCell", torch.float32, "TSSL-BP", tau_s=3.0)
    assert "st.global.b8" in forward


@pytest.mark.parametrize("name", ["RLeaky to zero", "LSNNRecurrentCell", "KLIFNode"])
def test_cells_whose_numbers_are_on_the_gpu_compile(
    compiled: dict[str, str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_value = check_a_cell(compiled, name, torch.float32)
    for module in (pins, written, compiled_steps, deciding):
        monkeypatch.setattr(module, "on_host", lambda tensor: False)
    read = check_a_cell(compiled, name, torch.float32)
    assert read.count("ld.param.b64") > by_value.count("ld.param.b64")
