"""What is raised when a file cannot be read."""

MOST_BYTES = 2**29
"""That the content of one file may take in memory: a volume of 512^3 numbers in float32."""


class FileError(ValueError):
    """A file that cannot be read: the message names it, and says why and what to do."""


def first_line(error: Exception) -> str:
    """What an error says, or its kind where it says nothing."""
    return (str(error) or type(error).__name__).splitlines()[0]
