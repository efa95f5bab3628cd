"""Exceptions that more than one floor speaks of."""


class InputError(Exception):
    """Bad input: one line that names the key or path and the remedy.

    Both command lines (`python -m hoi_lightning`, `python -m data_prep`) print it after `error: ` without a traceback
    and exit with status 2.
    """


class NonFiniteLoss(Exception):
    """The loss is NaN or infinite; training on would only spread it."""
