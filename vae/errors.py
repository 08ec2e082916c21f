"""The one exception whose message is written for the user."""


class UserError(ValueError):
    """Bad input. The message names the field, says what was wrong and what to do.

    The launcher prints it without a traceback and exits with status 2.
    """
