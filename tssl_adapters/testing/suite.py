"""One suite for every adapter: the library's own layer is the oracle."""

from __future__ import annotations

import copy
import io
import re
import warnings
from collections.abc import Sequence
from importlib import import_module, resources
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import tssl_adapters
from tssl_adapters import rules, versions
from tssl_adapters.adapters import Adapter, loaded
from tssl_adapters.adapters.library import installed, libraries
from tssl_adapters.errors import UnsupportedConfigError, UnsupportedLayerError
from tssl_adapters.testing.cases import BATCH, NEURONS, Case, Golden, Refusal
from tssl_adapters.testing.measures import close, drive, flat, gradients, made

_LOSSES = ("spikes", "membrane", "spikes+membrane")
_EXAMPLES = 8
"""The number of examples for each case in the fuzz test."""


def _vectors() -> dict[str, dict[str, Any]]:
    """What the authors' code computed for one layer in float64, by case and name."""
    file = resources.files("tssl_adapters.testing").joinpath("golden.npz")
    found: dict[str, dict[str, Any]] = {}
    for key, value in np.load(io.BytesIO(file.read_bytes())).items():
        case, name = key.split("/")
        found.setdefault(case, {})[name] = value
    return found


VECTORS = _vectors()


class AdapterSuite:
    """Derive a class from it, named ``Test...``, and set its attributes.

    Attributes:
        library: the library's top-level module.
        cases: layers, which together cover every supported class.
        refusals: what cannot be wrapped, and why.
        golden: the library's neuron of the TSSL-BP paper, where it has one.
        compiled: whether to run the compiled loops too, each of which takes seconds to compile.
        fuzzed: whether to draw random drives.
    """

    library: ClassVar[str] = ""
    cases: ClassVar[Sequence[Case]] = ()
    refusals: ClassVar[Sequence[Refusal]] = ()
    golden: ClassVar[Golden | None] = None
    compiled: ClassVar[bool] = True
    fuzzed: ClassVar[bool] = True

    def __init_subclass__(cls, **options: Any) -> None:
        """Leave out the tests that have nothing to test."""
        super().__init_subclass__(**options)
        there = {
            "test_psc": any(case.psc for case in cls.cases),
            "test_forward_in_several_calls": any(case.calls for case in cls.cases),
            "test_refused": cls.refusals,
            "test_vectors_of_the_paper_s_authors": cls.golden,
            "test_compiled_loops": cls.compiled,
            "test_fuzz": cls.fuzzed,
            "test_every_class_is_known_and_tested": cls.library,
            "test_a_version_that_was_not_tested": cls.library,
        }
        for name, wanted in there.items():
            if not wanted:
                setattr(cls, name, None)

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Make a test of every case, refusal and vector."""
        continued = [case for case in self.cases if case.calls is not None]
        lists: dict[str, Sequence[Any]] = {
            "case": self.cases,
            "psc_case": [case for case in self.cases if case.psc],
            "continued": continued,
            "refusal": self.refusals,
            "vector": [] if self.golden is None else [*VECTORS],
        }
        for name, values in lists.items():
            if name in metafunc.fixturenames:
                metafunc.parametrize(name, values, ids=str)

    # --- values -------------------------------------------------------------------------------

    @pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
    def test_forward(self, case: Case, dtype: torch.dtype, grad: bool) -> None:
        """Spikes and every state, bit for bit, from rest and from a given potential."""
        native, wrapped = made(case, dtype), _wrapped(case, dtype)
        x, v0 = drive(dtype)
        with torch.set_grad_enabled(grad):
            for start in (None, v0):
                ours, theirs = case.run(wrapped, x, start), case.run(native, x, start)
                for a, b in zip(flat(ours), flat(theirs), strict=True):
                    _same(a, b)

    def test_forward_on_unusual_numbers(self, case: Case) -> None:
        """NaN, infinities, the largest and smallest numbers and both zeros give native values."""
        info = torch.finfo(torch.float32)
        x, v0 = drive(torch.float32)
        told = [torch.nan, torch.inf, -torch.inf, info.max, info.tiny, -0.0]
        x.view(-1)[3 : 3 + 4 * len(told) : 4] = torch.tensor(told)
        ours, theirs = (case.run(layer, x, v0) for layer in (_wrapped(case), made(case, x.dtype)))
        for a, b in zip(flat(ours), flat(theirs), strict=True):
            _same(a, b)

    def test_forward_in_several_calls(self, continued: Case) -> None:
        """Each call continues from the state that the one before left."""
        assert continued.calls is not None
        x, _ = drive(torch.float32)
        parts = list(x.requires_grad_().split([3, 1, 2, 1]))  # type: ignore[no-untyped-call]
        native, wrapped = made(continued, torch.float32), _wrapped(continued)
        ours, theirs = continued.calls(wrapped, parts), continued.calls(native, parts)
        for a, b in zip(ours, theirs, strict=True):
            _same(a, b)

    def test_psc(self, psc_case: Case) -> None:
        """tau_s = 3: the output is the PSC of the native spikes, the states are native."""
        case = psc_case
        x, _ = drive()
        theirs = case.run(made(case), x, None)
        for grad in (True, False):
            with torch.set_grad_enabled(grad):
                ours = case.run(_wrapped(case, torch.float64, tau_s=3.0), x, None)
            trace, expected = torch.zeros_like(theirs.out[0]), []
            for spike in theirs.out:
                trace = trace + (spike - trace) / 3.0
                expected.append(trace)
            torch.testing.assert_close(ours.out, torch.stack(expected), rtol=1e-6, atol=1e-6)
            for a, b in zip(flat(ours)[1:], flat(theirs)[1:], strict=True):
                assert torch.equal(a, b)

    # --- gradients ----------------------------------------------------------------------------

    @pytest.mark.parametrize("losses", _LOSSES)
    def test_native_gradient(self, case: Case, losses: str) -> None:
        """With the library's own surrogate as the rule, the gradients of input, state and
        parameters are the library's, for losses on every state.
        """
        rule: rules.Rule = rules.SurrogateGradient(case.derivative)
        off = 1e-9
        if losses == "spikes+membrane":
            rule, off = rules.Native(), 1e-12
        wrapped = tssl_adapters.wrap(made(case), rule=rule)
        x, v0 = drive()
        values, grads = gradients(case, made(case), x, v0, losses)
        our_values, our_grads = gradients(case, wrapped, x, v0, losses)
        assert 0.05 < float((values[0] != 0).double().mean()) < 0.95
        assert 2 * sum(float(grad.abs().sum()) > 0.0 for grad in grads) >= len(grads)
        for ours, theirs in zip(our_values, values, strict=True):
            assert ours.dtype == theirs.dtype
            assert torch.equal(ours, theirs)
        for ours, theirs in zip(our_grads, grads, strict=True):
            close(ours, theirs, case.tolerance or off)

    @pytest.mark.parametrize("tau_s", [1.0, 3.0])
    def test_one_training_step(self, case: Case, tau_s: float) -> None:
        """Gradients of the input and of every parameter are finite, and not all zero."""
        layer = _wrapped(case, torch.float64, tau_s=tau_s if case.psc else 1.0)
        x, _ = drive()
        x.requires_grad_()
        run = case.run(layer, x, None)
        (run.out * torch.linspace(-1.0, 2.0, run.out.numel()).view_as(run.out)).sum().backward()  # type: ignore[no-untyped-call]
        for tensor in (x, *case.params(layer)):
            assert tensor.grad is not None
            assert torch.isfinite(tensor.grad).all()
        assert x.grad is not None
        assert (x.grad != 0).double().mean() > 0.2

    def test_compiled_loops(self, case: Case) -> None:
        """They give the same as torch; layers that they do not support run in torch."""
        x, v0 = drive(torch.float32)
        found = []
        for engine in ("torch", "cpu"):
            layer = tssl_adapters.wrap(made(case, x.dtype), rule="native", engine=engine)
            found.append(gradients(case, layer, x, v0, "spikes"))
        for a, b in zip(*(values for values, _ in found), strict=True):
            _same(a, b)
        for a, b in zip(*(grads for _, grads in found), strict=True):
            close(b, a, 1e-4)

    def test_vectors_of_the_paper_s_authors(self, vector: str) -> None:
        """The library's layers reproduce them, in both precisions."""
        assert self.golden is not None
        told = VECTORS[vector]
        tau_m, tau_s, theta = (float(told[name]) for name in ("tau_m", "tau_s", "theta"))
        expected = torch.from_numpy(told["grad_drive"])
        for dtype, off in ((torch.float32, 1e-5), (torch.float64, self.golden.tolerance)):
            layer = self.golden.make(tau_m, theta, dtype)
            tssl_adapters.wrap(layer, tau_s=tau_s, rule="tsslbp")
            x = torch.tensor(told["drive"], dtype=dtype, requires_grad=True)
            out = self.golden.run(layer, x)
            out.backward(torch.tensor(told["grad_psc"]).to(out.dtype))  # type: ignore[no-untyped-call]
            np.testing.assert_allclose(out.detach(), told["psc"], atol=1e-6)
            assert x.grad is not None
            wrong = (x.grad.double() - expected).abs().max() / expected.abs().max()
            assert float(wrong) <= off

    # --- the layer itself ---------------------------------------------------------------------

    def test_unwrap(self, case: Case) -> None:
        """Class, attributes and gradient are the native ones again, after use."""
        layer = made(case)
        x, v0 = drive()
        with torch.no_grad():
            case.run(layer, x, None)  # some libraries add attributes when they run
        before, keys, cls = sorted(vars(layer)), [*layer.state_dict()], type(layer)
        tssl_adapters.wrap(layer, tau_s=3.0 if case.psc else 1.0, rule=case.rule)
        assert isinstance(layer, cls)
        case.run(layer, x.clone().requires_grad_(), None).out.sum().backward()  # type: ignore[no-untyped-call]
        tssl_adapters.unwrap(layer)
        assert type(layer) is cls
        assert sorted(vars(layer)) == before
        assert [*layer.state_dict()] == keys
        for parameter in layer.parameters():
            parameter.grad = None
        for ours, theirs in zip(
            gradients(case, layer, x, v0, "spikes")[1],
            gradients(case, made(case), x, v0, "spikes")[1],
            strict=True,
        ):
            assert torch.equal(ours, theirs)

    def test_copies(self, case: Case) -> None:
        """A deep copy of a wrapped layer that has run trains like a wrapped copy of the native
        one, if that can be copied.
        """
        layer = _wrapped(case, torch.float64)
        x, _ = drive()
        with torch.no_grad():
            case.run(layer, x, None)
        try:
            native = copy.deepcopy(made(case))
        except Exception:  # natively impossible
            return
        twins = (tssl_adapters.wrap(native, rule=case.rule), copy.deepcopy(layer))
        first, second = (gradients(case, one, x, None, "spikes")[1] for one in twins)
        for a, b in zip(first, second, strict=True):
            assert torch.equal(a, b)

    def test_refused(self, refusal: Refusal) -> None:
        """With a reason, and before anything is changed."""
        model = nn.Sequential(refusal.make())
        before = [(type(module), sorted(vars(module))) for module in model.modules()]
        with pytest.raises(UnsupportedLayerError) as caught:
            tssl_adapters.wrap(model, **refusal.options)
        assert isinstance(caught.value, UnsupportedConfigError) == refusal.config
        assert "nothing was changed" in str(caught.value)
        assert re.search(refusal.says, str(caught.value))
        assert [(type(module), sorted(vars(module))) for module in model.modules()] == before

    # --- what the adapter says of the library -------------------------------------------------

    def test_every_class_is_known_and_tested(self) -> None:
        """The classes in ``library.json`` are those that the adapter wraps and the cases cover."""
        adapter, known = self._adapter(), libraries()[self.library]
        listed = {path: _class(path) for path in known.layers if installed(path)}
        there = {cls: path for path, cls in listed.items() if cls is not None}
        assert {*there} == {*adapter.kinds}
        assert {*there} <= {type(made(case, torch.float32)) for case in self.cases}
        for cls, path in there.items():
            layer = adapter.example(cls, NEURONS)
            assert adapter.mode(layer) in known.layers[path].split()
            assert adapter.spiking(layer)
            (row,) = tssl_adapters.inspect(layer, rule="native")
            assert (row.library, row.status) == (self.library, "wrap")

    def test_a_version_that_was_not_tested(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Every class passes the trial that it then has to pass."""
        adapter = self._adapter()
        monkeypatch.setattr(versions, "tested", lambda product: ("0",))
        monkeypatch.setattr(versions, "newer_torch", lambda: None)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            versions.check(adapter, adapter.kinds)
        assert any("was not tested" in str(warning.message) for warning in caught)

    def _adapter(self) -> Adapter:
        return next(adapter for adapter in loaded() if adapter.library == self.library)

    # --- fuzz ---------------------------------------------------------------------------------

    @settings(
        max_examples=_EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.differing_executors],
    )
    @given(data=st.data())
    def test_fuzz(self, case: Case, data: st.DataObject) -> None:
        """For any drive, number of steps, dtype and start, the values are the library's; so is the
        gradient with its surrogate; with any other rule the gradient is finite.
        """
        draw = data.draw
        dtype = draw(st.sampled_from([torch.float32, torch.float64]))
        steps = draw(st.integers(1, 12))
        seed, scale = draw(st.integers(0, 2**31)), draw(st.sampled_from([0.1, 1.0, 3.0, 30.0]))
        name = draw(st.sampled_from(["native", "smooth-tsslbp", "tsslbp"]))
        rule = "native" if case.rule is not None else name
        generator = torch.Generator().manual_seed(seed)
        x = scale * torch.randn(steps, BATCH, NEURONS, generator=generator, dtype=dtype)
        v0 = None
        if draw(st.booleans()):
            v0 = torch.randn(BATCH, NEURONS, generator=generator, dtype=dtype)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            layer = tssl_adapters.wrap(made(case, dtype), rule=rule)
            try:
                values, grads = gradients(case, made(case, dtype), x, v0, "spikes")
            except RuntimeError:  # the layer takes other numbers of steps
                return
            our_values, our_grads = gradients(case, layer, x, v0, "spikes")
        for ours, theirs in zip(our_values, values, strict=True):
            _same(ours, theirs)
        for ours, theirs in zip(our_grads, grads, strict=True):
            assert ours.shape == theirs.shape
            if rule == "native":
                close(ours, theirs, max(case.tolerance or 0.0, 64 * steps * torch.finfo(dtype).eps))
            else:
                assert torch.isfinite(ours).all()


def _class(path: str) -> type[nn.Module] | None:
    """A class by its path; an older version may lack it."""
    module, _, name = path.rpartition(".")
    found: type[nn.Module] | None = getattr(import_module(module), name, None)
    return found


def _wrapped(case: Case, dtype: torch.dtype = torch.float32, tau_s: float = 1.0) -> nn.Module:
    return tssl_adapters.wrap(made(case, dtype), tau_s=tau_s, rule=case.rule)


def _same(ours: Tensor, theirs: Tensor) -> None:
    """Check for the same bits, dtype and shape; any NaN equals any other.

    Raises:
        AssertionError: they differ.
    """
    assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
    signs = ours.signbit() == theirs.signbit()
    assert (((ours == theirs) & signs) | (ours.isnan() & theirs.isnan())).all()
