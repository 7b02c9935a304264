"""``python -m dgm_tb`` is ``dgm-tb``."""

import sys

from dgm_tb.cli import main

if __name__ == "__main__":
    sys.exit(main())
