"""The two consoles of the command line: results go to `out`, everything else to `err`."""

from rich.console import Console

out = Console()
err = Console(stderr=True)
