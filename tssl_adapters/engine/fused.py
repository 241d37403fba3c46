"""Calls of a layer in one autograd function, computed by compiled loops.

It stands in for :class:`tssl_adapters.engine.sequence.SequenceFunction` and
:class:`tssl_adapters.engine.step.StepFunction` where the loops know the neuron and the rule, and
gives what they give. A step is a sequence of one.
"""

from __future__ import annotations

from array import array
from functools import cache
from typing import Any, NamedTuple, overload

import torch
from torch import Tensor

from tssl_adapters.engine.numba_kernels import backward, forward
from tssl_adapters.engine.numba_parts import ROWS, Spec, name_of
from tssl_adapters.engine.numba_rows import BackSpec
from tssl_adapters.engine.once import first_order
from tssl_adapters.engine.plan import LEARNED, EngineFunction, Plan, reduced
from tssl_adapters.engine.sequence import compute as sequence_values
from tssl_adapters.engine.threads import over
from tssl_adapters.neuron import Neuron, Never, Subtract, SubtractEarly, ToValue, Value
from tssl_adapters.rules import TSSLBP

SCRATCH = 2**15
"""Values of a block that the backward pass holds at once, so that they stay in the cache."""
ENOUGH = 4096
"""Values that must come out bit-equal before the loops stand in for torch."""


def _noise() -> torch.Generator:
    return torch.Generator().manual_seed(0)


class Call(NamedTuple):
    """A call that the loops know: the plan, what they are compiled for, and if time comes first."""

    plan: Plan
    spec: Spec
    sequence: bool

    def run(self, drive: Tensor, state: Tensor, trace: Tensor | None, *rest: Any) -> Any:
        """Output, membrane potential and link of the call, with the rule's gradient.

        ``rest`` are the link that came in, ``[links, batch, ...]`` in one tensor or ``None``, and
        the neuron's values.
        """
        return FusedFunction.apply(self, drive, state, trace, *rest)

    def shape(self, drive: Tensor) -> tuple[int, torch.Size]:
        """How many time steps, and the shape of one."""
        return (drive.shape[0], drive.shape[1:]) if self.sequence else (1, drive.shape)

    @torch.no_grad()
    def rounds_alike(self, drive: Tensor, state: Tensor) -> bool:
        """Whether the loops give, bit for bit, what torch gives, tried on noise."""
        steps, step = self.shape(drive)
        shape = (max(steps, -(-ENOUGH // step.numel())), *step)
        noise = 2.0 * torch.randn(shape, dtype=drive.dtype, generator=_noise())
        plan = self.plan._replace(tau_s=1.0)
        call = Call(plan, self.spec._replace(psc=False), True)
        theirs = sequence_values(plan.neuron, noise, state, plan.keep_states)
        ours = compute(call, noise, state, None)
        return all(torch.equal(a, b) for a, b in zip(ours[:2], theirs, strict=True))


def why_not(plan: Plan) -> str | None:
    """Why the loops do not know a layer, or ``None``."""
    neuron = plan.neuron
    if type(plan.rule) is not TSSLBP:
        return f"{type(plan.rule).__name__} has no compiled loops"
    if plan.exposed or neuron.quantiser is not None:
        return "the neuron has states of other kinds"
    if len(neuron.charge.raw) > ROWS - LEARNED or _plain(neuron.charge.formula) is None:
        return "the neuron's charge has no plain formula"
    if not isinstance(neuron.reset, Never) and _plain(_formula_of(neuron)) is None:
        return "the neuron's reset has no plain formula"
    return None


def layout(
    drive: Tensor,
    step: torch.Size,
    state: Tensor,
    trace: Tensor | None,
    values: tuple[Value, ...],
) -> bool | None:
    """Whether a neuron's numbers differ from neuron to neuron; ``None`` where the loops cannot take
    the tensors of a call: they know plain memory, of one dtype and shape.
    """
    if not plain(drive):
        return None
    dense = False
    for tensor in (state, trace, *values):
        if isinstance(tensor, Tensor) and tensor.ndim:  # a scalar does not promote
            if tensor.dtype != drive.dtype or not spreads(tensor.shape, step):
                return None
            dense = dense or (tensor.numel() != 1 and tensor is not state and tensor is not trace)
    return dense


def spreads(shape: torch.Size, step: torch.Size) -> bool:
    """Whether a tensor of this shape broadcasts to a step's; torch's own answer takes 50 us."""
    if shape == step:
        return True
    if len(shape) > len(step):
        return False
    trailing = step[len(step) - len(shape) :]
    return all(own in (1, wanted) for own, wanted in zip(shape, trailing, strict=True))


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


def _plain(formula: Any) -> Any:
    return getattr(formula, "plain", None)


def _formula_of(neuron: Neuron) -> Any:
    return getattr(neuron.reset, "formula", None)


def specialised(
    plan: Plan, drive: Tensor, state: Tensor, dense: bool, sequence: bool
) -> Spec | None:
    """What to compile for calls like this one; ``None`` where the loops do not know the layer, or
    do not round as torch does.
    """
    if why_not(plan) is not None:
        return None
    spec = spec_of(plan, drive.dtype, dense)
    return spec if Call(plan, spec, sequence).rounds_alike(drive, state) else None


def spec_of(plan: Plan, dtype: torch.dtype, dense: bool) -> Spec:
    """What to compile for a layer that :func:`why_not` let through."""
    neuron, name = plan.neuron, "float32" if dtype == torch.float32 else "float64"
    never = isinstance(neuron.reset, Never)
    return Spec(
        name,
        dense,
        name_of(_plain(neuron.charge.formula), name),
        len(neuron.charge.raw),
        "" if never else name_of(_plain(_formula_of(neuron)), name),
        _kind(neuron),
        neuron.timing,
        neuron.strict,
        plan.tau_s != 1.0,
    )


def _kind(neuron: Neuron) -> str:
    if isinstance(neuron.reset, ToValue):
        return "value"
    if isinstance(neuron.reset, SubtractEarly):
        return "early"
    return "subtract" if isinstance(neuron.reset, Subtract) else "never"


class Numbers:
    """A neuron's numbers in memory, a row each: ``[8]``, or ``[8, N]`` where neurons differ."""

    def __init__(self, call: Call, step: torch.Size, dtype: torch.dtype) -> None:
        values: list[Value] = [*call.plan.neuron.values()]
        values += [0.0] * (ROWS - len(values))
        if call.spec.dense:
            rows = [torch.as_tensor(v).detach().to(dtype).expand(step) for v in values]
            self.dense = torch.stack(rows).contiguous()
            self.at = self.dense.data_ptr()
        else:
            self.few = array("f" if dtype == torch.float32 else "d", map(float, values))
            self.at = self.few.buffer_info()[0]


def _at(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


@overload
def spread(tensor: Tensor, step: torch.Size, dtype: torch.dtype) -> Tensor: ...
@overload
def spread(tensor: None, step: torch.Size, dtype: torch.dtype) -> None: ...
def spread(tensor: Tensor | None, step: torch.Size, dtype: torch.dtype) -> Tensor | None:
    """A tensor as memory of a step's shape."""
    if tensor is None or (
        tensor.shape == step and tensor.dtype == dtype and tensor.is_contiguous()
    ):
        return tensor
    return tensor.to(dtype).expand(step).contiguous()


def compute(
    call: Call, drive: Tensor, state: Tensor, trace: Tensor | None
) -> tuple[Tensor, Tensor, Numbers]:
    """Output and membrane potential, as the autograd functions give them, and the numbers used."""
    steps, step = call.shape(drive)
    drive = drive.contiguous()
    keep = call.plan.keep_states
    out, after = torch.empty_like(drive), drive.new_empty(drive.shape if keep else step)
    start, current = spread(state, step, drive.dtype), spread(trace, step, drive.dtype)
    numbers = Numbers(call, step, drive.dtype)
    over(
        forward(call.spec, keep), steps, step.numel(), 1024, call.plan.tau_s,
        _at(drive), _at(start), _at(current), numbers.at, _at(out), _at(after),
    )  # fmt: skip
    return out, after, numbers


@cache
def _back(rule: TSSLBP, output: bool, learns: bool) -> BackSpec:
    return BackSpec(
        output,
        learns,
        rule.fallback,
        rule.reset_path != "none",
        rule.reset_path == "reference",
        rule.reset_path == "complete",
    )


class FusedFunction(EngineFunction):
    """``(call, drive, state, trace, link, *neuron values) -> out, states, link``."""

    @staticmethod
    def forward(
        ctx: Any,
        call: Call,
        drive: Tensor,
        state: Tensor,
        trace: Tensor | None,
        link: Tensor | None,
        *values: Value,
    ) -> tuple[Tensor, ...]:
        out, after, ctx.numbers = compute(call, drive, state, trace)
        ctx.call = call
        ctx.save_for_backward(drive, state, trace, *(v for v in values if isinstance(v, Tensor)))
        ctx.set_materialize_grads(False)
        links, (_, step) = call.plan.links, call.shape(drive)
        if not links:
            return out, after
        # One element spread over the shape: the link carries nothing but a gradient.
        return out, after, drive.new_empty_strided((links, *step), (0,) * (1 + len(step)))

    @staticmethod
    @first_order
    def backward(
        ctx: Any,
        grad_out: Tensor | None,
        grad_after: Tensor | None,
        link: Tensor | None = None,
    ) -> tuple[Tensor | None, ...]:
        call: Call = ctx.call
        plan, rule = call.plan, call.plan.rule
        assert isinstance(rule, TSSLBP)
        given, state, trace, *_ = ctx.saved_tensors
        drive = given.contiguous()
        dtype, (steps, step) = drive.dtype, call.shape(drive)
        neurons = step.numel()
        needs = ctx.needs_input_grad[5:][:LEARNED]
        back = _back(rule, grad_out is not None, any(needs))
        link = None if link is None else link.contiguous()
        grad_out, pace = _paced(grad_out, neurons, call.sequence)
        each = plan.keep_states and grad_after is not None
        grad_after = None if grad_after is None else grad_after.contiguous()
        start, current = spread(state, step, dtype), spread(trace, step, dtype)
        grad_drive = torch.empty_like(drive)
        # A link's gradient is ours alone, from the call after: this one's takes its place.
        rows = plan.links if plan.linked else 2
        chain = link
        if chain is None or chain.shape[0] != rows:
            chain = drive.new_empty((rows, *step))
        through = _through(call, chain, step, grad_after is not None or link is not None)
        grad_trace = None if trace is None else drive.new_empty(step)
        sums = drive.new_empty((LEARNED, *step)) if back.learns else None
        block = max(16, min(1024, SCRATCH // (steps + 1)))
        over(
            backward(call.spec, back), steps, neurons, block,
            plan.tau_s, rule.max_slope, rule.fallback_width,
            _at(drive), _at(start), _at(current), ctx.numbers.at,
            _at(grad_out), pace, _at(grad_after), neurons if each else 0, _at(link),
            _at(grad_drive), _at(chain), _at(through), _at(grad_trace), _at(sums),
        )  # fmt: skip
        return (
            None,
            grad_drive,
            _entering(call, chain, through, state, step),
            None if trace is None else reduced(grad_trace, trace),
            chain if plan.linked else None,
            *_learned(call, sums, needs),
        )


def _paced(grad: Tensor | None, neurons: int, sequence: bool) -> tuple[Tensor | None, int]:
    """The output's gradient, and how far its time steps lie apart: 0 where all are one tensor."""
    if grad is not None and sequence and grad.stride(0) == 0:
        return grad[0].contiguous(), 0
    return None if grad is None else grad.contiguous(), neurons


def _through(call: Call, chain: Tensor, step: torch.Size, any_state: bool) -> Tensor | None:
    """Where the adjoint of a loss on the membrane potential goes to, if there is any."""
    if chain.shape[0] == 3:
        return chain[2]
    return chain.new_empty(step) if any_state else None


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


def _learned(call: Call, sums: Tensor | None, needs: tuple[bool, ...]) -> list[Tensor | None]:
    values = call.plan.neuron.values()
    found: list[Tensor | None] = [None] * len(values)
    if sums is not None:
        for k, (value, needed) in enumerate(zip(values, needs, strict=False)):
            if needed and isinstance(value, Tensor):
                found[k] = reduced(sums[k], value)
    return found
