"""Forked processes that carry out a command of the package as a program would."""

import sys
import traceback
from collections.abc import Callable


def exit_code(command: Callable[[], object]) -> int:
    """What a program of this command ends with: 70 after an exception, whose traceback it prints."""
    try:
        command()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 70
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0
