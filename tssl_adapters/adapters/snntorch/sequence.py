"""snnTorch's layers over a whole sequence."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tssl_adapters.adapters import (
    Mode,
    NativeForward,
    OtherNeuronError,
    Part,
    Result,
    Walk,
    as_it_is,
    attach,
    copied,
    exporting,
    from_library,
    stacked,
    stepped,
    trace_of,
)
from tssl_adapters.adapters.snntorch.classic import two_forwards
from tssl_adapters.adapters.snntorch.layer import Layer, States, unquantised

_SEQUENCES = ("LeakyParallel", "StateLeaky", "AssociativeLeaky")


def inherits(module: nn.Module, *names: str) -> bool:
    """Whether a module is one of these classes of the library, or of a copy of it."""
    theirs = copied(type(module)) == "snntorch"
    return any(
        cls.__name__ in names and (theirs or from_library("snntorch", cls))
        for cls in type(module).__mro__
    )


def mode(module: nn.Module) -> Mode | None:
    """What a layer takes in one call."""
    if inherits(module, *_SEQUENCES):
        return "sequence"
    return "step" if inherits(module, "SpikingNeuron") else None


def part(walk: Walk, path: str, module: Any) -> Part | None:
    """How a layer runs over a whole sequence."""
    brings = mode(module)
    if brings is None:
        return None
    if walk.whole:
        return as_it_is(module)
    if brings == "sequence":
        return walk.refuse(path, module, "it takes whole sequences, and is given single steps")
    if two_forwards(module) and not module.init_hidden:
        why = "this version of snnTorch passes it its states; use init_hidden=True"
        return walk.refuse(path, module, why)
    walk.hold(path, module)
    single = bool(module.init_hidden and not module.output)
    if isinstance(module, Layer) and module._tssl_foreseen():
        return Part(lambda x, _: (over_sequence(module, x), None), single)
    return stepped(module, single=single)


def over_sequence(layer: Any, x: Tensor) -> Any:
    """A wrapped layer's output for ``x [T, batch, ...]``, in one call of the engine.

    Spikes (or the PSC) and, if the layer returns its states, each of them: ``[T, batch, ...]``.
    """
    if not exporting():
        try:
            layer._tssl_look()
            return _over_sequence(layer, x)
        except OtherNeuronError:
            pass  # each step reports and handles it
    return stacked(map(layer, x.unbind(0)))


def _over_sequence(layer: Any, x: Tensor) -> Any:
    names = layer._tssl_states
    states, fresh = layer._tssl_incoming(x[0], [None] * len(names))
    settings, graded = layer._tssl_settings, layer._tssl_graded()
    trace = trace_of(settings, None if fresh else states["mem"], (0.0,))
    drive, others = _driven(layer, x, states)
    shows = layer.output or not layer.init_hidden
    neuron = layer._tssl_neuron(states)
    drive = layer._tssl_factored(neuron, drive, states["mem"])
    keep = shows or settings.tau_s != 1.0 or neuron.timing != "delayed"

    def natively(x: Tensor, states: States) -> tuple[Tensor, Tensor]:
        return _natively(layer, x, states, graded, keep)

    def probe(x: Tensor, mem: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        incoming = {**states, "mem": mem}
        with unquantised(layer):
            return (_driven(layer, x, incoming)[0], *natively(x, incoming))

    result = attach(
        settings,
        neuron,
        drive,
        states["mem"],
        trace,
        NativeForward(x, lambda: natively(x, states), probe),
        sequence=True,
        keep_states=keep,
        fresh=fresh,
    )
    layer.reset = _last_reset(layer, result, states["mem"])
    out = layer._tssl_scaled(result.out, graded)
    last = {name: state[-1] for name, state in others.items()}
    layer._tssl_keep({**last, "mem": result.state}, out)
    if not shows:
        return out
    assert result.states is not None
    shown = {name: torch.stack(state) for name, state in others.items()} | {"mem": result.states}
    return (out, *(shown[name] for name in names))


def _driven(layer: Any, x: Tensor, states: States) -> tuple[Tensor, dict[str, list[Tensor]]]:
    """The drive ``[T, batch, ...]``, and the other states after every step."""
    names = [name for name in states if name != "mem"]
    if not names:
        return x, {}
    drives: list[Tensor] = []
    others: dict[str, list[Tensor]] = {name: [] for name in names}
    for step in x.unbind(0):
        drive, after = layer._tssl_step(step, states)
        drives.append(drive)
        for name in names:
            others[name].append(after[name])
            kept = after[name] if layer._tssl_settings.rule.chain else after[name].detach()
            states = {**states, name: kept}
    return torch.stack(drives), others


@torch.no_grad()
def _natively(
    layer: Any, x: Tensor, states: States, graded: bool, keep: bool
) -> tuple[Tensor, Tensor]:
    """The library's spikes, and its potential after every step or after the last one."""
    spikes, potentials = [], []
    for step in x.unbind(0):
        spike, states = layer._tssl_natively(step, states)
        spikes.append(spike.ne(0).to(spike.dtype) if graded else spike)
        potentials.append(states["mem"])
    return torch.stack(spikes), torch.stack(potentials) if keep else potentials[-1]


def _last_reset(layer: Any, result: Result, mem: Tensor) -> Tensor:
    """The reset of the last step, due for the potential before it, as the library records it."""
    if len(result.out) == 1:
        due: Tensor = layer._tssl_due(mem)
    elif result.states is None:  # the next step's reset repeats the spikes
        due = result.out[-2].detach().clone()
    else:
        due = layer._tssl_due(result.states[-2])
    return due
