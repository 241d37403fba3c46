"""Train a model of your own under several rules, and compare them as ``accuracy`` does.

FILE:FUNCTION returns a model, batches to train on and batches to test on, or a
``tssl_adapters.bench.user.Task`` of these with a forward, a loss and an optimizer of your own. It
is called once a run, after ``torch.manual_seed``.

python -m tssl_adapters.bench model path/to/file.py:build --rules native,smooth-tsslbp --out DIR
python -m tssl_adapters.bench model path/to/file.py:build --seeds 5 --epochs 30 --out DIR
"""

from __future__ import annotations

import argparse

from tssl_adapters.bench import options

USAGE = "FILE:FUNCTION --out DIR [options]"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    add = parser.add_argument_group("what is compared (lists are separated by commas)").add_argument
    add("model", metavar="FILE:FUNCTION", help="what builds the model")
    options.add_rules_option(add)
    add("--tau-s", type=options.listed(options.time_constant), default=[1.0], metavar="LIST",
        help="synaptic time constants in steps (default: 1)"
    )  # fmt: skip
    add("--seeds", type=options.positive, default=3, metavar="N", help="default: %(default)s")
    add("--epochs", type=options.positive, default=10, metavar="N", help="default: %(default)s")
    options.add_schedule_option(add)
    options.add_run_options(parser)
