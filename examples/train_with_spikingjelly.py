"""Train a spiking network with SpikingJelly, by its own surrogate gradient or by a rule of ours.

python examples/train_with_spikingjelly.py                 # the default rule: 400-400 on mnist5k
python examples/train_with_spikingjelly.py --rule native   # the same, SpikingJelly's gradient
python examples/train_with_spikingjelly.py --rule tsslbp --tau-s 3 --data fashion-mnist  # the paper
"""

from collections.abc import Sequence
from itertools import pairwise

import common
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import Tensor, nn

import tssl_adapters


def sigmoid_derivative(x: Tensor) -> Tensor:
    """SpikingJelly's default surrogate, ``surrogate.Sigmoid(alpha=4)``: slope at h - theta."""
    sigmoid = torch.sigmoid(4 * x)
    return 4 * sigmoid * (1 - sigmoid)


def lif() -> neuron.LIFNode:
    """The paper's neuron: h = (1 - 1/tau) v + x, reset to zero."""
    return neuron.LIFNode(tau=common.TAU_M, decay_input=False, v_reset=0.0)


def build_network(network: str, num_pixels: int) -> nn.Sequential:
    """Layers in multi-step mode, ``[T, batch, ...]`` to ``[T, batch, 10]``."""
    if network == "cnn":
        layers = [
            layer.Conv2d(1, 15, kernel_size=5, bias=False),
            lif(),
            common.SumPool2d(),
            layer.Conv2d(15, 40, kernel_size=5, bias=False),
            lif(),
            common.SumPool2d(),
            layer.Flatten(),
            layer.Linear(40 * 4 * 4, 300, bias=False),
            lif(),
            layer.Linear(300, common.NUM_CLASSES, bias=False),
            lif(),
        ]
    else:
        layers = [layer.Flatten()]
        sizes = [num_pixels, *common.hidden_sizes(network), common.NUM_CLASSES]
        for inputs, outputs in pairwise(sizes):
            layers += [layer.Linear(inputs, outputs, bias=False), lif()]
    model = nn.Sequential(*layers)
    functional.set_step_mode(model, "m")
    return model


def run(model: nn.Module, x: Tensor) -> Tensor:
    """All T steps in one call, from rest."""
    functional.reset_net(model)
    return model(x)


def main(argv: Sequence[str] | None = None) -> list[common.Record]:
    """Build, wrap, train."""
    args = common.parse_args("spikingjelly", __doc__, argv)
    data = common.load_data(args)
    model = build_network(args.network, data.num_pixels)
    common.init_weights(model, args.seed)
    if (rule := common.chosen_rule(args, sigmoid_derivative)) is not None:
        tssl_adapters.wrap(model, tau_s=args.tau_s, rule=rule)
    return common.train(args, model, run, data, neuron.LIFNode)


if __name__ == "__main__":
    main()
