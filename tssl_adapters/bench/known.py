"""Every name that the command line accepts, so that it imports neither torch nor the libraries.

The module that runs a name defines what it means; ``tests/bench/test_bench_commands.py`` keeps the
two consistent.
"""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import yaml

LIBRARIES = ("snntorch", "spikingjelly", "norse")
ENGINES = ("torch", "cpu", "triton")
DTYPES = ("float32", "float16", "bfloat16")
SCHEDULES = ("constant", "cosine")

EVENTS = ("n-mnist", "dvs-gesture", "shd")
DATA = ("digits", "mnist5k", "mnist", "fashion-mnist", *EVENTS)
PRESETS = {
    "cnn": "15C5-P2-40C5-P2-300",
    "cnn-fashion": "32C5p2-P2-64C5p2-P2-1024",
    "cnn-nmnist": "12C5p1-P2-64C5-P2",
}
"""The paper's convolutional networks."""
CONVOLUTION = re.compile(r"([1-9]\d*)C([1-9]\d*)(?:p(\d+))?")
POOL, BETWEEN = "P2", "-"
EXPERIMENTS = {
    "fashion-400-400": "fashion-mnist",
    "fashion-cnn": "fashion-mnist",
    "mnist-cnn": "mnist",
}
"""The paper's experiments, each with its data."""

LATENCY = "latency"
"""The spike-time loss: its inputs and neurons fire once."""
FEWEST_STEPS = {"kernel": 2, "cross-entropy": 1, "count": 3, LATENCY: 4}
"""The losses, and the fewest time steps at which their targets or inputs differ."""

RULES = {
    "native": "the library's default surrogate",
    "native-compiled": "native, out of this package's engines",
    "arctan": "the library's arctan surrogate",
    "fast-sigmoid": "the library's fast sigmoid (SuperSpike)",
    "native-detached": "native, nothing through the reset",
    "native-complete-reset": "native with the complete reset dependency",
    "native-no-chain": "native without a temporal chain (SLTT)",
    "smooth-tsslbp": "SmoothTSSLBP, the default of wrap",
    "tsslbp": "TSSL-BP",
    "tsslbp-no-fallback": "TSSL-BP, silent steps emit nothing",
    "tsslbp-fallback-only": "TSSL-BP's fallback at every step, no spike times",
    "tsslbp-no-reset": "TSSL-BP without its reset term",
    "tsslbp-complete-reset": "TSSL-BP with the complete reset dependency",
    "tsslbp-no-chain": "TSSL-BP without a temporal chain",
    "lee": "Lee et al. 2016; layers that emit spikes alone",
    "strsbp": "ST-RSBP, its error at each spike, as steps need it",
    "stdbp": "STDBP; neurons that fire once alone",
    **{
        f"superspike-{steepness}": f"SuperSpike, (1 + {steepness} |h - theta|)^-2"
        for steepness in (10, 25, 100)
    },
    **{
        f"arctan-{narrowness}": f"arctan of width theta / {narrowness} and peak 1 / theta"
        for narrowness in (1, 10, 20)
    },
    "eventprop": "EventProp; neurons behind a synaptic current alone",
}
"""A line about each rule for the help; ``bench.rules`` has the rules themselves."""
COMPARED = ("native", "smooth-tsslbp")
"""The default: the library itself, and the default rule of ``wrap``."""

SETS: dict[str, list[str]] = yaml.safe_load(
    Path(__file__).with_name("networks").joinpath("split.yaml").read_text()
)
"""Networks of the suite: those used to choose a rule, and those used to report on it."""
FASHION = (
    "spikingjelly-fashion-sew-resnet18",
    "spikingjelly-fashion-spikformer",
    "snntorch-fashion-conv",
    "norse-fashion-conv",
)
NETWORKS = (*(name for names in SETS.values() for name in names), *FASHION)
KINDS = ("ordinary", "stress", "timing", "fashion")
ALL = "all"
RESULTS = "results.jsonl"
"""The file of results in an experiment's folder."""

WORKS = (
    *("spikingjelly-lif", "spikingjelly-lif-step", "spikingjelly-network"),
    *("norse-lif", "norse-lifcell", "norse-lifboxcell", "snntorch-leaky", "snntorch-network"),
)
"""What ``speed`` times."""


def installed(library: str) -> bool:
    """Whether a library is installed; it is not imported."""
    return find_spec(library) is not None


def library_of(name: str) -> str:
    """The library of a suite network or a work: the first part of its name."""
    return name.partition("-")[0]
