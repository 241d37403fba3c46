"""Train the suite: networks as the libraries' tutorials, examples and zoos build them.

Each has its own recipe. Every rule is compared with ``native``, the library as it is, not wrapped,
from the same first weights, on the same batches, with the same forward. The same command goes on
where it was left, and repeats nothing.

python -m tssl_adapters.bench networks --rules native,smooth-tsslbp --seeds 1 --out DIR
python -m tssl_adapters.bench networks --networks reporting --seeds 5-9 --out DIR
python -m tssl_adapters.bench networks --networks fashion --data-dir DIR --out DIR
"""

from __future__ import annotations

import argparse

from tssl_adapters.bench import known, options

USAGE = "--out DIR [options]"
WORDS = (known.ALL, *known.SETS, *known.KINDS, *known.NETWORKS)


def seeds(text: str) -> list[int]:
    """How many, counted from 0, or which: ``5``, ``0,1,2``, ``5-9``, ``7,``."""
    if text.isdecimal():
        return list(range(options.positive(text)))
    found: list[int] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} names no seed")
    return list(dict.fromkeys(found))


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    add = parser.add_argument_group("what is compared (lists are separated by commas)").add_argument
    add("--networks", type=options.listed(options.of_installed(WORDS)), default=[known.ALL],
        metavar="LIST", help=f"names, {', '.join(known.SETS)}, {', '.join(known.KINDS)}, or "
        f"{known.ALL} that are in a set (default: {known.ALL})")  # fmt: skip
    options.add_rules_option(add)
    add("--seeds", type=seeds, default=[0], metavar="N",
        help="how many, or which: 5, or 0,1,2, or 5-9, or 7, with a comma (default: 1)"
    )  # fmt: skip
    add = parser.add_argument_group("how it is computed").add_argument
    add("--engine", choices=known.ENGINES, default="torch",
        help="of the wrapped layers (default: %(default)s, that of the recorded results: under "
        "another engine a folder's runs are trained anew)")  # fmt: skip
    options.add_data_dir_option(add)
    add("--report", action="store_true", help="train nothing, report what is there")
    options.add_run_options(parser)
