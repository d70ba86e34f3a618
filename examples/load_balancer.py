"""What are the factors of a range of numbers? The nodes of load_balancer.yaml.

Some numbers take a moment, primes take long: so who is free next cannot be told in advance.
"""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct

from flowkit import Call, In, Node, Out, Serve, Source


class Factors(Struct, frozen=True):
    """A number and its prime factors, the smallest first."""

    number: int
    primes: list[int]


class Range(Source):
    """`count` numbers from `first`; the position is how many are done."""

    numbers = Out(int)

    def __init__(self, first: int, count: int) -> None:
        self.first = first
        self.count = count

    def length(self) -> int:
        return self.count

    def read(self, position: int | None) -> Iterator[tuple[int, int]]:
        for done in range(position or 0, self.count):
            yield self.first + done, done + 1


class Client(Node):
    """Ask for the factors of each number, some at a time."""

    numbers = In(int, concurrency=8)
    factors = Out(Factors)
    factorize = Call(int, Factors, timeout="60s", retries=3)

    async def on_numbers(self, number: int) -> None:
        self.factors.send(await self.factorize.ask(number))


class Broker(Node):
    """Stand between clients, who know nothing of workers, and workers, who are killed and replaced.

    A question whose worker died is asked again: it has no effect that could be had twice.
    """

    factorize = Serve(int, Factors, concurrency=100)
    work = Call(int, Factors, timeout="50s", retries=3)

    async def on_factorize(self, number: int) -> Factors:
        return await self.work.ask(number)


class Worker(Node):
    """Find factors by trial division."""

    work = Serve(int, Factors)

    def on_work(self, number: int) -> Factors:
        return Factors(number, factors_of(number))


class Table(Node):
    """Print the numbers, each with its factors, those with the most first."""

    stateful = True

    factors = In(Factors)

    def __init__(self, top: int = 10) -> None:
        self.top = top
        self.all: list[Factors] = []

    def on_factors(self, factors: Factors) -> None:
        self.all.append(factors)

    def finish(self) -> None:
        self.all.sort(key=lambda one: (-len(one.primes), one.number))
        for one in self.all[: self.top]:
            print(f"{one.number} = {' x '.join(map(str, one.primes))}")
        primes = sum(len(one.primes) == 1 for one in self.all)
        print(f"{len(self.all)} numbers, {primes} of them prime")


def factors_of(number: int) -> list[int]:
    """The prime factors of `number`, the smallest first."""
    found = []
    divisor = 2
    while divisor * divisor <= number:
        while number % divisor == 0:
            found.append(divisor)
            number //= divisor
        divisor += 1 if divisor == 2 else 2
    return [*found, number] if number > 1 else found
