"""Train SpikingJelly's SEW ResNet-18 (ADD) on images, by its own surrogate gradient or by ours.

python examples/train_sew_resnet.py --data fashion-mnist                 # the default rule
python examples/train_sew_resnet.py --data fashion-mnist --rule native   # the same start, natively

The model comes from SpikingJelly's zoo, which imports torchvision.
"""

from collections.abc import Sequence

import common
import torch
from spikingjelly.activation_based import functional, neuron
from torch import Tensor, nn

import tssl_adapters

NETWORK = "sew_resnet18"


def build_network() -> nn.Module:
    """SEW ResNet-18, ``[T, batch, 1, height, width]`` to ``[T, batch, 10]``."""
    from spikingjelly.activation_based.model import sew_resnet

    model: nn.Module = sew_resnet.sew_resnet18(
        cnf="ADD",
        spiking_neuron=neuron.IFNode,
        detach_reset=True,
        num_classes=common.NUM_CLASSES,
    )
    functional.set_step_mode(model, "m")
    return model


def run(model: nn.Module, x: Tensor) -> Tensor:
    """All T steps in one call, from rest; the network expects three colours."""
    functional.reset_net(model)
    output: Tensor = model(x.expand(-1, -1, 3, -1, -1))
    return output


def main(argv: Sequence[str] | None = None) -> list[common.Record]:
    """Build, wrap, train."""
    args = common.parse_args("spikingjelly", __doc__, argv, network=NETWORK)
    if args.tau_s > 1:
        raise SystemExit("error: SEW ResNet adds spikes; train it at --tau-s 1")
    data = common.load_data(args)
    torch.manual_seed(args.seed)
    model = build_network()
    if args.rule != "native":
        tssl_adapters.wrap(model, rule=args.rule)
    return common.train(args, model, run, data, neuron.IFNode)


if __name__ == "__main__":
    main()
