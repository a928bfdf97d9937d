"""The one exception for what a user can mend."""


class MinitronError(Exception):
    """One sentence: what is wrong, where, and what to do.  The command line prints it and exits with 2."""


class NotFinite(MinitronError):
    """A model gives logits, or a loss, that are no finite numbers."""


class NothingFits(MinitronError):
    """No architecture that was looked at stays within the budget."""
