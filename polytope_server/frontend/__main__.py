"""``python -m polytope_server.frontend -f CONFIG``"""

import sys

from polytope_server.cli import main

main(["frontend", *sys.argv[1:]])
