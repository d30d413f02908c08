"""``python -m dit_edu``: see :mod:`dit_edu.lab.cli`."""

import sys

from dit_edu.lab.cli import main

if __name__ == "__main__":
    sys.exit(main())
