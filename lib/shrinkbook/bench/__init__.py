"""How fast the suite is beside the usual way of doing the same: `make bench`."""

import json
from typing import Any

from shrinkbook.evidence import store


def write(name: str, measured: dict[str, Any]) -> None:
    """Keep a bench's numbers as ``bench-<name>.json`` in the build folder, and say where."""
    path = store.write_text(store.build_dir() / f"bench-{name}.json", json.dumps(measured, indent=1) + "\n")
    print(f"written to {path}")
