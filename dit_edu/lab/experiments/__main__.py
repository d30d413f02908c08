"""``python -m dit_edu.lab.experiments [NAME ...]``: compute what is missing, of all or some."""

from __future__ import annotations

import argparse
import sys

from dit_edu.lab.experiments import experiments, run


def main(arguments: list[str] | None = None) -> int:
    """Run experiments; 130 after Ctrl-C, as shells have it, 2 for an error."""
    known = experiments()
    parser = argparse.ArgumentParser(prog="python -m dit_edu.lab.experiments", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(known)}")
    parser.add_argument("--fresh", action="store_true", help="compute what is there again, too")
    options = parser.parse_args(arguments)
    names = options.names or list(known)
    if unknown := set(names) - set(known):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; allowed: {', '.join(known)}")
    try:
        for name in names:
            run(known[name], fresh=options.fresh)
    except KeyboardInterrupt:
        print("\ninterrupted; start again to go on", file=sys.stderr)
        return 130
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
