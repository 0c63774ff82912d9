class InputError(ValueError):
    """A user's mistake or a missing file; the message is one sentence that names the fix."""
