"""The one exception for input that is wrong and that its owner can mend."""


class InputError(ValueError):
    """Bad user input, in one line: the place, what was found, what is allowed. The command exits with status 2."""
