"""What is passed from one call of a layer to the next besides the library's own state.

These are three things, all attached to the state tensor that the user's loop carries, never to the
module, because a loop may call one layer on two states:

- the *link*, through which the spike-time chain lambda goes back to the previous call. It is
  attached to the tensor object and void once the tensor has another graph or was written to;
- at ``tau_s > 1`` the *trace* a[t], which is forward state. It is attached to the tensor too, and
  its values are also filed under the tensor's storage, so that ``mem = mem.detach()`` keeps them;
- for rules that ask for the window that a step belongs to, the *position* in it, with the link.

There may be a fourth, to save memory: the potential *before its reset*, which the previous call
keeps for its backward pass, so that the next one need not keep the state.
"""

from __future__ import annotations

import itertools
import warnings
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from tssl_adapters.engine.call.settings import Position, Settings, above_us
from tssl_adapters.errors import (
    LostLinkWarning,
    LostTraceError,
)
from tssl_adapters.neuron import Neuron, Value

_ATTRIBUTE = "_tssl_tag"


class Charged:
    """The potential before the reset that produced a state.

    The reset's tensors are remembered by weak reference, as they may have a graph.
    """

    def __init__(self, potential: Tensor, reset: tuple[Any, ...], state: Tensor) -> None:
        self.potential = potential
        self.reset = reset
        self.memory = _memory(state)

    def stands_for(self, state: Tensor, reset: tuple[Any, ...]) -> bool:
        """Whether this reset of the potential would give this state."""
        return self.memory == _memory(state) and (self.reset is reset or self._resets_by(reset))

    def _resets_by(self, reset: tuple[Any, ...]) -> bool:
        """Whether this is the same reset, if one of other tensors is another."""
        if len(self.reset) != len(reset):
            return False
        return not any(
            a is not b and (isinstance(a, weakref.ref) or a != b)
            for a, b in zip(self.reset, reset, strict=True)
        )


def _memory(state: Tensor) -> int:
    """Which memory holds a state: assigning ``state.data`` replaces it."""
    try:
        return int(state.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):  # subclasses without storage
        return 0


def reset_of(neuron: Neuron) -> tuple[Any, ...]:
    """What a reset depends on: settings, numbers, and tensors with their versions."""
    return (
        *(neuron.timing, neuron.strict, neuron.quantiser),
        *(type(neuron.reset), getattr(neuron.reset, "formula", None)),
        *_pinned(neuron.threshold),
        *_pinned(neuron.reset.number),
    )


def _pinned(value: Value) -> tuple[Any, int | None]:
    """A number's current identity; while one is held, a tensor's weak references are one object."""
    return (weakref.ref(value), _version(value)) if isinstance(value, Tensor) else (value, None)


class Tag:
    """Attached to a state tensor. Copies and pickles of the tensor drop it: a copy is a state of
    its own, and a graph cannot be copied.
    """

    def __init__(
        self,
        state: Tensor,
        link: tuple[Tensor, ...],
        trace: Tensor | None,
        position: Position | None,
        charged: Charged | None,
    ) -> None:
        self.link = link
        self.trace = trace
        self.position = position
        self.charged = charged
        self.grad_fn = state.grad_fn
        self.version = _version(state)

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        return None

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()


@dataclass(frozen=True)
class _Filed:
    storage: StorageWeakRef
    version: int | None
    geometry: tuple[Any, ...]
    trace: Tensor


_filed: dict[int, _Filed] = {}


def _version(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version


def _geometry(tensor: Tensor) -> tuple[Any, ...]:
    return (tensor.storage_offset(), tuple(tensor.shape), tensor.stride())


def _storage(tensor: Tensor) -> StorageWeakRef | None:
    try:
        return StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
    except (NotImplementedError, RuntimeError):  # torch.func's wrappers have no storage
        return None


def _dead(filed: _Filed) -> bool:
    return bool(filed.storage.expired())  # type: ignore[no-untyped-call]


def _file(storage: StorageWeakRef, filed: _Filed) -> None:
    """File a trace and drop those whose storage is gone: checking a few per call keeps the file
    about as small as checking all of them would.
    """
    _filed.pop(storage.cdata, None)
    for key in list(itertools.islice(_filed, 32)):
        oldest = _filed.pop(key, None)  # another thread may have taken it
        if oldest is not None and not _dead(oldest):
            _filed[key] = oldest
    _filed[storage.cdata] = filed


def tag(
    state: Tensor,
    link: tuple[Tensor, ...],
    trace: Tensor | None,
    position: Position | None = None,
    charged: Charged | None = None,
) -> None:
    """Attach these to the state that is returned to the user's loop, and its position to its graph:
    what the model computes from a state has that behind it.
    """
    setattr(state, _ATTRIBUTE, Tag(state, link, trace, position, charged))
    node: Any = state.grad_fn
    if position is not None and node is not None:
        node.metadata[_ATTRIBUTE] = position
    if trace is None:
        return
    storage = _storage(state)
    if storage is not None:
        filed = _Filed(storage, _version(state), _geometry(state), trace.detach())
        _file(storage, filed)


def hand_over(source: Tensor, target: Tensor, reached: Tensor) -> Tensor:
    """Move a state's link and trace to the tensor that the user's loop gets in its place.

    ``reached`` has the graph to what else the target was computed from, so that the chain, which
    goes through the link and not through the target, reaches that too.
    """
    found, position = _tag_of(source), position_at(source)
    link = unpacked(found.link) if found is not None and target.requires_grad else ()
    if link:
        link = (link[0], link[1] + reached, *link[2:])
    tag(target, link, None if found is None else found.trace, position)
    untag(source)
    return target


def untag(state: object) -> None:
    """Take our tag off a state (``unwrap``)."""
    if isinstance(state, Tensor) and hasattr(state, _ATTRIBUTE):
        delattr(state, _ATTRIBUTE)


def _tag_of(state: Tensor) -> Tag | None:
    found: Tag | None = getattr(state, _ATTRIBUTE, None)
    return found if found is not None and found.version == _version(state) else None


def link_at(state: Tensor) -> tuple[Tensor, ...]:
    """The link of a state that a step has just produced."""
    found = _tag_of(state)
    return () if found is None else unpacked(found.link)


def unpacked(link: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """A link as torch's functions take it: a tensor for each of its parts."""
    return link[0].unbind() if len(link) == 1 else link


def packed(link: tuple[Tensor, ...]) -> Tensor | None:
    """A link as compiled functions take it: its parts in one tensor."""
    if not link:
        return None
    return link[0] if len(link) == 1 else torch.stack(link)


def charged_of(state: Tensor, reset: tuple[Any, ...]) -> Tensor | None:
    """The potential before a state's reset (:func:`reset_of`), if the call that did it kept it."""
    found = _tag_of(state)
    charged = None if found is None else found.charged
    return charged.potential if charged is not None and charged.stands_for(state, reset) else None


def position_at(state: Tensor) -> Position | None:
    """The position in its window of a state that a step has produced."""
    if state.grad_fn is not None:
        return position_left_at(state.grad_fn)
    found = _tag_of(state)
    return None if found is None or found.grad_fn is not None else found.position


def position_left_at(node: Any) -> Position | None:
    """The position of the state that this operation of a graph gave, which a function of ours may
    itself know (``ctx._tssl_stands``).
    """
    known: Position | None = getattr(node, "_tssl_stands", None)
    return node.metadata.get(_ATTRIBUTE) if known is None else known


def link_of(settings: Settings, state: Tensor, size: int) -> tuple[Tensor, ...]:
    """The link, of ``size`` parts, of a state that was passed in; empty if there is none.

    The parts may be one tensor. Warns once per layer if the state has a graph but no link.
    """
    found = linked_tag(settings, state, size)
    return () if found is None else found.link


def linked_tag(settings: Settings, state: Tensor, size: int) -> Tag | None:
    """Like :func:`link_of`, but returns everything attached to the state."""
    if state.grad_fn is None:
        if not recomputed(state):
            return None
    else:
        found = _tag_of(state)
        if found is not None and found.grad_fn is state.grad_fn and _parts(found.link) == size:
            return found
    if not settings.warned:
        settings.warned = True
        warnings.warn(
            f"tssl_adapters: layer '{settings.path}' was given a state that has a graph but is "
            "not the tensor an earlier call returned (cloned, masked, viewed, written to in "
            "place, checkpointed with use_reentrant=True, or computed by the model). Between "
            "these two calls the gradient is the membrane's ordinary adjoint, without the rule's "
            "chain through spike times, and counts of spikes start anew. Pass the returned state "
            "on as it is, or detach it, to avoid this.",
            LostLinkWarning,
            stacklevel=above_us(),
        )
    return None


def _parts(link: tuple[Tensor, ...]) -> int:
    return link[0].shape[0] if len(link) == 1 else len(link)


def let_go(state: Tensor) -> None:
    """Release the graph of a state that was detached in place."""
    found: Tag | None = getattr(state, _ATTRIBUTE, None)
    if found is not None and state.grad_fn is None and found.grad_fn is not None:
        found.link, found.grad_fn = (), None
        found.trace = None if found.trace is None else found.trace.detach()


def recomputed(state: Tensor) -> bool:
    """Whether it is a leaf that is recomputed in a backward pass, as under
    ``checkpoint(use_reentrant=True)``, and stands for a state with a graph.
    """
    leaf = state.grad_fn is None and state.requires_grad
    return leaf and int(torch._C._current_graph_task_id()) != -1


def trace_of(settings: Settings, state: Tensor | None, rest: Sequence[Value]) -> Tensor | None:
    """The trace of an incoming state; ``None`` starts a new one.

    Args:
        settings: the layer's.
        state: the incoming membrane potential, ``None`` if the layer makes a new one.
        rest: resting values of the potential; a state that equals one everywhere starts anew.

    Raises:
        LostTraceError: the state is neither known nor at rest, or its trace has lost its graph.
    """
    if settings.tau_s == 1.0:
        return None
    if state is None:
        return None
    trace = known_trace(state)
    if trace is not None:
        return _on_the_graph_of(state, trace, settings)
    if at_rest(state, rest):
        return None
    raise LostTraceError(_lost(settings, "is not one that the layer returned, nor at rest"))


def trace_beside(
    settings: Settings, state: Tensor | None, trace: Tensor | float, rest: Sequence[Value]
) -> Tensor | None:
    """:func:`trace_of` for a library that keeps the trace itself, as a second state."""
    if state is None:
        return None
    if isinstance(trace, Tensor) and known_trace(state) is not None:
        return _on_the_graph_of(state, trace, settings)
    if at_rest(state, rest):
        return None
    raise LostTraceError(_lost(settings, "is not one that the layer returned, nor at rest"))


def _on_the_graph_of(state: Tensor, trace: Tensor, settings: Settings) -> Tensor:
    """The trace, detached if its state is."""
    cut = state.grad_fn is None
    if cut and not recomputed(state):
        return trace.detach()
    if (cut or trace.grad_fn is None) and torch.is_grad_enabled():
        raise LostTraceError(_lost(settings, "has a graph, its post-synaptic current has not"))
    return trace


def known_trace(state: Tensor) -> Tensor | None:
    """The trace that a call left for a state, if any."""
    found = _tag_of(state)
    if found is not None and found.trace is not None:
        return found.trace
    storage = _storage(state)
    filed = None if storage is None else _filed.get(storage.cdata)
    if filed is None or _dead(filed) or filed.version != _version(state):
        return None
    return filed.trace if filed.geometry == _geometry(state) else None


def at_rest(state: Tensor, rest: Sequence[Value]) -> bool:
    """Whether the potential is at one of its rest values everywhere."""
    with torch.no_grad():
        return any(_everywhere(state, value) for value in rest)


def _everywhere(state: Tensor, value: Value) -> bool:
    """Whether a state equals a value everywhere; a tensor of an unsuitable shape does not match."""
    try:
        return bool((state == value).all())
    except RuntimeError:
        return False


def _lost(settings: Settings, why: str) -> str:
    return (
        f"Layer '{settings.path}' (tau_s={settings.tau_s}) was given a membrane potential that "
        f"{why}, so the post-synaptic current that belongs to it is lost. Clones, masks, in-place "
        "writes and reentrant checkpointing lose it; detach() and detach_() keep it. Pass on the "
        "state that the layer returned, or start anew from the library's initial state."
    )
