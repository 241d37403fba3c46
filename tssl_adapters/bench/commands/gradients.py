"""Compare the rules' gradients on one batch, layer by layer.

Norms, cosines to each other, growth through depth and time, and what the neurons do. Each rule has
the same weights and the same batch: those of the start, or of an experiment's run.

python -m tssl_adapters.bench gradients --data digits --rules native,smooth-tsslbp --out DIR
python -m tssl_adapters.bench gradients --libraries norse --tau-s 1,3 --out DIR
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tssl_adapters.bench import options

USAGE = "--out DIR [options]"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    options.add_grid_options(parser)
    options.add_training_options(parser)
    options.add_run_options(parser)
    parser.add_argument_group("weights").add_argument(
        "--checkpoint", type=Path, metavar="FILE",
        help="take the weights of a run of the same network, from its checkpoint"
    )  # fmt: skip
