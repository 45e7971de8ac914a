"""`python -m albef_jax`: the command `albef`, where the package lies but is not installed."""

import sys

from albef_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
