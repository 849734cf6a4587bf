"""What is raised when something cannot be evaluated."""


class EvaluationError(ValueError):
    """A run, renders or options that cannot be evaluated: the message says what is wrong, where, and what to do."""
