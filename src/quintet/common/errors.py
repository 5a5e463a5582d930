"""The one exception that reaches a user as a single line."""


class UserError(ValueError):
    """A mistake in the configuration, the data or the call: what is wrong, where, and what to do.

    `train.py` and `eval.py` print it as one line and exit with code 1; `debug=true` shows the traceback.
    """
