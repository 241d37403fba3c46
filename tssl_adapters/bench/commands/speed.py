"""Time and memory of wrapped layers and networks against the libraries' own, in one run.

The contestants take turns, round by round, so that a noisy machine hits them alike; a figure is the
median over the rounds, a ratio the median of the rounds' ratios.

python -m tssl_adapters.bench speed
python -m tssl_adapters.bench speed --works norse-lif --steps 8,32,100,1000 --compile --out DIR
python -m tssl_adapters.bench speed --networks ordinary
python -m tssl_adapters.bench speed --floors
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tssl_adapters.bench import known, options
from tssl_adapters.bench.commands.networks import WORDS

USAGE = "[options]"
SIZES = {
    "steps": [8, 100],
    "neurons": [4096],
    "network_steps": [50],
    "tau_s": [1.0, 3.0],
    "rounds": 15,
}
QUICK = {"steps": [8], "neurons": [512], "network_steps": [5], "tau_s": [1.0], "rounds": 3}
RULES = ("smooth-tsslbp", "tsslbp", "native")
"""``native`` is the library's own gradient, computed by the engine's loops."""
NETWORK_BATCH = 32
RESULTS = "speed.json"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    numbers = options.listed(options.positive)
    add = parser.add_argument_group("what is timed (lists are separated by commas)").add_argument
    add("--works", type=options.listed(options.of_installed(known.WORKS)), metavar="LIST",
        help=f"of {', '.join(known.WORKS)} (default: all of the installed libraries)"
    )  # fmt: skip
    add("--networks", type=options.listed(options.of_installed(WORDS)), default=[], metavar="LIST",
        help="instead, a training step of the suite's networks, by name, set, kind or "
        f"{known.ALL}")  # fmt: skip
    add("--steps", type=numbers, metavar="LIST", help="T (default: 8,100)")
    add("--neurons", type=numbers, metavar="LIST", help="default: 4096")
    add("--batch", type=options.positive, default=1, metavar="N", help="default: %(default)s")
    add("--network-steps", type=numbers, metavar="LIST",
        help=f"T of the networks, whose batch is {NETWORK_BATCH} (default: 50)")  # fmt: skip
    add("--tau-s", type=options.listed(options.time_constant), metavar="LIST",
        help="synaptic time constants in steps (default: 1,3)")  # fmt: skip
    add("--rule", choices=RULES, default="smooth-tsslbp", help="of wrapped layers "
        "(default: %(default)s)")  # fmt: skip
    add("--compile", action=argparse.BooleanOptionalAction, default=False,
        help="the libraries' layers under torch.compile too, a minute each (default: no)"
    )  # fmt: skip
    add("--quick", action="store_true",
        help="one small size, one tau_s, few rounds: about 10 s on a core that is free"
    )  # fmt: skip
    add("--floors", action="store_true", help="only what the package is held to; the exit status "
        "is 1 if a floor is missed")  # fmt: skip
    add = parser.add_argument_group("how").add_argument
    add("--threads", type=numbers, default=[1], metavar="LIST", help="default: 1")
    add("--device", type=options.device, default="cpu", help="cpu, cuda, ... (default: cpu)")
    add("--dtype", choices=known.DTYPES, default="float32", help="default: %(default)s")
    add("--rounds", type=options.positive, metavar="N", help=f"default: {SIZES['rounds']}")
    add("--budget", type=float, default=5.0, metavar="SECONDS",
        help="for the rounds of one size; three are made in any case (default: %(default)s)"
    )  # fmt: skip
    add = parser.add_argument_group("what it writes").add_argument
    add("--out", type=Path, metavar="DIR", help=f"folder for {RESULTS} and the plots")
    add("--json", action="store_true", help=f"print {RESULTS} instead of tables")


def fill(args: argparse.Namespace) -> None:
    """Set the sizes that were not given."""
    for name, value in (QUICK if args.quick else SIZES).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
