"""Train data x library x network x rule x seed, and compare the rules.

Each rule has the same forward pass, first weights and order of samples. The same command goes on
where it was left, and repeats nothing.

python -m tssl_adapters.bench accuracy --data digits --out DIR
python -m tssl_adapters.bench accuracy --libraries snntorch --rules native,tsslbp --out DIR
python -m tssl_adapters.bench accuracy --networks 400-400,cnn --tau-s 1,3 --seeds 5 --out DIR
"""

from __future__ import annotations

import argparse

from tssl_adapters.bench import options

USAGE = "--out DIR [options]"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    options.add_grid_options(parser)
    options.add_training_options(parser)
    options.add_run_options(parser)
