"""The losses of the rules' papers, for outputs of any library.

All tensors are time first. Losses are summed over the batch, as the authors of TSSL-BP sum them
before they clip the gradient's norm at 1; divide by the batch size for a mean.

Sources: for :func:`lee` and the thresholds the paper of :class:`tssl_adapters.rules.Lee`, for the
spike times that of :class:`tssl_adapters.rules.STDBP`; for all else W. Zhang and P. Li, "Temporal
Spike Sequence Learning via Backpropagation for Deep Spiking Neural Networks", NeurIPS 2020, and the
authors' code.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from tssl_adapters.spike_times import describe
from tssl_adapters.spike_times import first_spike as first_spike
from tssl_adapters.spike_times import first_spike_time as first_spike_time


def psc(spikes: Tensor, tau_s: float) -> Tensor:
    """Filter a sequence to its post-synaptic current: a[t] = a[t-1] + (s[t] - a[t-1]) / tau_s.

    ``spikes`` is a floating point tensor ``[T, ...]`` (spikes, or any other signal such as repeated
    pixels), ``tau_s >= 1`` the time constant in steps; the result has the shape of ``spikes``. At
    tau_s = 1 it equals ``spikes``. Differentiable.
    """
    if not (tau_s >= 1 and math.isfinite(tau_s)):
        raise ValueError(f"tau_s must be a finite number of steps, 1 or more, not {tau_s}")
    if spikes.dim() == 0 or not spikes.is_floating_point():
        raise ValueError(f"spikes must be a floating point tensor [T, ...], not {describe(spikes)}")
    if tau_s == 1 or len(spikes) == 0:
        return spikes.clone()
    current = spikes[0] / tau_s
    currents = [current]
    for spike in spikes[1:]:
        current = current + (spike - current) / tau_s
        currents.append(current)
    return torch.stack(currents)


def target_spike_train(labels: Tensor, num_steps: int, num_classes: int) -> Tensor:
    """Target spikes for the output layer, ``[num_steps, batch, num_classes]``.

    ``labels`` holds the class of each sample, ``[batch]``. That class fires 0, 1, 1, 1, 1 (at every
    step but the first) if ``num_steps`` is below 10, else 0, 1, 0, 1, ... (every other step); the
    other classes stay silent. The result is on the labels' device, in torch's default dtype.
    """
    if num_steps < 2:
        raise ValueError(f"a target train needs 2 steps or more to hold a spike, not {num_steps}")
    step = torch.arange(num_steps, device=labels.device)
    fires = step > 0 if num_steps < 10 else step % 2 == 1
    wanted = _one_hot(labels, num_classes)
    return (fires[:, None, None] & wanted).to(torch.get_default_dtype())


def psc_kernel_loss(
    output: Tensor, target: Tensor, tau_s: float, filters: Literal[1, 2] = 2
) -> Tensor:
    """Half the squared distance of the output PSC from the target's, a scalar.

    1/2 sum (output - psc(target))^2 over all of ``[T, batch, classes]``: ``output`` as a layer
    wrapped with this ``tau_s`` emits it, ``target`` a spike train of the same shape
    (``target_spike_train``).

    ``filters`` is how often ``psc`` is applied to the target. The paper's van Rossum distance means
    1; the authors' code, and every result reported with it, filters twice: once when it builds the
    target and again in the loss. The default is 2, as in their code.
    """
    if output.shape != target.shape:
        raise ValueError(
            f"output and target must have one shape [T, batch, classes], "
            f"not {describe(output)} and {describe(target)}"
        )
    if filters not in (1, 2):
        raise ValueError(f"filters must be 1 or 2, not {filters}")
    target = target.to(output)
    for _ in range(filters):
        target = psc(target, tau_s)
    return (output - target).square().sum() / 2


def target_spike_counts(
    labels: Tensor, num_classes: int, wanted: float = 15.0, others: float = 3.0
) -> Tensor:
    """Target spike counts for the output layer, ``[batch, num_classes]``.

    ``labels`` holds the class of each sample, ``[batch]``; it should fire ``wanted`` times, each
    other class ``others`` times. The defaults are the paper's for N-MNIST (30 and 100 steps). The
    result is on the labels' device, in torch's default dtype.
    """
    if not wanted > others:
        raise ValueError(f"wanted must be above others, not {wanted} against {others}")
    is_wanted = _one_hot(labels, num_classes)
    counts = torch.full(
        is_wanted.shape, others, dtype=torch.get_default_dtype(), device=labels.device
    )
    return counts.masked_fill(is_wanted, wanted)


def spike_count_loss(output: Tensor, target_counts: Tensor) -> Tensor:
    """Half the squared error of the spike counts over the number of steps, a scalar.

    1/(2 T) sum (count - target)^2 over batch and classes, with count = sum_t output[t]. ``output``
    is ``[T, batch, classes]`` and ``target_counts`` is ``[batch, classes]``
    (``target_spike_counts``). This is the authors' 1/2 sum over t, batch and classes of delta^2
    with delta = (count - target) / T, so that each step's gradient is delta. As in their code the
    error is one-sided: a sample's wanted class (its largest target) costs nothing above its target,
    the others nothing below theirs.
    """
    if output.dim() != 3 or target_counts.shape != output.shape[1:]:
        raise ValueError(
            f"output must be [T, batch, classes] and target_counts [batch, classes], "
            f"not {describe(output)} and {describe(target_counts)}"
        )
    target = target_counts.to(output)
    wanted = target == target.amax(dim=1, keepdim=True)
    excess = output.sum(dim=0) - target
    error = torch.where(wanted, excess.clamp(max=0), excess.clamp(min=0))
    return error.square().sum() / (2 * len(output))


def lee(spikes: Tensor, labels: Tensor, decay: float = 1.0) -> Tensor:
    """The output error of Lee et al. 2016 as a loss, a scalar.

    sum_t decay^(T-1-t) sum_i s_i[t] delta_i with delta_i = o_i / max_j o_j - l_i held fixed, where
    o_i is output i's spike count and l_i is 1 for the sample's class, else 0. delta is not a
    derivative of anything, so only the loss's gradient is meaningful. ``spikes`` is
    ``[T, batch, classes]``, ``labels`` holds the class of each sample, ``[batch]``; ``decay`` is
    the membrane's decay per step, for the error on the trace at the end of the window as in the
    paper, or 1 for the error on counts.
    """
    if spikes.dim() != 3 or labels.shape != spikes.shape[1:2]:
        raise ValueError(
            f"spikes must be [T, batch, classes] and labels [batch], "
            f"not {describe(spikes)} and {describe(labels)}"
        )
    if not 0 < decay <= 1:
        raise ValueError(f"decay must be above 0 and at most 1, not {decay}")
    wanted = _one_hot(labels, spikes.shape[2])
    with torch.no_grad():
        counts = spikes.sum(dim=0)
        error = counts / counts.amax(dim=1, keepdim=True).clamp(min=1) - wanted.to(counts)
    ages = torch.arange(len(spikes) - 1, -1, -1, device=spikes.device)
    kept = torch.as_tensor(decay, dtype=spikes.dtype, device=spikes.device) ** ages
    return (kept[:, None, None] * spikes * error).sum()


def regularise_thresholds(
    threshold: Tensor,
    spikes: Tensor,
    rho: float = 1e-5,
    lowest: float = 0.05,
    highest: float = 5.0,
) -> None:
    """Lee et al.'s threshold regularisation, to be called after a batch; changes ``threshold``.

    threshold_i += rho (N f_i - sum_j f_j), with f_i the share of samples in which neuron i of N
    fired: busy neurons get harder to excite, silent ones easier, and the mean stays until values
    meet ``lowest`` or ``highest``. ``spikes`` is a layer's output ``[T, batch, ...]``, and
    ``threshold`` its own tensor of one value per neuron ``[...]``: snnTorch's ``layer.threshold``,
    made with ``Leaky(threshold=torch.ones(N))``, or Norse's ``layer.p.v_th``. It changes the
    forward pass.
    """
    if not isinstance(threshold, Tensor) or threshold.shape != spikes.shape[2:]:
        found = describe(threshold) if isinstance(threshold, Tensor) else repr(threshold)
        raise ValueError(
            f"threshold must be the layer's own tensor of one value a neuron, "
            f"{list(spikes.shape[2:])}, not {found}; a layer of one threshold, such as "
            "SpikingJelly's, cannot be regularised"
        )
    with torch.no_grad():
        fired = spikes.ne(0).any(dim=0).to(threshold.dtype).mean(dim=0)
        change = rho * (fired.numel() * fired - fired.sum())
        threshold.add_(change).clamp_(lowest, highest)


def _one_hot(labels: Tensor, num_classes: int) -> Tensor:
    """The labels one-hot, bool ``[batch, num_classes]``."""
    if labels.dim() != 1 or labels.is_floating_point():
        raise ValueError(f"labels must be integers [batch], not {describe(labels)}")
    if ((labels < 0) | (labels >= num_classes)).any():
        raise ValueError(f"labels must lie in 0 ... {num_classes - 1}, not {labels.tolist()}")
    return labels[:, None] == torch.arange(num_classes, device=labels.device)
