"""The two command lines' common shape: a verb is a module with `add_arguments` and `run`."""

import argparse
import importlib
import sys
from collections.abc import Callable, Mapping
from typing import NamedTuple

import hoi_lightning
from hoi_lightning.errors import InputError


class Verb(NamedTuple):
    """A verb's module and its line in the help."""

    module: str
    line: str


class _Formatter(argparse.HelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str | None:
        shown = action.default not in (None, argparse.SUPPRESS, [])
        return f"{action.help} (default: %(default)s)" if shown else action.help


def run(package: str, verbs: Mapping[str, Verb], args: list[str], elsewhere: Mapping[str, str] | None = None) -> int:
    """Parse `args` and run the verb's module.

    Args:
        package: its name and docstring head the help.
        verbs: by name.
        args: command line without the program's name.
        elsewhere: verbs that only appear in the help; the caller has dealt with them.

    Returns:
        Exit status: the verb's own (0 where it returns None), or 2 after the user's mistake.
    """
    parser = argparse.ArgumentParser(package, description=importlib.import_module(package).__doc__)
    parser.add_argument("--version", action="version", version=hoi_lightning.__version__)
    subparsers = parser.add_subparsers(dest="verb", required=True, metavar="VERB", title="verbs")
    for verb, line in (elsewhere or {}).items():
        subparsers.add_parser(verb, help=line, add_help=False)
    modules = {}
    for verb, (module, line) in verbs.items():
        subparser = subparsers.add_parser(verb, help=line, formatter_class=_Formatter)
        if args and args[0] == verb:
            modules[verb] = importlib.import_module(module)
            subparser.description = modules[verb].__doc__
            modules[verb].add_arguments(subparser)
    parsed = parser.parse_args(args)
    return guarded(lambda: modules[parsed.verb].run(parsed))


def guarded(verb: Callable[[], int | None]) -> int:
    """Call a verb; None is status 0, its `InputError` becomes one line on standard error and status 2."""
    try:
        return verb() or 0
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
