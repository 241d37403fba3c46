"""One case, drawn from an integer: a layer, and everything that is done with it."""

from __future__ import annotations

from dataclasses import dataclass

from fuzzing import layers
from fuzzing.chance import Chance
from fuzzing.layers import WIDTH, Layer
from tssl_adapters import rules

BLOCK = 32
"""Consecutive seeds that one process runs, and that make a line of the output."""

LARGE = 131, 1031, 4200
"""Batches of more neurons than a loop computes between prefetches, in a block backward, and in one
forward."""
FLOATS = ("torch.float32", "torch.float64", "torch.float16", "torch.bfloat16")
RULES = (
    *("None",) * 4,
    *("rules.SmoothTSSLBP(memory=12.0)", "rules.SmoothTSSLBP(reset_path='complete')"),
    *("rules.TSSLBP()",) * 2,
    *("rules.TSSLBP(reset_path='complete')", "rules.TSSLBP(reset_path='none')"),
    "rules.TSSLBP(fallback=False)",
    "rules.TSSLBP(fallback=False, reset_path='complete')",
    "rules.TSSLBP(max_slope=2.0, fallback_width=0.7)",
    *("rules.TSSLBP(max_slope=1000.0)", "rules.TSSLBP(checkpoint=2)"),
    *("rules.SurrogateGradient(OWN)",) * 2,
    *("rules.Native()",) * 4,
    "rules.SurrogateGradient(OWN, reset_path='complete')",
    "rules.SurrogateGradient(OWN, reset_path='none')",
    "rules.SurrogateGradient(OWN, chain=False)",
    "rules.SurrogateGradient(OWN, checkpoint=2)",
    "rules.SurrogateGradient(WRITTEN)",
    "rules.SurrogateGradient(WRITTEN, reset_path='complete')",
    "rules.SurrogateGradient(WRITTEN, chain=False)",
)
FOR_LINEAR = (
    *("rules.STRSBP(credit='spike')", "rules.STRSBP(credit='spike', self_effect='regular')"),
    *("rules.STRSBP()", "rules.STRSBP(self_effect='none', silent='zero')"),
    "rules.STRSBP(recurrent='full')",
    *("rules.EventProp()", "rules.EventProp(max_slope=3.0, checkpoint=2)"),
)
FOR_SPIKES = (
    *("rules.Lee()", "rules.Lee(gate='active')", "rules.Lee(normalise=True)"),
    *("rules.STDBP(strict=False)", "rules.STDBP(strict=False, silent='none', max_slope=3.0)"),
    "rules.STDBP()",
)
"""Rules that do not support every neuron, or do not support a trace."""


@dataclass(frozen=True)
class Case:
    """What a script does."""

    seed: int
    layer: Layer
    rule: str
    tau_s: float
    engine: str
    dtype: str
    """The layer's dtype."""
    input_dtype: str
    steps: int
    shape: tuple[int, ...]
    """The shape of one time step."""
    form: str
    """The memory layout or kind of the input."""
    state: str
    """The initial state of the loop."""
    loop: str
    cuts: tuple[int, ...]
    """Steps before which the state is detached, or at which a call on a sequence begins."""
    detach: bool
    losses: str
    autocast: bool
    training: bool


def drawn(seed: int) -> Case:
    """The case of a seed."""
    chance = Chance(seed)
    library = chance.pick("snntorch", "spikingjelly", "norse")
    name = chance.pick(*layers.CLASSES[library])
    tau_s = chance.pick(1.0, 1.0, 1.0, 2.5, 3.0, 1.3, 7.0)
    steps = chance.pick(6, 6, 6, 5, 4, 3, 2, 1, 12, 20)
    shape = _shape(chance, chance.one_in(8), name)
    vectors = shape[-1:] == (WIDTH,)
    # Norse's own numbers are float32 without dimensions, to which a lone half number would turn.
    half = FLOATS[2:] if shape else FLOATS[:2]
    dtype = chance.pick(*(FLOATS[0],) * 5, *(FLOATS[1],) * 4, *half)
    # Of so many neurons in half precision some would lie exactly where a gradient jumps.
    large = len(shape) == 2 and shape[0] and dtype in FLOATS[:2] and Chance(seed, 1).one_in(15)
    if large:
        shape = chance.pick(*LARGE), shape[1]
    if library == "spikingjelly":
        layer = layers.spikingjelly(chance, name, steps)
    elif library == "snntorch":
        layer = layers.snntorch(chance, name, vectors, dtype)
    else:
        layer = layers.norse(chance, name, vectors)
    rule = _rule(chance, layer, tau_s)
    if layer.facts.get("conv"):
        shape = (chance.pick(2, 3), 1, 3, WIDTH)
    form = chance.pick(*("plain",) * 10, "transposed", "expanded", "strided", "no gradient")
    input_dtype = dtype
    # SpikingJelly turns states to the input's dtype, and without dimensions numbers turn them back.
    if chance.one_in(12) and (shape or library != "spikingjelly"):
        input_dtype = chance.pick(*(FLOATS if shape and not large else FLOATS[:2]))
    if library == "snntorch" and layer.settings["threshold"] == "1e9":
        input_dtype = dtype  # where it may be infinite: half precision by itself has a warning
    if chance.one_in(25):
        form, input_dtype = "integers", chance.pick("torch.bool", "torch.int64", "torch.uint8")
    if len(shape) < 2 and form in ("transposed", "expanded"):
        form = "plain"
    loop = "steps" if not layer.sequence else "sequence"
    if chance.one_in(4):
        loop = "multi"
    return Case(
        seed=seed,
        layer=layer,
        rule=rule,
        tau_s=tau_s,
        engine=chance.pick("cpu", "cpu", "torch"),
        dtype=dtype,
        input_dtype=input_dtype,
        steps=steps,
        shape=shape,
        form=form,
        state=_state(chance, tau_s),
        loop=loop,
        cuts=_cuts(chance, steps, layer, loop),
        detach=chance.flag(),
        losses=chance.pick("out", "out", "states", "all", "all"),
        # Float16 and the CPU's autocast do not combine: torch's own operations fail.
        autocast=chance.one_in(12) and FLOATS[2] not in (dtype, input_dtype),
        training=not chance.one_in(5),
    )


def _rule(chance: Chance, layer: Layer, tau_s: float) -> str:
    if layer.linear and chance.one_in(5):
        return chance.pick(*(FOR_SPIKES if tau_s == 1.0 else ()), *FOR_LINEAR)
    if chance.one_in(40):
        return repr(chance.pick(*sorted(rules.BY_NAME)))
    return chance.pick(*RULES, *(f"rules.{name}()" for name in others()))


def others() -> list[str]:
    """The package's rules that are in no list here; they are drawn with their defaults."""
    named = " ".join((*RULES, *FOR_LINEAR, *FOR_SPIKES))
    exported = (getattr(rules, name) for name in rules.__all__)
    kinds = [kind for kind in exported if isinstance(kind, type) and issubclass(kind, rules.Rule)]
    kinds = [kind for kind in kinds if kind is not rules.Rule]
    return [kind.__name__ for kind in kinds if f"rules.{kind.__name__}(" not in named]


def _shape(chance: Chance, odd: bool, name: str) -> tuple[int, ...]:
    if name == "GatedLIFNode":
        four = (chance.pick(2, 1), 2, 2, 3)
        return chance.pick(four[:2], four[1:]) if odd else four  # it broadcasts fewer to four
    batch = chance.pick(3, 3, 3, 2, 1, 0)
    if not odd:
        return (batch, WIDTH)
    if "Recurrent" in name or name in ("RLeaky", "RSynaptic"):
        return chance.pick((WIDTH,), (batch, 2, WIDTH))
    return chance.pick((), (WIDTH,), (batch, 2, 3, WIDTH), (batch, 1), (batch, 2, WIDTH))


def _state(chance: Chance, tau_s: float) -> str:
    given = ("tensor", "tensor", "above", "no gradient", "zero-dim", "broadcast", "other dtype")
    given = (*given, "expanded", "transposed")
    if tau_s != 1.0:  # an unknown state loses its trace, and raises an error
        return "none" if not chance.one_in(12) else chance.pick(*given)
    return chance.pick(*("none",) * len(given), *given)


def _cuts(chance: Chance, steps: int, layer: Layer, loop: str) -> tuple[int, ...]:
    # With recorded states a loop would have to take the last one, which was never returned itself.
    whole = layer.settings.get("record_states") == "True" and loop != "steps"
    if whole or layer.name == "GatedLIFNode" or steps < 2 or chance.one_in(2):
        return ()
    cuts = {chance.whole(1, steps - 1) for _ in range(chance.pick(1, 1, 2, steps))}
    return tuple(sorted(cuts))
