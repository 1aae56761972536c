"""The one exception that carries a user's mistake."""


class UserError(Exception):
    """A mistake that the user can mend.

    The message is one line: the file or key, what is wrong with it, what to do. The command line
    prints it without a traceback and exits with status 2.
    """
