"""What is raised when data on disk cannot be used."""


class DataError(ValueError):
    """Data that cannot be used: the message names the file, the frame and what to do about it."""
