"""See the package."""

import sys

from tests.support.graphs import write

write(sys.argv[1:])
