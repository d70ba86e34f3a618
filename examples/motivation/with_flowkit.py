from flowkit import In, Node, Out


class Shout(Node):
    lines = In(str)
    shouted = Out(str)

    def on_lines(self, line: str) -> None:
        self.shouted.send(line.upper())
