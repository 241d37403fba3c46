"""A user's own model: how its file is loaded, and how the model is run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tssl_adapters import inspect, wrap
from tssl_adapters.adapters import loaded
from tssl_adapters.bench import architectures, rules
from tssl_adapters.bench.report.tables import REFERENCE
from tssl_adapters.bench.settings import Settings
from tssl_adapters.bench.source import SourceError, attribute
from tssl_adapters.bench.workload import Batch, Workload
from tssl_adapters.registry import kind_of
from tssl_adapters.rules import Native

Batches = Iterable[tuple[Tensor, Tensor]]


class BuilderError(ValueError):
    """A file, or what its function returned, does not meet the benchmark's requirements."""


def cross_entropy(output: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of ``[batch, classes]``, or of ``[T, batch, classes]`` summed over time."""
    return F.cross_entropy(output.sum(0) if output.dim() == 3 else output, labels)


@dataclass
class Task:
    """What a builder returns: a model, and the data to train and test it on.

    Attributes:
        model: its spiking layers must be supported by ``tssl_adapters.wrap``, and not wrapped.
        train: batches of inputs and labels, such as a ``DataLoader``. Each epoch iterates over it
            once, after ``torch.manual_seed``, for ``len(train)`` batches.
        test: the same for testing.
        forward: ``forward(model, x)`` runs the model on one batch from rest and returns
            ``[batch, classes]`` or ``[T, batch, classes]``; by default it resets the states and
            calls the model.
        loss: maps output and labels to a scalar.
        optimizer: makes an optimizer from the model's parameters.
    """

    model: nn.Module
    train: Batches
    test: Batches
    forward: Callable[[nn.Module, Tensor], Tensor] | None = None
    loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] = torch.optim.AdamW


def run_from_rest(model: nn.Module, x: Tensor) -> Tensor:
    """Reset the states that layers hold, whatever their library, and call the model."""
    for adapter in loaded():
        adapter.reset(model)
    output = model(x)
    first: Tensor = output[0] if isinstance(output, tuple) else output  # Norse also returns states
    return first


def build(source: str, seed: int) -> Task:
    """Call the builder that ``path/to/file.py:function`` names, with a seed.

    Raises:
        BuilderError: there is no such file or function, or it does not return a task.
    """
    try:
        function = attribute(source, "build")
    except SourceError as error:
        raise BuilderError(str(error)) from error
    if not callable(function):
        raise BuilderError(f"{source} is no function")
    torch.manual_seed(seed)
    task = function()
    if isinstance(task, tuple) and len(task) == 3:
        task = Task(*task)
    if not isinstance(task, Task):
        raise BuilderError(
            f"{source} must return model, train batches and test batches, or a "
            f"tssl_adapters.bench.user.Task, not {type(task).__name__}"
        )
    return task


def spiking_layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The layers that can be wrapped, each with its library's name.

    Raises:
        BuilderError: there are none.
    """
    rows = [row for row in inspect(model) if row.status == "wrap"]
    if not rows:
        raise BuilderError(f"{type(model).__name__}: no layer to wrap.\n{inspect(model)}")
    modules = dict(model.named_modules())
    return [(row.library, modules.get(row.path, model)) for row in rows]


def library_of(model: nn.Module) -> str:
    """The library of its first spiking layer."""
    return spiking_layers(model)[0][0]


def surrogate_of(layer: nn.Module) -> architectures.Surrogate:
    """The surrogate of a layer that can be wrapped: maps h - theta to spikes."""
    kinds = (kind_of(adapter, layer, Native()) for adapter in loaded(type(layer)))
    return next(kind.wrapped._tssl_spikes(layer) for kind in kinds if kind is not None)


def apply_rule(model: nn.Module, rule: str, tau_s: float, engine: str | None = None) -> None:
    """Apply a rule of the benchmark to a model; ``native`` is each layer's own surrogate.

    At ``tau_s = 1`` ``native`` is the library itself, not wrapped.

    Raises:
        UnknownRuleError: a library lacks the surrogate.
    """
    contestant = rules.contestant(rule)
    if rule == REFERENCE and tau_s == 1.0:
        return
    for name, layer in spiking_layers(model):
        if contestant.surrogate in ("", REFERENCE):
            surrogate = surrogate_of(layer)
        else:
            surrogate = rules.surrogate(name, contestant.surrogate)
        chosen = contestant.make(architectures.derivative(surrogate))
        wrap(layer if contestant.surrogate else model, tau_s=tau_s, rule=chosen, engine=engine)
        if not contestant.surrogate:
            return  # wrapped as a whole, so that messages contain its layers' names


class UserWorkload(Workload):
    """A builder's task under a rule."""

    def __init__(self, settings: Settings, task: Task) -> None:
        self.settings, self.task, self.model = settings, task, task.model
        self.neuron = tuple({type(layer) for _, layer in spiking_layers(task.model)})
        apply_rule(task.model, settings.rule, settings.tau_s)
        self.num_batches = len(task.train)  # type: ignore[arg-type]

    def optimizer(self) -> torch.optim.Optimizer:
        return self.task.optimizer(self.model.parameters())

    def train_batches(self, order: torch.Generator) -> Iterator[Batch]:
        torch.manual_seed(int(torch.randint(2**31, (), generator=order)))  # for shuffling loaders
        return iter(self.task.train)

    def test_batches(self) -> Iterator[Batch]:
        return iter(self.task.test)

    def output(self, inputs: Tensor) -> Tensor:
        return (self.task.forward or run_from_rest)(self.model, inputs)

    def loss(self, output: Tensor, labels: Tensor) -> Tensor:
        return self.task.loss(output, labels)
