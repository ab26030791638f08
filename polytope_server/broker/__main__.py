"""``python -m polytope_server.broker -f CONFIG``"""

import sys

from polytope_server.cli import main

main(["broker", *sys.argv[1:]])
