"""`python -m hoi_lightning bench WHAT`: measurements of the software itself.

A floor of its own above the metrics; each WHAT is a module with `add_arguments` and `run`.
"""

import argparse

from hoi_lightning.bench import metrics


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the measurements and their flags."""
    subparsers = parser.add_subparsers(dest="what", required=True, metavar="WHAT", title="measurements")
    line = "do fd_mini and lpips_mini rise with each kind of distortion?"
    metrics.add_arguments(subparsers.add_parser("metrics", help=line, description=metrics.__doc__))


def run(args: argparse.Namespace) -> int:
    """Measure; returns the exit status."""
    return metrics.run(args)
