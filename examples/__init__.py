"""The nodes of the topologies in ``topologies/``, each run by a test."""
