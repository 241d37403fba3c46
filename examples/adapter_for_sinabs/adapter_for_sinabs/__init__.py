"""sinabs 3: ``LIF``, ``IAF`` and ``ALIF``, recurrent and squeezed ones among them.

They take ``[batch, T, ...]``, the squeezed ones ``[batch * T, ...]``, and hold their states.
"""

from __future__ import annotations

from inspect import signature
from typing import Any

from sinabs.layers import ALIF, LIF, SqueezeMixin, StatefulLayer
from torch import Tensor, nn

from adapter_for_sinabs.layer import problem
from adapter_for_sinabs.layers import WRAPPED
from tssl_adapters.adapters import Adapter, Kind, Mode, Part, Walk, as_it_is, defined_by, untag

_STEPS = 4


def _spiking(module: nn.Module) -> bool:
    return isinstance(module, LIF | ALIF) and bool(module.does_spike)


def _mode(module: nn.Module) -> Mode | None:
    return "sequence" if isinstance(module, LIF | ALIF) else None


def _part(walk: Walk, path: str, module: nn.Module) -> Part | None:
    return None if _mode(module) is None else as_it_is(module)


def _example(cls: type[nn.Module], neurons: int) -> nn.Module:
    wanted: dict[str, Any] = {
        "tau_mem": 10.0,
        "tau_adapt": 10.0,
        "rec_connect": nn.Linear(neurons, neurons, bias=False),
        "num_timesteps": _STEPS,
    }
    accepted = set(signature(cls).parameters)
    if issubclass(cls, SqueezeMixin):  # it takes its base's by keyword
        accepted |= {*signature(cls.__mro__[1]).parameters}
    return cls(**{name: value for name, value in wanted.items() if name in accepted})


def _record(layer: Any, x: Tensor) -> list[Tensor]:
    layer.reset_states()
    given = x.transpose(0, 1)
    if isinstance(layer, SqueezeMixin):
        out = layer(given.flatten(0, 1)).unflatten(0, given.shape[:2])
    else:
        out = layer(given)
    return [out.transpose(0, 1), *(state for state in layer.buffers(recurse=False))]


def _reset(model: nn.Module) -> None:
    """The library's own function misses recurrent layers, and a model that is itself a layer."""
    for module in model.modules():
        if isinstance(module, StatefulLayer):
            module.reset_states()


def _steps(layer: Any) -> int | None:
    steps = getattr(layer, "num_timesteps", -1)
    return steps if steps > 0 else None


ADAPTER = Adapter(
    library="sinabs",
    kinds={
        cls._tssl_native: Kind(cls, problem, detach=lambda layer: untag(layer.v_mem))
        for cls in WRAPPED
    },
    spiking=_spiking,
    native=lambda module: defined_by("sinabs", module),
    mode=_mode,
    part=_part,
    example=_example,
    record=_record,
    reset=_reset,
    steps=_steps,
)
