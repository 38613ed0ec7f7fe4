"""`python -m edge_runtime`: the same as `causeway-edge`."""

from __future__ import annotations

from edge_runtime.cli import main

if __name__ == "__main__":
    main()
