"""What is wrong with a config or a command line, in one line."""

import difflib
import re
from collections.abc import Sequence

_UNKNOWN = re.compile(
    r"unrecognized arguments: --([\w.]+)|does not accept option '([\w.]+)'|Option '([\w.]+)' is not accepted"
)
_WRONG_TYPE = re.compile(r'Parser key "([\w.]+)": Expected an? (.+?)\. Got value: (.*?)(?: - |$)')
_NO_CLASS = re.compile(
    r"Expected a dot import path string: (\S+)|Import path (\S+) does not|No module named '([\w.]+)'"
)
_NO_FILE = re.compile(r"File does not exist: '([^']+)'")


def one_line(message: str, known_keys: Sequence[str]) -> str:
    """Condense jsonargparse's report, which names every type that it tried.

    Args:
        message: of the `ArgumentError`.
        known_keys: dotted keys that exist, to suggest the nearest one.
    """
    text = " ".join(message.split())
    in_model = text.startswith('Parser key "model"')
    if match := _UNKNOWN.search(text):
        key = next(filter(None, match.groups()))
        if in_model and not key.startswith("model."):
            key = f"model.{key}"
        near = difflib.get_close_matches(key, known_keys, 1)
        return f"{key}: no such key" + (f"; did you mean {near[0]}?" if near else "; see `--help` and `--print_config`")
    if match := _WRONG_TYPE.search(text):
        key, kind, value = match.groups()
        return f"{'model.' if in_model else ''}{key}: {value!r} is not {_plain(kind)}"
    if match := _NO_CLASS.search(text):
        return f"model.class_path: no class {next(filter(None, match.groups()))}, e.g. hoi_lightning.tasks.MaskNet"
    if match := _NO_FILE.search(text):
        return f"{match[1]}: no such config file"
    return text[:400]


def _plain(kind: str) -> str:
    kind = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", kind)
    return re.sub(r"typing\.Literal\[(.*)\]", r"one of \1", kind)
