"""`python -m apps [--root DIR] [--port N] [--no-browser]`: the explorer, at an address of this machine alone."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> None:
    """Become the process of the explorer."""
    command = command_line(arguments)
    os.execv(command[0], command)


def command_line(arguments: Sequence[str] | None = None) -> list[str]:
    """The command that these options stand for."""
    parser = argparse.ArgumentParser(prog="python -m apps", description="Look at run files, compare them, make more.")
    parser.add_argument("--root", type=Path, help="folder of the run files; default: that of all results")
    parser.add_argument("--port", type=int, default=8501, help="default: %(default)s")
    parser.add_argument("--no-browser", action="store_true", help="only say the address")
    options = parser.parse_args(arguments)
    if not 0 < options.port < 65536:
        parser.error(f"--port must be from 1 to 65535, not {options.port}")
    if options.root is not None and not options.root.is_dir():
        parser.error(f"--root {options.root} is not a folder")
    # what keeps it safe is in .streamlit/config.toml beside it, which overrides settings of the user's own
    flags = {"server.port": str(options.port), "server.headless": str(options.no_browser).lower()}
    command = [sys.executable, "-m", "streamlit", "run", str(Path(__file__).with_name("explorer.py"))]
    command += [f"--{name}={value}" for name, value in flags.items()]
    return command + (["--", f"--root={options.root}"] if options.root else [])


if __name__ == "__main__":
    main()
