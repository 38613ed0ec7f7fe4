"""The one check that must run on a Python that is too old for everything else, so it is written in old Python."""

import sys

OLDEST = (3, 11)


def require_python(program: str) -> None:
    """End the program with a sentence if Python is too old; the packages call this before they import anything."""
    if sys.version_info < OLDEST:
        found = ".".join(str(part) for part in sys.version_info[:3])
        sys.stderr.write(
            program + ": Python " + found + " is too old: it needs Python 3.11 or newer; Debian 12 and Ubuntu 24.04 "
            "have it as python3, elsewhere install one and make the virtual environment with it\n"
        )
        sys.exit(2)
