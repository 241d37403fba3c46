"""The plan of one call of a layer, and what the two autograd functions share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from tssl_adapters.engine.call.settings import Position
from tssl_adapters.engine.call.window import length
from tssl_adapters.engine.step.recursion import Backward, Moment
from tssl_adapters.engine.step.spec import LEARNED
from tssl_adapters.neuron import Neuron, Value
from tssl_adapters.rules import Feedback, Rule, Window

HALF = (torch.float16, torch.bfloat16)

Values: TypeAlias = Callable[[], "tuple[Tensor, Tensor]"]
"""Returns what the library computed: spikes, and the membrane potential after the last step or,
with ``keep_states``, after every step."""


class Plan(NamedTuple):
    """The static part of a call.

    Attributes:
        neuron: the record; under torch.func its tensors are replaced by those autograd passes in.
        rule: the learning rule.
        tau_s: synaptic time constant in steps; at 1 the layer emits its spikes.
        links: number of tensors in the link between two calls.
        linked: whether the incoming state came with a link.
        keep_states: return the state after every step rather than after the last one.
        functional: whether a torch.func transform is active.
        exposed: whether h[t] and s[t] are outputs that take a gradient.
        position: where in its window the call starts, for rules that ask for it.
        feedback: the feedback of a recurrent layer, if the call is its whole sequence.
        recorded: whether a backward pass may follow.
    """

    neuron: Neuron
    rule: Rule
    tau_s: float
    links: int
    linked: bool
    keep_states: bool
    functional: bool
    exposed: bool = False
    position: Position | None = None
    feedback: Feedback | None = None
    recorded: bool = True

    def steps(self) -> float:
        """The window's number of time steps, known once the backward pass begins."""
        return length(self.position)

    def window(self, neuron: Neuron, dtype: torch.dtype) -> Window | None:
        """The window, for rules that ask for it; known once the backward pass begins."""
        if self.position is None or not self.rule.windowed:
            return None
        window = self.position.window(self.rule, neuron, dtype)
        return window if self.feedback is None else window._replace(feedback=self.feedback)


class EngineFunction(torch.autograd.Function):
    """An autograd function whose ``apply`` does not look up its signature in every call."""

    @classmethod
    def apply(cls, *args: Any) -> Any:
        if torch._C._are_functorch_transforms_active():
            return super().apply(*args)  # type: ignore[no-untyped-call]
        return super(torch.autograd.Function, cls).apply(*args)  # type: ignore[misc]


def working_dtype(tensor: Tensor) -> torch.dtype:
    """Adjoints of half-precision layers are carried in float32."""
    return torch.float32 if tensor.dtype in HALF else tensor.dtype


def in_working_dtype(moment: Moment, neuron: Neuron) -> Moment:
    """The moment in the dtype of the adjoints."""
    dtype = working_dtype(moment.charged)
    if neuron.quantiser is not None:  # its levels have a dtype of their own
        others = (moment.state, moment.drive, *neuron.values())
        for tensor in filter(torch.is_tensor, others):
            dtype = torch.promote_types(dtype, tensor.dtype)
    if moment.spike.dtype == moment.charged.dtype == dtype:
        return moment
    return Moment(*(None if field is None else field.to(dtype) for field in moment))  # type: ignore[arg-type]


def h_determines_state(neuron: Neuron) -> bool:
    """Whether h[t] determines the outgoing state: not if a reset was due when the step began."""
    return neuron.timing != "both"


def empty_links(plan: Plan, like: Tensor) -> list[Tensor]:
    """One-element tensors expanded to the state's shape: they carry only gradients."""
    if not plan.links:
        return []
    first = nothing(like, like.shape)
    # Nobody reads or writes them, so they may share memory, which is cheaper.
    return [first, *(first.detach() for _ in range(plan.links - 1))]


def nothing(like: Tensor, shape: Sequence[int]) -> Tensor:
    """A one-element tensor expanded to a shape: a link carries only a gradient."""
    return like.new_empty_strided(shape, (0,) * len(shape), dtype=working_dtype(like))


def save(ctx: Any, plan: Plan, tensors: Sequence[Tensor | None], values: Sequence[Value]) -> None:
    """Save the call's tensors and the neuron's numbers, tensors through autograd."""
    ctx.plan = plan
    ctx.count = len(tensors)
    ctx.numbers = tuple(None if isinstance(v, Tensor) else v for v in values)
    ctx.save_for_backward(*tensors, *(v for v in values if isinstance(v, Tensor)))
    ctx.set_materialize_grads(False)


def restore(ctx: Any) -> tuple[Plan, Neuron, tuple[Any, ...]]:
    """The inverse of :func:`save`."""
    plan: Plan = ctx.plan
    saved = ctx.saved_tensors  # raises if one was changed in place since
    if not plan.functional:
        return plan, plan.neuron, saved[: ctx.count]
    rest = iter(saved[ctx.count :])
    values = [next(rest) if number is None else number for number in ctx.numbers]
    return plan, plan.neuron.with_values(values), saved[: ctx.count]


def carried_out(backward: Backward, plan: Plan, like: Tensor) -> tuple[Tensor | None, ...]:
    """The gradients of the incoming link; a missing link takes none."""
    if not plan.linked:
        return (None,) * plan.links
    carried = backward.carried
    if plan.neuron.timing != "delayed":  # there F_v mu goes with the state
        carried = carried._replace(decayed_membrane=None)
    parts = carried[: plan.links]
    return tuple(
        part if part is None or part.shape == like.shape else part.expand(like.shape)
        for part in parts
    )


class Like(NamedTuple):
    """The shape and dtype of a tensor's gradient, for a tensor whose values nobody needs."""

    shape: torch.Size
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor | None) -> Like | None:
        """The shape and dtype of a tensor, if there is one."""
        return None if tensor is None else cls(tensor.shape, tensor.dtype)


def reduced(grad: Tensor | None, like: Tensor | Like) -> Tensor | None:
    """A gradient in the shape and dtype of the tensor it belongs to."""
    if grad is None or (grad.shape == like.shape and grad.dtype == like.dtype):
        return grad
    return grad.sum_to_size(like.shape).to(like.dtype)


def value_gradients(backward: Backward) -> list[Tensor | None]:
    """Gradients of the values that learn, then ``None`` for the others."""
    values = backward.neuron.values()
    if not backward.needs_any:
        return [None] * len(values)
    learned = [
        reduced(total, value) if isinstance(value, Tensor) else None
        for total, value in zip(backward.sums, values, strict=False)
    ]
    return learned + [None] * (len(values) - LEARNED)
