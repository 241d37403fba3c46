"""States in the user's own time loop: what a loop may do to them, at tau_s = 1 and above.

Values are held to the plain loop (the same layer, the state passed on untouched) and, at
tau_s = 1, to the unwrapped twin; gradients to the numpy oracle. There the oracle is one autograd
function over a window of steps, so that whatever a loop does to a state between two windows
(detach, mask, clone) is done to the oracle's states as well and torch's autograd says what is
expected: a cut chain, or the membrane's ordinary adjoint.
"""

from __future__ import annotations

import copy
import gc
import pickle
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import norse.torch as norse
import numpy as np
import oracle
import pytest
import snntorch
import torch
from norse.torch.functional.lif import LIFFeedForwardState, LIFParameters
from norse.torch.functional.lif_box import LIFBoxFeedForwardState, LIFBoxParameters
from snntorch import utils
from spikingjelly.activation_based import base, functional, memopt, neuron
from spikingjelly.activation_based import layer as sj_layer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import tssl_adapters
from tssl_adapters import rules
from tssl_adapters.errors import LostLinkWarning, LostTraceError

BATCH, NEURONS, STEPS = 4, 256, 9
CUTS = (3, 4, 7)
"""Where a sequence is cut into calls, or a state is tampered with: after 3, 4 and 7 steps."""
TAUS = [1.0, 3.0]

Edit: TypeAlias = Callable[[Tensor], Tensor]


# --- the layers ------------------------------------------------------------------------------


class State(NamedTuple):
    """A layer's states, in every library: the potential, and Norse's synaptic current."""

    v: Tensor
    i: Tensor | None = None

    def edited(self, edit: Edit) -> State:
        return State(edit(self.v), None if self.i is None else edit(self.i))


class Known(NamedTuple):
    """A layer in the oracle's terms; tensors depend on the layer's parameters."""

    decay: Any
    gain: Any = 1.0
    offset: Any = 0.0
    threshold: Any = 1.0
    reset_value: Any = 0.0
    leak: Any = None
    """dt * tau_syn_inv of a synaptic current."""


@dataclass(frozen=True)
class Loop:
    """A layer and how a user's loop drives it.

    Attributes:
        make: makes a layer, always the same one.
        call: runs ``[steps, batch, neurons]`` from a state (``None``: a new start), step by step
            or as a whole, whichever the layer does.
        known: the layer in the oracle's terms, and the oracle's words for reset and timing.
        params: what the layer learns.
        hidden: whether the state lives in the layer.
        atol: of gradients, relative to the largest (snnTorch's spikes are float32 always).
    """

    name: str
    make: Callable[[], Any]
    call: Callable[[Any, Tensor, State | None], tuple[Tensor, State]]
    known: Callable[[Any], Known]
    words: dict[str, Any]
    params: Callable[[Any], list[Tensor]] = lambda layer: list(layer.parameters())
    rest: float = 0.0
    hidden: bool = False
    sequence: bool = False
    tolerance: float = 1e-10

    def __str__(self) -> str:
        return self.name


def call_snntorch(layer: Any, x: Tensor, state: State | None) -> tuple[Tensor, State]:
    mem = layer.init_leaky() if state is None else state.v
    outs = []
    for step in x:
        out, mem = layer(step, mem)
        outs.append(out)
    return torch.stack(outs), State(mem)


def call_hidden(layer: Any, x: Tensor, state: State | None) -> tuple[Tensor, State]:
    if state is None:
        layer.reset_mem()
    elif state.v is not layer.mem:
        layer.mem = state.v
    out = torch.stack([layer(step) for step in x])
    return out, State(layer.mem)


def known_leaky(layer: Any) -> Known:
    return Known(decay=layer.beta.clamp(0, 1), threshold=layer.threshold)


def snntorch_loops() -> Iterator[Loop]:
    for hidden in (False, True):
        for reset in ("subtract", "zero"):
            for delay in (True, False):

                def make(hidden: bool = hidden, reset: str = reset, delay: bool = delay) -> Any:
                    layer = snntorch.Leaky(
                        beta=0.8,
                        threshold=0.6,
                        learn_beta=True,
                        learn_threshold=True,
                        reset_mechanism=reset,
                        reset_delay=delay,
                        init_hidden=hidden,
                    )
                    return layer.double()

                yield Loop(
                    f"snntorch-{'hidden' if hidden else 'explicit'}-{reset}"
                    + ("-delay" if delay else "-nodelay"),
                    make,
                    call_hidden if hidden else call_snntorch,
                    known_leaky,
                    {
                        "reset": {"subtract": "subtract", "zero": "value"}[reset],
                        "timing": "delayed" if delay else "both",
                    },
                    hidden=hidden,
                    tolerance=3e-5,
                )


def call_spikingjelly(layer: Any, x: Tensor, state: State | None) -> tuple[Tensor, State]:
    if state is None:
        functional.reset_net(layer)
    elif state.v is not layer.v:
        layer.v = state.v
    out = layer(x) if layer.step_mode == "m" else torch.stack([layer(step) for step in x])
    return out, State(layer.v)


def known_node(layer: Any) -> Known:
    rate = layer.w.sigmoid() if isinstance(layer, neuron.ParametricLIFNode) else 1.0 / layer.tau
    rest = layer.v_reset or 0.0
    return Known(
        decay=1.0 - rate,
        gain=rate if layer.decay_input else 1.0,
        offset=rate * rest,
        threshold=layer.v_threshold,
        reset_value=rest,
    )


def spikingjelly_loops() -> Iterator[Loop]:
    makers: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
        "LIFNode": (neuron.LIFNode, {"tau": 3.0, "v_threshold": 0.4, "v_reset": 0.0}),
        "ParametricLIFNode": (
            neuron.ParametricLIFNode,
            {"init_tau": 2.5, "v_threshold": 0.4, "v_reset": None, "decay_input": False},
        ),
    }
    for name, (cls, options) in makers.items():
        for mode in ("s", "m"):

            def make(cls: Any = cls, options: Any = options, mode: str = mode) -> Any:
                return cls(**options, step_mode=mode).double()

            yield Loop(
                f"spikingjelly-{name}-{mode}",
                make,
                call_spikingjelly,
                known_node,
                {"reset": "subtract" if options["v_reset"] is None else "value", "strict": False},
                hidden=True,
                sequence=mode == "m",
            )


def call_norse(layer: Any, x: Tensor, state: State | None) -> tuple[Tensor, State]:
    box = isinstance(layer, norse.LIFBoxCell)
    given: Any = None
    if state is not None:
        given = LIFBoxFeedForwardState(state.v) if box else LIFFeedForwardState(*state)
    if isinstance(layer, norse.LIF):
        out, given = layer(x, given)
    else:
        outs = []
        for step in x:
            out, given = layer(step, given)
            outs.append(out)
        out = torch.stack(outs)
    return out, State(given.v, getattr(given, "i", None))


def known_norse(layer: Any) -> Known:
    p, dt = layer.p, layer.dt
    rate = dt * p.tau_mem_inv
    return Known(
        decay=1.0 - rate,
        gain=rate,
        offset=rate * p.v_leak,
        threshold=p.v_th,
        reset_value=p.v_reset,
        leak=None if isinstance(layer, norse.LIFBoxCell) else dt * p.tau_syn_inv,
    )


def norse_params(layer: Any) -> list[Tensor]:
    return [v for v in layer.p if isinstance(v, Tensor) and v.requires_grad]


def norse_loops() -> Iterator[Loop]:
    for name in ("LIFCell", "LIFBoxCell", "LIF"):

        def make(name: str = name) -> Any:
            def value(x: float) -> Tensor:
                return torch.tensor(x, dtype=torch.float64, requires_grad=True)

            common = {
                "tau_mem_inv": value(300.0),
                "v_leak": value(0.0625),
                "v_th": value(0.4),
                "v_reset": value(-0.1),
            }
            if name == "LIFBoxCell":
                return norse.LIFBoxCell(LIFBoxParameters(**common))
            return getattr(norse, name)(LIFParameters(tau_syn_inv=value(400.0), **common))

        yield Loop(
            f"norse-{name}",
            make,
            call_norse,
            known_norse,
            {"reset": "value"},
            norse_params,
            rest=0.0625,
            sequence=name == "LIF",
        )


LOOPS = [*snntorch_loops(), *spikingjelly_loops(), *norse_loops()]
EXPLICIT = [loop for loop in LOOPS if not loop.hidden]


# --- the oracle as a layer -------------------------------------------------------------------


class OracleWindow(torch.autograd.Function):
    """The oracle over a window of steps, from the potential and the trace that come in."""

    @staticmethod
    def forward(ctx: Any, words: dict[str, Any], names: tuple[str, ...], *tensors: Tensor) -> Any:
        ctx.arguments = {n: t.detach().numpy() for n, t in zip(names, tensors, strict=True)}
        ctx.words = words
        found = oracle.run(
            **ctx.arguments, **words, grad_out=np.zeros_like(ctx.arguments["drive"])
        )
        return torch.from_numpy(found["psc"]), torch.from_numpy(found["membrane"])

    @staticmethod
    def backward(ctx: Any, grad_psc: Tensor, grad_membrane: Tensor) -> tuple[Tensor | None, ...]:
        found = oracle.run(
            **ctx.arguments,
            **ctx.words,
            grad_out=grad_psc.numpy(),
            grad_membrane=grad_membrane.numpy(),
        )
        return None, None, *(torch.from_numpy(np.asarray(found[n])) for n in ctx.arguments)


class Reference:
    """A layer made of the oracle, with the same calls as the wrapped one.

    A trace comes in with the state and goes out with it, ``[v, i, trace]`` being kept apart.
    """

    def __init__(self, loop: Loop, layer: Any, tau_s: float, options: dict[str, Any]) -> None:
        self.loop, self.layer = loop, layer
        self.words = {**loop.words, **options, "tau_s": tau_s}

    def call(
        self, x: Tensor, state: State | None, trace: Tensor | None
    ) -> tuple[Tensor, list[State], Tensor]:
        """Outputs, the state after every step, the last trace."""
        known = self.loop.known(self.layer)
        if state is None:
            v = torch.full(x.shape[1:], self.loop.rest, dtype=torch.float64)
            state = State(v, None if known.leak is None else torch.zeros_like(v))
        drive, currents = x, [None] * len(x)
        if known.leak is not None:
            drive, currents = self._filtered(x, state.i, known.leak)
        numbers = {
            name: torch.as_tensor(value, dtype=torch.float64)
            for name, value in known._asdict().items()
            if name != "leak" and not (name == "reset_value" and self.words["reset"] != "value")
        }
        tensors = {"drive": drive, "v0": state.v, **numbers}
        if trace is not None:
            tensors["a0"] = trace
        out, membrane = OracleWindow.apply(self.words, tuple(tensors), *tensors.values())
        states = [State(v, i) for v, i in zip(membrane, currents, strict=True)]
        return out, states, out[-1]

    @staticmethod
    def _filtered(x: Tensor, i: Tensor | None, leak: Tensor) -> tuple[Tensor, list[Any]]:
        assert i is not None
        charged, after = [], []
        for step in x:
            charged.append(i + step)
            i = charged[-1] * (1.0 - leak)
            after.append(i)
        return torch.stack(charged), after


# --- runs ------------------------------------------------------------------------------------


class Runs(NamedTuple):
    """Values, and gradients of input, incoming state and parameters."""

    out: Tensor
    seen: list[State]
    grads: list[Tensor]


def drive_of(steps: int = STEPS, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (0.7 + torch.randn(steps, BATCH, NEURONS, generator=generator).double()).to(dtype)


def loss_of(out: Tensor, seen: Sequence[State], seed: int = 1) -> Tensor:
    """A weighted sum of all outputs, and of the states after every call."""
    generator = torch.Generator().manual_seed(seed)

    def weighted(values: Tensor) -> Tensor:
        weight = torch.randn(values.shape, generator=generator, dtype=torch.float64)
        return (values * weight.to(values.dtype)).sum().double()

    total = weighted(out)
    for state in seen:
        total = total + weighted(state.v)
        if state.i is not None:
            total = total + weighted(state.i)
    return total


def gradients(loss: Tensor, wanted: Sequence[Tensor]) -> list[Tensor]:
    found = torch.autograd.grad(loss, list(wanted), allow_unused=True)
    return [torch.zeros_like(w) if g is None else g for w, g in zip(wanted, found, strict=True)]


def start_state(loop: Loop, on: Tensor) -> State:
    """A state to start from, as leaves."""
    v = 0.3 + 0.4 * torch.randn(on.shape[1:], generator=torch.Generator().manual_seed(2))
    v = v.double().requires_grad_()
    current = loop.name in ("norse-LIFCell", "norse-LIF")
    return State(v, (0.2 * v.detach()).requires_grad_() if current else None)


def bounds(steps: int, cuts: Sequence[int]) -> list[tuple[int, int]]:
    edges = [0, *cuts, steps]
    return list(zip(edges, edges[1:], strict=False))


def run_layer(
    loop: Loop,
    layer: Any,
    x: Tensor,
    *,
    cuts: Sequence[int] = CUTS,
    edit: Edit | None = None,
    start: State | None = None,
    grad: bool = True,
    watch: bool = True,
) -> Runs:
    """Run a layer in calls, the state edited between them."""
    x = x.clone().requires_grad_(grad)
    state, outs, seen = start, [], []
    for begin, end in bounds(len(x), cuts):
        out, state = loop.call(layer, x[begin:end], state)
        outs.append(out)
        # What the loss sees is the state that the layer returned, so edits in place need a copy.
        seen.append(state.edited(torch.clone))
        if edit is not None and end < len(x):
            state = state.edited(edit)
    out = torch.cat(outs)
    if not grad:
        return Runs(out, seen, [])
    starts = [] if start is None else [t for t in start if t is not None]
    loss = loss_of(out, seen if watch else seen[-1:])
    return Runs(out, seen, gradients(loss, [x, *starts, *loop.params(layer)]))


def run_reference(
    loop: Loop,
    layer: Any,
    x: Tensor,
    tau_s: float,
    *,
    cuts: Sequence[int] = CUTS,
    edit: Edit | None = None,
    edit_trace: Edit | None = None,
    start: State | None = None,
    options: dict[str, Any] | None = None,
    watch: bool = True,
) -> Runs:
    """The same by the oracle. Without an edit, the calls are one window: the chain is whole."""
    reference = Reference(loop, layer, tau_s, options or {})
    x = x.clone().requires_grad_()
    if start is not None:
        start = start.edited(lambda t: t.detach().clone().requires_grad_())
    state, trace, outs, seen = start, None, [], []
    ends = [end for _, end in bounds(len(x), cuts)]
    windows = bounds(len(x), cuts if edit is not None else ())
    for begin, end in windows:
        out, states, trace = reference.call(x[begin:end], state, trace)
        outs.append(out)
        state = states[-1]
        seen += [states[at - begin - 1] for at in ends if begin < at <= end]
        if edit is not None:
            state = state.edited(edit)
            trace = trace.detach() if edit_trace is None else edit_trace(trace)
        if tau_s == 1.0:
            trace = None
    out = torch.cat(outs)
    starts = [] if start is None else [t for t in start if t is not None]
    loss = loss_of(out, seen if watch else seen[-1:])
    return Runs(out, seen, gradients(loss, [x, *starts, *loop.params(layer)]))


def close(ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    """Within ``tolerance`` of the largest entry."""
    assert ours.shape == theirs.shape
    ours, theirs = ours.detach().double(), theirs.detach().double()
    error, scale = float((ours - theirs).abs().max()), max(1.0, float(theirs.abs().max()))
    assert error <= tolerance * scale


def same_values(ours: Runs, theirs: Runs) -> None:
    """Bit for bit."""
    assert torch.equal(ours.out, theirs.out)
    for left, right in zip(ours.seen, theirs.seen, strict=True):
        for a, b in zip(left, right, strict=True):
            assert (a is None and b is None) or torch.equal(a, b)  # type: ignore[arg-type]


def close_values(ours: Runs, theirs: Runs) -> None:
    close(ours.out, theirs.out, 1e-6)
    for left, right in zip(ours.seen, theirs.seen, strict=True):
        close(left.v, right.v, 1e-11)


def close_grads(ours: Runs, theirs: Runs, tolerance: float) -> None:
    assert len(ours.grads) == len(theirs.grads)
    for a, b in zip(ours.grads, theirs.grads, strict=True):
        close(a, b, tolerance)


NAME = "block.spikes"
"""Where the layer sits in the model that is wrapped."""


def wrapped(loop: Loop, tau_s: float, rule: rules.Rule | None = None) -> Any:
    layer = loop.make()
    model = nn.ModuleDict({"block": nn.ModuleDict({"spikes": layer})})
    tssl_adapters.wrap(model, tau_s=tau_s, rule=rule)
    return layer


# --- calls -----------------------------------------------------------------------------------


@pytest.mark.parametrize("loop", LOOPS, ids=str)
@pytest.mark.parametrize("tau_s", TAUS)
def test_calls_add_up(loop: Loop, tau_s: float) -> None:
    """A step loop, and a sequence cut into calls, equal the oracle over the whole sequence."""
    x = drive_of()
    ours = run_layer(loop, wrapped(loop, tau_s), x)
    expected = run_reference(loop, loop.make(), x, tau_s)
    close_values(ours, expected)
    close_grads(ours, expected, loop.tolerance)


@pytest.mark.parametrize("loop", LOOPS, ids=str)
def test_calls_add_up_from_a_state(loop: Loop) -> None:
    """The incoming state takes its gradient, its potential above the threshold among others."""
    x = drive_of()
    ours = run_layer(loop, wrapped(loop, 1.0), x, start=start_state(loop, x))
    expected = run_reference(loop, loop.make(), x, 1.0, start=start_state(loop, x))
    close_values(ours, expected)
    close_grads(ours, expected, loop.tolerance)


@pytest.mark.parametrize("loop", LOOPS, ids=str)
@pytest.mark.parametrize("tau_s", TAUS)
@pytest.mark.parametrize("cuts", [(), (1,), (3, 4, 8), tuple(range(1, STEPS))], ids=str)
def test_cuts_do_not_matter(loop: Loop, tau_s: float, cuts: tuple[int, ...]) -> None:
    """Wherever a sequence is cut into calls, values and gradients are the same."""
    x = drive_of(seed=3)
    layer = wrapped(loop, tau_s)
    ours = run_layer(loop, layer, x, cuts=cuts, watch=False)
    expected = run_reference(loop, loop.make(), x, tau_s, cuts=(), watch=False)
    close(ours.out, expected.out, 1e-6)
    close_grads(ours, expected, loop.tolerance)
    again = run_layer(loop, layer, x, cuts=(), watch=False)
    assert torch.equal(ours.out, again.out)
    close_grads(ours, again, 1e-11)


@pytest.mark.parametrize("loop", LOOPS, ids=str)
@pytest.mark.parametrize("tau_s", TAUS)
def test_forward_is_the_librarys(loop: Loop, tau_s: float) -> None:
    x = drive_of()
    ours = run_layer(loop, wrapped(loop, tau_s), x)
    twin = run_layer(loop, loop.make(), x, grad=False)
    same_values(ours, twin._replace(out=psc_of(twin.out, tau_s)))
    assert 0.2 < float(twin.out.detach().mean()) < 0.8


def psc_of(spikes: Tensor, tau_s: float) -> Tensor:
    """Spikes filtered as the specification has it."""
    if tau_s == 1.0:
        return spikes
    trace, traces = torch.zeros_like(spikes[0]), []
    for spike in spikes:
        trace = trace + (spike - trace) / tau_s
        traces.append(trace)
    return torch.stack(traces)


@pytest.mark.parametrize("tau_s", TAUS)
@pytest.mark.parametrize(
    ("step", "sequence"),
    [
        ("spikingjelly-LIFNode-s", "spikingjelly-LIFNode-m"),
        ("spikingjelly-ParametricLIFNode-s", "spikingjelly-ParametricLIFNode-m"),
        ("norse-LIFCell", "norse-LIF"),
    ],
)
def test_step_equals_sequence(step: str, sequence: str, tau_s: float) -> None:
    x = drive_of(seed=4)
    left, right = (
        run_layer(loop, wrapped(loop, tau_s), x) for loop in LOOPS if loop.name in (step, sequence)
    )
    close_values(left, right)
    close_grads(left, right, 1e-11)


@pytest.mark.parametrize("loop", [loop for loop in EXPLICIT if not loop.sequence], ids=str)
@pytest.mark.parametrize("tau_s", TAUS)
def test_one_neuron_on_two_states(loop: Loop, tau_s: float) -> None:
    """Called twice in each step, as two layers with the same weights; one feeds the other."""
    shared, first, second = (wrapped(loop, tau_s) for _ in range(3))

    def run(one: Any, two: Any) -> tuple[Tensor, list[Tensor]]:
        x = drive_of().requires_grad_()
        y = drive_of(seed=7).requires_grad_()
        states: list[State | None] = [None, None]
        outs, seen = [], []
        for left, right in zip(x.split(1), y.split(1), strict=True):
            out, states[0] = loop.call(one, left, states[0])
            outs.append(out)
            out, states[1] = loop.call(two, right + 0.5 * out, states[1])
            outs.append(out)
            seen += states
        out = torch.cat(outs)
        params = loop.params(one) + ([] if two is one else loop.params(two))
        return out, gradients(loss_of(out, seen), [x, y, *params])

    out, grads = run(shared, shared)
    expected_out, expected = run(first, second)
    half = (len(expected) - 2) // 2
    params = [a + b for a, b in zip(expected[2 : 2 + half], expected[2 + half :], strict=True)]
    assert torch.equal(out, expected_out)
    assert half > 0
    for ours, theirs in zip(grads, [*expected[:2], *params], strict=True):
        close(ours, theirs, 1e-11)


# --- states that are cut off ------------------------------------------------------------------


def detach(t: Tensor) -> Tensor:
    return t.detach()


def detach_(t: Tensor) -> Tensor:
    return t.detach_()


@pytest.mark.parametrize("loop", LOOPS, ids=str)
@pytest.mark.parametrize("tau_s", TAUS)
@pytest.mark.parametrize("edit", [detach, detach_])
def test_detach_cuts_the_chain(loop: Loop, tau_s: float, edit: Edit) -> None:
    """Nothing changes forward, the trace goes on; gradients are those of separate windows."""
    x = drive_of()
    layer = wrapped(loop, tau_s)
    with warnings.catch_warnings():
        warnings.simplefilter("error", LostLinkWarning)
        ours = run_layer(loop, layer, x, edit=edit)
    same_values(ours, run_layer(loop, layer, x))
    expected = run_reference(loop, loop.make(), x, tau_s, edit=detach)
    close_values(ours, expected)
    close_grads(ours, expected, loop.tolerance)


def detached(loop: Loop, layer: Any, state: State) -> State:
    """Cut off in the way that each library has for it."""
    if isinstance(layer, snntorch.Leaky) and loop.hidden:
        snntorch.Leaky.detach_hidden()
    elif loop.hidden:
        functional.detach_net(layer)
    elif isinstance(layer, snntorch.Leaky):
        layer.detach(state.v)
    else:
        return state.edited(detach)
    return state


@pytest.mark.parametrize("loop", LOOPS, ids=str)
@pytest.mark.parametrize("tau_s", TAUS)
def test_truncated_backpropagation(loop: Loop, tau_s: float) -> None:
    """A backward() for each window, with the library's own way to cut, as separate windows."""
    x = drive_of()
    layer = wrapped(loop, tau_s)
    given = x.clone().requires_grad_()
    state, outs = None, []
    for begin, end in bounds(STEPS, CUTS):
        out, state = loop.call(layer, given[begin:end], state)
        loss_of(out, [], seed=end).backward()
        outs.append(out.detach())
        state = detached(loop, layer, state)
    plain = run_layer(loop, wrapped(loop, tau_s), x, grad=False)
    assert torch.equal(torch.cat(outs), plain.out.detach())

    reference = Reference(loop, loop.make(), tau_s, {})
    expected = x.clone().requires_grad_()
    state, trace = None, None
    for begin, end in bounds(STEPS, CUTS):
        out, states, trace = reference.call(expected[begin:end], state, trace)
        loss_of(out.to(outs[0].dtype), [], seed=end).backward()
        state = states[-1].edited(detach)
        trace = trace.detach() if tau_s > 1.0 else None
    leaves = zip(
        [given, *loop.params(layer)], [expected, *loop.params(reference.layer)], strict=True
    )
    for ours, theirs in leaves:
        assert ours.grad is not None
        assert theirs.grad is not None
        close(ours.grad, theirs.grad, loop.tolerance)


# --- states that lose their link --------------------------------------------------------------

MASK = (torch.rand(BATCH, NEURONS, generator=torch.Generator().manual_seed(5)) < 0.6).double()


def clone(t: Tensor) -> Tensor:
    return t.clone()


def masked(t: Tensor) -> Tensor:
    return t * MASK


def viewed(t: Tensor) -> Tensor:
    return t.view_as(t)


def reshaped(t: Tensor) -> Tensor:
    return t.flatten().reshape(t.shape)


def masked_in_place(t: Tensor) -> Tensor:
    return t.mul_(MASK)


def written(t: Tensor) -> Tensor:
    t[1, :2] = 0.0
    return t


def shrunk(t: Tensor) -> Tensor:
    """Not at rest anywhere, and still positive."""
    return t * 0.9


UNCHANGED = [clone, viewed, reshaped]
EDITS = [*UNCHANGED, masked, masked_in_place, written, shrunk]


@pytest.mark.parametrize("loop", LOOPS, ids=str)
@pytest.mark.parametrize("edit", EDITS)
def test_lost_link(loop: Loop, edit: Edit) -> None:
    """At tau_s = 1 the forward is right, the gradient the ordinary adjoint, with one warning."""
    x = drive_of()
    layer = wrapped(loop, 1.0)
    with pytest.warns(LostLinkWarning, match=f"layer '{NAME}'") as caught:
        ours = run_layer(loop, layer, x, edit=edit)
    assert len([w for w in caught if w.category is LostLinkWarning]) == 1
    same_values(ours, run_layer(loop, loop.make(), x, edit=edit, grad=False))
    expected = run_reference(loop, loop.make(), x, 1.0, edit=lambda t: edit(t.clone()))
    close_values(ours, expected)
    close_grads(ours, expected, loop.tolerance)
    plain = run_reference(loop, loop.make(), x, 1.0)
    assert float((plain.grads[0] - expected.grads[0]).abs().max()) > 1e-2


def written_outputs(loop: Loop, layer: Any, factor: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Run call by call with the outputs halved, in the way that ``factor`` does it."""
    x = drive_of().requires_grad_()
    handle = layer.register_forward_hook(
        lambda _, __, out: (factor(out[0]), *out[1:]) if isinstance(out, tuple) else factor(out)
    )
    out, _ = loop.call(layer, x, None)
    handle.remove()
    return [out.detach(), *gradients(loss_of(out, []), [x, *loop.params(layer)])]


@pytest.mark.parametrize("loop", LOOPS, ids=str)
@pytest.mark.parametrize("tau_s", TAUS)
def test_outputs_written_to_in_place(loop: Loop, tau_s: float) -> None:
    """As by ``nn.Dropout(inplace=True)`` or ``out += skip``; where the library allows it."""
    expected = written_outputs(loop, wrapped(loop, tau_s), lambda out: out * 0.5)
    try:
        written_outputs(loop, loop.make(), lambda out: out.mul_(0.5))
    except RuntimeError:  # Norse's cells need their output for the reset
        if tau_s == 1.0:
            return
    ours = written_outputs(loop, wrapped(loop, tau_s), lambda out: out.mul_(0.5))
    for left, right in zip(ours, expected, strict=True):
        assert torch.equal(left, right)


def quiet_run(loop: Loop, layer: Any, x: Tensor, **options: Any) -> Runs:
    """A lost link is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", LostLinkWarning)
        return run_layer(loop, layer, x, **options)


WITHOUT_LINK = [
    (loop, path)
    for loop in LOOPS
    for path in ("none", "complete")
    if path == "none" or loop.words.get("timing") != "delayed"
]


@pytest.mark.parametrize(("loop", "reset_path"), WITHOUT_LINK, ids=str)
def test_rules_without_a_link(loop: Loop, reset_path: Any) -> None:
    """The state's own graph carries all, so nothing is lost and nothing is warned of."""
    options = {"fallback": False, "reset_path": reset_path}
    rule = rules.TSSLBP(**options)
    x = drive_of()
    plain = quiet_run(loop, wrapped(loop, 1.0, rule), x)
    close_grads(plain, run_reference(loop, loop.make(), x, 1.0, options=options), loop.tolerance)
    for edit in UNCHANGED:
        ours = quiet_run(loop, wrapped(loop, 1.0, rule), x, edit=edit)
        same_values(ours, plain)
        close_grads(ours, plain, 1e-11)
    ours = quiet_run(loop, wrapped(loop, 1.0, rule), x, edit=masked)
    expected = run_reference(loop, loop.make(), x, 1.0, edit=masked, options=options)
    close_grads(ours, expected, loop.tolerance)


def derivative_of(loop: Loop) -> Callable[[Tensor], Tensor]:
    """The library's default surrogate."""
    if loop.name.startswith("snntorch"):
        return lambda x: 1.0 / (1.0 + (torch.pi * x) ** 2)
    if loop.name.startswith("spikingjelly"):
        return lambda x: 4.0 * torch.sigmoid(4.0 * x) * (1.0 - torch.sigmoid(4.0 * x))
    return lambda x: 1.0 / (x.abs() + 1.0) ** 2


@pytest.mark.parametrize("loop", LOOPS, ids=str)
@pytest.mark.parametrize("edit", [clone, masked, masked_in_place, detach])
def test_surrogate_gradients_of_edited_states(loop: Loop, edit: Edit) -> None:
    """Nothing to lose: the native gradient, whatever the loop does to the state."""
    x = drive_of()
    layer = wrapped(loop, 1.0, rules.SurrogateGradient(derivative_of(loop)))
    ours = quiet_run(loop, layer, x, edit=edit, start=start_state(loop, x))
    native = run_layer(loop, loop.make(), x, edit=edit, start=start_state(loop, x))
    same_values(ours, native)
    close_grads(ours, native, loop.tolerance)


def test_each_layer_warns_once() -> None:
    model = nn.Sequential(snntorch.Leaky(beta=0.9), snntorch.Leaky(beta=0.8))
    tssl_adapters.wrap(model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            x = torch.rand(3, 4, requires_grad=True)
            states = [layer.init_leaky() for layer in model]
            for _ in range(4):
                spikes = x
                for index, layer in enumerate(model):
                    spikes, states[index] = layer(spikes, states[index] * 0.9)
    texts = [str(w.message) for w in caught if w.category is LostLinkWarning]
    assert len(texts) == 2
    assert "layer '0'" in texts[0]
    assert "layer '1'" in texts[1]
    assert "ordinary adjoint" in texts[0]


# --- the trace --------------------------------------------------------------------------------


VIEWS = [viewed, reshaped]


@pytest.mark.parametrize("loop", LOOPS, ids=str)
@pytest.mark.parametrize("edit", [edit for edit in EDITS if edit not in VIEWS])
def test_lost_trace(loop: Loop, edit: Edit) -> None:
    """At tau_s > 1 a state that is not the layer's own is refused, also without a graph."""
    x = drive_of()
    with pytest.raises(LostTraceError, match=f"Layer '{NAME}'"):
        run_layer(loop, wrapped(loop, 3.0), x, edit=edit)
    with torch.no_grad(), pytest.raises(LostTraceError, match=f"Layer '{NAME}'"):
        run_layer(loop, wrapped(loop, 3.0), x, edit=edit, grad=False)


@pytest.mark.parametrize("loop", LOOPS, ids=str)
@pytest.mark.parametrize("edit", VIEWS)
def test_the_trace_of_a_view(loop: Loop, edit: Edit) -> None:
    """It is known by its memory, but its graph is not, except where the layer keeps it."""
    x = drive_of()
    with torch.no_grad():
        ours = run_layer(loop, wrapped(loop, 3.0), x, edit=edit, grad=False)
        same_values(ours, run_layer(loop, wrapped(loop, 3.0), x, grad=False))
    if not loop.name.startswith("spikingjelly"):
        with pytest.raises(LostTraceError, match=f"Layer '{NAME}'"):
            run_layer(loop, wrapped(loop, 3.0), x, edit=edit)
        return
    with pytest.warns(LostLinkWarning, match=f"layer '{NAME}'"):
        ours = run_layer(loop, wrapped(loop, 3.0), x, edit=edit)
    expected = run_reference(loop, loop.make(), x, 3.0, edit=clone, edit_trace=clone)
    close_values(ours, expected)
    close_grads(ours, expected, loop.tolerance)


def zero_(t: Tensor) -> Tensor:
    return t.detach_().zero_()


def zeros_like(t: Tensor) -> Tensor:
    return torch.zeros_like(t)


@pytest.mark.parametrize("loop", LOOPS, ids=str)
@pytest.mark.parametrize("tau_s", TAUS)
@pytest.mark.parametrize("edit", [zero_, zeros_like])
def test_zeroed_states_start_anew(loop: Loop, tau_s: float, edit: Edit) -> None:
    """No trace leaks over: the next calls are those of a new layer that starts from zero."""
    x = drive_of()
    ours = run_layer(loop, wrapped(loop, tau_s), x, edit=edit)
    windows = []
    for begin, end in bounds(STEPS, CUTS):
        start = None
        if begin:
            zero = torch.zeros(BATCH, NEURONS, dtype=torch.float64)
            start = State(zero, None if ours.seen[0].i is None else zero)
        windows.append(
            run_layer(loop, wrapped(loop, tau_s), x[begin:end], cuts=(), start=start, grad=False)
        )
    assert torch.equal(ours.out, torch.cat([run.out for run in windows]))
    for state, run in zip(ours.seen, windows, strict=True):
        assert torch.equal(state.v, run.seen[0].v)
    expected = run_reference(
        loop, loop.make(), x, tau_s, edit=zeros_like, edit_trace=zeros_like
    )
    close_values(ours, expected)
    close_grads(ours, expected, loop.tolerance)


def restarted(loop: Loop, layer: Any) -> None:
    """A new start as each library has it; ``None`` for the state does it elsewhere."""
    if isinstance(layer, snntorch.Leaky):
        utils.reset(nn.Sequential(layer))
    elif loop.hidden:
        functional.reset_net(layer)


@pytest.mark.parametrize("loop", LOOPS, ids=str)
@pytest.mark.parametrize("tau_s", TAUS)
def test_a_new_sequence_knows_nothing_of_the_last(loop: Loop, tau_s: float) -> None:
    """After ``utils.reset``, ``reset_net``, ``init_leaky()`` or ``None``, with another batch."""
    layer = wrapped(loop, tau_s)
    loop.call(layer, drive_of(seed=8), None)
    for x in (drive_of(seed=9), drive_of(seed=10)[:, :2]):
        restarted(loop, layer)
        ours = run_layer(loop, layer, x)
        fresh = run_layer(loop, wrapped(loop, tau_s), x)
        same_values(ours, fresh)
        for left, right in zip(ours.grads, fresh.grads, strict=True):
            assert torch.equal(left, right)


@pytest.mark.parametrize(
    "loop", [loop for loop in LOOPS if not loop.name.startswith("norse")], ids=str
)
@pytest.mark.parametrize("tau_s", TAUS)
def test_another_batch_starts_anew(loop: Loop, tau_s: float) -> None:
    """snnTorch and SpikingJelly make a new state where the old has another shape."""
    layer, twin = wrapped(loop, tau_s), loop.make()
    x, other = drive_of(seed=8), drive_of(seed=9)[:, :2]
    _, state = loop.call(layer, x, None)
    out, after = loop.call(layer, other, state)
    _, their_state = loop.call(twin, x, None)
    their_out, their_after = loop.call(twin, other, their_state)
    assert torch.equal(out, psc_of(their_out, tau_s))
    assert torch.equal(after.v, their_after.v)


RESETTING = [loop for loop in LOOPS if "subtract" not in loop.name and "-delay" not in loop.name]
RESETTING = [loop for loop in RESETTING if "Parametric" not in loop.name]


@pytest.mark.parametrize("loop", RESETTING, ids=str)
@pytest.mark.parametrize("edit", [None, detach, detach_])
def test_a_state_at_rest_keeps_its_trace(loop: Loop, edit: Edit | None) -> None:
    """Every neuron has just spiked and is reset: the state looks new, and is not."""
    x = torch.full((6, BATCH, NEURONS), 20.0, dtype=torch.float64)
    x[4:] = -1000.0
    ours = run_layer(loop, wrapped(loop, 3.0), x, cuts=(2, 3, 4), edit=edit)
    expected = torch.tensor([1 - (2 / 3) ** n for n in (1, 2, 3, 4)])
    expected = torch.cat([expected, expected[-1] * torch.tensor([2 / 3, 4 / 9])])
    assert float((ours.out - expected[:, None, None]).detach().abs().max()) < 1e-6
    assert float((ours.seen[0].v - ours.seen[0].v.flatten()[0]).detach().abs().max()) == 0.0


@pytest.mark.parametrize("loop", LOOPS, ids=str)
def test_partly_at_rest_is_not_at_rest(loop: Loop) -> None:
    def all_but_one(t: Tensor) -> Tensor:
        t = torch.zeros_like(t)
        t[-1, -1] = 1e-3
        return t

    with pytest.raises(LostTraceError, match=f"Layer '{NAME}'"):
        run_layer(loop, wrapped(loop, 3.0), drive_of(), edit=all_but_one)


@pytest.mark.parametrize("loop", LOOPS, ids=str)
def test_a_state_of_another_layer_is_refused(loop: Loop) -> None:
    """A potential that was made up, or came from an unwrapped layer."""
    x = drive_of()
    _, state = loop.call(loop.make(), x, None)
    with pytest.raises(LostTraceError, match="is not one that the layer returned, nor at rest"):
        loop.call(wrapped(loop, 3.0), x, state.edited(detach))
