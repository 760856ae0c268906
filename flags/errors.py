"""The one error type for what a user can mend."""


class UserError(ValueError):
    """Something the user can mend: a wrong flag, missing data, a damaged file.

    Its message is one line that says what is wrong and what to do. Command-line programs print that
    line and end with a non-zero status instead of showing a traceback.
    """
