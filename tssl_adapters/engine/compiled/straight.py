"""A decided step as straight code: what it does at every call, and nothing else.

Around its loops, a small step spends its time in Python: loops over a few tensors, tables, calls
among ourselves, which besides crowd the processor's caches. So the functions that every step calls
are written out for what was decided about it, with a line for each of its states, numbers and
results, and compiled by Python. :attr:`tssl_adapters.engine.compiled.steps.Steps.code` is the text.
That of SpikingJelly's ``LIFNode`` under its own surrogate has these lines, among others::

    def fits(inputs, states, pinned, trace=None):
        if s0.shape != x0.shape: return False
    def run(inputs, states, trace=None, fresh=False):
        (to_out, to_s0,) = apply(x0, s0)
        return Stepped(to_out, (to_s0,), None, None, None, None)
    def forward(ctx, x0, s0):
        to_out = empty_like(x0)
        loop((x0, s0, to_out, to_s0, to_h,), numbers, n, inf)
        ctx.save_for_backward(to_h)
        return (to_out, to_s0,)
    def backward(ctx, g_out, g_s0):
        (h,) = ctx.saved_tensors
        d_x0 = empty_like(h)
        loop_back((h, g_out, g_s0, d_x0, d_s0,), numbers, n, inf)
        return (d_x0, d_s0,)

``x0``, ``s0`` are the first input and state, ``to_`` is what the forward pass makes, ``g_`` the
gradient that arrives for it, ``d_`` the gradient that goes back, and ``own_s0`` a copy of a state
that the step before kept, as the user may have written to the state itself.
"""

from __future__ import annotations

import itertools
import linecache
import math
import weakref
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from types import CodeType
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from tssl_adapters.engine.call.once import first_order
from tssl_adapters.engine.call.pins import (
    Pin,
    channels_last,
    grad_enabled,
    modes,
    transforms,
)
from tssl_adapters.engine.call.plan import EngineFunction, nothing
from tssl_adapters.engine.call.settings import WRITTEN, Settings
from tssl_adapters.engine.call.state import Charged, charged_of, let_go, packed, tag
from tssl_adapters.engine.call.window import going_on, length, standing
from tssl_adapters.engine.compiled.form import NOTHING, ZEROS, StepForm, Stepped
from tssl_adapters.engine.compiled.kernels import BITS, RowLoop, as_saved, memory
from tssl_adapters.engine.compiled.step_loops import BackwardLoop
from tssl_adapters.engine.step.cell import Tensors


class Varying(Protocol):
    """What a step looks up at each call: :class:`tssl_adapters.engine.compiled.steps.Steps`."""

    settings: Settings
    numbers: array[float]
    key: tuple[Any, ...]
    last: tuple[Any, ...] | None

    def holds(self, pinned: Tensors) -> bool: ...
    def spread_over(self, shape: torch.Size) -> bool: ...
    def numbers_for(self, like: Tensor) -> list[Tensor]: ...
    def constant(self, needs: tuple[bool, ...]) -> list[int]: ...
    def placed(
        self, backward: BackwardLoop, rooms: Tensors, like: Tensor, *which: Any
    ) -> list[Tensor | None]: ...


class Straight(NamedTuple):
    """A step's functions, as :class:`tssl_adapters.engine.compiled.steps.Steps` describes them, and
    their text.
    """

    fits: Callable[..., bool]
    run: Callable[..., Stepped]
    code: str


def straight(steps: Varying, form: StepForm) -> Straight:
    """Write out a step.

    Args:
        steps: what may change of it.
        form: the rest.
    """
    written = _Text(form)
    names = {**_USED, **written.used, "steps": steps}
    exec(_compiled(written.code), names)
    functions = {
        "forward": staticmethod(names["forward"]),
        "backward": staticmethod(first_order(names["backward"])),
    }
    function = type("CompiledStepFunction", (EngineFunction,), functions)
    # Without looking up the function's signature in every call:
    names["apply"] = super(torch.autograd.Function, function).apply  # type: ignore[misc]
    return Straight(names["fits"], names["run"], written.code)


@cache
def _compiled(text: str) -> CodeType:
    name = f"{WRITTEN}: step {next(_number)}>"
    linecache.cache[name] = len(text), None, text.splitlines(keepends=True), name
    return compile(text, name, "exec")


_number = itertools.count()


class _Text:
    """The text of a step's functions: ``code``; ``used``: what it uses by names of its own."""

    def __init__(self, form: StepForm) -> None:
        self.form = form
        self.used: dict[str, Any] = {"dtype": form.dtype, "here": form.device}
        self.inputs = [f"x{k}" for k in range(form.inputs)]
        self.states = [f"s{k}" for k in range(form.states)]
        self.trace = ["trace"] if form.traced else []
        self.in_tensors = [*form.of_each, *form.read]
        self.results = [_variable(f"to.{name}") for name in form.forward.results]
        self.copies = form.forward.copies
        self.by_h = form.from_h is not None and 0 in self.copies
        self.before = [
            *(["position"] if form.timed else []),
            *(["left"] if form.forward.left else []),
            *(f"own_s{k}" for k in self.copies),
            *(["link"] if form.links else []),
        ]
        """What ``forward`` takes besides the tensors that it is a function of."""
        self.made = [
            "numbers",
            "shape",
            *self.in_tensors,
            *(["position"] if form.timed else []),
            *(["linked"] if form.links else []),
            *(["by_h"] if self.by_h else []),
            *(["strides"] if form.formats else []),
        ]
        """What it leaves for ``backward`` besides the tensors that autograd keeps."""
        self.learned = [f"w{k}" for k in range(len(form.learned))]
        self.used |= dict(zip(self.learned, form.learned, strict=True))
        self.code = "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        taken = [*self.before, *self.inputs, *self.states, *self.trace, *self.learned]
        coming = [f"g_{name}" for name in self.form.forward.results]
        coming += ["g_link"] if self.form.links else []
        for head, body in (
            ("fits(inputs, states, pinned, trace=None)", self.fits()),
            ("run(inputs, states, trace=None, fresh=False)", self.run(taken)),
            (f"forward(ctx, {', '.join(taken)})", self.forward()),
            (f"backward(ctx, {', '.join(coming)})", self.backward()),
        ):
            yield f"def {head}:"
            yield from _indented(body)

    def fits(self) -> Iterator[str]:
        """The body of ``fits``."""
        form = self.form
        yield f"if len(states) != {form.states}: return False"
        yield from self._unpacked()
        yield from self._memory([*self.inputs, *self.states])
        if form.traced:
            yield "if trace is not None:"
            yield from _indented(self._memory(["trace"]))
        if form.least_dims:
            yield f"if x0.ndim < {form.least_dims}: return False"
        if form.of_each:
            yield "if not steps.spread_over(x0.shape): return False"
        yield "if not grad_enabled() or transforms() or modes() or not x0.numel(): return False"
        if form.fixed is None:
            yield "return steps.holds(pinned)"
        else:
            yield from self._pinned(form.fixed)
            yield "return True"

    def _unpacked(self) -> Iterator[str]:
        yield f"{_tuple(self.inputs)} = inputs"
        yield f"{_tuple(self.states)} = states"

    def _memory(self, names: Sequence[str]) -> Iterator[str]:
        """Return unless these are memory that loops take, shaped and laid out like ``x0``."""
        for name in names:
            place = "is_cpu" if self.form.device is None else "device == here"
            kind = f"{name}.dtype is dtype and {name}.layout is strided and {name}.{place}"
            plain = f"type({name}) is Tensor and {kind} and not {name}.is_neg()"
            yield f"if not ({plain}): return False"
        others = [name for name in names if name != "x0"]
        for name in others:
            yield f"if {name}.shape != x0.shape: return False"
        lie = " and ".join(f"{name}.is_contiguous()" for name in ["x0", *others])
        alike = f" or lie_alike({', '.join(['x0', *others])})" if self.form.formats else ""
        yield f"if not ({lie}{alike}): return False"

    def _pinned(self, fixed: Sequence[Pin]) -> Iterator[str]:
        """Return unless a step's numbers are unchanged, as :meth:`Pin.holds` says."""
        yield f"if len(pinned) != {len(fixed)}: return False"
        if fixed:
            yield f"{_tuple(f'now{k}' for k in range(len(fixed)))} = pinned"
        for k, pin in enumerate(fixed):
            for field in ("tensor", "address", "view", "value"):
                self.used[f"{field}{k}"] = getattr(pin, field)
            yield f"if now{k} is not tensor{k} or now{k}.data_ptr() != address{k}: return False"
            yield f"if view{k}.value != value{k} or now{k}.requires_grad: return False"

    def run(self, taken: Sequence[str]) -> Iterator[str]:
        """The body of ``run``. ``taken``: what ``forward`` takes."""
        form, forward, tags = self.form, self.form.forward, [*self._tags()]
        yield from self._unpacked()
        if form.traced:
            yield "if trace is None: trace = zeros_like(s0)"
        if form.links:
            yield f"parts, position = going_on(steps.settings, s0, {form.links}, fresh)"
            yield "link = packed(parts)"
        elif form.timed:
            yield "position = standing(steps.settings, s0, fresh)"
        if form.timed:
            yield "position = position.after(1, None)"
        yield "let_go(s0)"
        for k in self.copies:
            yield f"own_s{k} = charged_of(s{k}, steps.key)"
        if forward.left:
            yield "left = []"
        if forward.defers:
            yield "last = steps.last"
            same = "s0._version == last[1] and s0.data_ptr() == last[2]"
            yield f"known = last is not None and last[0]() is s0 and {same}"
            yield "before = last[3] if known else s0.detach().clone()"
        results = [*self.results, *(["to_link"] if form.links else [])]
        yield f"{_tuple(results)} = apply({', '.join(taken)})"
        if tags:
            yield "recorded = to_s0.requires_grad"
            yield from tags
        after = _tuple(f"to_{name}" for name in self.states)
        trace = "to_trace" if form.traced else None
        spike = "to_spike" if "spike" in forward.results else None
        due = f"left[{forward.left.index('due')}]" if "due" in forward.left else None
        before = None
        if forward.defers:
            before, h = "(before, steps.fixed)", f"left[{forward.left.index('h')}]"
            yield f"steps.last = ref(to_s0), to_s0._version, to_s0.data_ptr(), {h}"
        yield f"return Stepped(to_out, {after}, {trace}, {spike}, {due}, {before})"

    def _tags(self) -> Iterator[str]:
        """Attach to the states what is passed on with them."""
        form = self.form
        for k, name in enumerate(self.states):
            link = "(to_link,)" if form.links and k == 0 else "()"
            trace = "to_trace" if form.traced and k == 0 else None
            position = "position" if form.timed and k == 0 else None
            own = None
            if k in self.copies:
                own = f"Charged(left[{self.copies[k]}], steps.key, to_{name})"
            if (link, trace, position, own) == ("()", None, None, None):
                continue
            if (link, trace, own) != ("()", None, None):  # a graph has the position itself
                yield f"if recorded: tag(to_{name}, {link}, {trace}, {position}, {own})"
            if trace or position:  # what goes on without a graph, too
                yield f"if not recorded: tag(to_{name}, (), {trace}, {position})"

    def forward(self) -> Iterator[str]:
        """The body of ``forward``."""
        form, forward = self.form, self.form.forward
        yield "n, numbers = x0.numel(), steps.numbers"
        if self.in_tensors:
            yield f"{_tuple(self.in_tensors)} = steps.numbers_for(x0)"
        for name, loop, compute in forward.functions:
            self.used[f"compute_{name}"] = compute
            yield f"{name} = to_{name} = empty_like(x0)"
            yield self._called(loop, f"loop_{name}")
            yield f"compute_{name}({name})"
        for name in forward.outputs:
            yield f"{_variable(f'to.{name}')} = empty_like(x0)"
        if forward.bits:
            yield f"{BITS} = x0.new_empty(-(-n // 8), dtype=uint8)"
        yield self._called(forward.loop, "loop")
        if form.links:
            yield "linked = link is not None"
        if self.by_h:
            yield "by_h = own_s0 is not None"
        if form.formats:
            yield "strides = channels_last(x0)"
        yield "shape = x0.shape"
        yield f"ctx.made = {_tuple(self.made)}"
        if form.timed:
            yield "ctx._tssl_stands = position"
        yield f"ctx.save_for_backward({', '.join(self._saved())})"
        yield "ctx.set_materialize_grads(False)"
        # A result that all of ``given`` reach has a gradient if one of them needs one.
        if any({*form.given} - reached for reached in form.reached):
            yield from self._constant()
        if forward.left:
            yield f"left += {_tuple(_variable(f'to.{name}') for name in forward.left)}"
        links = [f"nothing(x0, ({form.links}, *x0.shape))"] if form.links else []
        yield f"return {_tuple([*self.results, *links])}"

    def _constant(self) -> Iterator[str]:
        """Mark the results that have no gradient."""
        needs, first = "ctx.needs_input_grad", len(self.before)
        through = (k for k, name in enumerate(self.form.given) if self.form.reaches_all(name))
        reaching = next(through, None)
        some = f"*({_tuple(self.results)}[k] for k in constant)"
        marking = [
            f"constant = steps.constant({needs}[{first}:])",
            f"if constant: ctx.mark_non_differentiable({some})",
        ]
        if reaching is not None:
            yield f"if not {needs}[{first + reaching}]:"
            marking = [*_indented(marking)]
        yield from marking

    def _saved(self) -> Iterator[str]:
        copied = {f"s{k}" for k in self.copies}
        for name in self.form.kept:
            own = f"{name} if own_{name} is None else own_{name}" if name in copied else name
            yield "to_h" if name == "h" else own
        yield from self.form.read

    def backward(self) -> Iterator[str]:
        """The body of ``backward``."""
        form = self.form
        results = form.forward.results
        yield f"{_tuple(self.made)} = ctx.made"
        read = ["*_"] if form.read else []  # kept to see whether they were written to since
        yield f"{_tuple([*form.kept, *read])} = ctx.saved_tensors"
        yield "n, arrived = shape.numel(), None"
        for name in form.kept:
            strides = ", strides" if form.formats else ""
            kept = f"{name}, dtype, shape{strides}"
            if name == BITS:
                kept = f"{name}, uint8, (-(-n // 8),)"
            plain = f"{name}.dtype is dtype and {name}.shape == shape and {name}.is_contiguous()"
            always = form.formats or name == BITS
            test = "" if always else f"if not ({plain} and not {name}.is_neg()): "
            yield f"{test}{name} = as_saved({kept})"
        yield f"if {' or '.join(f'g_{name} is None' for name in results)}:"
        arrived = _tuple(f"g_{name} is not None" for name in results)
        yield from _indented([f"arrived = {arrived}"])
        for name in results:
            yield from _indented([f"if g_{name} is None: g_{name} = zeros_like(h)"])
        for name in results:
            if form.formats:
                yield f"g_{name} = memory(g_{name}, strides)"
            else:
                plain = f"g_{name}.is_contiguous() and not g_{name}.is_neg()"
                yield f"if not ({plain}): g_{name} = memory(g_{name})"
        if form.links:
            # A link's gradient is the next step's, for this one alone, which may overwrite it.
            zeros = f"h.new_zeros(({form.links}, *h.shape))"
            rows = ", strides and (n, *strides)" if form.formats else ""
            yield f"link = to_link = memory({zeros} if g_link is None else g_link{rows})"
        if self.by_h and form.from_h is not None:
            yield "if by_h:"
            yield from _indented(self._back(form.from_h, "from_h"))
        yield from self._back(form.backward, "back")

    def _back(self, backward: BackwardLoop, name: str) -> Iterator[str]:
        """Run a loop back and return the gradients."""
        form = self.form
        rooms = [_variable(f"d.{own}") for own in backward.own]
        for room in rooms:
            yield f"{room} = empty_like(h)"
        steps = "length(position)" if form.timed else "inf"
        rows = {_variable(f"to.{own}"): room for own, room in zip(backward.own, rooms, strict=True)}
        yield self._called(backward.loop, f"loop_{name}", steps, rows)
        self.used[f"line_{name}"] = backward
        which = "g_link is not None, linked" if form.links else "False, False"
        placed = f"*steps.placed(line_{name}, {_tuple(rooms)}, h, arrived, {which})"
        yield "if arrived is not None:"
        yield from _indented(self._returned([placed], "to_link if linked else None"))
        if form.links:
            yield "if linked:"
            yield from _indented(self._returned(self._placed(backward, rooms, True), "to_link"))
        yield from self._returned(self._placed(backward, rooms, False), "None")

    def _placed(self, backward: BackwardLoop, rooms: Sequence[str], linked: bool) -> list[str]:
        """The gradients if those of all results arrived, whether that of the link did or not."""
        arrived = [True] * len(self.results)
        named = {NOTHING: "None", ZEROS: "zeros_like(h)", **dict(enumerate(rooms))}
        return [named[place] for place in self.form.places(backward, arrived, True, linked)]

    def _returned(self, found: Sequence[str], link: str) -> Iterator[str]:
        """Return the gradients of all that ``forward`` takes. ``link``: the link's."""
        others = [link if name == "link" else "None" for name in self.before]
        count = len(self.learned)
        if count:
            names = [f"d_{name}" for name in self.form.given]
            yield f"{_tuple(names)} = {_tuple(found)}"
            sums = zip(names[-count:], self.learned, strict=True)
            found = [*names[:-count], *(f"summed({terms}, {w})" for terms, w in sums)]
        yield f"return {_tuple([*others, *found])}"

    def _called(
        self, loop: RowLoop, name: str, steps: str = "inf", rows: Mapping[str, str] | None = None
    ) -> str:
        """Call a loop. ``rows``: what holds which of its tensors, if not a variable of its name."""
        self.used[name] = loop
        taken = [_variable(tensor) for tensor in loop.takes]
        held = [tensor if rows is None else rows.get(tensor, tensor) for tensor in taken]
        return f"{name}({_tuple(held)}, numbers, n, {steps})"


def lie_alike(first: Tensor, *others: Tensor) -> bool:
    """Whether these lie in memory in one format that torch's results keep."""
    strides = channels_last(first)
    return strides is not None and all(other.stride() == strides for other in others)


def summed(terms: Tensor | None, like: Tensor) -> Tensor | None:
    """The gradient of a number that learns, from a step's terms of it."""
    if terms is None:
        return None
    total = terms.sum().reshape(like.shape) if like.numel() == 1 else terms.sum_to_size(like.shape)
    return total.to(like)


def _variable(name: str) -> str:
    return name.replace(".", "_")


def _tuple(names: Iterable[str]) -> str:
    return f"({''.join(f'{name}, ' for name in names).rstrip()})"


def _indented(lines: Iterable[str]) -> Iterator[str]:
    return (f"    {line}" for line in lines)


_USED: Mapping[str, Any] = {
    "Charged": Charged,
    "Stepped": Stepped,
    "Tensor": Tensor,
    "as_saved": as_saved,
    "channels_last": channels_last,
    "charged_of": charged_of,
    "empty_like": torch.empty_like,
    "going_on": going_on,
    "grad_enabled": grad_enabled,
    "inf": math.inf,
    "length": length,
    "let_go": let_go,
    "lie_alike": lie_alike,
    "memory": memory,
    "modes": modes,
    "nothing": nothing,
    "packed": packed,
    "ref": weakref.ref,
    "standing": standing,
    "strided": torch.strided,
    "summed": summed,
    "tag": tag,
    "transforms": transforms,
    "uint8": torch.uint8,
    "zeros_like": torch.zeros_like,
}
"""What the text calls by these names."""
