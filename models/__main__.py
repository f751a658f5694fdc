"""`python -m models list`: the names of the zoo and of the checkpoints at hand."""

from __future__ import annotations

import argparse
import json

from data_cache import exit_on_input_error, paths


def main() -> None:
    """Print the list, for people or as JSON."""
    parser = argparse.ArgumentParser(prog="python -m models", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    listing = commands.add_parser("list", help="names of the zoo and of the checkpoints at hand")
    listing.add_argument("--json", action="store_true", help='print {"zoo": [...], "checkpoints": [...]}')
    arguments = parser.parse_args()
    with exit_on_input_error():
        from models.registry import names

        checkpoints = paths.checkpoints()
        if arguments.json:
            print(json.dumps({"zoo": names(), "checkpoints": list(checkpoints)}))
            return
        print("zoo (--model):", *names(), sep="\n  ")
        print("checkpoints (--ckpt):", *(f"{name}  {path}" for name, path in checkpoints.items()), sep="\n  ")


if __name__ == "__main__":
    main()
