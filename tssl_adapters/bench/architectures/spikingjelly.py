"""SpikingJelly's ``LIFNode``, or ``IFNode``, in multi-step mode."""

from __future__ import annotations

from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import Tensor, nn

from tssl_adapters.bench.architectures import Network, Surrogate
from tssl_adapters.bench.method import FIRED, TAU_M

SURROGATES: dict[str, Surrogate] = {
    "native": neuron.LIFNode().surrogate_function,
    "arctan": surrogate.ATan(),
    "fast-sigmoid": surrogate.SuperSpike(),
}


def network(connections: list[nn.Module], surrogate: str) -> Network:
    """Neurons with h = (1 - 1/tau) v + x, reset to zero, after each connection."""
    layers: list[nn.Module] = []
    for connection in connections:
        lif = neuron.LIFNode(
            tau=TAU_M,
            decay_input=False,
            v_reset=0.0,
            surrogate_function=SURROGATES[surrogate],
            step_mode="m",
        )
        layers += [layer.SeqToANNContainer(connection), lif]
    return Network(nn.Sequential(*layers), run, neuron.LIFNode)


def run(model: nn.Module, x: Tensor) -> Tensor:
    """All T steps in one call, from rest."""
    functional.reset_net(model)
    output: Tensor = model(x)
    return output


class Integrate(nn.Module):
    """A non-leaky synaptic current, ``[T, ...]``."""

    def forward(self, x: Tensor) -> Tensor:
        """The cumulative sum over time."""
        return x.cumsum(0)


def network_once(connections: list[nn.Module], surrogate: str) -> Network:
    """Neurons with h = v + i, where i sums their input so far, reset far below the threshold."""
    layers: list[nn.Module] = []
    for connection in connections:
        node = neuron.IFNode(v_reset=FIRED, surrogate_function=SURROGATES[surrogate], step_mode="m")
        layers += [layer.SeqToANNContainer(connection), Integrate(), node]
    return Network(nn.Sequential(*layers), run_once, neuron.IFNode)


def run_once(model: nn.Module, x: Tensor) -> Tensor:
    """All T steps in one call, from rest, which differs from the reset potential."""
    functional.reset_net(model)
    for module in model.modules():
        if isinstance(module, neuron.IFNode):
            module.v = 0.0
    output: Tensor = model(x)
    return output
