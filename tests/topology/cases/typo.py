"""A node class that is declared wrongly."""

from flowkit.channels import In
from flowkit.node import Node


class Wrong(Node):
    lines = In(str)

    def on_line(self, line: str) -> None:
        pass
