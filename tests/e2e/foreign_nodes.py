"""Nodes that talk to foreign peers."""

from __future__ import annotations

import msgspec

from flowkit import In, Node, Out


class Item(msgspec.Struct):
    """What travels as JSON."""

    number: int
    text: str = ""
    by: list[str] = []


class Sign(Node):
    """Passes items on with its name on them."""

    items = In(Item, codec="json")
    signed = Out(Item, codec="json")

    def on_items(self, item: Item) -> None:
        self.signed.send(msgspec.structs.replace(item, by=[*item.by, self.node]))


class Twice(Node):
    """Answers with the item twice as large."""

    asked = In(Item, codec="json")
    answers = Out(Item, codec="json")

    def on_asked(self, item: Item) -> None:
        self.answers.send(Item(2 * item.number, item.text, [self.node]))
