"""Walk a model, decide about every layer, and only then change it. Knows no library."""

from __future__ import annotations

import math
import warnings
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from inspect import isfunction, signature
from numbers import Number, Real
from typing import NamedTuple, TypeAlias, TypeVar

from torch import Tensor, nn

from tssl_adapters import _engines, trial, versions
from tssl_adapters.adapters.base import Adapter, Kind, Wrapped, no_spikes, rule_for
from tssl_adapters.adapters.library import (
    copied,
    installed,
    libraries,
    titles,
    version_of,
    where,
)
from tssl_adapters.adapters.loading import loaded
from tssl_adapters.engine.call.settings import Settings
from tssl_adapters.errors import (
    AlreadyWrappedError,
    NoSpikingLayersError,
    RuleWarning,
    UnsupportedConfigError,
    UnsupportedLayerError,
)
from tssl_adapters.neuron import Traits
from tssl_adapters.registry import kind_of, library_class, registered, tried_as
from tssl_adapters.report import LayerReport, Report, Status, Supported
from tssl_adapters.rules import BY_NAME, Rule, SmoothTSSLBP

M = TypeVar("M", bound=nn.Module)
Skip: TypeAlias = "str | type[nn.Module] | Iterable[str | type[nn.Module]]"


class _Found(NamedTuple):
    """A layer and the decision about it."""

    report: LayerReport
    module: nn.Module
    kind: Kind | None


def wrap(
    model: M,
    *,
    tau_s: float = 1.0,
    rule: Rule | str | None = None,
    skip: Skip = (),
    engine: str | None = None,
) -> M:
    """Give every spiking layer of a model another gradient, in place.

    The forward pass is the library's own, bit for bit, in training and in evaluation. Parameters,
    buffers, hooks and ``state_dict`` keys stay, so that an existing optimizer still works.
    :func:`unwrap` undoes it.

    Args:
        model: a model, or one layer, made of layers of snnTorch, SpikingJelly, Norse or another
            library with an adapter.
        tau_s: synaptic time constant in time steps. At 1 a layer emits its spikes, as it does
            natively. Above 1 it is the neuron of the TSSL-BP paper and emits its post-synaptic
            current, a[t] = a[t-1] + (s[t] - a[t-1]) / tau_s, in the shape of the spikes.
        rule: a rule object or a rule's name; :class:`tssl_adapters.rules.SmoothTSSLBP`
            by default.
        skip: dotted names, patterns of them (``"head.*"``) and classes (matched by isinstance).
            What they match, and everything below it, stays as it is. A pattern that matches nothing
            gives a warning.
        engine: what computes the gradient: ``"torch"``, ``"cpu"`` for compiled loops on the CPU,
            ``"triton"`` for kernels on a GPU. What an engine does not support (a neuron, a rule, a
            dtype, a device) torch computes, without a warning; :func:`inspect` and
            ``print(model)`` show a layer's engine by its neuron and its rule, as dtype and device
            depend on the input. ``None`` takes the environment variable ``TSSL_ADAPTERS_ENGINE``,
            else ``"cpu"`` if llvmlite is installed, else ``"torch"``. See :func:`engines`.

    Returns:
        The same model.

    Raises:
        TypeError: ``model`` is not a module, or another argument has the wrong type.
        ValueError: ``tau_s`` below 1 or not finite, or an unknown rule or engine.
        EngineNotAvailableError: what the engine needs is not installed.
        AlreadyWrappedError: a layer is wrapped already.
        UnsupportedLayerError: some spiking layers cannot be wrapped; the message lists them all.
        UnsupportedConfigError: the same, if only their settings prevent it.
        NoSpikingLayersError: there is nothing to wrap.
        LibraryVersionError: the library's version was not tested, and its layers failed a trial.
            If they pass, there is a :class:`tssl_adapters.errors.UntestedVersionWarning`.

    Warns:
        RuleWarning: something in the model would break the rule without an error.
    """
    _check_module(model, "wrap")
    tau_s = _checked_tau_s(tau_s)
    rule = _checked_rule(rule)
    engine = _engines.checked(engine)
    found = _decide(model, _checked_skip(skip), Settings("", rule, tau_s, engine))
    _refuse_what_cannot_be_wrapped(model, [f.report for f in found])
    _check_versions(found)
    remarks = _remarks(model, rule, _traits(found), tau_s)
    _swap(found, rule, tau_s, engine)
    for remark in remarks:
        warnings.warn(f"tssl_adapters: {remark}", RuleWarning, stacklevel=2)
    return model


def _swap(found: list[_Found], rule: Rule, tau_s: float, engine: str) -> None:
    """Swap the classes of the layers that are to be wrapped."""
    done: list[nn.Module] = []
    try:
        for report, module, kind in found:
            if report.status == "wrap":
                assert kind is not None
                done.append(module)
                module.__class__ = kind.wrapped  # type: ignore[assignment]
                settings = Settings(report.path, rule, tau_s, engine, unseen=_on_meta(module))
                module._tssl_settings = settings  # type: ignore[assignment]
                kind.attach(module)
    except BaseException:
        for module in done:
            unwrap(module)
        raise


def _traits(found: list[_Found]) -> dict[str, Traits]:
    """The traits of the layers that get a rule, by dotted name."""
    return {
        report.path: kind.wrapped._tssl_traits(module)
        for report, module, kind in found
        if report.status == "wrap" and kind is not None
    }


def _remarks(model: nn.Module, rule: Rule, traits: dict[str, Traits], tau_s: float) -> list[str]:
    return rule.remarks(dict(model.named_modules()), traits, tau_s)


def unwrap(model: M) -> M:
    """Undo :func:`wrap`. Every layer gets its library's class back; weights stay as trained.

    Args:
        model: a model or a layer; one that is not wrapped is left alone.

    Returns:
        The same model.

    Raises:
        TypeError: ``model`` is not a module.
    """
    _check_module(model, "unwrap")
    kinds = {cls: kind for adapter in loaded() for cls, kind in adapter.made().items()}
    for module in model.modules():
        if isinstance(module, Wrapped):
            native = module._tssl_native
            kind = kinds[native]
            kind.detach(module)
            del module._tssl_settings
            _give_back(module, kind.wrapped, native)
    return model


def _give_back(module: nn.Module, wrapped: type, native: type[nn.Module]) -> None:
    """Give a layer its library's class back; torch's parametrizations subclass a layer's class."""
    cls = type(module)
    if cls is wrapped:
        module.__class__ = native
    else:
        cls.__bases__ = tuple(native if base is wrapped else base for base in cls.__bases__)


def is_wrapped(model: nn.Module) -> bool:
    """Whether any layer of a model is wrapped.

    Raises:
        TypeError: ``model`` is not a module.
    """
    _check_module(model, "is_wrapped")
    return any(isinstance(module, Wrapped) for module in model.modules())


def inspect(
    model: nn.Module,
    *,
    tau_s: float = 1.0,
    rule: Rule | str | None = None,
    skip: Skip = (),
    engine: str | None = None,
) -> Report[LayerReport]:
    """Show what :func:`wrap` would do, layer by layer. Changes nothing.

    Args:
        model: a model or a layer.
        tau_s: as for :func:`wrap`.
        rule: as for :func:`wrap`; some rules do not take every neuron.
        skip: as for :func:`wrap`.
        engine: as for :func:`wrap`.

    Returns:
        A table to print; its rows are :class:`tssl_adapters.report.LayerReport`.

    Raises:
        TypeError: ``model`` is not a module, or another argument has the wrong type.
        ValueError: ``tau_s`` below 1 or not finite, or an unknown rule or engine.
        EngineNotAvailableError: what the engine needs is not installed.
    """
    _check_module(model, "inspect")
    rule_given, rule, skip = rule, _checked_rule(rule), _checked_skip(skip)
    asked = Settings("", rule, _checked_tau_s(tau_s), _engines.checked(engine))
    decided = _decide(model, skip, asked)
    reports = [found.report for found in decided]
    headings = ("layer", "class", "library", "status", "how, or why not")
    empty = (
        f"No layer of {titles()} in this model. Next: "
        "print(tssl_adapters.supported()) lists the layers that can be wrapped."
    )
    call = _Call({"rule": rule_given, "tau_s": tau_s, "engine": engine}, skip)
    last = [*_remarks(model, rule, _traits(decided), tau_s), _verdict(reports, call)]
    return Report(headings, reports, empty, last, once="library")


class _Call(NamedTuple):
    """The arguments of ``inspect``, to be shown as a call of ``wrap``."""

    options: Mapping[str, object]
    skip: tuple[str | type[nn.Module], ...]

    def skipping(self, paths: Iterable[str] = ()) -> str:
        """The call, with these layers skipped too."""
        names = [item.__name__ if isinstance(item, type) else repr(item) for item in self.skip]
        skip = ", ".join([*names, *map(repr, paths)])
        defaults = signature(wrap).parameters
        given = [
            f"{name}={value if isinstance(value, Rule) else repr(value)}"
            for name, value in self.options.items()
            if value != defaults[name].default
        ]
        return f"wrap({', '.join(['model', *given, *([f'skip=[{skip}]'] if skip else [])])})"


def _verdict(reports: list[LayerReport], call: _Call) -> str:
    """What :func:`wrap` would do with these layers, and what to do next."""
    by_status = {
        status: [r.path for r in reports if r.status == status]
        for status in ("wrapped", "refused", "wrap")
    }
    wrapped, refused, others = (_counted(by_status[status]) for status in by_status)
    if by_status["wrapped"]:
        return (
            f"Wrapped already: {wrapped}. Next: train as before; unwrap(model) gives them the "
            "library's gradient back."
        )
    if by_status["refused"] and not by_status["wrap"]:
        return (
            f"Refused: {refused}, and nothing else to wrap. Next: take a layer of "
            "print(tssl_adapters.supported()), or a rule that takes these."
        )
    if by_status["refused"]:
        return (
            f"Refused: {refused}, so that {call.skipping()} would raise an error and change "
            f"nothing. Next: {call.skipping(by_status['refused'])} leaves what is refused native "
            f"and wraps {others}."
        )
    if by_status["wrap"]:
        return f"Next: {call.skipping()} wraps {others}; your training loop stays as it is."
    return "Nothing here to wrap. Next: print(tssl_adapters.supported()) lists what can be wrapped."


def _counted(paths: Sequence[str]) -> str:
    return f"{len(paths)} layer{'' if len(paths) == 1 else 's'}"


def supported() -> Report[Supported]:
    """List every layer class that can be wrapped, for the installed libraries.

    Imports none of them; an older version may lack some classes of a module.
    """
    rows = [
        Supported(name, version, layer, mode)
        for name, library in libraries().items()
        if (version := version_of(name)) is not None
        for layer, mode in library.layers.items()
        if installed(layer)
    ]
    empty = (
        f"None of {', '.join(libraries())} is installed. Next: python -m pip install one of them."
    )
    last = [
        "A layer is called step by step, or once with the whole sequence; where it takes both, its "
        "step_mode says which.",
        "Next: print(tssl_adapters.inspect(model)) says which layers of a model these are. "
        "tssl_adapters.register(MyNeuron, like=...) adds a class of yours.",
    ]
    return Report(("layer", "library", "called by"), rows, empty, last)


def _decide(
    model: nn.Module, skip: tuple[str | type[nn.Module], ...], asked: Settings
) -> list[_Found]:
    known = list(loaded(*map(type, model.modules())))
    found = []
    everything = dict(model.named_modules(remove_duplicate=False))
    left_alone: set[int] = set()
    for item in skip:
        matches = [path for path in everything if _skipped(model, path, everything, item)]
        left_alone.update(id(everything[path]) for path in matches)
        if isinstance(item, str) and not matches:
            warnings.warn(
                f"tssl_adapters: skip: {item!r} matches nothing in {type(model).__name__} and "
                f"skips nothing{_meant(item, everything)}",
                stacklevel=3,
            )
    for path, module in model.named_modules():
        for adapter in known:
            skipped = id(module) in left_alone
            decision = _decide_one(adapter, path, module, skipped, asked)
            if decision is not None:
                found.append(decision)
    return found


def _decide_one(
    adapter: Adapter, path: str, module: nn.Module, skipped: bool, asked: Settings
) -> _Found | None:
    kind = None if isinstance(module, Wrapped) else kind_of(adapter, module, asked.rule)
    status: Status
    config = False
    if isinstance(module, Wrapped):
        if module._tssl_native not in adapter.made():
            return None
        module._tssl_follow()
        settings = module._tssl_settings
        status = "skipped" if skipped else "wrapped"
        detail = (
            f"{adapter.mode(module)}, wrapped already: {settings.said(module._tssl_traits(module))}"
        )
    elif kind is None and not adapter.spiking(module):
        if not adapter.native(module):
            return None
        status, detail = "native", "does not spike: stays as it is"
    elif skipped:
        status, detail = "skipped", "stays native, as skip says"
    else:
        if kind is None:
            problem: str | None = _named(module, adapter.why_not(module))
        else:
            problem = _problem(adapter, kind, module, asked)
        config = kind is not None and problem is not None
        status = "wrap" if problem is None else "refused"
        detail = problem or f"{adapter.mode(module)}: {_would_have(asked, kind, module)}"
    cls = module._tssl_native if isinstance(module, Wrapped) else type(module)
    version = version_of(adapter.library) or "?"
    if copied(cls) is not None:
        version = f"copied to {cls.__module__}"
    name = cls.__name__
    report = LayerReport(path or name, name, adapter.library, version, status, detail, config)
    return _Found(report, module, kind)


def _problem(adapter: Adapter, kind: Kind, module: nn.Module, asked: Settings) -> str | None:
    """Why a layer cannot be wrapped, or ``None``."""
    replaced = [name for name in vars(module) if isfunction(getattr(type(module), name, None))]
    if replaced:
        return (
            f"its {', '.join(replaced)} was replaced on the layer itself, and would hide that of a "
            "wrapped layer; wrap the model before you replace it, or make it a class of its own"
        )
    like = tried_as(kind)
    try:
        why = kind.problem(kind.wrapped, module)
        if why is None:
            rule = rule_for(asked.rule, kind.wrapped, module)
            why = _rule_problem(rule, kind.wrapped._tssl_traits(module), asked.tau_s)
        if why is None:
            why = no_spikes(kind.wrapped, module)
    except AttributeError as error:
        if like is None or not registered(kind):
            why = f"it lacks what a {type(module).__name__} has ({error})"
            return _named(module, f"{why}; make it anew, as its class does")
        return f"it was registered like {like.__name__}, but lacks what that has ({error})"
    except (NotImplementedError, RuntimeError):
        if not _on_meta(module):
            raise
        why = _NUMBERS
    if why is None and like is not None and _on_meta(module):
        why = _NUMBERS  # it cannot be tried out
    elif why is None and like is not None:
        base = library_class(adapter, like)
        why = trial.why_not(adapter, kind, module, base, asked.rule, asked.tau_s)
    return None if why is None else _named(module, why)


def _rule_problem(rule: Rule, traits: Traits, tau_s: float) -> str | None:
    """Why a layer cannot have a rule."""
    if traits.several and not rule.takes_several:
        return (
            f"a step of it may have several spikes, and {type(rule).__name__} knows of one; have "
            "it send one, or take rules.Native() or rules.SurrogateGradient(...)"
        )
    return rule.problem(traits, tau_s)


def _named(module: nn.Module, why: str) -> str:
    """Why a layer cannot be wrapped, naming the module if it is from a copy of a library."""
    library = copied(type(module))
    return why if library is None else f"{where(type(module))}, a copy of {library}'s: {why}"


def _would_have(asked: Settings, kind: Kind | None, module: nn.Module) -> str:
    assert kind is not None
    rule = rule_for(asked.rule, kind.wrapped, module)
    return replace(asked, rule=rule).said(kind.wrapped._tssl_traits(module))


_NUMBERS = (
    "its values are on the meta device, and whether it can be wrapped depends on them; give it a "
    "device and its values first (to_empty, load_state_dict), then wrap"
)


def _on_meta(module: nn.Module) -> bool:
    """Whether a layer has tensors on the meta device."""

    def tensors(value: object) -> Iterator[Tensor]:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple):
            for part in value:
                yield from tensors(part)

    own = (*module.parameters(), *module.buffers(), *vars(module).values())
    return any(tensor.is_meta for value in own for tensor in tensors(value))


def _skipped(
    model: nn.Module, path: str, names: Container[str], item: str | type[nn.Module]
) -> bool:
    """Whether a module, or one that contains it, is skipped. A known name is not a pattern."""
    return any(
        (part == item if item in names else fnmatchcase(part, item))
        if isinstance(item, str)
        else isinstance(owner, item)
        for part, owner in _with_owners(model, path)
    )


def _with_owners(model: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    yield "", model
    if not path:  # a lone layer goes by its class's name
        yield type(model).__name__, model
    names = path.split(".") if path else []
    for end in range(1, len(names) + 1):
        part = ".".join(names[:end])
        yield part, model.get_submodule(part)


def _refuse_what_cannot_be_wrapped(model: nn.Module, reports: list[LayerReport]) -> None:
    wrapped = [r for r in reports if r.status == "wrapped"]
    if wrapped:
        raise AlreadyWrappedError(
            f"{len(wrapped)} layer(s) of {type(model).__name__} are wrapped already:\n"
            f"{_list(wrapped)}\nCall tssl_adapters.unwrap(model) first to change the rule or "
            "tau_s, or skip these layers to leave them as they are."
        )
    refused = [r for r in reports if r.status == "refused"]
    if refused:
        error = UnsupportedConfigError if all(r.config for r in refused) else UnsupportedLayerError
        paths = ", ".join(repr(r.path) for r in refused)
        raise error(
            f"{len(refused)} spiking layer(s) of {type(model).__name__} cannot be wrapped, and "
            f"nothing was changed:\n{_list(refused)}\nLeave them native with skip=[{paths}], or "
            "replace them. tssl_adapters.supported() lists what can be wrapped."
        )
    if not any(r.status == "wrap" for r in reports):
        skipped = sum(r.status == "skipped" for r in reports)
        why = f" ({skipped} skipped)" if skipped else ""
        raise NoSpikingLayersError(
            f"{type(model).__name__} has no spiking layer to wrap{why}. "
            "tssl_adapters.supported() lists what can be wrapped, tssl_adapters.inspect(model) "
            "what was found."
        )


def _check_versions(found: list[_Found]) -> None:
    """Test the model's layer classes if their library's version was not tested."""
    kinds = {id(f.kind) for f in found if f.report.status == "wrap"}
    for adapter in loaded():
        known = adapter.derived | adapter.kinds
        classes = [cls for cls, kind in known.items() if id(kind) in kinds]
        theirs = {library_class(adapter, cls): None for cls in classes}
        theirs = {cls: None for cls in theirs if cls in adapter.kinds}  # copies were tried already
        if theirs:
            versions.check(adapter, theirs)


def _list(reports: list[LayerReport]) -> str:
    return "\n".join(
        f"  - {r.path} ({r.library} {r.version} {r.layer}): {r.detail}" for r in reports
    )


def _check_module(model: object, function: str) -> None:
    if not isinstance(model, nn.Module):
        hint = "; make an instance of it first" if isinstance(model, type) else ""
        raise TypeError(
            f"tssl_adapters.{function} takes a torch.nn.Module, not {_described(model)}{hint}."
        )


def _described(value: object) -> str:
    """A short description of a wrong argument, without a model's or a tensor's contents."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if value is None or isinstance(value, str | Number):
        return repr(value)
    name = type(value).__name__
    return f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"


def _meant(word: str, known: Iterable[str]) -> str:
    """The end of a sentence on an unknown word: a guess at what was meant, if there is one."""
    close = get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else "."


def _checked_tau_s(tau_s: object) -> float:
    if not isinstance(tau_s, Real) or isinstance(tau_s, bool):
        raise TypeError(f"tau_s must be a number of time steps, not {_described(tau_s)}.")
    number = float(tau_s)
    if not 1 <= number < math.inf:
        raise ValueError(
            f"tau_s must be at least 1 time step and finite, not {tau_s!r}; 1 emits spikes, above "
            "it the layer emits its post-synaptic current."
        )
    return number


def _checked_rule(rule: object) -> Rule:
    if rule is None:
        return SmoothTSSLBP()
    if isinstance(rule, Rule):
        return rule
    known = ", ".join(map(repr, BY_NAME))
    if isinstance(rule, str):
        if rule not in BY_NAME:
            raise ValueError(f"Unknown rule {rule!r}{_meant(rule, BY_NAME)} Known names: {known}.")
        return BY_NAME[rule]()
    hint = "; write it with parentheses" if isinstance(rule, type) else ""
    raise TypeError(
        f"rule must be a rule object such as rules.TSSLBP(), or a name ({known}), "
        f"not {_described(rule)}{hint}."
    )


def _checked_skip(skip: object) -> tuple[str | type[nn.Module], ...]:
    items = (skip,) if isinstance(skip, str | type) else skip
    if not isinstance(items, Iterable):
        raise TypeError(f"skip must be a list of patterns and classes, not {_described(skip)}.")
    checked = []
    for item in items:
        if not isinstance(item, str | type):
            raise TypeError(
                "skip takes dotted-name patterns and layer classes, "
                f"not {_described(item)}; name the layer or its class."
            )
        checked.append(item)
    return tuple(checked)
