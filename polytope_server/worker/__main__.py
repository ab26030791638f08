"""``python -m polytope_server.worker -f CONFIG``"""

import sys

from polytope_server.cli import main

main(["worker", *sys.argv[1:]])
