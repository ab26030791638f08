"""``python -m polytope_server.object_store -f CONFIG``"""

import sys

from polytope_server.cli import main

main(["object-store", *sys.argv[1:]])
