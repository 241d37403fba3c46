"""Train a spiking network with snnTorch, by its own surrogate gradient or by a rule of ours.

python examples/train_with_snntorch.py                 # the default rule: 400-400 on mnist5k
python examples/train_with_snntorch.py --rule native   # the same, snnTorch's gradient
python examples/train_with_snntorch.py --rule tsslbp --tau-s 3 --data fashion-mnist  # the paper
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import common
import snntorch
import torch
from torch import Tensor, nn

import tssl_adapters


def arctan_derivative(x: Tensor) -> Tensor:
    """snnTorch's default surrogate, ``surrogate.atan(alpha=2)``: slope at h - theta."""
    return 1 / (1 + (math.pi * x) ** 2)


def lif() -> snntorch.Leaky:
    """The paper's neuron: h = beta mem + x, reset to zero."""
    return snntorch.Leaky(beta=1 - 1 / common.TAU_M, reset_mechanism="zero")


class Net(nn.Module):
    """Connections, each followed by neurons: ``[T, batch, ...]`` to ``[T, batch, 10]``."""

    def __init__(self, connections: Sequence[nn.Module]) -> None:
        super().__init__()
        self.connections = nn.ModuleList(connections)
        self.neurons = nn.ModuleList(lif() for _ in connections)

    def forward(self, x: Tensor) -> Tensor:
        """Step through time, from rest."""
        mems = [neuron.reset_mem() for neuron in self.neurons]
        outputs = []
        for spk in x:
            for i, neuron in enumerate(self.neurons):
                cur = self.connections[i](spk)
                spk, mems[i] = neuron(cur, mems[i])
            outputs.append(spk)
        return torch.stack(outputs)


def build_network(network: str, num_pixels: int) -> Net:
    """The network of this name; ``Flatten`` and pooling belong to the connection they precede."""
    if network == "cnn":
        return Net(
            [
                nn.Conv2d(1, 15, kernel_size=5, bias=False),
                nn.Sequential(common.SumPool2d(), nn.Conv2d(15, 40, kernel_size=5, bias=False)),
                nn.Sequential(
                    common.SumPool2d(), nn.Flatten(), nn.Linear(40 * 4 * 4, 300, bias=False)
                ),
                nn.Linear(300, common.NUM_CLASSES, bias=False),
            ]
        )
    sizes = [num_pixels, *common.hidden_sizes(network), common.NUM_CLASSES]
    linear = [nn.Linear(inputs, outputs, bias=False) for inputs, outputs in pairwise(sizes)]
    return Net([nn.Sequential(nn.Flatten(), linear[0]), *linear[1:]])


def main(argv: Sequence[str] | None = None) -> list[common.Record]:
    """Build, wrap, train."""
    args = common.parse_args("snntorch", __doc__, argv)
    data = common.load_data(args)
    model = build_network(args.network, data.num_pixels)
    common.init_weights(model, args.seed)
    if (rule := common.chosen_rule(args, arctan_derivative)) is not None:
        tssl_adapters.wrap(model, tau_s=args.tau_s, rule=rule)
    return common.train(args, model, Net.forward, data, snntorch.Leaky)


if __name__ == "__main__":
    main()
