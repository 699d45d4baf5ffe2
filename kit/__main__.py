"""``python -m kit``: named deployments from a terminal."""

from __future__ import annotations

import sys

from kit.daemon.cli import main

if __name__ == "__main__":
    sys.exit(main())
