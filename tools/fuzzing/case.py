"""One case, drawn from an integer: a layer, and everything that is done with it."""

from __future__ import annotations

from dataclasses import dataclass

from fuzzing import layers
from fuzzing.chance import Chance
from fuzzing.layers import WIDTH, Layer
from tssl_adapters import rules

VARIANTS = 48
"""Number of combinations of layer and rule for the compiled engine; each compiles for seconds."""
SHARED = 6
"""The same for the cases that several processes run."""
BLOCK = 32
"""Consecutive seeds in a block, which several processes may run."""

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


def shared(seed: int) -> bool:
    """Whether a seed is in a block that several processes run."""
    return seed // BLOCK % 24 == 5


def drawn(seed: int) -> Case:
    """The case of a seed."""
    chance = Chance(seed)
    compiled = shared(seed) or chance.one_in(4)
    # What determines the compiled loops is drawn from a small number of separate seeds.
    variant = Chance(-1, seed % (SHARED if shared(seed) else VARIANTS)) if compiled else chance
    library = variant.pick("snntorch", "spikingjelly", "norse")
    ordinary = compiled and (shared(seed) or not variant.one_in(6))
    name = variant.pick(*(layers.COMPILED if ordinary else layers.CLASSES)[library])
    tau_s = variant.pick(1.0, 1.0, 1.0, 2.5, 3.0, 1.3, 7.0)
    steps = chance.pick(6, 6, 6, 5, 4, 3, 2, 1, 12, 20)
    shape = _shape(chance, variant.one_in(8), name)
    vectors = shape[-1:] == (WIDTH,)
    dtype = variant.pick(*(FLOATS[0],) * 5, *(FLOATS[1],) * 4, *FLOATS[2:])
    if shared(seed):
        dtype = variant.pick(*FLOATS[:2])
    if library == "spikingjelly":
        layer = layers.spikingjelly(variant, name, steps)
    elif library == "snntorch":
        layer = layers.snntorch(variant, name, vectors, dtype)
    else:
        layer = layers.norse(variant, name, vectors)
    rule = _rule(variant, layer, tau_s, compiled, ordinary)
    if layer.facts.get("conv"):
        shape = (chance.pick(2, 3), 1, 3, WIDTH)
    form = chance.pick(*("plain",) * 10, "transposed", "expanded", "strided", "no gradient")
    input_dtype = dtype
    if chance.one_in(12):
        input_dtype = chance.pick(*FLOATS)
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
        engine="cpu" if compiled else "torch",
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


def _rule(chance: Chance, layer: Layer, tau_s: float, compiled: bool, ordinary: bool) -> str:
    if layer.linear and chance.one_in(12 if ordinary else 5):
        return chance.pick(*(FOR_SPIKES if tau_s == 1.0 else ()), *FOR_LINEAR)
    if not ordinary and chance.one_in(40):
        return repr(chance.pick(*sorted(rules.BY_NAME)))
    known = [rule for rule in RULES if "rules.TSSLBP" in rule or not compiled]
    return chance.pick(*known, *(f"rules.{name}()" for name in others()))


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
