"""`python -m leaklearn` is the `leaklearn` command."""

import sys

from leaklearn.cli import main

sys.exit(main())
