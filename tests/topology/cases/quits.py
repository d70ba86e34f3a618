"""A script that is imported by mistake."""

import sys

sys.exit("usage: quits FILE")
