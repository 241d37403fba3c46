"""Two ordinary networks of sinabs' layers under several rules, and speed beside sinabs, in one run.

The networks are trained as those of the benchmark's suite are: the same first weights and batches
under each rule, and `native` is sinabs itself, not wrapped. It needs tssl-adapters[bench], and says
what options it takes when it is asked for --help.
"""

from __future__ import annotations

import argparse
from functools import partial
from itertools import product

import torch
from adapter_for_sinabs import ADAPTER
from rich.console import Console
from rich.table import Table
from sinabs import layers
from sinabs.activation import SingleSpike
from torch import Tensor, nn

from tssl_adapters.bench.networks import samples, suite
from tssl_adapters.bench.networks.recipes import adam, mean_cross_entropy, mean_over_time
from tssl_adapters.bench.networks.spec import Network
from tssl_adapters.bench.networks.training import Job, run
from tssl_adapters.bench.options import listed
from tssl_adapters.bench.speed import tables
from tssl_adapters.bench.speed.cases import Case, Plan, run_case
from tssl_adapters.bench.speed.works import NETWORK, Work, dense

STEPS = 8


def leaky() -> nn.Module:
    """``LIF`` of one spike a step."""
    return layers.LIF(tau_mem=5.0, spike_fn=SingleSpike, norm_input=False)  # type: ignore[no-any-return]


def fully_connected() -> nn.Module:
    """64-128-10."""
    return nn.Sequential(nn.Linear(64, 128), leaky(), nn.Linear(128, 10), leaky())


def convolutional() -> nn.Module:
    """Convolutions and ``IAFSqueeze``, clipped below, as sinabs' tutorials have them."""
    settings = {"num_timesteps": STEPS, "spike_fn": SingleSpike, "min_v_mem": -1.0}
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False), layers.IAFSqueeze(**settings), nn.AvgPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1, bias=False), layers.IAFSqueeze(**settings), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(16 * 2 * 2, 10, bias=False), layers.IAFSqueeze(**settings),
    )  # fmt: skip


def run_sequence(model: nn.Module, x: Tensor) -> Tensor:
    """Pixels as a constant drive; ``[T, batch, classes]``."""
    ADAPTER.reset(model)
    drive = x.flatten(1).unsqueeze(1).expand(-1, STEPS, -1)
    return model(3.0 * drive).transpose(0, 1)  # type: ignore[no-any-return]


def run_squeezed(model: nn.Module, x: Tensor) -> Tensor:
    """The same with batch and time in one dimension."""
    ADAPTER.reset(model)
    out = model((3.0 * x).repeat_interleave(STEPS, 0))
    return out.unflatten(0, (len(x), STEPS)).transpose(0, 1)  # type: ignore[no-any-return]


network = partial(
    Network,
    library="sinabs",
    kind="ordinary",
    data=lambda folder: samples.digits(),
    loss=mean_cross_entropy,
    score=mean_over_time,
    epochs=6,
    batch_size=64,
)
NETWORKS = (
    network(name="sinabs-dense", build=fully_connected, forward=run_sequence, optimizer=adam(5e-3)),
    network(name="sinabs-conv", build=convolutional, forward=run_squeezed, optimizer=adam(5e-3)),
)


def over_time(model: nn.Module, x: Tensor) -> Tensor:
    """A layer or network over ``[T, batch, ...]``, from rest; it takes the batch first."""
    ADAPTER.reset(model)
    return model(x.transpose(0, 1)).transpose(0, 1)  # type: ignore[no-any-return]


WORKS = (
    Work("sinabs-lif", "sinabs LIF, sequence", "sequence", leaky, over_time),
    Work(
        "sinabs-network",
        f"sinabs {NETWORK}, training step",
        "network, sequence",
        lambda: dense(leaky),
        over_time,
    ),
)


def accuracies(rules: list[str], seeds: int) -> Table:
    """Final test accuracies, a row per network and rule."""
    suite.networks().update({network.name: network for network in NETWORKS})
    table = Table(title="test accuracy after the last epochs, %")
    for heading in ("network", "rule", *(f"seed {seed}" for seed in range(seeds)), "s a run"):
        table.add_column(heading)
    for network, rule in product(NETWORKS, rules):
        lines = [run(Job(network.name, rule, seed, "cpu")) for seed in range(seeds)]
        finals = (f"{100 * line['final']:.1f}" for line in lines)
        seconds = sum(line["seconds"] for line in lines) / seeds
        table.add_row(network.name, rule, *finals, f"{seconds:.1f}")
    return table


def main() -> None:
    """Train, time, and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seeds", type=int, default=1, help="how many (default: %(default)s)")
    parser.add_argument(
        "--rules", type=listed(str), default=["native", "native-compiled", "smooth-tsslbp"]
    )
    parser.add_argument("--steps", type=int, default=32, help="T of what is timed")
    args = parser.parse_args()
    Console().print(accuracies(args.rules, args.seeds))
    plan, left_out = Plan(torch.device("cpu"), compiled=False, tau_s=(1.0,)), []
    torch.set_num_threads(1)
    cases = [Case(work, args.steps, 32, 512) for work in WORKS]
    rows = [row for case in cases for row in run_case(case, plan, left_out.append)]
    tables.show(tables.timings(rows), left_out)


if __name__ == "__main__":
    main()
