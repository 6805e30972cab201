"""The one error that means "the user can mend this"."""


class UserError(ValueError):
    """A mistake in what a user gave: one line that names the thing, its value and what is allowed.

    The command line prints the line and exits with status 2; from Python it is an ordinary ``ValueError``.
    """


def first_line(error: BaseException) -> str:
    """The first line of another library's error, or its class where it says nothing."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
