"""A whole sequence in one autograd function, computed by compiled loops.

It stands in for :class:`tssl_adapters.engine.sequence.SequenceFunction` where the loops know the
neuron and the rule, and gives what that gives. Single steps stay with torch: there the loops were
no faster.
"""

from __future__ import annotations

from typing import Any, NamedTuple, overload

import torch
from torch import Tensor

from tssl_adapters.engine.numba_kernels import backward, forward
from tssl_adapters.engine.numba_parts import ROWS, Spec, name_of
from tssl_adapters.engine.numba_rows import BackSpec
from tssl_adapters.engine.once import first_order
from tssl_adapters.engine.plan import LEARNED, Plan, empty_links, reduced
from tssl_adapters.engine.sequence import compute as sequence_values
from tssl_adapters.engine.threads import over
from tssl_adapters.neuron import Neuron, Never, Subtract, SubtractEarly, ToValue, Value
from tssl_adapters.rules import TSSLBP

SCRATCH = 2**15
"""Values of a block that the backward pass holds at once, so that they stay in the cache."""


def _noise() -> torch.Generator:
    return torch.Generator().manual_seed(0)


class Call(NamedTuple):
    """A sequence that the loops know: the plan, and what they are compiled for."""

    plan: Plan
    spec: Spec

    def run(self, drive: Tensor, state: Tensor, trace: Tensor | None, *rest: Any) -> Any:
        """Output, membrane potential and link of the call, with the rule's gradient."""
        return FusedFunction.apply(self, drive, state, trace, *rest)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def rounds_alike(self, drive: Tensor, state: Tensor) -> bool:
        """Whether the loops give, bit for bit, what torch gives, tried on noise."""
        noise = 2.0 * torch.randn(drive.shape, dtype=drive.dtype, generator=_noise())
        plan = self.plan._replace(tau_s=1.0)
        call = Call(plan, self.spec._replace(psc=False))
        theirs = sequence_values(plan.neuron, noise, state, plan.keep_states)
        ours = compute(call, noise, state, None)
        return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def why_not(plan: Plan, drive: Tensor, state: Tensor, trace: Tensor | None) -> str | None:
    """Why the loops cannot take a call, or ``None``."""
    neuron, step = plan.neuron, drive.shape[1:]
    if type(plan.rule) is not TSSLBP:
        return f"{type(plan.rule).__name__} has no compiled loops"
    if plan.exposed or neuron.quantiser is not None:
        return "the neuron has states of other kinds"
    if len(neuron.charge.raw) > ROWS - LEARNED or _plain(neuron.charge.formula) is None:
        return "the neuron's charge has no plain formula"
    if not isinstance(neuron.reset, Never) and _plain(_formula_of(neuron)) is None:
        return "the neuron's reset has no plain formula"
    if not plain(drive):
        return "the drive is not a plain tensor"
    others = [t for t in (state, trace) if t is not None]
    others += [v for v in neuron.values() if isinstance(v, Tensor)]
    if any(t.ndim and t.dtype != drive.dtype for t in others):
        return "its numbers are of several dtypes"
    if any(_other_shape(t, step) for t in others):
        return "its numbers have other shapes"
    return None


def plain(drive: Tensor) -> bool:
    """Whether a tensor is plain memory for loops: no mode, no subclass, float32/64 on the CPU."""
    return (
        type(drive) is Tensor
        and drive.device.type == "cpu"
        and drive.dtype in (torch.float32, torch.float64)
        and drive.numel() > 0
        and not torch._C._len_torch_dispatch_stack()
        and not torch._C._are_functorch_transforms_active()
    )


def _other_shape(tensor: Tensor, step: torch.Size) -> bool:
    return bool(torch.broadcast_shapes(tensor.shape, step) != step)  # type: ignore[no-untyped-call]


def _plain(formula: Any) -> Any:
    return getattr(formula, "plain", None)


def _formula_of(neuron: Neuron) -> Any:
    return getattr(neuron.reset, "formula", None)


def known(plan: Plan, drive: Tensor) -> Call:
    """The call for a drive that :func:`why_not` let through."""
    neuron = plan.neuron
    dtype = "float32" if drive.dtype == torch.float32 else "float64"
    dense = any(isinstance(v, Tensor) and v.numel() != 1 for v in neuron.values())
    reset = "" if isinstance(neuron.reset, Never) else name_of(_plain(_formula_of(neuron)), dtype)
    spec = Spec(
        dtype,
        dense,
        name_of(_plain(neuron.charge.formula), dtype),
        len(neuron.charge.raw),
        reset,
        _kind(neuron),
        neuron.timing,
        neuron.strict,
        plan.tau_s != 1.0,
    )
    return Call(plan, spec)


def _kind(neuron: Neuron) -> str:
    if isinstance(neuron.reset, ToValue):
        return "value"
    if isinstance(neuron.reset, SubtractEarly):
        return "early"
    return "subtract" if isinstance(neuron.reset, Subtract) else "never"


def _numbers(call: Call, step: torch.Size, dtype: torch.dtype) -> Tensor:
    """A neuron's numbers, a row each: ``[8, N]`` where they differ from neuron to neuron."""
    values: list[Value] = [*call.plan.neuron.values()]
    values += [0.0] * (ROWS - len(values))
    if not call.spec.dense:
        return torch.tensor([float(v) for v in values], dtype=dtype)
    rows = [torch.as_tensor(v).detach().to(dtype).expand(step) for v in values]
    return torch.stack(rows).contiguous()


def _at(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


@overload
def spread(tensor: Tensor, step: torch.Size, dtype: torch.dtype) -> Tensor: ...
@overload
def spread(tensor: None, step: torch.Size, dtype: torch.dtype) -> None: ...
def spread(tensor: Tensor | None, step: torch.Size, dtype: torch.dtype) -> Tensor | None:
    """A tensor as memory of a step's shape."""
    return None if tensor is None else tensor.to(dtype).expand(step).contiguous()


def compute(
    call: Call, drive: Tensor, state: Tensor, trace: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Output and membrane potential, as the autograd functions give them."""
    step = drive.shape[1:]
    steps = drive.shape[0]
    drive = drive.contiguous()
    neurons = drive.numel() // steps
    keep = call.plan.keep_states
    out, after = torch.empty_like(drive), drive.new_empty(drive.shape if keep else step)
    start, current = spread(state, step, drive.dtype), spread(trace, step, drive.dtype)
    values = _numbers(call, step, drive.dtype)
    over(
        forward(call.spec, keep), steps, neurons, 1024, call.plan.tau_s,
        _at(drive), _at(start), _at(current), _at(values), _at(out), _at(after),
    )  # fmt: skip
    return out, after


class FusedFunction(torch.autograd.Function):
    """``(call, drive, state, trace, *links, *neuron values) -> out, states, *links``."""

    @staticmethod
    def forward(
        ctx: Any, call: Call, drive: Tensor, state: Tensor, trace: Tensor | None, *rest: Any
    ) -> tuple[Tensor, ...]:
        plan = call.plan
        out, after = compute(call, drive, state, trace)
        values = rest[plan.links :]
        ctx.call = call
        ctx.save_for_backward(drive, state, trace, *(v for v in values if isinstance(v, Tensor)))
        ctx.set_materialize_grads(False)
        return (out, after, *empty_links(plan, after[-1] if plan.keep_states else after))

    @staticmethod
    @first_order
    def backward(
        ctx: Any, grad_out: Tensor | None, grad_after: Tensor | None, *grad_links: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        call: Call = ctx.call
        plan, spec, rule = call.plan, call.spec, call.plan.rule
        assert isinstance(rule, TSSLBP)
        given, state, trace, *_ = ctx.saved_tensors
        drive = given.contiguous()
        step = drive.shape[1:]
        steps = drive.shape[0]
        neurons, dtype = drive.numel() // steps, drive.dtype
        needs = ctx.needs_input_grad[4 + plan.links :][:LEARNED]
        link = None
        if any(g is not None for g in grad_links):
            parts = [torch.zeros(step, dtype=dtype) if g is None else g for g in grad_links]
            parts += [torch.zeros(step, dtype=dtype)] * (3 - len(parts))
            link = torch.stack([part.to(dtype).expand(step) for part in parts])
        grad_out, pace = _paced(grad_out, neurons)
        # Zeros rather than none: the variant without is not vectorised by LLVM, measured at 25 ms
        # against 4 for T = 100 x 16,384.
        each = plan.keep_states and grad_after is not None
        through_states = grad_after is not None or link is not None
        grad_after = drive.new_zeros(step) if grad_after is None else grad_after.contiguous()
        back = BackSpec(
            grad_out is not None, any(needs),
            rule.fallback, rule.reset_path != "none", rule.reset_path == "reference",
            rule.reset_path == "complete",
        )  # fmt: skip
        start, current = spread(state, step, dtype), spread(trace, step, dtype)
        values = _numbers(call, step, dtype)
        grad_drive = torch.empty_like(drive)
        link_out = drive.new_empty((3, *step))
        grad_trace = None if trace is None else torch.zeros(step, dtype=dtype)
        sums = drive.new_zeros((LEARNED, *step)) if back.learns else None
        block = max(16, min(1024, SCRATCH // (steps + 1)))
        over(
            backward(spec, back), steps, neurons, block,
            plan.tau_s, rule.max_slope, rule.fallback_width,
            _at(drive), _at(start), _at(current), _at(values),
            _at(grad_out), pace, _at(grad_after), neurons if each else 0, _at(link),
            _at(grad_drive), _at(link_out), _at(grad_trace), _at(sums),
        )  # fmt: skip
        through = link_out[2] if through_states else None
        return (
            None,
            grad_drive,
            _entering(call, link_out, through, state, step),
            None if trace is None else reduced(grad_trace, trace),
            *_links(plan, link_out, through),
            *_learned(call, sums, needs),
        )


def _paced(grad: Tensor | None, neurons: int) -> tuple[Tensor | None, int]:
    """The output's gradient, and how far its time steps lie apart: 0 where all are one tensor."""
    if grad is not None and grad.stride(0) == 0:
        return grad[0].contiguous(), 0
    return None if grad is None else grad.contiguous(), neurons


def _entering(
    call: Call, link: Tensor, through: Tensor | None, state: Tensor, step: torch.Size
) -> Tensor | None:
    """The gradient of the state that came in, where it is not handed on through the link."""
    plan, neuron = call.plan, call.plan.neuron
    delayed = neuron.timing == "delayed"
    if plan.linked:
        return None if delayed else reduced(through, state)
    total = link[1] if through is None else link[1] + through
    if delayed and isinstance(neuron.reset, ToValue):
        held = state > neuron.threshold if neuron.strict else state >= neuron.threshold
        total = total * (1 - held.to(total.dtype))
    return reduced(total, state)


def _links(plan: Plan, link: Tensor, through: Tensor | None) -> tuple[Tensor | None, ...]:
    if not plan.linked:
        return (None,) * plan.links
    return (link[0], link[1], through)[: plan.links]


def _learned(call: Call, sums: Tensor | None, needs: tuple[bool, ...]) -> list[Tensor | None]:
    values = call.plan.neuron.values()
    found: list[Tensor | None] = [None] * len(values)
    if sums is not None:
        for k, (value, needed) in enumerate(zip(values, needs, strict=False)):
            if needed and isinstance(value, Tensor):
                found[k] = reduced(sums[k], value)
    return found
