"""The one error that a user is meant to read."""


class UserError(ValueError):
    """Something outside the code is wrong: a file, an argument, a manifest, the disk.

    The message is one line that names the cause and, after it, the remedy. The command line
    prints it as it is and ends with exit code 2.
    """
