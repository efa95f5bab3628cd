"""`python -m hoi_lightning bench WHAT`: measurements of the software itself.

A floor of its own above the metrics; each WHAT is a module with `add_arguments` and `run`.
"""

import argparse

from hoi_lightning.bench import data, layouts, metrics, painting

WHAT = {
    "data": (data, "how fast are samples read, against bare decoding and other loaders?"),
    "metrics": (metrics, "do fd_mini and lpips_mini rise with each kind of distortion?"),
    "painting": (painting, "which of FusionNet's samplers paints best, and what each costs"),
    "layouts": (layouts, "do MaskNet's samples follow the true distribution of the mini world?"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the measurements and their flags."""
    subparsers = parser.add_subparsers(dest="what", required=True, metavar="WHAT", title="measurements")
    for name, (module, line) in WHAT.items():
        module.add_arguments(subparsers.add_parser(name, help=line, description=module.__doc__))


def run(args: argparse.Namespace) -> int:
    """Measure; returns the exit status."""
    return WHAT[args.what][0].run(args)
