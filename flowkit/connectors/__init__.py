"""Nodes that come with flowkit, to be named in a topology."""
