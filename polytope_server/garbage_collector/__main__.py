"""``python -m polytope_server.garbage_collector -f CONFIG``"""

import sys

from polytope_server.cli import main

main(["garbage-collector", *sys.argv[1:]])
