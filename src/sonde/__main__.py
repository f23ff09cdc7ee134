"""``python -m sonde``: the command line if the script ``sonde`` is not on the path."""

import sys

from sonde.cli.main import main

sys.exit(main())
