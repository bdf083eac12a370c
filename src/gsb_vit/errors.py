"""Errors a user can mend, and what is only worth a warning."""


class InputError(ValueError):
    """Something the user gave cannot be used; the message says what, what is allowed, and the way out.

    The command line prints the message in one line and exits with status 2.
    """


class ModelError(InputError):
    """A model gives no numbers that can be used; no other picture and no other option will mend that."""


class PictureWarning(UserWarning):
    """A picture was read as its file declares, which is perhaps not what its writer meant."""


def shown(value: object, most: int = 100) -> str:
    """Return how Python writes a value, in one line of at most ``most`` characters, for a message about it."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # an integer of many thousand digits, an object whose own code fails
        text = f"a {type(value).__name__}"
    return text if len(text) <= most else f"{text[:most]}…"
