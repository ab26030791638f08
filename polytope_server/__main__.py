"""``python -m polytope_server``"""

from polytope_server.cli import main

main()
