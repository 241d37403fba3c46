"""Refusals: each says where, what is wrong and what to do, and nothing was changed."""

from __future__ import annotations

import copy
import dataclasses
import math
import re
from collections.abc import Callable
from importlib import metadata
from typing import Any

import norse.torch as norse
import pytest
import snntorch
import torch
from models import (
    MODELS,
    SPIKING,
    MixedNet,
    NorseNet,
    SnnTorchNet,
    SpikingJellyNet,
    anatomy,
    assert_same_anatomy,
    equal,
    label,
    numbers,
)
from norse.torch.functional.lif import LIFParameters
from norse.torch.functional.lif_box import LIFBoxParameters
from spikingjelly.activation_based import neuron, surrogate
from torch import Tensor, nn

import tssl_adapters
from tssl_adapters import adapters, errors, rules
from tssl_adapters.errors import (
    AlreadyWrappedError,
    LostTraceError,
    NativeGradientWarning,
    NoSpikingLayersError,
    TSSLAdaptersError,
    UnsupportedConfigError,
    UnsupportedLayerError,
)

VERSIONS = {name: metadata.version(name) for name in ("snntorch", "spikingjelly", "norse")}


def made(name: str = "mixed") -> Any:
    torch.manual_seed(0)
    return MODELS[name]()


def refusal(model: nn.Module, error: type[Exception], **arguments: Any) -> str:
    """The text of the error; and the model is untouched, whatever one looks at."""
    twin, before = copy.deepcopy(model), anatomy(model)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(error) as caught:
        tssl_adapters.wrap(model, **arguments)
    assert type(caught.value) is error
    assert_same_anatomy(anatomy(model), before)
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in state.items())
    if isinstance(model, SnnTorchNet | SpikingJellyNet | NorseNet | MixedNet):
        assert equal(numbers(model), numbers(twin))
    return str(caught.value)


def assert_says(text: str, *words: str) -> None:
    assert [word for word in words if word not in text] == []


# --- what is no model, what has nothing to wrap ------------------------------------------------


@pytest.mark.parametrize("function", ["wrap", "unwrap", "is_wrapped", "inspect"])
@pytest.mark.parametrize(
    ("thing", "said"),
    [
        (3, "not 3"),
        ("model", "not 'model'"),
        (None, "not None"),
        ([nn.Linear(2, 2)], "not a list."),
        (torch.ones(3), "not a Tensor."),
        (snntorch.Leaky, "not the class Leaky; make an instance of it first"),
        (nn.Sequential, "not the class Sequential; make an instance of it first"),
        (int, "not the class int"),
        (torch.relu, "not a builtin_function_or_method."),
    ],
    ids=label,
)
def test_not_a_module(function: str, thing: Any, said: str) -> None:
    with pytest.raises(TypeError) as caught:
        getattr(tssl_adapters, function)(thing)
    assert_says(str(caught.value), f"tssl_adapters.{function}", "torch.nn.Module", said)


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Linear(2, 2), nn.ReLU()),
        nn.Sequential(norse.LI(), neuron.NonSpikingLIFNode()),
        nn.Linear(2, 2),
    ],
    ids=lambda model: type(model[0] if isinstance(model, nn.Sequential) else model).__name__,
)
def test_no_spiking_layer(model: nn.Module) -> None:
    text = refusal(model, NoSpikingLayersError)
    assert_says(
        text, type(model).__name__, "no spiking layer", "tssl_adapters.supported()", "inspect"
    )
    assert "skipped" not in text


@pytest.mark.parametrize("name", MODELS)
def test_all_skipped(name: str) -> None:
    text = refusal(made(name), NoSpikingLayersError, skip=["*"])
    assert_says(text, "no spiking layer", f"({len(SPIKING[name])} skipped)")


@pytest.mark.parametrize("name", MODELS)
def test_wrapped_twice(name: str) -> None:
    model = tssl_adapters.wrap(made(name), tau_s=2.5)
    for arguments in ({}, {"tau_s": 2.5}, {"rule": rules.TSSLBP(4.0)}):
        text = refusal(model, AlreadyWrappedError, **arguments)
        assert_says(text, "wrapped already", "TSSLBP", "tau_s=2.5", "unwrap(model)", "skip")
        for row in tssl_adapters.inspect(model):
            named = f"{row.path} ({row.library} {row.version} {row.layer})" in text
            assert named == (row.path in SPIKING[name])


def test_partly_wrapped() -> None:
    """Named are those that are, and not the others."""
    model = made()
    tssl_adapters.wrap(model.middle["node"])
    text = refusal(model, AlreadyWrappedError)
    assert_says(text, "middle.node", f"spikingjelly {VERSIONS['spikingjelly']} LIFNode")
    assert "head.1" not in text
    assert "body.inner.lif" not in text


# --- layers and settings that are not supported ------------------------------------------------


class OwnLeaky(snntorch.Leaky):
    """A user's subclass with something of its own: it may be another neuron."""

    def own(self) -> None: ...


class OwnNode(neuron.LIFNode):
    def own(self) -> None: ...


class OwnCell(norse.LIFBoxCell):
    def own(self) -> None: ...


def leaky(**settings: Any) -> snntorch.Leaky:
    return snntorch.Leaky(**{"beta": 0.9} | settings)


UNSUPPORTED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "SLSTM": (lambda: snntorch.SLSTM(3, 3), "LSTM"),
    "OwnLeaky": (lambda: OwnLeaky(0.9), "subclass of Leaky"),
    "OTTTLIFNode": (lambda: neuron.OTTTLIFNode(), "learning rule of its own"),
    "SLTTLIFNode": (lambda: neuron.SLTTLIFNode(), "learning rule of its own"),
    "PSN": (lambda: neuron.PSN(3), "no reset"),
    "LIAFNode": (lambda: neuron.LIAFNode(torch.relu, False), "not a binary spike"),
    "ILIFNode": (lambda: neuron.ILIFNode(), "not a binary spike"),
    "DSRIFNode": (neuron.DSRIFNode, "firing rate"),
    "TernaryIFNode": (neuron.TernaryIFNode, "-1, 0 or 1"),
    "ActivationAwareIFNode": (neuron.ActivationAwareIFNode, "v_threshold - v_offset"),
    "ILCIFNode": (lambda: neuron.ILCIFNode(1, 3), "the caller's input"),
    "OwnNode": (OwnNode, "subclass of LIFNode"),
    "CobaLIFCell": (lambda: norse.CobaLIFCell(3, 3), "overwrites the conductances"),
    "OwnCell": (OwnCell, "subclass of LIFBoxCell"),
}


def unspiking() -> nn.Module:
    return neuron.LIFNode(surrogate_function=surrogate.ATan(spiking=False))


def precise() -> nn.Module:
    node = neuron.IFNode()
    node._neuron_precision = ("fp16", "fp32", "fp32")
    return node


def changed_reset() -> nn.Module:
    layer = leaky(reset_delay=False)
    layer.reset_mechanism = "zero"
    return layer


UNSUPPORTED_SETTINGS: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "inhibition": (lambda: leaky(inhibition=True), ["Leaky", "inhibition", "inhibition=False"]),
    "state_quant": (
        lambda: leaky(state_quant=torch.round),
        ["Leaky", "state_quant=False", "of your own"],
    ),
    "mixed resets": (changed_reset, ["reset_mechanism was changed", "make a new layer"]),
    "beta of zero": (lambda: leaky(beta=0.0), ["beta is 0", "threshold/beta", "beta > 0"]),
    "negative beta": (lambda: leaky(beta=-0.5), ["beta is 0", "reset_delay=False"]),
    "a beta of zero": (
        lambda: leaky(beta=torch.tensor([0.5, 0.0, 0.5]), learn_beta=True),
        ["beta is 0 somewhere", "reset_mechanism='zero'"],
    ),
    "no spikes": (unspiking, ["LIFNode", "surrogate_function", "set_spiking_mode(True)"]),
    "precision": (precise, ["IFNode", "precision", "convert it back"]),
    "adjoint cell": (
        lambda: norse.LIFCell(LIFParameters(method="adjoint")),
        ["LIFCell", "method='adjoint'", "another method"],
    ),
    "adjoint": (lambda: norse.LIF(LIFParameters(method="adjoint")), ["LIF)", "method='adjoint'"]),
    "own reset": (
        lambda: norse.LIFBoxCell(LIFBoxParameters(reset_method=lambda z, v, reset, th: v - z)),
        ["LIFBoxCell", "reset_method", "reset_value", "reset_subtract"],
    ),
}


def pasted(text: str) -> list[str]:
    """The remedy that an error offers, as a user pastes it."""
    found = re.search(r"skip=(\[[^]]*\])", text)
    assert found is not None
    return eval(found[1])  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_unsupported_layer(name: str) -> None:
    make, reason = UNSUPPORTED[name]
    model = made()
    model.odd = nn.Sequential(nn.Linear(2, 2), nn.ModuleList([make()]))
    text = refusal(model, UnsupportedLayerError)
    bases = type(model.odd[1][0]).__mro__
    library = next(c.__module__.split(".")[0] for c in bases if c.__module__ != __name__)
    assert_says(text, "1 spiking layer", "MixedNet", "nothing was changed", "supported()")
    assert_says(text, f"odd.1.0 ({library} {VERSIONS[library]} {name})", reason)
    assert pasted(text) == ["odd.1.0"]
    tssl_adapters.wrap(model, skip=pasted(text))
    assert not tssl_adapters.is_wrapped(model.odd)
    assert all(tssl_adapters.is_wrapped(model.get_submodule(path)) for path in SPIKING["mixed"])


@pytest.mark.parametrize("name", UNSUPPORTED_SETTINGS)
@pytest.mark.filterwarnings("ignore:Inhibition is an unstable feature")
def test_unsupported_setting(name: str) -> None:
    make, words = UNSUPPORTED_SETTINGS[name]
    model = made()
    model.odd = make()
    text = refusal(model, UnsupportedConfigError)
    assert_says(text, "1 spiking layer", "nothing was changed", "  - odd (", *words)
    assert pasted(text) == ["odd"]
    tssl_adapters.wrap(model, skip=pasted(text))
    assert not tssl_adapters.is_wrapped(model.odd)
    assert tssl_adapters.is_wrapped(model.again)


def test_the_supported_neighbours_of_these_settings() -> None:
    """One setting away from each, the layer is wrapped."""
    for layer in (
        leaky(beta=0.0, reset_mechanism="zero"),
        leaky(beta=0.0, reset_delay=False),
        leaky(beta=1e-3),
        leaky(reset_delay=False),
        neuron.LIFNode(surrogate_function=surrogate.ATan(spiking=True)),
        norse.LIF(LIFParameters(method="tanh")),
        norse.LIFBoxCell(LIFBoxParameters()),
    ):
        assert tssl_adapters.is_wrapped(tssl_adapters.wrap(layer))


def test_all_offenders_in_one_message() -> None:
    """Two classes and two settings, in three libraries: all listed, and the remedy is one line."""
    model = made()
    model.odd = nn.ModuleDict({"a": neuron.TernaryIFNode(), "b": norse.CobaLIFCell(3, 3)})
    model.worse = nn.Sequential(unspiking(), nn.Sequential(leaky(beta=0.0)), nn.Linear(2, 2))
    text = refusal(model, UnsupportedLayerError)
    paths = ["odd.a", "odd.b", "worse.0", "worse.1.0"]
    assert_says(text, "4 spiking layer", *(f"  - {path} (" for path in paths))
    assert_says(text, "TernaryIFNode", "CobaLIFCell", "surrogate_function", "beta is 0")
    assert_says(text, *(f"{library} {version}" for library, version in VERSIONS.items()))
    assert not any(f"- {path} " in text for path in SPIKING["mixed"])
    assert pasted(text) == paths
    text = refusal(model, UnsupportedConfigError, skip=["odd"])
    assert_says(text, "2 spiking layer", "worse.0", "worse.1.0")
    assert "odd" not in text
    text = refusal(model, UnsupportedLayerError, skip=["worse", norse.CobaLIFCell])
    assert pasted(text) == ["odd.a"]
    tssl_adapters.wrap(model, skip=paths)
    assert not tssl_adapters.is_wrapped(model.odd)
    assert tssl_adapters.is_wrapped(model.middle)


def test_a_refused_layer_on_its_own() -> None:
    """What the message offers for pasting has to be of use here too."""
    text = refusal(neuron.TernaryIFNode(), UnsupportedLayerError)
    name = f"TernaryIFNode (spikingjelly {VERSIONS['spikingjelly']} TernaryIFNode)"
    assert_says(text, name, "not a binary spike")
    if "skip=" in text:
        refusal(neuron.TernaryIFNode(), NoSpikingLayersError, skip=pasted(text))


def test_beta_that_learns_its_way_to_zero() -> None:
    """Found at run time, where it would divide by zero: the library's gradient takes over."""
    layer = tssl_adapters.wrap(nn.ModuleDict({"lif": leaky(learn_beta=True)}))["lif"]
    layer(torch.rand(2, 3))
    with torch.no_grad():
        layer.beta.zero_()
    with pytest.warns(NativeGradientWarning) as caught:
        layer(torch.rand(2, 3))
    (warning,) = caught
    assert warning.filename == __file__
    assert_says(str(warning.message), "'lif'", "beta is 0", "reset_delay=False")


# --- arguments ---------------------------------------------------------------------------------


@pytest.mark.parametrize("tau_s", [0.5, 0, -3, 0.999999, math.nan, math.inf, -math.inf])
def test_tau_s_of_a_wrong_value(tau_s: float) -> None:
    text = refusal(made(), ValueError, tau_s=tau_s)
    assert_says(text, "tau_s", "at least 1", repr(tau_s))


@pytest.mark.parametrize(
    ("tau_s", "said"),
    [
        ("3", "'3'"),
        (True, "True"),
        (None, "None"),
        (3j, "3j"),
        ([3.0], "a list"),
        (torch.tensor(3.0), "a Tensor"),
        (float, "the class float"),
    ],
    ids=label,
)
def test_tau_s_of_a_wrong_type(tau_s: Any, said: str) -> None:
    assert_says(refusal(made(), TypeError, tau_s=tau_s), "tau_s", "time steps", f"not {said}")


@pytest.mark.parametrize("rule", ["tssl", "TSSLBP", "", "surrogate"])
def test_unknown_rule_name(rule: str) -> None:
    assert_says(refusal(made(), ValueError, rule=rule), "Unknown rule", repr(rule), "'tsslbp'")


@pytest.mark.parametrize(
    ("rule", "meant"), [("tsslpb", "; did you mean 'tsslbp'? Known"), ("xyz", "'xyz'. Known")]
)
def test_a_misspelt_rule_name(rule: str, meant: str) -> None:
    assert_says(refusal(made(), ValueError, rule=rule), meant)


@pytest.mark.parametrize("rule", [rules.TSSLBP, rules.SurrogateGradient, rules.Rule])
def test_rule_without_parentheses(rule: Any) -> None:
    text = refusal(made(), TypeError, rule=rule)
    assert_says(text, "rule", f"the class {rule.__name__}", "with parentheses", "rules.TSSLBP()")


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (3, "3"),
        (1.0, "1.0"),
        (torch.sigmoid, "a builtin_function_or_method"),
        (["tsslbp"], "a list"),
        (surrogate.ATan(), "an ATan"),
    ],
    ids=label,
)
def test_rule_of_a_wrong_type(rule: Any, said: str) -> None:
    text = refusal(made(), TypeError, rule=rule)
    assert_says(text, "rule must be", "rules.TSSLBP()", "'tsslbp'", f"not {said}.")


@pytest.mark.parametrize(
    ("skip", "said"),
    [
        (None, "not None"),
        (3, "not 3"),
        ([3], "not 3"),
        (["body", None], "not None"),
        ([nn.Linear(1, 1)], "not a Linear"),
        (neuron.LIFNode(), "not a LIFNode"),
        ([["body"]], "not a list"),
        (b"body", "not "),
        ([re.compile("x")], "not a Pattern"),
    ],
    ids=label,
)
@pytest.mark.parametrize("function", ["wrap", "inspect"])
def test_bad_skip(skip: Any, said: str, function: str) -> None:
    if function == "wrap":
        text = refusal(made(), TypeError, skip=skip)
    else:
        with pytest.raises(TypeError) as caught:
            tssl_adapters.inspect(made(), skip=skip)
        text = str(caught.value)
    assert_says(text, "skip", "class", said)


def flat(x: Tensor) -> Tensor:
    return torch.ones_like(x)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: rules.TSSLBP(max_slope=-1), ValueError, ["max_slope", "positive", "-1"]),
        (lambda: rules.TSSLBP(max_slope=0.0), ValueError, ["max_slope", "positive", "0.0"]),
        (lambda: rules.TSSLBP(math.inf), ValueError, ["max_slope", "finite", "inf"]),
        (lambda: rules.TSSLBP(math.nan), ValueError, ["max_slope", "finite", "nan"]),
        (lambda: rules.TSSLBP(max_slope="8"), TypeError, ["max_slope", "'8'"]),
        (lambda: rules.TSSLBP(fallback="x"), TypeError, ["fallback", "True or False", "'x'"]),
        (lambda: rules.TSSLBP(fallback_width=0), ValueError, ["fallback_width", "positive"]),
        (lambda: rules.TSSLBP(fallback_width=-0.2), ValueError, ["fallback_width", "-0.2"]),
        (
            lambda: rules.TSSLBP(reset_path="x"),
            ValueError,
            ["reset_path", "'reference'", "'complete'", "'none'", "'x'"],
        ),
        (lambda: rules.TSSLBP(reset_path=None), ValueError, ["reset_path", "None"]),
        (lambda: rules.SurrogateGradient(3), TypeError, ["derivative", "function", "3"]),
        (lambda: rules.SurrogateGradient("atan"), TypeError, ["derivative", "'atan'"]),
        (
            lambda: rules.SurrogateGradient(flat, reset_path="reference"),
            ValueError,
            ["reset_path", "None", "'none'", "'complete'", "'reference'"],
        ),
        (lambda: rules.SurrogateGradient(), TypeError, ["derivative"]),
    ],
)
def test_bad_rule_arguments(
    make: Callable[[], rules.Rule], error: type[Exception], words: list[str]
) -> None:
    with pytest.raises(error) as caught:
        make()
    assert_says(str(caught.value), *words)


def test_rules_are_frozen() -> None:
    for rule, name in ((rules.TSSLBP(), "max_slope"), (rules.SurrogateGradient(flat), "chain")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(rule, name, 1)


# --- the family, and what comes later ----------------------------------------------------------


def test_the_family_of_errors() -> None:
    found = {
        name: value
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, Exception) and "Warning" not in name
    }
    assert set(found) == {
        "TSSLAdaptersError",
        "UnsupportedLayerError",
        "UnsupportedConfigError",
        "LibraryVersionError",
        "AdapterError",
        "AlreadyWrappedError",
        "NoSpikingLayersError",
        "EngineNotAvailableError",
        "NotSequentialError",
        "LostTraceError",
    }
    assert all(issubclass(error, TSSLAdaptersError) for error in found.values())
    assert issubclass(UnsupportedConfigError, UnsupportedLayerError)
    assert not issubclass(TSSLAdaptersError, ValueError | TypeError)


@pytest.mark.parametrize("sequence", [False, True])
def test_a_library_that_computes_another_neuron(
    monkeypatch: pytest.MonkeyPatch, sequence: bool
) -> None:
    """As a later version might: no gradient of the wrong neuron, but the library's own."""
    model = nn.ModuleDict({"lif": norse.LIF() if sequence else norse.LIFCell()})
    native = type(model["lif"]).forward

    def forward(self: Any, input_tensor: Tensor, state: Any = None) -> Any:
        return native(self, 1.5 * input_tensor, state)

    monkeypatch.setattr(type(model["lif"]), "forward", forward)
    tssl_adapters.wrap(model)
    x = torch.rand(4, 3, 5)
    with pytest.warns(NativeGradientWarning) as caught:
        out, _ = model["lif"](x)
    assert torch.equal(out, forward(tssl_adapters.unwrap(model)["lif"], x)[0])
    assert_says(str(caught[0].message), "'lif'", "version of the library", "skip")


def test_lost_trace_names_the_layer() -> None:
    model = tssl_adapters.wrap(made("snntorch"), tau_s=3.0)
    with pytest.raises(LostTraceError) as caught:
        model.lif1(torch.rand(2, 6), torch.rand(2, 6))
    assert_says(str(caught.value), "'lif1'", "tau_s=3", "detach()")


# --- a failure half-way ------------------------------------------------------------------------


def failing_kind(cls: type, error: BaseException, attach_first: bool) -> tuple[Any, Any]:
    adapter = next(a for a in adapters.loaded() if cls in a.kinds)
    kind = adapter.kinds[cls]

    def attach(module: Any) -> None:
        if attach_first:
            kind.attach(module)
        raise error

    return adapter.kinds, dataclasses.replace(kind, attach=attach)


@pytest.mark.parametrize("tau_s", [1.0, 3.0])
@pytest.mark.parametrize("cls", [snntorch.Leaky, neuron.LIFNode, norse.LIF])
@pytest.mark.parametrize("error", [RuntimeError("half-way"), KeyboardInterrupt("half-way")])
@pytest.mark.parametrize("attach_first", [False, True])
def test_a_failure_half_way_is_undone(
    monkeypatch: pytest.MonkeyPatch,
    tau_s: float,
    cls: type,
    error: BaseException,
    attach_first: bool,
) -> None:
    """Of the first, the second or the last layer, before or after its own set-up."""
    model = made()
    kinds, kind = failing_kind(cls, error, attach_first)
    monkeypatch.setitem(kinds, cls, kind)
    text = refusal(model, type(error), tau_s=tau_s)
    assert text == "half-way"
    assert not tssl_adapters.is_wrapped(model)
    monkeypatch.undo()
    assert tssl_adapters.is_wrapped(tssl_adapters.wrap(model, tau_s=tau_s))


def test_a_failure_half_way_leaves_other_wraps_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tssl_adapters.wrap(made(), tau_s=2.0, skip=["head", "body"])
    kinds, kind = failing_kind(norse.LIF, RuntimeError("half-way"), False)
    monkeypatch.setitem(kinds, norse.LIF, kind)
    refusal(model, RuntimeError, skip=["middle"])
    rows = {row.path: row.status for row in tssl_adapters.inspect(model)}
    assert rows["middle.node"] == "wrapped"
    assert rows["body.inner.lif"] == rows["head.1"] == "wrap"


@pytest.mark.parametrize("memory", [True, False])
@pytest.mark.parametrize("tau_s", [1.0, 3.0])
def test_a_node_whose_attribute_has_the_name_of_our_memory(tau_s: float, memory: bool) -> None:
    """Refused before anything changed, and foretold."""
    model = nn.Sequential(neuron.LIFNode(), neuron.IFNode())
    if memory:
        model[1].register_memory("tssl_psc", torch.zeros(3))
    else:
        model[1].tssl_psc = torch.zeros(3)
    assert_says(refusal(model, UnsupportedConfigError, tau_s=tau_s), "- 1 (", "tssl_psc", "rename")
    assert [row.path for row in tssl_adapters.inspect(model) if row.status == "refused"] == ["1"]


def test_a_derivative_that_gives_something_else() -> None:
    """Rather than a gradient that is broadcast from it."""
    with pytest.raises(TypeError, match=r"derivative gave 1\.0; .* a tensor of the same shape"):
        tssl_adapters.rules.SurrogateGradient(lambda x: 1.0)  # type: ignore[arg-type, return-value]
    rule = tssl_adapters.rules.SurrogateGradient(lambda x: x.mean(0))
    out = tssl_adapters.wrap(neuron.LIFNode(), rule=rule)(torch.ones(2, 3, requires_grad=True))
    with pytest.raises(ValueError, match=r"derivative gave \(3,\) for \(2, 3\)"):
        out.sum().backward()
