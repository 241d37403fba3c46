"""Train a spiking network with Norse, by its own surrogate gradient or by a rule of ours.

python examples/train_with_norse.py                 # the default rule: 400-400 on mnist5k
python examples/train_with_norse.py --rule native   # the same, Norse's gradient
python examples/train_with_norse.py --rule tsslbp --tau-s 3 --data fashion-mnist  # the paper
"""

from collections.abc import Sequence
from itertools import pairwise

import common
import norse.torch as norse
import torch
from torch import Tensor, nn

import tssl_adapters

DT = 0.001
TAU_MEM_INV = 1 / (DT * common.TAU_M)


def superspike_derivative(x: Tensor) -> Tensor:
    """Norse's default surrogate, ``super`` (alpha has no effect): slope at h - theta."""
    return 1 / (x.abs() + 1) ** 2


class Gain(nn.Module):
    """Multiply by a constant."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * x


def lif() -> list[nn.Module]:
    """The paper's neuron, h = (1 - 1/tau_m) v + x with reset to zero: Norse scales x by 1/tau_m."""
    parameters = norse.LIFBoxParameters(tau_mem_inv=torch.tensor(TAU_MEM_INV))
    return [Gain(common.TAU_M), norse.LIFBoxCell(parameters, dt=DT)]


def build_network(network: str, num_pixels: int) -> norse.SequentialState:
    """One step of the network, ``[batch, ...]`` to ``[batch, 10]``, and its state."""
    if network == "cnn":
        return norse.SequentialState(
            nn.Conv2d(1, 15, kernel_size=5, bias=False),
            *lif(),
            common.SumPool2d(),
            nn.Conv2d(15, 40, kernel_size=5, bias=False),
            *lif(),
            common.SumPool2d(),
            nn.Flatten(),
            nn.Linear(40 * 4 * 4, 300, bias=False),
            *lif(),
            nn.Linear(300, common.NUM_CLASSES, bias=False),
            *lif(),
        )
    layers: list[nn.Module] = [nn.Flatten()]
    sizes = [num_pixels, *common.hidden_sizes(network), common.NUM_CLASSES]
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs, bias=False), *lif()]
    return norse.SequentialState(*layers)


def run(model: nn.Module, x: Tensor) -> Tensor:
    """Step through time, from rest."""
    outputs, state = [], None
    for step in x:
        output, state = model(step, state)
        outputs.append(output)
    return torch.stack(outputs)


def main(argv: Sequence[str] | None = None) -> list[common.Record]:
    """Build, wrap, train."""
    args = common.parse_args("norse", __doc__, argv)
    data = common.load_data(args)
    model = build_network(args.network, data.num_pixels)
    common.init_weights(model, args.seed)
    if (rule := common.chosen_rule(args, superspike_derivative)) is not None:
        tssl_adapters.wrap(model, tau_s=args.tau_s, rule=rule)
    return common.train(args, model, run, data, norse.LIFBoxCell)


if __name__ == "__main__":
    main()
