"""What keeps small networks from learning, and what helps: docs/learning.md's figures.

python tools/learning.py --out benchmarks/learning.json

Every network is compared at its start (tssl_adapters.compare) and trained on scikit-learn's digits,
or on yin-yang in spike times, under each rule. One process, minutes; what is in the file already is
not measured again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import norse.torch as norse
import snntorch
import torch
from rich.console import Console
from sklearn.datasets import load_digits
from snntorch import surrogate
from spikingjelly.activation_based import functional, layer, neuron
from spikingjelly.activation_based import surrogate as sj_surrogate
from torch import Tensor, nn

import tssl_adapters
from tssl_adapters import rules
from tssl_adapters.comparing.comparison import Comparison

TRAIN, BATCH = 1280, 64


class Data(NamedTuple):
    """Inputs and labels for training and testing."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Case:
    """A network and how it is trained.

    ``loss`` maps the model, a batch and its labels to the loss and the class scores.
    """

    data: Callable[[], Data]
    build: Callable[[], nn.Module]
    loss: Callable[[Any, Tensor, Tensor], tuple[Tensor, Tensor]]
    rate: float = 1e-3
    epochs: int = 8
    clip: float | None = None
    rules: tuple[str, ...] = ("native", "default")


RULES: dict[str, rules.Rule | None] = {
    "native": None,
    "default": rules.SmoothTSSLBP(),
    "tsslbp": rules.TSSLBP(),
    "tsslbp, no reset path": rules.TSSLBP(reset_path="none"),
    "tsslbp, max_slope 1": rules.TSSLBP(max_slope=1.0),
    "coarse": rules.SmoothTSSLBP(memory=1.0),
}


def digits() -> Data:
    """Scikit-learn's digits, 8 x 8."""
    found = load_digits()
    x = torch.tensor(found.data, dtype=torch.float32) / 16.0
    y, order = torch.tensor(found.target), torch.randperm(len(x), generator=seeded(11))
    x, y = x[order], y[order]
    return Data((x[:TRAIN], y[:TRAIN]), (x[TRAIN:], y[TRAIN:]))


def yin_yang() -> Data:
    """Points of three areas in a disc; each coordinate, and its mirror image, is a spike time."""
    points = torch.rand(9000, 2, generator=seeded(5))
    points = points[(points - 0.5).norm(dim=1) < 0.5]
    left, right = (points - torch.tensor([x, 0.5]) for x in (0.25, 0.75))
    left, right = left.norm(dim=1), right.norm(dim=1)
    yang = torch.where(points[:, 1] > 0.5, right > 0.25, left <= 0.25)
    labels = torch.where((left <= 0.1) | (right <= 0.1), 2, yang.long())
    x = torch.cat([points, 1.0 - points], 1)
    return Data((x[:3000], labels[:3000]), (x[3000:5000], labels[3000:5000]))


def seeded(seed: int) -> torch.Generator:
    """A separate generator."""
    return torch.Generator().manual_seed(seed)


def deep(scale: float, threshold: float = 1.0, norm: float = 0.0) -> Callable[[], nn.Module]:
    """Seven SpikingJelly layers of 64 neurons and a readout."""

    def build() -> nn.Module:
        parts: list[nn.Module] = []
        for _ in range(7):
            fc = layer.Linear(64, 64)
            with torch.no_grad():
                fc.weight *= scale
                fc.bias *= scale
            lif = neuron.LIFNode(
                v_threshold=threshold, detach_reset=True, surrogate_function=sj_surrogate.ATan()
            )
            parts += [fc, *([layer.BatchNorm1d(64)] if norm else []), lif]
            if norm:
                nn.init.constant_(parts[-2].weight, norm)
        net = nn.Sequential(*parts, layer.Linear(64, 10))
        functional.set_step_mode(net, "m")
        return net

    return build


def repeated(
    steps: int, gain: float, target: float = 0.0
) -> Callable[[Any, Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Cross-entropy of a SpikingJelly network's output for a repeated image.

    With a ``target``, the loss also pulls each neuron towards that rate.
    """

    def loss(net: Any, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        functional.reset_net(net)
        out, missing = gain * x.expand(steps, *x.shape), torch.zeros(())
        for part in net:
            out = part(out)
            if target and isinstance(part, neuron.LIFNode):
                missing = missing + (target - out.mean((0, 1))).square().mean()
        scores = out.mean(0)
        return nn.functional.cross_entropy(scores, y) + 10.0 * missing, scores

    return loss


class Loop(nn.Module):
    """snnTorch layers in a loop over time; returns the spike counts of the last one."""

    def __init__(self, parts: list[nn.Module], spiking: list[nn.Module], gain: float) -> None:
        super().__init__()
        self.parts, self.spiking = nn.ModuleList(parts), nn.ModuleList(spiking)
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        states = [one.reset_mem() for one in self.spiking]
        counts = torch.zeros(())
        for _ in range(8):
            out = self.gain * x.reshape(-1, 1, 8, 8)
            for i, (part, one) in enumerate(zip(self.parts, self.spiking, strict=True)):
                out, states[i] = one(part(out), states[i])
            counts = counts + out
        return counts


def conv(**options: Any) -> Callable[[], nn.Module]:
    """A convolutional network as in snnTorch's tutorials, with reset by subtraction."""

    def build() -> nn.Module:
        parts: list[nn.Module] = [
            nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.MaxPool2d(2)),
            nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.MaxPool2d(2)),
            nn.Sequential(nn.Flatten(), nn.Linear(64, 10)),
        ]
        return Loop(parts, [snntorch.Leaky(0.9, **options) for _ in parts], 1.5)

    return build


def dense(
    scale: float, gain: float = 1.5, bias: float = 0.0, **options: Any
) -> Callable[[], nn.Module]:
    """Two hidden layers of 64 neurons in snnTorch."""

    def build() -> nn.Module:
        parts: list[nn.Module] = []
        for outputs in (64, 64, 10):
            fc = nn.Linear(64, outputs)
            with torch.no_grad():
                fc.weight *= scale
                if outputs == 64:
                    fc.bias += bias
            parts.append(nn.Sequential(nn.Flatten(), fc))
        return Loop(parts, [snntorch.Leaky(0.9, **options) for _ in parts], gain)

    return build


def counts(net: Any, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of a network's output."""
    scores = net(x)
    return nn.functional.cross_entropy(scores, y), scores


class Timed(nn.Module):
    """A Norse layer of 100 neurons on a fine time grid, and a readout of a potential."""

    def __init__(self) -> None:
        super().__init__()
        times = {"tau_syn_inv": torch.tensor(1 / 5.0), "tau_mem_inv": torch.tensor(1 / 20.0)}
        self.hidden, self.out = nn.Linear(5, 100, bias=False), nn.Linear(100, 3, bias=False)
        self.lif = norse.LIF(norse.LIFParameters(**times), dt=1.0)
        self.readout = norse.LI(norse.LIParameters(**times), dt=1.0)
        nn.init.normal_(self.hidden.weight, 4.0, 4.0)
        nn.init.normal_(self.out.weight, 0.2, 0.7)

    def forward(self, x: Tensor) -> Tensor:
        times = torch.cat([(5.0 + 30.0 * x).round(), torch.full((len(x), 1), 5.0)], 1)
        spikes = (torch.arange(60.0)[:, None, None] == times).to(x)
        return self.readout(self.out(self.lif(self.hidden(spikes))[0]))[0].amax(0)


SILENT = 2.5
CASES: dict[str, Case] = {
    "silent": Case(digits, deep(SILENT), repeated(6, 1.5)),
    "silent, weights x 2": Case(digits, deep(2 * SILENT), repeated(6, 1.5)),
    "silent, threshold / 2": Case(digits, deep(SILENT, threshold=0.5), repeated(6, 1.5)),
    "silent, batch normalisation": Case(digits, deep(SILENT, norm=1.0), repeated(6, 1.5)),
    "silent, batch normalisation of gain 2": Case(digits, deep(SILENT, norm=2.0), repeated(6, 1.5)),
    "silent, inputs x 4": Case(digits, deep(SILENT), repeated(6, 6.0)),
    "silent, rate regulariser": Case(digits, deep(SILENT), repeated(6, 1.5, 0.1), rate=5e-3),
    "silent, learning rate x 5": Case(digits, deep(SILENT), repeated(6, 1.5), rate=5e-3),
    "subtraction": Case(
        digits,
        conv(),
        counts,
        2e-3,
        rules=("native", "default", "tsslbp", "tsslbp, no reset path", "tsslbp, max_slope 1"),
    ),
    "subtraction, clipped": Case(digits, conv(), counts, 2e-3, clip=1.0, rules=("tsslbp",)),
    "reset to zero": Case(
        digits,
        conv(reset_mechanism="zero"),
        counts,
        2e-3,
        rules=("native", "default", "tsslbp"),
    ),
    "high rate": Case(digits, dense(6.0, 2.0), counts, rules=("native", "default", "tsslbp")),
    "high rate, clipped": Case(digits, dense(6.0, 2.0), counts, clip=1.0, rules=("tsslbp",)),
    "narrow surrogate": Case(
        digits, conv(spike_grad=surrogate.fast_sigmoid(slope=25)), counts, 2e-3
    ),
    "very narrow surrogate": Case(
        digits, conv(spike_grad=surrogate.fast_sigmoid(slope=100)), counts, 2e-3
    ),
    "threshold 10": Case(digits, dense(20.0, threshold=10.0), counts, 1e-2),
    "threshold 10, wide surrogate": Case(
        digits,
        dense(20.0, threshold=10.0, spike_grad=surrogate.atan(alpha=0.2)),
        counts,
        1e-2,
        rules=("native",),
    ),
    "always firing": Case(digits, dense(1.0, bias=3.0), counts),
    "always firing, smaller": Case(digits, dense(1.0, bias=0.3), counts),
    "learning rate 2e-1": Case(digits, conv(), counts, 2e-1),
    "timing": Case(yin_yang, Timed, counts, 5e-3, 4, 1.0, ("native", "coarse", "default")),
}


def trained(case: Case, rule: rules.Rule | None, seed: int) -> Iterator[float]:
    """The test accuracy after each epoch."""
    torch.manual_seed(seed)
    net, data = case.build(), case.data()
    if rule is not None:
        tssl_adapters.wrap(net, rule=rule, engine="torch")
    optimizer = torch.optim.Adam(net.parameters(), case.rate)
    for _ in range(case.epochs):
        net.train()
        for batch in torch.randperm(len(data.train[0])).split(BATCH):
            optimizer.zero_grad()
            case.loss(net, *(part[batch] for part in data.train))[0].backward()
            if case.clip is not None:
                nn.utils.clip_grad_norm_(net.parameters(), case.clip)
            optimizer.step()
        net.eval()
        with torch.no_grad():
            scores = case.loss(net, *data.test)[1]
        yield float((scores.argmax(1) == data.test[1]).float().mean())


def at_start(case: Case, rule: rules.Rule | None) -> dict[str, Any]:
    """The comparison of the network at its start."""
    torch.manual_seed(0)
    net, data = case.build(), case.data()
    batch = [part[:BATCH] for part in data.train]
    return kept(tssl_adapters.compare(net, lambda net: case.loss(net, *batch)[0], rule=rule))


def kept(found: Comparison) -> dict[str, Any]:
    """What is recorded of a comparison."""
    data = found.to_dict()
    figures = ("path", "rate", "silent", "rise", "native_width", "wrapped_width", "carry")
    return {
        "layers": [{name: one[name] for name in figures} for one in data["layers"]],
        "ratios": {one["name"]: one["ratio"] for one in data["parameters"]},
        "flags": [[flag["kind"], flag["where"]] for flag in data["flags"]],
    }


def main() -> None:
    """Measure everything that is not in the file yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--seeds", type=int, default=2, help="how many (default: %(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    console = Console()
    known = json.loads(args.out.read_text()) if args.out and args.out.is_file() else {}
    for name, case in CASES.items():
        for rule in case.rules:
            key = f"{name} | {rule}"
            if key not in known:
                curves = [[*trained(case, RULES[rule], seed)] for seed in range(args.seeds)]
                known[key] = {"accuracy": curves, "start": at_start(case, RULES[rule])}
                if args.out:
                    args.out.write_text(json.dumps(known, indent=1) + "\n")
            finals = [100 * sum(curve[-2:]) / 2 for curve in known[key]["accuracy"]]
            said = " ".join(f"{final:.1f}" for final in finals)
            console.print(f"{key}: {sum(finals) / len(finals):.1f} ({said})", highlight=False)


if __name__ == "__main__":
    main()
