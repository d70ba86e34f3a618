"""For tests of what is built on flowkit: suites that any implementation of its parts must pass."""
