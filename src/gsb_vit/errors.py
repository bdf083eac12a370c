"""Errors a user can mend."""


class InputError(ValueError):
    """Something the user gave cannot be used; the message says what, what is allowed, and the way out.

    The command line prints the message in one line and exits with status 2.
    """
