"""The one error that a user can mend."""


class UserError(ValueError):
    """Says what was expected, what was found, and how to mend it.

    Raised before any long work starts, for what a user gave: a path, an option, a
    file. The command line prints its message alone and exits with status 2; any
    other exception is a fault of ours, is shown with its trace, and exits with 1.
    """
