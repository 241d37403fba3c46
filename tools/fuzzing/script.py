"""A case as a script, which is what is run, so that a reader sees everything that happens."""

from __future__ import annotations

from fuzzing.case import Case

IMPORTS = {
    "snntorch": "import snntorch as snn\nfrom snntorch import surrogate",
    "spikingjelly": "from spikingjelly.activation_based import neuron, surrogate",
    "norse": "import norse.torch as norse",
}
EXACT = """
class Exact(torch.autograd.Function):  # snnTorch's default surrogate in the input's own dtype
    @staticmethod
    def forward(ctx, d): ctx.save_for_backward(d); return (d > 0).to(d)
    @staticmethod
    def backward(ctx, g): return g / (1 + (torch.pi * ctx.saved_tensors[0]) ** 2)
EXACT = lambda d: Exact.apply(d)"""
HAVING = """
def having(layer, **settings):
    for name, value in settings.items(): setattr(layer, name, value)
    return layer"""
FILLED = """
def filled(layer, **values):
    for name, value in values.items(): torch.nn.init.constant_(getattr(layer, name), value)
    return layer"""
WEIGHT = """
def weight(*shape): return torch.nn.Parameter(torch.randn(shape, dtype=P) * 0.7)"""
NESTED = """
def fields(s):
    for n, v in s._asdict().items(): yield from fields(v) if isinstance(v, tuple) else [(n, v)]
def each(f, s): return type(s)(*(each(f, v) if isinstance(v, tuple) else f(v) for v in s))"""
OWN = {
    "snntorch": "OWN = lambda d: 1 / (1 + (torch.pi * d) ** 2)",
    "spikingjelly": "OWN = lambda d: 4 * torch.sigmoid(4 * d) * (1 - torch.sigmoid(4 * d))",
    "norse": "OWN = lambda d: 1 / (d.abs() + 1) ** 2",
}
"""Each library's default surrogate."""
WRITTEN = """
from tssl_adapters.arithmetic import absolute, arithmetic
@arithmetic
def WRITTEN(z): return 1.0 / ((1.0 + absolute(z)) * (1.0 + absolute(z)))"""
"""One that compiles, of a user's own."""
LOSS = """
def loss(seen):
    g = torch.Generator().manual_seed(1)
    return sum((s.double() * torch.randint(-16, 17, s.shape, generator=g) / 8).sum()
               for (name, t), s in seen.items() if WANTED)"""
WANTED = {
    "out": "name == 'out'",
    "states": "name not in ('out', 'spk')",
    "all": "name != 'spk'",
}


def body(case: Case, *, stepwise: bool = False) -> str:
    """The code for layer, input, loop and loss; with ``stepwise`` each step is a call."""
    layer = case.layer
    lines = ["import torch, tssl_adapters", "from tssl_adapters import rules"]
    lines.append(IMPORTS[layer.library])
    if "quant." in layer.code:
        lines.append("from snntorch.functional import quant")
    if layer.name == "GatedLIFNode":
        lines.append("import numpy")
    if layer.library != "spikingjelly":
        lines.append(f"D = P = {case.dtype}")
    for name, text in (("EXACT", EXACT), ("having(", HAVING), ("filled(", FILLED)):
        if name in layer.code:
            lines.append(text.strip())
    if "weight(" in layer.code:
        lines.append(WEIGHT.strip())
    if layer.library == "norse":
        lines.append(NESTED.strip())
    if "OWN" in case.rule:
        lines.append(OWN[layer.library])
    if "WRITTEN" in case.rule:
        lines.append(WRITTEN.strip())
    lines.append(_make(case))
    lines += _input(case)
    lines += _start(case)
    lines.append(_run(case, stepwise))
    lines.append(LOSS.strip().replace("WANTED", WANTED[case.losses]))
    return "\n".join(lines) + "\n"


def wrapping(case: Case) -> str:
    """The call that wraps a layer."""
    return (
        f"tssl_adapters.wrap(layer, rule={case.rule}, tau_s={case.tau_s}, engine={case.engine!r})"
    )


def _make(case: Case) -> str:
    seeds = "torch.manual_seed(0)"
    if case.layer.name == "GatedLIFNode":
        seeds += "; numpy.random.seed(0)"
    layer = f"{case.layer.code}.to({case.dtype})"
    if not case.training:
        layer += ".eval()"
    return f"def make():\n    {seeds}\n    return {layer}"


def _input(case: Case) -> list[str]:
    shape = (case.steps, *case.shape)
    lines = [f"G = torch.Generator().manual_seed({case.seed})"]
    grad = "" if case.form == "no gradient" else ".requires_grad_()"
    if case.form == "integers":
        value = f"x = drive = torch.randint(0, 2, {shape}, generator=G).to({case.input_dtype})"
        return [*lines, value]
    leaf, view = shape, "x"
    if case.form == "transposed":
        leaf, view = (*shape[:-2], shape[-1], shape[-2]), "x.transpose(-2, -1)"
    elif case.form == "expanded":
        leaf, view = (shape[0], 1, *shape[2:]), f"x.expand({shape})"
    elif case.form == "strided":
        leaf, view = (2 * shape[0], *shape[1:]), "x[::2]"
    value = f"(0.5 + 1.5 * torch.randn({leaf}, generator=G)).to({case.input_dtype}){grad}"
    return [*lines, f"x = {value}", f"drive = {view}"]


_SCALE = {"i": 0.3, "a": 0.2, "u": 0.3, "w": 0.2, "syn": 0.3, "syn_inh": -0.3}


def _start(case: Case) -> list[str]:
    if case.state == "none":
        return ["start = {}"]
    return [f"start = {{{', '.join(f'{n!r}: {_state(case, n)}' for n in case.layer.states)}}}"]


def _state(case: Case, name: str) -> str:
    shape: tuple[int, ...] = case.shape
    dtype = case.dtype
    after = ""
    if case.state == "other dtype":
        dtype = "torch.float64" if dtype == "torch.float32" else "torch.float32"
    if case.state == "zero-dim":
        shape = ()
    elif case.state == "broadcast":
        shape = shape[-1:]
    elif case.state == "expanded":
        shape, after = shape[-1:], f".expand({case.shape})"
    elif case.state == "transposed" and len(shape) > 1:
        shape, after = (*shape[:-2], shape[-1], shape[-2]), ".transpose(-2, -1)"
    noise = f"torch.randn({shape}, generator=G)"
    if name in ("z", "spk"):
        value = f"({noise} > 0.3)"
    elif name == "rho":
        value = f"({noise}.abs() * 1.5).floor()"
    elif case.state == "above" and name == "v":
        value = f"(1.5 + {noise}.abs())"
    else:
        low = {"v": 0.3, "b": 0.4, "m": 0.3}.get(name, 0.0)
        value = f"({low} + {_SCALE.get(name, 0.4)} * {noise})"
    grad = "" if case.state == "no gradient" else ".requires_grad_()"
    return f"{value}.to({dtype}){grad}{after}"


def pieces(case: Case) -> list[tuple[int, int]]:
    """The calls of a loop over sequences, as ranges of steps."""
    ends = [*case.cuts, case.steps]
    return list(zip([0, *case.cuts], ends, strict=True))


def _run(case: Case, stepwise: bool) -> str:
    parts = [(t, t + 1) for t in range(case.steps)] if stepwise else pieces(case)
    if case.layer.name == "GatedLIFNode":
        parts = [(0, case.steps)]
    cuts = case.cuts if case.detach else ()
    loop = case.loop
    if stepwise and loop == "multi":
        loop = "sequence" if case.layer.sequence else "steps"
    return {
        "snntorch": _run_snntorch,
        "spikingjelly": _run_spikingjelly,
        "norse": _run_norse,
    }[case.layer.library](case, loop, parts, cuts)


def _run_snntorch(case: Case, loop: str, parts: list[tuple[int, int]], cuts: object) -> str:
    layer = case.layer
    names = {n: "mem" if n == "v" else n for n in layer.states}
    shown = [n for n in layer.states if n != "spk"]
    held = ", ".join(f"({n!r}, t): layer.{a}.clone()" for n, a in names.items())
    begin = [f"    layer.{a} = start[{n!r}]" for n, a in names.items()]
    if case.state == "none":
        begin = []
    lines = ["def run(layer):", "    layer.reset_mem(); seen = {}"]
    let_go = "layer.detach_hidden()"
    if layer.name == "RSynaptic":  # the library forgets to detach the spikes
        let_go += "; layer.spk = layer.spk.detach()"
    if loop == "multi":
        lines += [*begin, f"    for a, b in {parts}:"]
        lines.append(f"        if a in {cuts}: {let_go}")
        lines.append("        out = tssl_adapters.multi_step_forward(layer, drive[a:b]); t = b - 1")
        if not layer.hidden or layer.settings["output"] == "True":
            lines.append("        out, *states = out")
        lines.append("        seen |= {('out', a + k): o for k, o in enumerate(out)}")
        if not layer.hidden or layer.settings["output"] == "True":
            lines.append(
                f"        for n, s in zip({shown}, states): "
                "seen |= {(n, a + k): o for k, o in enumerate(s)}"
            )
        lines.append(f"        seen |= {{{held}}}")
        return "\n".join([*lines, "    return seen"])
    if layer.hidden:
        lines += [*begin, "    for t, step in enumerate(drive):"]
        lines.append(f"        if t in {cuts}: {let_go}")
        lines.append("        out = layer(step)")
        # The output of a recurrent layer is one of its states, and detaching changes that in place.
        lines.append("        seen['out', t] = (out[0] if isinstance(out, tuple) else out).clone()")
        lines.append(f"        seen |= {{{held}}}")
        return "\n".join([*lines, "    return seen"])
    lines.append("    state = [*start.values()]")
    lines.append("    for t, step in enumerate(drive):")
    lines.append(f"        if t in {cuts}: state = [s.detach() for s in state]")
    lines.append("        out, *state = layer(step, *state); seen['out', t] = out")
    if "spk" in names:
        lines.append("        state = [layer.spk, *state]")
    lines.append(f"        seen |= {{(n, t): s for n, s in zip({[*names]}, state)}}")
    return "\n".join([*lines, "    return seen"])


def _run_spikingjelly(case: Case, loop: str, parts: list[tuple[int, int]], cuts: object) -> str:
    layer = case.layer
    held = ", ".join(f"({n!r}, t): layer.{n}.clone()" for n in layer.states)
    lines = ["def run(layer):", "    layer.reset(); seen = {}"]
    if case.state != "none":
        lines += [f"    layer.{n} = start[{n!r}]" for n in layer.states]
    if loop == "steps":
        lines.append("    for t, step in enumerate(drive):")
        lines.append(f"        if t in {cuts}: layer.detach()")
        lines.append(f"        seen |= {{('out', t): layer(step), {held}}}")
        return "\n".join([*lines, "    return seen"])
    call = "layer(drive[a:b])" if loop == "sequence" else "MULTI(layer, drive[a:b])"
    call = call.replace("MULTI", "tssl_adapters.multi_step_forward")
    lines.append(f"    for a, b in {parts}:")
    lines.append(f"        if a in {cuts}: layer.detach()")
    lines.append(f"        out = {call}; t = b - 1")
    lines.append("        seen |= {('out', a + k): o for k, o in enumerate(out)}")
    if layer.sequence and layer.settings.get("store_v_seq") == "True":
        lines.append("        seen |= {('v', a + k): v for k, v in enumerate(layer.v_seq.clone())}")
    lines.append(f"        seen |= {{{held}}}")
    return "\n".join([*lines, "    return seen"])


def _run_norse(case: Case, loop: str, parts: list[tuple[int, int]], cuts: object) -> str:
    layer = case.layer
    lines = ["def run(layer):", f"    seen, state = {{}}, {_norse_state(case)}"]
    if loop == "steps":
        lines.append("    for t, step in enumerate(drive):")
        lines.append(f"        if t in {cuts}: state = each(torch.Tensor.detach, state)")
        lines.append("        seen['out', t], state = layer(step, state)")
        lines.append("        seen |= {(n, t): s for n, s in fields(state)}")
        return "\n".join([*lines, "    return seen"])
    call = "layer" if loop == "sequence" else "tssl_adapters.multi_step_forward"
    given = "drive[a:b], state" if loop == "sequence" else "layer, drive[a:b], state"
    lines.append(f"    for a, b in {parts}:")
    lines.append(f"        if a in {cuts}: state = each(torch.Tensor.detach, state)")
    lines.append(f"        out, state = {call}({given})")
    lines.append("        seen |= {('out', a + k): o for k, o in enumerate(out)}")
    if layer.settings.get("record_states") == "True":
        lines.append(
            "        for n, s in fields(state): seen |= {(n, a + k): o for k, o in enumerate(s)}"
        )
        lines.append("        state = each(lambda s: s[-1], state)")
    else:
        lines.append("        seen |= {(n, b - 1): s for n, s in fields(state)}")
    return "\n".join([*lines, "    return seen"])


def _norse_state(case: Case) -> str:
    if case.state == "none":
        return "None"
    layer = case.layer
    inner, base = layer.facts["inner"], layer.facts["base"]
    recurrent = "Recurrent" in layer.name
    kind = f"{inner}State" if recurrent else f"{inner}FeedForwardState"
    if inner == "Izhikevich":
        kind = "IzhikevichRecurrentState" if recurrent else "IzhikevichState"
    made = f"norse.{kind}({', '.join(f'start[{n!r}]' for n in layer.states if n != 'rho')})"
    if inner == base:
        return made
    outer = f"{base}State" if recurrent else f"{base}FeedForwardState"
    return f"norse.{outer}({made}, start['rho'])"
