"""Which calls of which layers kernels can take."""

from __future__ import annotations

import torch
from torch import Tensor

from tssl_adapters.elementwise import plain
from tssl_adapters.engine.call.plan import HALF, Plan
from tssl_adapters.engine.call.settings import Settings
from tssl_adapters.engine.compiled import kernels
from tssl_adapters.engine.compiled.fused import Call
from tssl_adapters.engine.compiled.kernels import Backend
from tssl_adapters.engine.compiled.memory import spreads
from tssl_adapters.engine.step.spec import LEARNED, ROWS, Form, spec_of
from tssl_adapters.neuron import Neuron, Value, plainly


def why_not(plan: Plan) -> str | None:
    """Why the kernels do not support a layer, or ``None``."""
    neuron = plan.neuron
    if not plan.rule.compiled:
        return f"{type(plan.rule).__name__} has no compiled kernels"
    if plan.exposed or neuron.quantiser is not None:
        return "the neuron has states of other kinds"
    if len(neuron.charge.raw) > ROWS - LEARNED or plainly(neuron.charge.formula) is None:
        return "the neuron's charge has no plain formula"
    if neuron.reset.plain() is None:
        return "the neuron's reset has no plain formula"
    return None


def layout(
    backend: Backend,
    drive: Tensor,
    step: torch.Size,
    state: Tensor,
    trace: Tensor | None,
    numbers: tuple[Value, ...],
) -> bool | None:
    """Whether the numbers differ from neuron to neuron; ``None`` if the kernels cannot take a
    call's tensors: they support plain memory of one dtype, device and shape.
    """
    if not plain(drive) or not backend.takes(drive):
        return None
    if drive.shape == step and (permuted(drive) or permuted(state)):
        return None
    half = drive.dtype in HALF  # where torch rounds a scalar first
    dense = False
    for tensor in (state, trace, *numbers):
        if isinstance(tensor, Tensor) and (tensor.ndim or half):  # a scalar does not promote
            if tensor.dtype != drive.dtype or tensor.device != drive.device:
                return None
            if not spreads(tensor.shape, step):
                return None
            dense = dense or (tensor.numel() != 1 and tensor is not state and tensor is not trace)
    return dense


def permuted(tensor: Tensor) -> bool:
    """Whether torch's results from a tensor keep a permuted memory format such as
    ``channels_last``: if it is lost, later layers may round differently.
    """
    return not (tensor.is_contiguous() or torch.empty_like(tensor).is_contiguous())


def joined(
    settings: Settings, neuron: Neuron, current: Tensor, k: Value, drive: Tensor
) -> float | None:
    """The leak k of a sequence's synaptic current if it can share one loop with its neuron, else
    ``None``.
    """
    loops, values = kernels.backend(settings.engine), neuron.values()
    if not isinstance(k, float) or loops is None or not loops.joins:
        return None
    if len(drive) == 1:  # computed as a single step, whose backward pass is given h
        return None
    if settings.tau_s != 1.0 or not settings.rule.chain or len(values) == ROWS:
        return None
    if any(isinstance(value, Tensor) and value.requires_grad for value in values):
        return None
    same = current.dtype == drive.dtype and spreads(current.shape, drive.shape[1:])
    return k if same else None


def call_of(
    plan: Plan,
    dtype: torch.dtype,
    dense: bool,
    sequence: bool,
    backend: Backend,
    path: str = "",
) -> Call:
    """The call of a layer that :func:`why_not` accepts."""
    neuron = plan.neuron
    form = Form(
        str(dtype).removeprefix("torch."),
        dense,
        len(neuron.charge.raw),
        neuron.timing,
        neuron.strict,
        plan.tau_s != 1.0,
        neuron.charge.centred,
    )
    reset = neuron.reset.plain()
    assert reset is not None
    return Call(plan, spec_of(plainly(neuron.charge.formula), reset, form), sequence, backend, path)
