"""The one exception for what a user can mend."""


class MinitronError(Exception):
    """One sentence: what is wrong, where, and what to do.  The command line prints it and exits with 2."""
