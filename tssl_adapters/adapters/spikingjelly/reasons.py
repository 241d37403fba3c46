"""Why the library's other spiking layers are refused."""

from __future__ import annotations

_OWN_RULE = "it has a learning rule of its own"
_ONLINE = f"{_OWN_RULE}: it detaches its state from one time step to the next"
_RATE = f"{_OWN_RULE}: the gradient is that of a firing rate, not of spikes in time"
_NOT_BINARY = "its output is not a binary spike"
_TERNARY = f"{_NOT_BINARY}: it is -1, 0 or 1, of two thresholds"
_NO_RESET = "it has no reset: its potential is a weighted sum of inputs over time"
_CODE = f"{_NOT_BINARY}: it codes a number in a few weighted spikes, and takes no time steps"
_INTERLAYER = (
    "its spikes come back through a layer of its own, between its neurons, which it writes into "
    "the caller's input"
)
_NOISE = f"{_NOT_BINARY} in training, where noise is added to it and to the drive"
_GATES = "it is a recurrent cell of spiking gates, without a membrane potential"
_OFFSET = (
    "it fires at v_threshold - v_offset but a spike takes v_threshold away: it serves conversion "
    "from networks that do not spike, and only one threshold is known here"
)

_LOST = (
    "its constructor loses the coefficients a, b and c in this version of the library, so that "
    "natively, too, it fails when it is called"
)

REASONS = {
    **dict.fromkeys(("OTTTLIFNode", "SLTTLIFNode"), _ONLINE),
    **dict.fromkeys(("DSRIFNode", "DSRLIFNode"), _RATE),
    **dict.fromkeys(("PSN", "MaskedPSN", "SlidingPSN"), _NO_RESET),
    "LIAFNode": f"{_NOT_BINARY} but an activation of its potential",
    "ILIFNode": f"{_NOT_BINARY} but an integer count of spikes",
    **dict.fromkeys(("TernaryIFNode", "TernaryLIFNode"), _TERNARY),
    "STBIFNode": f"{_NOT_BINARY}: it is -1, 0 or 1 times a quantisation step",
    **dict.fromkeys(("FewSpikeNode", "OutlierAwareThresholdNode", "HGNode"), _CODE),
    "MPBNBaseNode": "it normalises the membrane potential over the batch",
    "ILCBaseNode": _INTERLAYER,
    "NoisyBaseNode": _NOISE,
    "FlexSN": "its step is a function of the user's, with no threshold or reset to be told apart",
    "ActivationAwareIFNode": _OFFSET,
    "GeneralNode": _LOST,
    "SpikingRNNCellBase": _GATES,
    "SpikingRNNBase": _GATES,
}
