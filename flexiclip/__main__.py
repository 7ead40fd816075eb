"""`python -m flexiclip`, and the console script `flexiclip`."""

from __future__ import annotations

import os
import sys

from flexiclip.errors import RunError, UserError


def main(argv: list[str] | None = None) -> int:
    """Run one command. 0: done; 2: the user's mistake, said in one line on stderr; 1: anything else.

    A RunError is said in one line as well.
    """
    # OpenMP threads that spin at every barrier starve the data workers wherever cores are few or shared; must precede torch.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from flexiclip.cli import run

    try:
        return run(sys.argv[1:] if argv is None else argv)
    except UserError as error:
        print(f"flexiclip: {error}", file=sys.stderr)
        return 2
    except RunError as error:
        print(f"flexiclip: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("flexiclip: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
