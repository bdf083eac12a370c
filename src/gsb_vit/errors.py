"""Errors a user can mend, and what is only worth a warning."""


class InputError(ValueError):
    """Something the user gave cannot be used; the message says what, what is allowed, and the way out.

    The command line prints the message in one line and exits with status 2.
    """


class ModelError(InputError):
    """A model gives no numbers that can be used; no other picture and no other option will mend that."""


class PictureWarning(UserWarning):
    """A picture was read as its file declares, which is perhaps not what its writer meant."""
