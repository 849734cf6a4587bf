"""What is raised when something cannot be evaluated."""


class EvaluationError(ValueError):
    """A run, renders or options that cannot be evaluated: the message says what is wrong, where, and what to do."""


def first_line(error: Exception) -> str:
    """What an error says, or its kind where it says nothing."""
    return (str(error) or type(error).__name__).splitlines()[0]
