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
import itertools
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
from tssl_adapters.engine.call import state as state_module
from tssl_adapters.errors import LostLinkWarning, LostTraceError

BATCH, NEURONS, STEPS = 4, 256, 9
CUTS = (3, 4, 7)
"""Where a sequence is cut into calls, or a state is tampered with: after 3, 4 and 7 steps."""
TAUS = [1.0, 3.0]

pytestmark = pytest.mark.singly

Edit: TypeAlias = Callable[[Tensor], Tensor]


@pytest.fixture(autouse=True)
def _own_instances(monkeypatch: pytest.MonkeyPatch) -> None:
    """SnnTorch resets and detaches every layer that was ever made: here, only those of a test."""
    monkeypatch.setattr(snntorch.SpikingNeuron, "instances", [])


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
        tolerance: of gradients, relative to the largest. snnTorch's own spikes, which are float32
            always, round what passes them and what a threshold learns from being subtracted.
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


class Spike(torch.autograd.Function):
    """snnTorch's spike and surrogate, but in the potential's dtype: its own are float32 always."""

    @staticmethod
    def forward(ctx: Any, over: Tensor) -> Tensor:
        ctx.save_for_backward(over)
        return (over > 0).to(over)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad / (1.0 + (torch.pi * ctx.saved_tensors[0]) ** 2)


def spike(over: Tensor) -> Tensor:
    return Spike.apply(over)


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
                if hidden and delay != (reset == "subtract"):
                    continue

                def make(hidden: bool = hidden, reset: str = reset, delay: bool = delay) -> Any:
                    layer = snntorch.Leaky(
                        beta=0.8,
                        threshold=0.6,
                        learn_beta=True,
                        learn_threshold=True,
                        reset_mechanism=reset,
                        reset_delay=delay,
                        init_hidden=hidden,
                        spike_grad=None if hidden else spike,
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
                    tolerance=3e-5 if hidden else 1e-10,
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
        found = oracle.run(**ctx.arguments, **words, grad_out=np.zeros_like(ctx.arguments["drive"]))
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
    return list(itertools.pairwise(edges))


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
    loss: Callable[[Tensor, list[State]], Tensor] | None = None,
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
    total = loss_of(out, seen if watch else seen[-1:]) if loss is None else loss(out, seen)
    return Runs(out, seen, gradients(total, [x, *starts, *loop.params(layer)]))


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
    loss: Callable[[Tensor, list[State]], Tensor] | None = None,
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
    total = loss_of(out, seen if watch else seen[-1:]) if loss is None else loss(out, seen)
    return Runs(out, seen, gradients(total, [x, *starts, *loop.params(layer)]))


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


def wrapped(loop: Loop, tau_s: float, rule: rules.Rule | str = "tsslbp") -> Any:
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
@pytest.mark.parametrize("tau_s", TAUS)
def test_calls_add_up_from_a_state(loop: Loop, tau_s: float) -> None:
    """The incoming state takes its gradient; above the threshold too, where there is no trace."""
    x = drive_of()
    start = start_state(loop, x)
    if tau_s > 1.0:  # only a state at rest is a start there
        start = start.edited(lambda t: torch.zeros_like(t).requires_grad_())
    ours = run_layer(loop, wrapped(loop, tau_s), x, start=start)
    expected = run_reference(loop, loop.make(), x, tau_s, start=start)
    close_values(ours, expected)
    close_grads(ours, expected, loop.tolerance)
    assert float(expected.grads[1].abs().max()) > 1e-2


@pytest.mark.parametrize("loop", LOOPS, ids=str)
@pytest.mark.parametrize("tau_s", TAUS)
@pytest.mark.parametrize("cuts", [(1,), tuple(range(1, STEPS))], ids=str)
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


PARTS: dict[str, Callable[[Tensor, list[State]], Tensor]] = {
    "last output": lambda out, seen: out[-1].square().sum().double(),
    "first output": lambda out, seen: out[0].square().sum().double(),
    "last state": lambda out, seen: seen[-1].v.square().sum(),
    "first state": lambda out, seen: seen[0].v.square().sum(),
}


@pytest.mark.parametrize("loop", LOOPS, ids=str)
@pytest.mark.parametrize("tau_s", TAUS)
def test_losses_on_a_part(loop: Loop, tau_s: float) -> None:
    """Where a call's output or state gets no gradient, it counts as zero."""
    x = drive_of()
    for loss in PARTS.values():
        ours = run_layer(loop, wrapped(loop, tau_s), x, loss=loss)
        expected = run_reference(loop, loop.make(), x, tau_s, loss=loss)
        close_grads(ours, expected, loop.tolerance)
        assert float(expected.grads[0].abs().max()) > 1e-3


@pytest.mark.parametrize("loop", LOOPS, ids=str)
@pytest.mark.parametrize("tau_s", TAUS)
def test_frozen_inputs_and_parameters(loop: Loop, tau_s: float) -> None:
    """What needs no gradient changes nothing for the others, and may change in mid sequence."""
    x = drive_of()
    full = run_layer(loop, wrapped(loop, tau_s), x)

    def run(input_learns: Sequence[bool], params_learn: bool) -> tuple[Tensor, list[Tensor]]:
        layer = wrapped(loop, tau_s)
        params = loop.params(layer)
        for param in params:
            param.requires_grad_(params_learn)
        parts = [x[b:e].clone() for b, e in bounds(STEPS, CUTS)]
        outs, seen, state = [], [], None
        for part, learns in zip(parts, input_learns, strict=True):
            part.requires_grad_(learns)
            out, state = loop.call(layer, part, state)
            outs.append(out)
            seen.append(state.edited(torch.clone))
        wanted = [*(p for p in parts if p.requires_grad), *(params if params_learn else [])]
        out = torch.cat(outs)
        return out.detach(), gradients(loss_of(out, seen), wanted) if wanted else []

    windows = [full.grads[0][b:e] for b, e in bounds(STEPS, CUTS)]
    for learns in ((False,) * 4, (False, False, True, True), (True, False, True, False)):
        chosen = [g for g, learned in zip(windows, learns, strict=True) if learned]
        for params_learn in (True, False):
            if not (params_learn or any(learns)):
                continue
            out, grads = run(learns, params_learn)
            assert torch.equal(out, full.out.detach())
            expected = [*chosen, *(full.grads[1:] if params_learn else [])]
            for ours, theirs in zip(grads, expected, strict=True):
                close(ours, theirs, 1e-11)


@pytest.mark.parametrize("loop", LOOPS, ids=str)
@pytest.mark.parametrize("tau_s", TAUS)
def test_a_state_that_was_not_detached(loop: Loop, tau_s: float) -> None:
    """The second backward() says so, as natively; with retain_graph the two add up."""
    x = drive_of()

    def run(layer: Any, retain: bool) -> Tensor:
        given = x.clone().requires_grad_()
        first, state = loop.call(layer, given[:4], None)
        loss_of(first, []).backward(retain_graph=retain)
        second, _ = loop.call(layer, given[4:], state)
        loss_of(second, []).backward()
        assert given.grad is not None
        return given.grad

    for layer in (loop.make(), wrapped(loop, tau_s)):
        with pytest.raises(RuntimeError, match="backward through the graph a second time"):
            run(layer, retain=False)
    ours = run(wrapped(loop, tau_s), retain=True)
    given = x.clone().requires_grad_()
    layer = wrapped(loop, tau_s)
    first, state = loop.call(layer, given[:4], None)
    second, _ = loop.call(layer, given[4:], state)
    (expected,) = gradients(loss_of(first, []) + loss_of(second, []), [given])
    close(ours, expected, 1e-6 if "snntorch" in loop.name else 1e-11)


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


def moved_nowhere(t: Tensor) -> Tensor:
    return t.to(t.dtype).contiguous().cpu()


@pytest.mark.parametrize("loop", LOOPS, ids=str)
@pytest.mark.parametrize("tau_s", TAUS)
def test_what_gives_the_same_tensor_changes_nothing(loop: Loop, tau_s: float) -> None:
    x = drive_of()
    ours = quiet_run(loop, wrapped(loop, tau_s), x, edit=moved_nowhere)
    plain = quiet_run(loop, wrapped(loop, tau_s), x)
    same_values(ours, plain)
    for left, right in zip(ours.grads, plain.grads, strict=True):
        assert torch.equal(left, right)


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


def masked_without_grad(t: Tensor) -> Tensor:
    with torch.no_grad():
        return t.mul_(MASK)


UNCHANGED = [clone, viewed]
EDITS = [*UNCHANGED, masked, masked_in_place, masked_without_grad, written]


def in_reference(edit: Edit) -> Edit:
    """An edit as torch's autograd sees it, on a tensor of its own."""
    if edit is masked_without_grad:
        return lambda t: t + (t * MASK - t).detach()
    return lambda t: edit(t.clone())


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
    expected = run_reference(loop, loop.make(), x, 1.0, edit=in_reference(edit))
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
    tssl_adapters.wrap(model, rule="tsslbp")
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
def test_lost_trace(loop: Loop) -> None:
    """At tau_s > 1 a state that is not the layer's own is refused, also without a graph."""
    x = drive_of()
    for edit in EDITS:
        if edit in VIEWS:
            continue
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
    expected = run_reference(loop, loop.make(), x, tau_s, edit=zeros_like, edit_trace=zeros_like)
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


@pytest.mark.parametrize(
    "loop", [loop for loop in LOOPS if loop.name.startswith("spikingjelly")], ids=str
)
@pytest.mark.parametrize("move", [copy.deepcopy, lambda layer: layer.float()])
@pytest.mark.parametrize("edit", [zeros_like, masked])
def test_states_edited_after_a_move(loop: Loop, move: Callable[[Any], Any], edit: Edit) -> None:
    """Copied and moved layers keep potential and trace as a pair: an edit still splits it."""
    x = drive_of()
    layer = wrapped(loop, 3.0)
    with torch.no_grad():
        loop.call(layer, x[:4], None)
        moved = move(layer)
        x = x.to(moved.v.dtype)
        state = State(edit(moved.v).to(x.dtype))
        if edit is masked:
            with pytest.raises(LostTraceError, match=f"Layer '{NAME}'"):
                loop.call(moved, x[4:], state)
            return
        out, _ = loop.call(moved, x[4:], state)
        fresh, _ = loop.call(move(wrapped(loop, 3.0)), x[4:], None)
    assert torch.equal(out, fresh)


@pytest.mark.parametrize("delays", [(True, False), (False, True)])
def test_a_state_handed_to_another_kind_of_layer(delays: tuple[bool, bool]) -> None:
    """A state may go from one layer to another: then there is the ordinary adjoint, at least."""
    x = drive_of(4)

    def run(rule: rules.Rule | None) -> list[Tensor]:
        layers = nn.ModuleList(
            snntorch.Leaky(
                beta=0.8, threshold=0.6, reset_delay=d, learn_beta=True, learn_threshold=True
            )
            for d in delays
        ).double()
        if rule is not None:
            tssl_adapters.wrap(layers, rule=rule)
        given = x.clone().requires_grad_()
        mem = layers[0].init_leaky()
        spikes = []
        for t, step in enumerate(given):
            spike, mem = layers[0 if t < 2 else 1](step, mem)
            spikes.append(spike)
        out = torch.stack(spikes)
        loss = loss_of(out, [State(mem)])
        return [out.detach(), *gradients(loss, [given, *layers.parameters()])]

    native = run(None)
    atan = derivative_of(LOOPS[0])
    for ours, theirs in zip(run(rules.SurrogateGradient(atan)), native, strict=True):
        close(ours, theirs, 3e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LostLinkWarning)
        found = run(rules.TSSLBP())
    assert torch.equal(found[0], native[0])
    # However the two parts are joined, the second layer's gradients are those of its own part.
    whole = snntorch.Leaky(
        beta=0.8, threshold=0.6, reset_delay=delays[1], learn_beta=True, learn_threshold=True
    ).double()
    tssl_adapters.wrap(whole, rule="tsslbp")
    prefix = snntorch.Leaky(beta=0.8, threshold=0.6, reset_delay=delays[0]).double()
    with torch.no_grad():
        mem = prefix.init_leaky()
        for step in x[:2]:
            _, mem = prefix(step, mem)
    given = x.clone().requires_grad_()
    outs = list(found[0][:2])
    for step in given[2:]:
        spike, mem = whole(step, mem)
        outs.append(spike)
    expected = gradients(loss_of(torch.stack(outs), [State(mem)]), [given, *whole.parameters()])
    close(found[1][2:], expected[0][2:], 3e-5)
    for ours, theirs in zip(found[4:], expected[1:], strict=True):
        close(ours, theirs, 3e-5)


# --- without a graph --------------------------------------------------------------------------


@contextmanager
def evaluating(layer: nn.Module) -> Iterator[None]:
    layer.eval()
    yield
    layer.train()


WITHOUT_GRAD: dict[str, Callable[[nn.Module], Any]] = {
    "no_grad": lambda layer: torch.no_grad(),
    "inference_mode": lambda layer: torch.inference_mode(),
    "eval": evaluating,
}


@pytest.mark.parametrize("loop", LOOPS, ids=str)
@pytest.mark.parametrize("tau_s", TAUS)
def test_forward_without_grad(loop: Loop, tau_s: float) -> None:
    """The same PSC (not spikes, at tau_s > 1), plain and with the state detached."""
    x = drive_of()
    layer = wrapped(loop, tau_s)
    plain = run_layer(loop, layer, x)
    for mode in WITHOUT_GRAD.values():
        for edit in (None, detach, detach_):
            with mode(layer):
                ours = run_layer(loop, layer, x, edit=edit, grad=False)
            same_values(ours, plain)


def warmed_up(loop: Loop, layer: Any, mode: Callable[[nn.Module], Any]) -> list[Tensor]:
    """Four steps without a graph, then the rest with one."""
    x = drive_of()
    given = x[4:].clone().requires_grad_()
    with mode(layer):
        first, state = loop.call(layer, x[:4], None)
    out, state = loop.call(layer, given, state)
    loss = loss_of(out, [state])
    return [first, out.detach(), *gradients(loss, [given, *loop.params(layer)])]


@pytest.mark.parametrize("loop", LOOPS, ids=str)
@pytest.mark.parametrize("tau_s", TAUS)
def test_warm_up_without_grad(loop: Loop, tau_s: float) -> None:
    """The trace goes on; gradients are those of the steps with a graph."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", LostLinkWarning)
        first, out, *grads = warmed_up(loop, wrapped(loop, tau_s), WITHOUT_GRAD["no_grad"])
    x = drive_of()
    plain = run_layer(loop, wrapped(loop, tau_s), x, grad=False)
    assert torch.equal(torch.cat([first, out]), plain.out.detach())

    reference = Reference(loop, loop.make(), tau_s, {})
    given = x[4:].clone().requires_grad_()
    with torch.no_grad():
        _, states, trace = reference.call(x[:4], None, None)
    out, states, _ = reference.call(given, states[-1], trace if tau_s > 1.0 else None)
    loss = loss_of(out, [states[-1]])
    expected = gradients(loss, [given, *loop.params(reference.layer)])
    for ours, theirs in zip(grads, expected, strict=True):
        close(ours, theirs, loop.tolerance)


@pytest.mark.parametrize("loop", LOOPS, ids=str)
@pytest.mark.parametrize("tau_s", TAUS)
def test_warm_up_in_inference_mode(loop: Loop, tau_s: float) -> None:
    """As with no_grad, or PyTorch's own error: it does not save inference tensors."""
    expected = warmed_up(loop, wrapped(loop, tau_s), WITHOUT_GRAD["no_grad"])
    try:
        ours = warmed_up(loop, wrapped(loop, tau_s), WITHOUT_GRAD["inference_mode"])
    except RuntimeError as error:
        assert "Inference tensors cannot be saved for backward" in str(error)  # noqa: PT017
        return
    for left, right in zip(ours, expected, strict=True):
        assert torch.equal(left, right)


# --- memory -----------------------------------------------------------------------------------


class Token:
    """Lives as long as the graph that holds it."""


class Holding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, token: Token) -> Tensor:
        ctx.token = token
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


@contextmanager
def counting_references() -> Iterator[None]:
    """References alone decide: nothing is left to the garbage collector."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def held(x: Tensor) -> tuple[Tensor, weakref.ref[Token]]:
    token = Token()
    return Holding.apply(x.clone().requires_grad_(), token), weakref.ref(token)


@pytest.mark.parametrize("loop", LOOPS, ids=str)
@pytest.mark.parametrize("tau_s", TAUS)
def test_graphs_are_freed(loop: Loop, tau_s: float) -> None:
    """With the loop's tensors (and the layer's states) the graph goes, backward or not."""

    def one_sequence(layer: Any, backward: bool) -> weakref.ref[Token]:
        x, token = held(drive_of())
        outs, state = [], None
        for begin, end in bounds(STEPS, CUTS):
            out, state = loop.call(layer, x[begin:end], state)
            outs.append(out)
        assert token() is not None
        if backward:
            loss_of(torch.cat(outs), [state]).backward()
        return token

    with counting_references():
        layer = wrapped(loop, tau_s)
        for backward in (False, True):
            token = one_sequence(layer, backward)
            restarted(loop, layer)
            assert token() is None


@pytest.mark.parametrize("loop", LOOPS, ids=str)
@pytest.mark.parametrize("tau_s", TAUS)
def test_windows_are_freed_once_cut_off(loop: Loop, tau_s: float) -> None:
    """With the library's own way to detach, no window keeps the graph of the one before."""
    with counting_references():
        layer, tokens, state = wrapped(loop, tau_s), [], None
        for begin, end in bounds(STEPS, CUTS):
            x, token = held(drive_of()[begin:end])
            tokens.append(token)
            out, state = loop.call(layer, x, state)
            assert token() is not None
            del x, out
            state = detached(loop, layer, state)
        assert [token() is None for token in tokens[:-1]] == [True] * 3


PILES = ("snntorch-explicit-zero-delay", "spikingjelly-LIFNode-s", "norse-LIF")


@pytest.mark.parametrize("loop", [loop for loop in LOOPS if loop.name in PILES], ids=str)
def test_traces_do_not_pile_up(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long a sequence is, one trace is kept and not one for each step."""
    monkeypatch.setattr(state_module, "_filed", {})  # other tests' states may still be alive
    shape = torch.Size((3, 41))

    def alive() -> int:
        return sum(type(t) is Tensor and t.shape == shape for t in gc.get_objects())

    layer, state = wrapped(loop, 3.0), None
    x = torch.rand(1, *shape, dtype=torch.float64)
    counts = []
    with torch.no_grad(), counting_references():
        for step in range(60):
            _, state = loop.call(layer, x, state)
            if step in (5, 59):
                counts.append(alive())
    assert counts[1] <= counts[0] + 2


# --- checkpointing ----------------------------------------------------------------------------


def checkpointed(
    loop: Loop, layer: Any, x: Tensor, which: Sequence[bool], reentrant: bool
) -> list[Tensor]:
    """Run in calls, some of them checkpointed. Values, then gradients."""

    def call(x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        out, after = loop.call(layer, x, State(*state) if state else None)
        return (out, *(t for t in after if t is not None))

    given = x.clone().requires_grad_()
    params = loop.params(layer)
    outs, state = [], ()
    for (begin, end), saved in zip(bounds(STEPS, CUTS), which, strict=True):
        args = (given[begin:end], *state)
        out, *state = checkpoint(call, *args, use_reentrant=reentrant) if saved else call(*args)
        outs.append(out)
    out = torch.cat(outs)
    loss_of(out, [State(*state)]).backward()
    return [
        t if t is not None else torch.zeros(())
        for t in (out.detach(), given.grad, *(p.grad for p in params))
    ]


EVERY, SOME = (True,) * 4, (False, True, False, False)


@pytest.mark.parametrize("loop", EXPLICIT, ids=str)
@pytest.mark.parametrize("tau_s", TAUS)
@pytest.mark.parametrize("which", [EVERY, SOME], ids=["every", "some"])
def test_checkpointed_calls(loop: Loop, tau_s: float, which: tuple[bool, ...]) -> None:
    x = drive_of()
    with warnings.catch_warnings():
        warnings.simplefilter("error", LostLinkWarning)
        ours = checkpointed(loop, wrapped(loop, tau_s), x, which, reentrant=False)
    expected = checkpointed(loop, wrapped(loop, tau_s), x, (False,) * 4, reentrant=False)
    for left, right in zip(ours, expected, strict=True):
        assert torch.equal(left, right)


@pytest.mark.parametrize("loop", EXPLICIT, ids=str)
@pytest.mark.parametrize("which", [EVERY, SOME], ids=["every", "some"])
def test_reentrant_checkpoints_lose_the_link(loop: Loop, which: tuple[bool, ...]) -> None:
    """The state comes back as another tensor: a warning, and the ordinary adjoint."""
    x = drive_of()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        out, *grads = checkpointed(loop, wrapped(loop, 1.0), x, which, reentrant=True)
    plain = run_layer(loop, wrapped(loop, 1.0), x)
    assert torch.equal(out, plain.out.detach())
    # Cut where a checkpoint begins or ends, and the states between watched by none but the last.
    cuts = CUTS if which == EVERY else CUTS[:2]
    expected = run_reference(loop, loop.make(), x, 1.0, cuts=cuts, edit=clone, watch=False)
    for ours, theirs in zip(grads, expected.grads, strict=True):
        close(ours, theirs, loop.tolerance)
    texts = [str(w.message) for w in caught if w.category is LostLinkWarning]
    assert len(texts) == 1
    assert f"layer '{NAME}'" in texts[0]


@pytest.mark.parametrize("loop", EXPLICIT, ids=str)
@pytest.mark.parametrize("which", [EVERY, SOME], ids=["every", "some"])
def test_reentrant_checkpoints_lose_the_trace(loop: Loop, which: tuple[bool, ...]) -> None:
    layer = wrapped(loop, 3.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LostLinkWarning)
        with pytest.raises(LostTraceError, match=rf"Layer '{NAME}'.*reentrant checkpointing"):
            checkpointed(loop, layer, drive_of(), which, reentrant=True)


@pytest.mark.parametrize("loop", LOOPS, ids=str)
@pytest.mark.parametrize("tau_s", TAUS)
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_sequence(loop: Loop, tau_s: float, reentrant: bool) -> None:
    """A checkpoint around the whole loop, states made inside."""

    def run(save: bool) -> list[Tensor]:
        layer = wrapped(loop, tau_s)

        def sequence(x: Tensor) -> tuple[Tensor, Tensor]:
            first, state = loop.call(layer, x[:4], None)
            second, state = loop.call(layer, x[4:], state)
            return torch.cat([first, second]), state.v

        x = drive_of().requires_grad_()
        out, v = checkpoint(sequence, x, use_reentrant=reentrant) if save else sequence(x)
        loss_of(out, [State(v)]).backward()
        return [out.detach(), x.grad, *(p.grad for p in loop.params(layer))]

    with warnings.catch_warnings():
        warnings.simplefilter("error", LostLinkWarning)
        ours, expected = run(True), run(False)
    for left, right in zip(ours, expected, strict=True):
        assert torch.equal(left, right)


SPIKINGJELLY = [loop for loop in LOOPS if loop.name.startswith("spikingjelly")]


def jelly_model(loop: Loop, tau_s: float, norm: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    node = loop.make()
    mode = node.step_mode
    layers: list[nn.Module] = [sj_layer.Linear(NEURONS, NEURONS, step_mode=mode)]
    if norm:
        layers.append(sj_layer.BatchNorm1d(NEURONS, step_mode=mode))
    return tssl_adapters.wrap(nn.Sequential(*layers, node).double(), tau_s=tau_s, rule="tsslbp")


def jelly_run(model: nn.Module, loop: Loop, params: Iterator[Tensor]) -> list[Tensor]:
    x = drive_of().requires_grad_()
    # Two calls, so that a state goes from one to the next.
    parts = (x[:5], x[5:]) if loop.sequence else x.unbind(0)
    outs = [model(part) for part in parts]
    out = torch.cat(outs) if loop.sequence else torch.stack(outs)
    (v,) = (m.v for m in model.modules() if isinstance(m, neuron.BaseNode))
    loss_of(out, [State(v)]).backward()
    return [out.detach(), v.detach(), x.grad, *(p.grad for p in params)]


@pytest.mark.parametrize("loop", SPIKINGJELLY, ids=str)
@pytest.mark.parametrize("tau_s", TAUS)
@pytest.mark.parametrize(("chunks", "norm"), [(1, False), (2, False), (1, True)])
def test_memory_optimisation(loop: Loop, tau_s: float, chunks: int, norm: bool) -> None:
    """SpikingJelly's ``checkpoint_module`` moves states through the layer's memories."""
    if chunks > 1 and not loop.sequence:
        chunks = 1
    plain = jelly_model(loop, tau_s, norm)
    saving = jelly_model(loop, tau_s, norm)
    params = list(saving.parameters())
    ours = jelly_run(memopt.checkpoint_module(saving, chunks=chunks), loop, iter(params))
    expected = jelly_run(plain, loop, plain.parameters())
    assert len(ours) == len(expected)
    assert torch.equal(ours[0], expected[0])
    for left, right in zip(ours, expected, strict=True):
        close(left, right, 1e-11)


@pytest.mark.parametrize("loop", SPIKINGJELLY, ids=str)
@pytest.mark.parametrize("tau_s", TAUS)
def test_functional_forward(loop: Loop, tau_s: float) -> None:
    """``to_functional_forward`` keeps every state, the trace among them, outside of the layer."""
    model, plain = jelly_model(loop, tau_s), jelly_model(loop, tau_s)
    forward = base.to_functional_forward(model)
    x = drive_of().requires_grad_()
    states = tuple(base.extract_memories(model))
    outs = []
    for part in (x[:5], x[5:]) if loop.sequence else x.unbind(0):
        (out,), states = forward((part,), states)
        outs.append(out)
    out = torch.cat(outs) if loop.sequence else torch.stack(outs)
    loss_of(out, [State(states[0])]).backward()
    expected = jelly_run(plain, loop, plain.parameters())
    assert all(value == 0.0 for value in base.extract_memories(model))
    ours = [out.detach(), states[0].detach(), x.grad, *(p.grad for p in model.parameters())]
    for left, right in zip(ours, expected, strict=True):
        assert torch.equal(left, right)


# --- functional autograd ----------------------------------------------------------------------

NORSE = [loop for loop in LOOPS if loop.name.startswith("norse")]


@pytest.mark.parametrize("loop", NORSE, ids=str)
@pytest.mark.parametrize("tau_s", TAUS)
def test_torch_func_grad(loop: Loop, tau_s: float) -> None:
    """``functional_call`` under ``torch.func.grad`` equals torch.autograd, states passed on."""
    torch.manual_seed(0)
    linear, layer = nn.Linear(NEURONS, NEURONS).double(), loop.make()
    model = nn.ModuleDict({"linear": linear, "spikes": layer})
    tssl_adapters.wrap(model, tau_s=tau_s, rule="tsslbp")
    weights = dict(linear.named_parameters())

    def loss(weights: dict[str, Tensor], x: Tensor, neuron_params: list[Tensor]) -> Tensor:
        drive = torch.func.functional_call(linear, weights, (x,))
        old, names = layer.p, [n for n, v in layer.p._asdict().items() if isinstance(v, Tensor)]
        learned = [n for n in names if getattr(old, n).requires_grad]
        layer.p = old._replace(**dict(zip(learned, neuron_params, strict=True)))
        try:
            first, state = loop.call(layer, drive[:4], None)
            second, state = loop.call(layer, drive[4:], state)
        finally:
            layer.p = old
        return loss_of(torch.cat([first, second]), [state])

    x = drive_of()
    params = [p.detach() for p in norse_params(layer)]
    ours = torch.func.grad(loss, argnums=(0, 1, 2))(weights, x, params)
    x = x.requires_grad_()
    leaves = [p.clone().requires_grad_() for p in params]
    wanted = [*weights.values(), x, *leaves]
    expected = gradients(loss(weights, x, leaves), wanted)
    for left, right in zip([*ours[0].values(), ours[1], *ours[2]], expected, strict=True):
        close(left, right, 1e-11)
    assert all(float(g.abs().max()) > 0 for g in expected)


@pytest.mark.parametrize("loop", NORSE, ids=str)
@pytest.mark.parametrize("tau_s", TAUS)
@pytest.mark.parametrize("edit", [detach, clone, masked])
def test_torch_func_grad_of_edited_states(loop: Loop, tau_s: float, edit: Edit) -> None:
    """As with torch.autograd; or an error, where a detached state's trace cannot be known."""
    layer = wrapped(loop, tau_s)

    def loss(x: Tensor) -> Tensor:
        first, state = loop.call(layer, x[:4], None)
        second, state = loop.call(layer, x[4:], state.edited(edit))
        return loss_of(torch.cat([first, second]), [state])

    x = drive_of().requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LostLinkWarning)
        if tau_s > 1.0 and edit is not detach:
            with pytest.raises(LostTraceError, match=f"Layer '{NAME}'"):
                torch.func.grad(loss)(x.detach())
            return
        try:
            ours = torch.func.grad(loss)(x.detach())
        except LostTraceError as error:
            assert tau_s > 1.0
            assert f"Layer '{NAME}'" in str(error)  # noqa: PT017
            return
        (expected,) = gradients(loss(x), [x])
    close(ours, expected, 1e-11)


@pytest.mark.parametrize("loop", NORSE, ids=str)
@pytest.mark.parametrize("tau_s", TAUS)
def test_vmap_is_right_or_refused(loop: Loop, tau_s: float) -> None:
    """Norse has no vmap either: its surrogates are autograd functions without a rule for it."""
    layer = wrapped(loop, tau_s)
    x = torch.stack([drive_of(seed=seed) for seed in range(3)])

    def out(x: Tensor) -> Tensor:
        return loop.call(layer, x, None)[0]

    try:
        ours = torch.func.vmap(out)(x)
    except RuntimeError as error:
        assert "vmap" in str(error)  # noqa: PT017
        return
    assert torch.equal(ours, torch.stack([out(one) for one in x]))


@pytest.mark.parametrize("loop", LOOPS, ids=str)
@pytest.mark.parametrize("tau_s", TAUS)
def test_double_backward_is_refused(loop: Loop, tau_s: float) -> None:
    """A gradient penalty: an error, never the part of the gradient that happens to be known."""
    torch.manual_seed(0)
    linear, layer = nn.Linear(NEURONS, NEURONS).double(), wrapped(loop, tau_s)
    for loss in (torch.square, torch.clone):  # the output's cotangent has a graph, or has none
        x = drive_of().requires_grad_()
        out, _ = loop.call(layer, linear(x), None)
        with pytest.raises(RuntimeError, match="no second derivative"):
            torch.autograd.grad(loss(out.double()).sum(), x, create_graph=True)


@pytest.mark.parametrize("loop", NORSE, ids=str)
@pytest.mark.parametrize("tau_s", TAUS)
def test_nested_torch_func_grad_is_refused(loop: Loop, tau_s: float) -> None:
    layer = wrapped(loop, tau_s)

    def loss(x: Tensor) -> Tensor:
        out, state = loop.call(layer, x, None)
        return loss_of(out.square(), [state])

    with pytest.raises(RuntimeError, match=r"differentiate|double|second|twice"):
        torch.func.grad(lambda x: torch.func.grad(loss)(x).square().sum())(drive_of())
    # What was made within it is not kept for others.
    assert torch.func.grad(loss)(drive_of()).isfinite().all()


# --- copies -----------------------------------------------------------------------------------


def pickled(thing: Any) -> Any:
    return pickle.loads(pickle.dumps(thing))


@pytest.mark.parametrize("loop", LOOPS, ids=str)
@pytest.mark.parametrize("tau_s", TAUS)
def test_deep_copies_in_mid_sequence(loop: Loop, tau_s: float) -> None:
    """A copied layer (or state) goes on as the original does, or says that the trace is lost."""
    x = drive_of()
    layer = wrapped(loop, tau_s)
    with torch.no_grad():
        _, state = loop.call(layer, x[:4], None)
    copied, copied_state = copy.deepcopy((layer, state))
    if loop.hidden:
        copied_state = State(copied.mem if isinstance(layer, snntorch.Leaky) else copied.v)
    assert copied_state.v is not state.v
    assert torch.equal(copied_state.v, state.v)
    if tau_s > 1.0:
        with pytest.raises(LostTraceError, match=f"Layer '{NAME}'"):
            loop.call(copied, x[4:], copied_state)
        return
    results = []
    for one, start in ((copied, copied_state), (layer, state)):
        given = x[4:].clone().requires_grad_()
        out, after = loop.call(one, given, start)
        grads = gradients(loss_of(out, [after]), [given, *loop.params(one)])
        results.append([out.detach(), after.v.detach(), *grads])
    for left, right in zip(*results, strict=True):
        assert torch.equal(left, right)


@pytest.mark.parametrize("loop", LOOPS, ids=str)
@pytest.mark.parametrize("tau_s", TAUS)
@pytest.mark.parametrize("grad", [False, True])
def test_pickled_states(loop: Loop, tau_s: float, grad: bool) -> None:
    """Of a detached state with or without a graph before; SpikingJelly's layers as a whole."""
    x = drive_of()
    layer = wrapped(loop, tau_s)
    with torch.set_grad_enabled(grad):
        _, state = loop.call(layer, x[:4], None)
    whole = loop.name.startswith("spikingjelly")
    if whole and not grad:
        other = pickled(layer)
        restored = State(other.v)
    else:
        other, restored = layer, State(*pickled(tuple(state.edited(detach))))
    expected, after = loop.call(layer, x[4:], state.edited(detach))
    if tau_s > 1.0:
        with pytest.raises(LostTraceError, match=f"Layer '{NAME}'"):
            loop.call(other, x[4:], restored)
        return
    out, restored = loop.call(other, x[4:], restored)
    assert torch.equal(out, expected)
    assert torch.equal(restored.v, after.v)


@pytest.mark.parametrize("loop", SPIKINGJELLY, ids=str)
@pytest.mark.parametrize("tau_s", TAUS)
def test_another_dtype_in_mid_sequence(loop: Loop, tau_s: float) -> None:
    """``double()`` makes another potential: the link is lost, and at tau_s > 1 so is the trace."""
    x = drive_of()
    layer = wrapped(loop, tau_s).float()
    given = x.clone().requires_grad_()
    first, _ = loop.call(layer, given[:4].float(), None)
    layer.double()
    if tau_s > 1.0:
        with pytest.raises(LostTraceError, match=f"Layer '{NAME}'"):
            loop.call(layer, given[4:], State(layer.v))
        return
    with pytest.warns(LostLinkWarning, match=f"layer '{NAME}'"):
        second, state = loop.call(layer, given[4:], State(layer.v))
    assert (first.dtype, second.dtype) == (torch.float32, torch.float64)
    out = torch.cat([first.double(), second])
    reference = run_reference(
        loop, loop.make(), x, tau_s, cuts=(4,), edit=clone, edit_trace=clone, watch=False
    )
    close(out, reference.out, 1e-5)
    # Of the input only: double() cuts the parameters off from the steps before it, natively too.
    (grad,) = gradients(loss_of(out, [state]), [given])
    close(grad, reference.grads[0], 1e-4)


# --- dtypes and shapes ------------------------------------------------------------------------


@pytest.mark.parametrize("loop", LOOPS, ids=str)
@pytest.mark.parametrize("tau_s", TAUS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_dtypes(loop: Loop, tau_s: float, dtype: torch.dtype) -> None:
    """The library's own dtypes and values; gradients near those in float64."""
    x = drive_of(dtype=dtype)
    layer, twin = wrapped(loop, tau_s).to(dtype), loop.make().to(dtype)
    ours = quiet_run(loop, layer, x)
    native = run_layer(loop, twin, x, grad=False)
    assert ours.out.dtype == native.out.dtype
    assert ours.seen[-1].v.dtype == native.seen[-1].v.dtype
    same_values(ours, native._replace(out=psc_of(native.out, tau_s)))
    assert ours.grads[0].dtype == dtype
    exact = quiet_run(loop, wrapped(loop, tau_s), x.double())
    # Where rounding changed no spike of a neuron, its gradient is rounded and no more.
    same = ((ours.out > 0.5 / tau_s).double() - (exact.out > 0.5 / tau_s).double()).abs()
    same = same.amax(0) == 0
    assert float(same.double().mean()) > 0.5
    error = (ours.grads[0].double() - exact.grads[0])[:, same].abs().flatten()
    scale = float(exact.grads[0].abs().max())
    assert float(error.median()) <= 20.0 * torch.finfo(dtype).eps * scale


@pytest.mark.parametrize("loop", LOOPS, ids=str)
@pytest.mark.parametrize("tau_s", TAUS)
def test_autocast(loop: Loop, tau_s: float) -> None:
    """A Linear layer in bfloat16 before the neurons, as under ``torch.autocast``."""

    def run(layer: Any) -> tuple[Tensor, Tensor, list[Tensor]]:
        torch.manual_seed(0)
        linear = nn.Linear(NEURONS, NEURONS)
        layer = layer.float()
        outs, state = [], None
        with torch.autocast("cpu", torch.bfloat16), warnings.catch_warnings():
            warnings.simplefilter("error", LostLinkWarning)
            for begin, end in bounds(STEPS, CUTS):
                drive = linear(drive_of(dtype=torch.float32)[begin:end]) + 0.5
                assert drive.dtype == torch.bfloat16
                out, state = loop.call(layer, drive, state)
                outs.append(out)
            out = torch.cat(outs)
            return out, state.v, gradients(out.double().sum(), list(linear.parameters()))

    out, v, grads = run(wrapped(loop, tau_s))
    native_out, native_v, _ = run(loop.make())
    assert out.dtype == native_out.dtype
    assert torch.equal(out, psc_of(native_out, tau_s))
    assert torch.equal(v, native_v)
    for grad in grads:
        assert grad.dtype == torch.float32
        assert torch.isfinite(grad).all()
        assert float(grad.abs().max()) > 0


@pytest.mark.parametrize("loop", LOOPS, ids=str)
@pytest.mark.parametrize("tau_s", TAUS)
def test_shapes(loop: Loop, tau_s: float) -> None:
    """Without a batch, and with channels: neurons are neurons."""
    x = drive_of()
    plain = run_layer(loop, wrapped(loop, tau_s), x)
    for shape in ((BATCH * NEURONS,), (2, BATCH // 2, NEURONS // 8, 8)):
        layer = wrapped(loop, tau_s)
        leaf = x.clone().reshape(STEPS, *shape).requires_grad_()
        outs, seen, state = [], [], None
        for begin, end in bounds(STEPS, CUTS):
            out, state = loop.call(layer, leaf[begin:end], state)
            outs.append(out.reshape(-1, BATCH, NEURONS))
            seen.append(state.edited(lambda t: t.reshape(BATCH, NEURONS).clone()))
        out = torch.cat(outs)
        assert torch.equal(out, plain.out)
        grads = gradients(loss_of(out, seen), [leaf, *loop.params(layer)])
        close(grads[0].reshape(x.shape), plain.grads[0], 1e-11)
        for ours, theirs in zip(grads[1:], plain.grads[1:], strict=True):
            close(ours, theirs, 1e-11)


@pytest.mark.parametrize("loop", LOOPS, ids=str)
@pytest.mark.parametrize("tau_s", TAUS)
def test_empty_batch(loop: Loop, tau_s: float) -> None:
    layer = wrapped(loop, tau_s)
    x = torch.zeros(5, 0, NEURONS, dtype=torch.float64, requires_grad=True)
    first, state = loop.call(layer, x[:3], None)
    second, state = loop.call(layer, x[3:], state)
    out = torch.cat([first, second])
    assert out.shape == x.shape
    assert state.v.shape == (0, NEURONS)
    (grad, *others) = gradients(out.sum().double(), [x, *loop.params(layer)])
    assert grad.shape == x.shape
    assert all(float(g.abs().sum()) == 0.0 for g in others)
    run = run_layer(loop, layer, drive_of())  # and the layer is none the worse for it
    same_values(run, run_layer(loop, wrapped(loop, tau_s), drive_of()))


@pytest.mark.parametrize("engine", ["torch", "cpu"])
@pytest.mark.parametrize("name", ["leaky", "synaptic"])
def test_the_default_has_no_link_to_lose(
    name: str, engine: str, recwarn: pytest.WarningsRecorder
) -> None:
    """A clone has the membrane's ordinary adjoint, which is all that the default sends back."""
    made = snntorch.Leaky(0.8) if name == "leaky" else snntorch.Synaptic(alpha=0.9, beta=0.8)
    layer: Any = tssl_adapters.wrap(made, engine=engine)
    x = torch.rand(5, 2, 3, requires_grad=True)

    def gradient(kept: Edit) -> Tensor:
        states = getattr(layer, f"init_{name}")()
        states, loss = states if isinstance(states, tuple) else (states,), torch.zeros(())
        for t, step in enumerate(x.unbind(0)):
            out, *states = layer(step, *states)
            states = [*map(kept, states)]
            loss = loss + t * out.sum() + states[-1].square().sum()
        (grad,) = torch.autograd.grad(loss, x)
        return grad

    assert torch.equal(gradient(lambda state: state), gradient(torch.clone))
    assert not [w for w in recwarn if w.category is LostLinkWarning]
