"""The one exception that carries a user's mistake, and the names nearest to a mistyped one."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake that the user can fix.

    The message is one line: the file or key, what is wrong with it, what to do. The command line
    prints it without a traceback and exits with status 2. Control characters and line breaks, which
    a file or a tensor may have in its name, are escaped.
    """

    def __str__(self) -> str:
        text = super().__str__()
        return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def nearest(word: str, known: Iterable[str]) -> str:
    """Return `; nearest: …` with the names that resemble a mistyped word, or nothing."""
    near = difflib.get_close_matches(word[:200], list(known), n=3, cutoff=0.5)
    return f"; nearest: {', '.join(near)}" if near else ""
