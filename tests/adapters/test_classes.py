"""Every module class of every library: wrapped, refused, or native because it does not spike.

The oracle is the class itself: it is made, run, and its output looked at. Where that is not
possible, or its output is no binary spike, a table here says what it is.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from norse.torch.functional import izhikevich
from torch import Tensor, nn

import tssl_adapters
from tssl_adapters import adapters
from tssl_adapters.errors import UnsupportedLayerError

PACKAGES = {
    "snntorch": ["snntorch"],
    "spikingjelly": [
        f"spikingjelly.activation_based.{name}"
        for name in ("neuron", "layer", "encoding", "rnn", "lava_exchange", "lynxi_exchange")
    ],
    "norse": ["norse.torch.module"],
}
STEPS, N = 6, 5

ARGUMENTS: dict[str, Any] = {
    **dict.fromkeys(("beta", "current_decay", "voltage_decay"), 0.8),
    **dict.fromkeys(("input_size", "hidden_size", "in_dim", "d_value", "num_node"), N),
    **dict.fromkeys(("dec_pop_dim", "V", "num_spiking_neurons"), N),
    **dict.fromkeys(("in_features", "out_features", "channels"), N),
    **dict.fromkeys(("d_key", "act_dim", "num_layers"), 1),
    **dict.fromkeys(("T", "n_steps", "seq_length"), STEPS),
    "k": 2,
    "alpha": 0.9,
    "tau": 2.0,
    "decay_input": False,
    "act": torch.relu,
    "spiking_method": izhikevich.tonic_spiking,
}
"""What a class asks for without a default, by the argument's name."""
SETTINGS: dict[str, dict[str, Any]] = {
    "Lapicque": {"beta": 0.8},
    "DeltaLeaky": {"beta": 0.8, "init_hidden": True},
    "RLeaky": {"all_to_all": False},
    "RSynaptic": {"all_to_all": False},
    "MPBNLIFNode": {"out_features": N},
    "MaskedPSN": {"step_mode": "m"},
    "SlidingPSN": {"step_mode": "m"},
    "NoisyCUBALIFNode": {"is_training": False},
    "NoisyILCCUBALIFNode": {"is_training": False},
    "NoisyNonSpikingIFNode": {"is_training": False, "decode": "mean-mem"},
}
SPIKES_BY_TABLE = {
    # abstract
    "snntorch": "SpikingNeuron LIF".split()
    # an output that a spike was multiplied into, or needs more than a drive
    + "AssociativeLeaky SLSTM SConv2dLSTM LeakyParallel".split(),
    "spikingjelly": "BaseNode SimpleBaseNode AdaptBaseNode ILCBaseNode MPBNBaseNode".split()
    + "NoisyBaseNode NoisyILCBaseNode SpikingRNNCellBase SpikingRNNBase".split()
    + "FewSpikeNode OutlierAwareThresholdNode HGNode FlexSN STBIFNode".split()
    # spikes that are not 0 and 1
    + "DSRIFNode DSRLIFNode ILIFNode LIAFNode TernaryIFNode TernaryLIFNode".split(),
    "norse": "SNN SNNCell SNNRecurrent SNNRecurrentCell LIFCorrelation".split(),
}
NATIVE_BY_TABLE = {
    "snntorch": ["GradedSpikes"],
    "spikingjelly": "NonSpikingBaseNode NoisyNonSpikingBaseNode NoisyNonSpikingIFNode "
    "BatchNorm2d".split(),
    "norse": "LIBoxCell LConv2d Lift SequentialState RecurrentSequential ExpFilter".split()
    + "RegularizationCell SpikesToTimesDecoder TemporalReceptiveField".split()
    + "SpatialReceptiveField2d SampledSpatialReceptiveField2d".split()
    + ["ParameterizedSpatialReceptiveField2d"],
}
NATIVE_MODULES = (".layer", ".encoding", ".encode")
"""Encoders make spikes of data and have no surrogate; containers and synapses hold no neuron."""


def modules_of(package: str) -> Iterator[str]:
    yield package
    path = getattr(importlib.import_module(package), "__path__", []) if "." in package else []
    for found in pkgutil.iter_modules(path):
        yield f"{package}.{found.name}"


def classes() -> list[Any]:
    """``(library, class)`` of every module class that a library's public modules hold."""
    rows = {}
    for library, packages in PACKAGES.items():
        for name in (name for package in packages for name in modules_of(package)):
            for cls in vars(importlib.import_module(name)).values():
                ours = inspect.isclass(cls) and cls.__module__.startswith(packages[0].split(".")[0])
                if ours and issubclass(cls, nn.Module):
                    rows[cls] = pytest.param(library, cls, id=f"{cls.__module__}.{cls.__name__}")
    return list(rows.values())


def made(cls: type[nn.Module]) -> nn.Module | None:
    parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
    wanted = [
        p.name
        for p in parameters
        if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD and p.name in ARGUMENTS
    ]
    settings = {name: ARGUMENTS[name] for name in wanted} | SETTINGS.get(cls.__name__, {})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return cls(**settings)
        except Exception:
            return None


def unmade(cls: type[nn.Module]) -> nn.Module:
    """A module without its own set-up: enough to be looked at."""
    module = cls.__new__(cls)
    nn.Module.__init__(module)
    return module


def first(output: Any) -> Any:
    while isinstance(output, tuple | list):
        output = output[0]
    return output


def in_steps(module: Any, x: Tensor) -> Tensor:
    return torch.stack([first(module(step)) for step in x])


def with_states(module: Any, x: Tensor) -> Tensor:
    state, outs = None, []
    for step in x:
        out, state = module(step, state)
        outs.append(out)
    return torch.stack(outs)


def emits_spikes(module: nn.Module) -> bool | None:
    """Whether the output is 0 and 1 only; ``None`` where the module does not run."""
    verdict = None
    generator = torch.Generator().manual_seed(0)
    x = 1.0 + 3.0 * torch.randn(STEPS, 4, N, generator=generator)
    for drive in (x, 30.0 * x):
        for run in (lambda module, x: first(module(x)), in_steps, with_states):
            if hasattr(module, "_memories"):
                module.reset()
            try:
                out = run(module, drive)
                values = set(out.detach().flatten().tolist())
            except Exception:
                continue
            if len(values) > 1:
                if values <= {0.0, 1.0}:
                    return True
                verdict = False
    return verdict


def expected(library: str, cls: type[nn.Module]) -> bool:
    """Whether a class spikes, by its behaviour or else by the tables."""
    if cls.__name__ in SPIKES_BY_TABLE[library]:
        return True
    in_table = cls.__name__ in NATIVE_BY_TABLE[library]
    if in_table or any(f"{name}" in cls.__module__ for name in NATIVE_MODULES):
        return False
    module = made(cls)
    assert module is not None, f"{cls} cannot be made: say in a table here whether it spikes"
    torch.manual_seed(0)
    spikes = emits_spikes(module)
    assert spikes is not None, f"{cls} cannot be run: say in a table here whether it spikes"
    return spikes


@pytest.mark.parametrize(("library", "cls"), classes())
def test_spiking_classes_are_wrapped_or_refused(library: str, cls: type[nn.Module]) -> None:
    """And those that do not spike are native: none is left native that spikes."""
    kinds = {kind for adapter in adapters.loaded() for kind in adapter.kinds}
    module = made(cls) if cls in kinds else unmade(cls)
    assert module is not None
    row = next(row for row in tssl_adapters.inspect(module) if row.path == cls.__name__)
    assert row.library == library
    if not expected(library, cls):
        assert row.status == "native"
    elif cls in kinds:
        assert row.status == "wrap"
    else:
        assert row.status == "refused"
        with pytest.raises(UnsupportedLayerError, match=cls.__name__) as caught:
            tssl_adapters.wrap(module)
        assert type(module) is cls
        assert type(caught.value) is UnsupportedLayerError


def test_the_oracle_knows_a_spike() -> None:
    """The supported classes and their libraries' integrators, told apart by behaviour alone."""
    rows = [param.values for param in classes()]
    by_behaviour = {
        f"{library}.{cls.__name__}"
        for library, cls in rows
        if not any(cls.__name__ in table[library] for table in (SPIKES_BY_TABLE, NATIVE_BY_TABLE))
        and not any(name in cls.__module__ for name in NATIVE_MODULES)
        and expected(library, cls)
    }
    assert by_behaviour >= {
        "snntorch.Leaky",
        "snntorch.Synaptic",
        "snntorch.RLeaky",
        "spikingjelly.LIFNode",
        "spikingjelly.KLIFNode",
        "spikingjelly.SlidingPSN",
        "norse.LIF",
        "norse.LIFBoxCell",
        "norse.LSNNRecurrentCell",
    }
    assert not by_behaviour & {"norse.LI", "norse.LICell", "spikingjelly.NonSpikingLIFNode"}
