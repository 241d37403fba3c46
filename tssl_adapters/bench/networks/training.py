"""One run of the suite: a network, a rule and a seed, from the start to one line of the results."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from tssl_adapters.bench import rules
from tssl_adapters.bench.networks import suite
from tssl_adapters.bench.networks.spec import Network, Split
from tssl_adapters.bench.observer import Record
from tssl_adapters.bench.report.tables import REFERENCE
from tssl_adapters.bench.user import apply_rule
from tssl_adapters.bench.workload import TEST_BATCH
from tssl_adapters.errors import UnsupportedLayerError

FINAL_EPOCHS = 2
"""The final accuracy is the mean over this many last epochs."""
TEST_SEED = 5
"""Seeds what a network draws during testing, such as Poisson inputs."""


@dataclass(frozen=True)
class Job:
    """A run, and where to compute it."""

    network: str
    rule: str
    seed: int
    engine: str | None = None
    data_dir: Path | None = None


def failure(job: Job, error: str, traceback: str = "") -> Record:
    """The record of a failed run."""
    run = f"{job.network}, {job.rule}, seed {job.seed}"
    return {"run": run, "error": error, "traceback": traceback}


def refusal(network: Network, rule: str) -> str | None:
    """Why a network cannot be built, or cannot be trained under a rule; ``None`` if it can."""
    try:
        apply_rule(network.build(), rule, tau_s=1.0)
    except (UnsupportedLayerError, rules.UnknownRuleError, ImportError) as error:
        return str(error)
    return None


def run(job: Job) -> Record:
    """Train and test; returns the run's line of the results.

    Every rule gets the same initial weights, batches and random draws. Torch's global generator
    and thread count are restored afterwards.
    """
    network = suite.networks()[job.network]
    split = network.data(job.data_dir)
    began, began_computing = time.perf_counter(), time.process_time()
    with _alone():
        gradient, first_loss = _first_gradient(network, split, job)
        accuracies, losses = _train(network, split, job)
    return {
        "network": network.name,
        "library": network.library,
        "kind": network.kind,
        "rule": job.rule,
        "definition": rules.describe(job.rule),
        "seed": job.seed,
        "engine": job.engine,
        "epochs": network.epochs,
        "batch_size": network.batch_size,
        "test_accuracy": accuracies,
        "final": sum(accuracies[-FINAL_EPOCHS:]) / len(accuracies[-FINAL_EPOCHS:]),
        "mean": sum(accuracies) / len(accuracies),
        "train_loss": losses,
        "first_loss": first_loss,
        "gradient": gradient,
        "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - began_computing,
    }


@contextmanager
def _alone() -> Iterator[None]:
    """Use one thread, and restore the random state afterwards."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_num_threads(threads)


def start(network: Network, rule: str, seed: int, engine: str | None = None) -> nn.Module:
    """A network at its start, with the same weights under each rule."""
    torch.manual_seed(seed)
    model = network.build()
    apply_rule(model, rule, tau_s=1.0, engine=engine)
    torch.manual_seed(seed + 1)  # for what the model draws from here on
    return model


def batches(split: Split, seed: int, batch_size: int) -> Iterator[list[Tensor]]:
    """Each epoch's batches, as sample indices; endless."""
    order = torch.Generator().manual_seed(seed)
    while True:
        yield list(torch.split(torch.randperm(len(split.train_y), generator=order), batch_size))


def _train(network: Network, split: Split, job: Job) -> tuple[list[float], list[float | None]]:
    """Test accuracy and training loss of each epoch."""
    model = start(network, job.rule, job.seed, job.engine)
    optimizer = network.optimizer(model)
    epochs = batches(split, job.seed, network.batch_size)
    accuracies, losses = [], []
    for _ in range(network.epochs):
        model.train()
        total = 0.0
        for batch in next(epochs):
            optimizer.zero_grad()
            loss = network.loss(network.forward(model, split.train_x[batch]), split.train_y[batch])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total += loss.item() * len(batch)
        accuracies.append(_accuracy(network, model, split))
        losses.append(_finite(total / len(split.train_y)))
    return accuracies, losses


@torch.no_grad()
def _accuracy(network: Network, model: nn.Module, split: Split) -> float:
    """Accuracy on the test set, as a fraction."""
    model.eval()
    correct = 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(TEST_SEED)
        for samples in torch.split(torch.arange(len(split.test_y)), TEST_BATCH):
            predicted = network.score(network.forward(model, split.test_x[samples])).argmax(1)
            correct += int((predicted == split.test_y[samples]).sum())
    return correct / len(split.test_y)


def _first_gradient(network: Network, split: Split, job: Job) -> tuple[Record, float | None]:
    """The first batch's gradient compared with native's, and its loss, on a separate model."""
    batch = next(batches(split, job.seed, network.batch_size))[0]
    x, labels = split.train_x[batch], split.train_y[batch]

    def gradients(rule: str) -> tuple[dict[str, Tensor], float]:
        model = start(network, rule, job.seed, job.engine)
        loss = network.loss(network.forward(model.train(), x), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        found = {
            name: (torch.zeros_like(weight) if weight.grad is None else weight.grad).flatten()
            for name, weight in model.named_parameters()
        }
        return found, loss.item()

    mine, loss = gradients(job.rule)
    native = mine if job.rule == REFERENCE else gradients(REFERENCE)[0]
    dimensions = {name: weight.dim() for name, weight in network.build().named_parameters()}
    first = next(name for name, number in dimensions.items() if number > 1)
    beside = {name: compared(mine[name], native[name]) for name in mine}
    everything = compared(torch.cat([*mine.values()]), torch.cat([*native.values()]))
    return {"all": everything, "first": beside[first], "parameters": beside}, _finite(loss)


def compared(mine: Tensor, native: Tensor) -> dict[str, float | None]:
    """Norms of two gradients, and their ratio and cosine; ``None`` where a value is not finite."""
    mine, native = mine.double(), native.double()
    norm, other = mine.norm().item(), native.norm().item()
    product = norm * other
    return {
        "norm": _finite(norm),
        "native_norm": _finite(other),
        "ratio": _finite(norm / other) if other else None,
        "cosine": _finite((mine @ native).item() / product) if product else None,
    }


def _finite(number: float) -> float | None:
    """JSON has no infinities and no NaN."""
    return number if math.isfinite(number) else None
