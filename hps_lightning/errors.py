"""The one exception that stands for a user's mistake, as opposed to a fault of ours."""


class UserError(Exception):
    """What the user gave cannot be used; the message names the value and the way out.

    The command line prints the message alone and ends with status 2.
    """
