"""Train with the rules of three further papers, each on a task that it was made for.

    python examples/train_further_rules.py rates --rule lee     # Lee et al. 2016, SpikingJelly
    python examples/train_further_rules.py times --rule stdbp   # M. Zhang et al. 2020, SpikingJelly
    python examples/train_further_rules.py rows --rule strsbp   # Zhang and Li 2019, Norse

``rates``: pixels as the rates of random spikes, a decision by spike counts. ``times``: each pixel
fires once, the brighter the earlier, and so does every neuron; the first output decides.
``rows``: an image's rows one after the other into a recurrent layer, spike counts of 20 and 2 as
targets. Each task's rules share its network, first weights and order of images; ``native`` is the
library's own surrogate, ``...-silent`` the paper's rule without what it does for silent neurons.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import norse.torch as norse
import torch
import torch.nn.functional as F
from common import Interrupt, Terminal
from norse.torch.functional.lif import LIFParameters
from spikingjelly.activation_based import neuron
from torch import Generator, Tensor, nn

import tssl_adapters
from tssl_adapters import losses, rules
from tssl_adapters.bench.architectures.connections import hidden_sizes
from tssl_adapters.bench.architectures.spikingjelly import Integrate
from tssl_adapters.bench.data import Data, load
from tssl_adapters.bench.known import LATENCY
from tssl_adapters.bench.method import latencies, scores
from tssl_adapters.bench.settings import Settings
from tssl_adapters.bench.trainer import InterruptedRunError, Trainer
from tssl_adapters.bench.workload import Batch, Workload

CLASSES, TEST_BATCH = 10, 500
TAU_M = 20.0
WANTED, OTHERS = 20.0, 2.0


class Task(Workload):
    """A network over ``[T, batch, inputs]``, its encoding of images, its loss, and its rules."""

    library: str
    num_steps: int
    RULES: ClassVar[dict[str, Any]]
    """By name; ``None`` is the library's own gradient, a pair is for hidden layers and output."""

    def __init__(self, args: argparse.Namespace, data: Data) -> None:
        self.args, self.data = args, data
        self.num_batches = -(-len(data.train_labels) // args.batch_size)
        torch.manual_seed(args.seed)
        self.model = self.network([self.inputs, *hidden_sizes(args.network), CLASSES])
        for parameter in self.model.parameters():
            parameter.data.mul_(args.scale)
        rule = self.RULES[args.rule]
        hidden, output = rule if isinstance(rule, tuple) else (rule, rule)
        if rule is not None:
            tssl_adapters.wrap(self.model[-1], rule=output)
            tssl_adapters.wrap(self.model, rule=hidden, skip=[str(len(self.model) - 1)])

    @property
    def inputs(self) -> int:
        return self.data.num_pixels

    def network(self, sizes: list[int]) -> nn.Sequential:
        raise NotImplementedError

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.model.parameters(), lr=self.args.lr)

    def train_batches(self, order: Generator) -> Iterator[Batch]:
        samples = torch.randperm(len(self.data.train_labels), generator=order)
        for batch in torch.split(samples, self.args.batch_size):
            yield self.data.train_images[batch], self.data.train_labels[batch]

    def test_batches(self) -> Iterator[Batch]:
        images, labels = self.data.test_images, self.data.test_labels
        yield from zip(images.split(TEST_BATCH), labels.split(TEST_BATCH), strict=True)


class Rates(Task):
    """Random spikes of rate pixel/2; cross-entropy on spike counts."""

    library, num_steps, neuron = "spikingjelly", 30, neuron.LIFNode
    RULES: ClassVar[dict[str, Any]] = {
        "native": None,
        "smooth-tsslbp": rules.SmoothTSSLBP(),
        "tsslbp": rules.TSSLBP(),
        "lee": (rules.Lee(gate="active"), rules.Lee()),
        "lee-silent": rules.Lee(gate="active"),
    }

    def network(self, sizes: list[int]) -> nn.Sequential:
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes):
            node = neuron.LIFNode(tau=TAU_M, decay_input=False, step_mode="m")
            layers += [nn.Linear(inputs, outputs, bias=False), node]
        return nn.Sequential(*layers)

    def output(self, inputs: Tensor) -> Tensor:
        rate = inputs.flatten(1) / 510.0
        return self.run((torch.rand(self.num_steps, *rate.shape) < rate).float())

    def run(self, x: Tensor) -> Tensor:
        """From rest."""
        for layer in self.model:
            if isinstance(layer, neuron.BaseNode):
                layer.reset()
                layer.v = 0.0
        return self.model(x)

    def loss(self, output: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(output.sum(0), labels)


class Times(Rates):
    """Pixel p fires at 20 (1 - p); cross-entropy on the time left in the window after the first
    output spike, over 2 steps. As every neuron fires once, the sum of that over its spikes is the
    same, with a gradient that every rule can use.
    """

    num_steps, neuron = 40, neuron.IFNode
    RULES: ClassVar[dict[str, Any]] = {
        "native": None,
        "tsslbp": rules.TSSLBP(),
        "stdbp": rules.STDBP(),
        "stdbp-silent": rules.STDBP(silent="none"),
    }

    def network(self, sizes: list[int]) -> nn.Sequential:
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes):
            linear = nn.Linear(inputs, outputs, bias=False)
            nn.init.normal_(linear.weight, 1.0 / inputs, 2.0 / inputs**0.5 / 10.0)
            # So large a reset would scale up any gradient through it.
            node = neuron.IFNode(v_reset=-1e9, detach_reset=True, step_mode="m")
            layers += [linear, Integrate(), node]
        return nn.Sequential(*layers)

    def output(self, inputs: Tensor) -> Tensor:
        out = self.run(latencies(inputs, self.num_steps).flatten(2))
        if self.args.rule.startswith("stdbp"):
            return (self.num_steps - losses.first_spike_time(out)) / 2.0
        return scores(LATENCY, out)

    def loss(self, output: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(output, labels)


class Rows(Task):
    """One row of the image a step; squared error of the spike counts against 20 and 2."""

    library, num_steps, neuron = "norse", 28, (norse.LIF, norse.LIFRecurrent)
    RULES: ClassVar[dict[str, Any]] = {
        "native": None,
        "smooth-tsslbp": rules.SmoothTSSLBP(),
        "tsslbp": rules.TSSLBP(),
        "strsbp": rules.STRSBP(),
        "strsbp-full": (rules.STRSBP(recurrent="full"), rules.STRSBP()),
        "strsbp-silent": rules.STRSBP(silent="zero"),
    }

    @property
    def inputs(self) -> int:
        return self.data.sample_shape[-1]

    def network(self, sizes: list[int]) -> nn.Sequential:
        p = LIFParameters(
            tau_syn_inv=torch.tensor(1.0), tau_mem_inv=torch.tensor(1.0 / TAU_M),
            v_th=torch.tensor(1.0 / TAU_M),
        )  # fmt: skip
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes[:-1]):
            layers.append(norse.LIFRecurrent(inputs, outputs, p, dt=1.0))
            for weight in (layers[-1].input_weights, layers[-1].recurrent_weights):
                nn.init.kaiming_uniform_(weight.data, a=5**0.5)
        layers += [nn.Linear(sizes[-2], sizes[-1], bias=False), norse.LIF(p, dt=1.0)]
        return nn.Sequential(*layers)

    def output(self, inputs: Tensor) -> Tensor:
        x = inputs.squeeze(1).transpose(0, 1) / 255.0
        for layer in self.model:
            x = layer(x)
            x = x[0] if isinstance(x, tuple) else x
        return x

    def loss(self, output: Tensor, labels: Tensor) -> Tensor:
        targets = losses.target_spike_counts(labels, CLASSES, WANTED, OTHERS)
        return (output.sum(0) - targets).square().sum(1).mean() / 2.0


TASKS = {"rates": Rates, "times": Times, "rows": Rows}
DATA = {"rates": "mnist5k", "times": "mnist5k", "rows": "fashion-mnist"}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("task", choices=TASKS)
    add("--rule", default="native", help="default: %(default)s")
    add("--data", choices=["digits", "mnist5k", "fashion-mnist"], help="default: the task's")
    add("--data-dir", type=Path, metavar="DIR", help="folder of the fashion-mnist idx files")
    add("--network", default="400", help="hidden layers, such as 400-400 (default: %(default)s)")
    add("--epochs", type=int, default=10, help="in all (default: %(default)s)")
    add("--batch-size", type=int, default=50, help="default: %(default)s")
    add("--lr", type=float, default=5e-4, help="Adam's learning rate (default: %(default)s)")
    add("--scale", type=float, default=1.0, help="of the first weights (default: %(default)s)")
    add("--seed", type=int, default=0, help="default: %(default)s")
    add("--limit", type=int, metavar="N", help="train and test on the first N images only")
    add("--log", type=Path, metavar="FILE.jsonl", help="append one JSON object an epoch")
    add("--checkpoints", type=Path, default=Path("checkpoints"), metavar="DIR")
    add("--quiet", action="store_true", help="no progress bar and no report")
    args = parser.parse_args(argv)
    if args.rule not in TASKS[args.task].RULES:
        known = ", ".join(TASKS[args.task].RULES)
        parser.error(f"--rule for {args.task} must be one of {known}, not {args.rule}")
    args.data = args.data or DATA[args.task]
    if (args.task, args.data) == ("rows", "digits"):
        parser.error("rows needs images of 28 x 28; digits are 8 x 8")
    return args


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Train one network, or go on from its checkpoint."""
    args = parse_args(argv)
    task = TASKS[args.task]
    data = load(args.data, args.data_dir, task.num_steps, args.limit)
    settings = Settings(
        task.library, args.data, args.network, args.rule, 1.0, args.task, task.num_steps,
        args.batch_size, args.lr, args.epochs, args.seed, args.limit,
    )  # fmt: skip
    checkpoint = args.checkpoints / f"{settings.name}.pt"
    with Interrupt() as interrupt:
        terminal = Terminal(args, interrupt)
        trainer = Trainer(settings, task(args, data), checkpoint, terminal)
        if checkpoint.is_file():
            trainer.load()
        try:
            return trainer.fit()
        except InterruptedRunError:
            raise SystemExit("interrupted; the same command goes on") from None
        finally:
            terminal.close()


if __name__ == "__main__":
    main()
