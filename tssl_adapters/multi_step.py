"""Run a model layer by layer over a whole sequence, rather than step by step. Knows no library."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tssl_adapters import stateless
from tssl_adapters.adapters.base import Adapter
from tssl_adapters.adapters.loading import loaded
from tssl_adapters.adapters.parts import Part, as_it_is, folded, stepped
from tssl_adapters.errors import NotSequentialError
from tssl_adapters.tracing import untraced

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@untraced
def multi_step_forward(model: nn.Module, x_seq: Tensor, state: Any = None) -> Any:
    """Run a sequential model over a whole sequence, layer by layer instead of step by step.

    The result is that of ``for x in x_seq: model(x)``, at lower cost. A stateless layer sees all
    steps as one batch, ``[T * batch, ...]``. A wrapped neuron layer sees the whole sequence, so
    that ``wrap(model, engine="cpu")`` computes it in compiled loops. Neuron layers that are not
    wrapped, or that cannot take a sequence (e.g. recurrent ones), run step by step in a loop of
    their own.

    The model is made of ``torch.nn.Sequential`` (or a subclass that keeps its ``forward``),
    ``norse.torch.SequentialState`` and ``Lift``, SpikingJelly's containers, and layers of torch and
    of the libraries; or it is one layer. Before and after, layers hold the same states as in the
    loop, with the same graph. A model that already takes whole sequences (Norse's ``LIF``,
    SpikingJelly's ``step_mode="m"``) is called on ``x_seq`` as it is, except for what it would
    split into steps.

    Values equal the loop's bit for bit if torch multiplies matrices of ``T * batch`` and of
    ``batch`` rows in the same way. On the CPU we observed this if ``batch`` is a multiple of 4;
    otherwise the last bits differ, which may move a spike. The gradient of a weight is summed in
    another order. Dropout draws a new mask for every step, as in the loop, but takes its random
    numbers layer by layer: the masks differ, but not their distribution.

    Args:
        model: the model, wrapped or not.
        x_seq: ``[T, batch, ...]``.
        state: what an earlier call on a Norse model returned, else ``None``: layers of the other
            libraries hold their states. A list is written to, as ``SequentialState`` does.

    Returns:
        What a step returns, stacked over time, ``[T, batch, ...]``: one tensor; ``(spk, mem)``,
        each stacked, where the last layer is snnTorch's and shows its state; for a Norse model
        ``(out, state)`` with the state after the last step.

    Raises:
        TypeError: ``model`` is not a module or ``x_seq`` not a tensor.
        ValueError: ``x_seq`` has no time and batch, or no steps; ``state`` for a model that holds
            its states.
        NotSequentialError: layer by layer the model would compute something else. The message
            names each layer that is in the way; nothing was run.
    """
    _check(model, x_seq)
    part = _parted(model)
    if state is not None and not part.threads:
        raise ValueError(
            f"{type(model).__name__} takes no state, as its layers hold theirs; set it there."
        )
    out, state = part.run(x_seq, state)
    return (out, state) if part.threads else out


def _check(model: nn.Module, x_seq: Tensor) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"multi_step_forward takes a torch.nn.Module, not {type(model).__name__}.")
    if not isinstance(x_seq, Tensor):
        raise TypeError(f"x_seq must be a tensor [T, batch, ...], not {type(x_seq).__name__}.")
    if x_seq.ndim < 2 or not len(x_seq) or x_seq.layout != torch.strided:
        raise ValueError(
            f"x_seq must be a dense tensor [T, batch, ...] of at least one step, not one of shape "
            f"{tuple(x_seq.shape)} and layout {x_seq.layout}."
        )


def _parted(model: nn.Module) -> Part:
    """The parts of a model.

    Raises:
        NotSequentialError: it has layers that do not allow it.
    """
    known = list(loaded())
    modes = dict(reversed([*_modes(known, "", model)]))  # the first layer of each
    walk = _Walk(known, "sequence" in modes)
    if len(modes) > 1:
        whole, one = (_named(model, modes[mode]) for mode in ("sequence", "step"))
        by = "; ".join(adapter.modes for adapter in known if adapter.modes)
        why = (
            f"it takes whole sequences and '{one}' takes single steps, so that no loop runs both; "
            "make all layers of one kind" + (f" ({by})" if by else "")
        )
        walk.refuse(whole, model.get_submodule(modes["sequence"]), why)
    part = walk.part("", model)
    if walk.problems:
        problems = "\n".join(f"  - {problem}" for problem in dict.fromkeys(walk.problems))
        raise NotSequentialError(
            f"{type(model).__name__} cannot be run layer by layer, and nothing was run:\n"
            f"{problems}\nOr call the model step by step, in a loop over time."
        )
    return part


def _modes(loaded: list[Adapter], path: str, module: nn.Module) -> Iterator[tuple[str, str]]:
    """What a call of each library layer takes, a step or a sequence, and the layer's path."""
    mode = _mode(loaded, module)
    if mode is not None:
        yield mode, path
        return
    for name, child in module.named_children():
        yield from _modes(loaded, _join(path, name), child)


def _mode(loaded: list[Adapter], module: nn.Module) -> str | None:
    modes = (adapter.mode(module) for adapter in loaded)
    return next((mode for mode in modes if mode is not None), None)


def _members(module: nn.Module) -> list[tuple[str, nn.Module]]:
    # named_children() would leave out a module that occurs twice.
    return [(name, child) for name, child in module._modules.items() if child is not None]


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _named(model: nn.Module, path: str) -> str:
    return path or type(model).__name__


@dataclass
class _Walk:
    """A walk through a model; see :class:`tssl_adapters.adapters.parts.Walk`."""

    loaded: list[Adapter]
    whole: bool
    problems: list[str] = field(default_factory=list)
    held: set[int] = field(default_factory=set)

    def part(self, path: str, module: nn.Module) -> Part:
        hooked = any(getattr(module, hooks, None) for hooks in _HOOKS)
        if hooked:
            return as_it_is(module) if self.whole else self.refuse(path, module, _HOOKED)
        for adapter in self.loaded:
            part = adapter.part(self, path, module)
            if part is not None:
                return part
        if type(module).forward is nn.Sequential.forward:
            return self.chain(path, module)
        return self._plain(path, module)

    def _plain(self, path: str, module: nn.Module) -> Part:
        """The part for a module that no library knows."""
        if self.whole and not any(True for _ in _modes(self.loaded, "", module)):
            return as_it_is(module)
        cls = type(module)
        if not stateless.computes_torchs(cls):
            return self.refuse(path, module, _CUSTOM + self._containers(module, ", "))
        return self.stateless(path, module)

    def stateless(self, path: str, module: nn.Module) -> Part:
        known = stateless.torch_class(type(module))
        assert known is not None
        how, problem = stateless.how(module, known)
        if problem is not None:
            return self.refuse(path, module, problem)
        return folded(module) if how == "folded" else stepped(module)

    def children(self, path: str, module: nn.Module, *, threading: bool) -> list[Part]:
        members = [(_join(path, name), child) for name, child in _members(module)]
        parts = [self.part(*member) for member in members]
        if not self.whole:
            for part, member in zip(parts, members, strict=True):
                child = member[1]
                if part.threads and not threading:
                    self.refuse(*member, _LOSES_STATE + self._containers(child, "; put "))
                elif not part.single and part is not parts[-1]:
                    self.refuse(*member, _SEVERAL)
        return parts

    def chain(self, path: str, module: nn.Module) -> Part:
        parts = self.children(path, module, threading=False)
        if not parts:
            return Part(lambda x, _: (x, None))

        def run(x: Any, _: Any) -> tuple[Any, None]:
            for part in parts:
                out, state = part.run(x, None)
                x = (out, state) if part.threads else out
            return x, None

        return Part(run, parts[-1].single)

    def _containers(self, module: nn.Module, before: str) -> str:
        """The containers that the libraries of a module's layers have to run layers in order."""
        told = [
            adapter.containers
            for adapter in self.loaded
            if adapter.containers and any(adapter.mode(m) is not None for m in module.modules())
        ]
        return before + ", ".join(told) if told else ""

    def in_steps(self) -> _Walk:
        return _Walk(self.loaded, False, self.problems, self.held)

    def hold(self, path: str, module: nn.Module) -> None:
        if id(module) in self.held:
            self.refuse(path, module, _TWICE)
        self.held.add(id(module))

    def refuse(self, path: str, module: nn.Module, why: str) -> Part:
        name = type(module).__name__ if path else "the model"
        where = path or type(module).__name__
        self.problems.append(f"{where} ({name}): {why}")
        return as_it_is(module)


_CUSTOM = (
    "it has a forward of its own, so what passes from layer to layer and from step to step (states "
    "such as mem) is not known; put its layers into an nn.Sequential"
)
_HOOKED = "it has hooks, which would run once for all steps instead of once a step; remove them"
_LOSES_STATE = "its state is passed from step to step, which nn.Sequential does not do"
_SEVERAL = "it returns its states beside its spikes, but another layer follows; use output=False"
_TWICE = (
    "it comes twice, and its state goes from one place to the other within a step; use one layer "
    "for each place"
)
