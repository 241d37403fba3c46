"""Train the networks of the TSSL-BP paper in its set-up, through each library.

T = 5, tau_m = 5, tau_s = 3, kernel loss; the report puts the accuracies that the authors published
beside these. They are of 100 epochs, which take hours; raise ``--epochs`` later, and the same
command goes on where it was left.

python -m tssl_adapters.bench paper --libraries spikingjelly --out DIR
python -m tssl_adapters.bench paper --libraries norse --seeds 5 --epochs 100 --out DIR
python -m tssl_adapters.bench paper --experiments fashion-cnn --device cuda --epochs 100 --out DIR
"""

from __future__ import annotations

import argparse

from tssl_adapters.bench import known, options

USAGE = "--out DIR [options]"
FIRST = "fashion-400-400"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    add = parser.add_argument_group("what is trained (lists are separated by commas)").add_argument
    one_of, listed = options.one_of, options.listed
    add("--experiments", type=listed(one_of(list(known.EXPERIMENTS))), default=[FIRST],
        metavar="LIST", help=f"of {', '.join(known.EXPERIMENTS)}; the convolutional ones want a "
        f"GPU (default: {FIRST})")  # fmt: skip
    options.add_libraries_option(add)
    options.add_rules_option(add, ["tsslbp"])
    add("--seeds", type=options.positive, default=1, metavar="N", help="default: %(default)s")
    add("--epochs", type=options.positive, default=5, metavar="N",
        help="the paper's are 100 (default: %(default)s)")  # fmt: skip
    options.add_schedule_option(add)
    options.add_place_options(parser)
    options.add_run_options(parser)
