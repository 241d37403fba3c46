"""Try one model natively and its wrapped twin: forward bit for bit, and one training step."""

from __future__ import annotations

import gc
import time
import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from importlib.metadata import version
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import tssl_adapters
from tssl_adapters.errors import NoSpikingLayersError, UnsupportedLayerError
from zoo.entry import Entry, Row

_NOT_FINITE = "gradient not finite"


class Outcome(NamedTuple):
    """One training step: the output, and for each weight the quality of its gradient."""

    out: Tensor
    gradients: dict[str, str]
    """By weight name: "none", "zero", "not finite" or "good"."""
    silent: int


class CheckError(Exception):
    """A wrapped model differs from its native twin."""


def check(entry: Entry) -> Row:
    """Try a model and report the outcome, including any exception."""
    started = time.perf_counter()
    row = Row(
        entry.library,
        version(entry.library),
        entry.name.removeprefix(f"{entry.library}: "),
        "no model",
        entry.note,
    )
    if entry.make is not None:
        row = _tried(entry, row)
    gc.collect()
    return replace(row, seconds=round(time.perf_counter() - started, 1))


def _tried(entry: Entry, row: Row) -> Row:
    try:
        model = _build(entry)
        row = replace(row, parameters=sum(p.numel() for p in model.parameters()))
        row = replace(row, **_counts(model))
        native = _step(entry, model, _spiking(model))
    except Exception as error:
        return replace(row, verdict="library error", reason=_first_line(error))
    row = replace(row, silent=native.silent)
    del model
    model = _build(entry)
    try:
        tssl_adapters.wrap(model, rule=row.rule)
    except NoSpikingLayersError:
        return replace(row, verdict="nothing to wrap", reason="no spiking layer")
    except UnsupportedLayerError:
        return replace(row, verdict="refused", reason=_refusals(model))
    except Exception as error:
        return replace(row, verdict="fails", reason=f"wrap: {_first_line(error)}")
    try:
        ours = _step(entry, model, [])
        _same(native, ours)
        tssl_adapters.unwrap(model)
    except Exception as error:
        return replace(row, verdict="fails", reason=_first_line(error))
    row = _judged(row, native.gradients, ours.gradients)
    return _in_float64(entry, row) if row.reason.startswith(_NOT_FINITE) else row


def _in_float64(entry: Entry, row: Row) -> Row:
    """If a gradient is finite in float64, it is correct, and only too large for float32."""
    try:
        model = tssl_adapters.wrap(_build(entry).double(), rule=row.rule)
        ours = _step(entry, model, [])
    except Exception as error:
        return replace(row, reason=f"{row.reason}; in float64 {_first_line(error)}")
    if "not finite" in ours.gradients.values():
        return row
    largest = max(float(p.grad.abs().max()) for p in model.parameters() if p.grad is not None)
    reason = f"{row.reason}; in float64 finite, up to {largest:.1e}"
    return replace(row, verdict="overflows", reason=reason)


def _build(entry: Entry) -> nn.Module:
    assert entry.make is not None
    torch.manual_seed(entry.seed())
    return entry.make()


def _step(entry: Entry, model: nn.Module, spiking: Iterable[nn.Module]) -> Outcome:
    """A forward pass, a loss on all output values, a backward pass, and an optimizer step."""
    fired: dict[int, bool] = {}
    hooks = [layer.register_forward_hook(_watch(fired)) for layer in spiking]
    torch.manual_seed(entry.seed() + 1)
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    x = entry.inputs().to(dtype).requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        out = entry.run(model, x)
    for hook in hooks:
        hook.remove()
    generator = torch.Generator().manual_seed(entry.seed() + 2)
    (out * torch.randn(out.shape, generator=generator)).sum().backward()
    weights = {name: p for name, p in model.named_parameters() if p.ndim > 1}
    # A part without weights still passes a gradient to its input.
    gradients = {name: _quality(p.grad) for name, p in (weights or {"input": x}).items()}
    parameters = list(model.parameters())
    if parameters:
        torch.optim.SGD(parameters, lr=1e-6).step()
    return Outcome(out.detach(), gradients, sum(not spoke for spoke in fired.values()))


def _watch(fired: dict[int, bool]) -> Any:
    def hook(layer: nn.Module, _: Any, output: Any) -> None:
        first = output[0] if isinstance(output, tuple | list) else output
        fired[id(layer)] = fired.get(id(layer), False) or bool((first != 0).any())

    return hook


def _quality(gradient: Tensor | None) -> str:
    if gradient is None:
        return "none"
    if not bool(gradient.isfinite().all()):
        return "not finite"
    return "good" if bool((gradient != 0).any()) else "zero"


def _same(native: Outcome, ours: Outcome) -> None:
    if not torch.equal(native.out, ours.out):
        worst = (native.out - ours.out).abs().max().item()
        raise CheckError(f"forward differs from the native one by up to {worst:.3g}")


def _judged(row: Row, native: dict[str, str], ours: dict[str, str]) -> Row:
    """A weight with a good native gradient needs a good one when wrapped; others may have none."""
    good = [name for name, quality in native.items() if quality == "good"]
    taught = [name for name in good if ours[name] == "good"]
    row = replace(row, weights=len(good), taught=len(taught))
    lost = [f"{name}: {ours[name]}" for name in good if ours[name] != "good"]
    broken = [name for name, quality in ours.items() if quality == "not finite"]
    if broken and not any(native[name] == "not finite" for name in broken):
        return replace(row, verdict="fails", reason=f"{_NOT_FINITE}: {_some(broken)}")
    if not good:
        why = "no weight has a gradient natively either"
        return replace(row, verdict="works, part silent", reason=why)
    if lost:
        return replace(row, verdict="fails", reason=f"gradients lost: {_some(lost)}")
    idle = [name for name, quality in native.items() if quality != "good"]
    if idle:
        kinds = ", ".join(f"{n} {kind}" for kind, n in Counter(native[i] for i in idle).items())
        why = f"{len(idle)} weights without a native gradient ({kinds}): {_some(idle)}"
        return replace(row, verdict="works, part silent", reason=why)
    return replace(row, verdict="works")


def _counts(model: nn.Module) -> dict[str, int]:
    counts = Counter(layer.status for layer in tssl_adapters.inspect(model))
    return {
        "wrapped": counts["wrap"],
        "native": counts["native"],
        "refused": counts["refused"],
    }


def _spiking(model: nn.Module) -> list[nn.Module]:
    found = [r.path for r in tssl_adapters.inspect(model) if r.status in ("wrap", "refused")]
    by_path = dict(model.named_modules())
    return [by_path.get(path, model) for path in found]


def _refusals(model: nn.Module) -> str:
    refused = [r for r in tssl_adapters.inspect(model) if r.status == "refused"]
    return "; ".join(dict.fromkeys(f"{r.layer}: {r.detail}" for r in refused))


def _first_line(error: Exception) -> str:
    line = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {line}"[:300]


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
