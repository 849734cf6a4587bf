"""What is raised when a representation task cannot be carried out."""


class RepresentationError(ValueError):
    """An input, option or file that cannot be used: the message says what is wrong, where, and what to do."""
