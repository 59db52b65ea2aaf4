"""Where a loader stands, as a few numbers, and whether another one can go on from there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .._errors import InvalidOptionError
from .._turns import Turns
from .checks import SUBJECT, index_of, seed_of, shown, whole_number
from .orders import Memory, Order, Ordering

VERSION = 1
_LAST = (1 << 63) - 2  # epoch: the state behind it has one that fits into 64 bits, and that no loop begins


class Progress:
    """Where a loader stands: in which epoch, and how much of it has been handed out.

    Attributes:
        seed: What orders depend on, besides the epoch.
        epoch: The one that a loop has begun, or the one that the next loop begins.
    """

    def __init__(self, ordering: Ordering, seed: int) -> None:
        self.seed = seed
        self.epoch = 0
        self._ordering = ordering
        self._position = 0
        self._memory: Memory | None = None  # of the epoch, once it has been made
        self._loop: object = None  # the last one that was begun
        self._is_over = False  # all of the epoch has been handed out
        self._turns = Turns()  # of loops that begin: each is an epoch of its own

    def begin(self) -> tuple[Order, int, object]:
        """Begin a loop: the epoch that is due, or what is left of it.

        Returns:
            Its order, the position it goes on from, and what `stepped` and `end` know the loop by.
        """
        with self._turns.taken():
            epoch, position, memory = self.epoch, self._position, self._memory
            if self._loop is not None:  # whether that loop was left or goes on beside this one
                epoch, position, memory = epoch + 1, 0, None
            whole_number("epoch", epoch, least=0, most=_LAST)
            order = self._ordering.of_epoch(self.seed, epoch, memory)
            _check_position(position, order.length if order.bounds is None else len(order.bounds) - 1)
            self._go_to(epoch, position, order.memory)
            loop = self._loop = object()
            return order, position, loop

    def stepped(self, loop: object, position: int, is_last: bool) -> None:
        """Note what a loop has handed out. Of several at a time the state is that of the last one begun."""
        if loop is self._loop:
            self._position = position
            self._is_over = is_last

    def end(self, loop: object) -> None:
        """Note that a loop has come to its end."""
        with self._turns.taken():
            if loop is self._loop:
                self._go_to(self.epoch + 1)

    def set_epoch(self, epoch: int) -> None:
        """Make an epoch the next one; where that is due already, and partly done elsewhere, the rest of it."""
        epoch = whole_number("epoch", epoch, least=0, most=_LAST)
        if self._loop is not None or epoch != self.epoch:
            self._go_to(epoch)

    def _go_to(self, epoch: int, position: int = 0, memory: Memory | None = None) -> None:
        self.epoch, self._position, self._memory = epoch, position, memory
        self._loop = None
        self._is_over = False

    def state(self) -> dict[str, Any]:
        """Give the state. Its keys are always the same ones for one kind of order."""
        epoch, position, memory = (
            (self.epoch + 1, 0, None) if self._is_over else (self.epoch, self._position, self._memory)
        )
        facts = {"epoch": epoch, "position": position, "seed": self.seed, **self._ordering.facts()}
        memory = self._ordering.memory_now() if memory is None else memory
        return {"version": VERSION, **facts, **({} if memory is None else {"memory": memory})}

    def load(self, state: Any) -> None:
        """Go to where a state says. A state that does not fit changes nothing."""
        facts = self._ordering.facts()
        _check_facts(state, facts)
        epoch = whole_number("epoch", state["epoch"], least=0)
        position = whole_number("position", state["position"], least=0)
        seed = seed_of(state["seed"])
        if self._ordering.memory_now() is None:
            _check_position(position, self._ordering.length)
        memory = self._ordering.check(state.get("memory"))
        self.seed = seed
        self._go_to(epoch, position, memory)


def _check_facts(state: Any, facts: dict[str, int | str]) -> None:
    hint = "load_state_dict takes what state_dict gave"
    if not isinstance(state, Mapping):
        raise InvalidOptionError(SUBJECT, f"a {type(state).__name__} is no state", hint=hint)
    for key, wanted in {"version": VERSION, **facts, "epoch": None, "position": None, "seed": None}.items():
        if key not in state:
            raise InvalidOptionError(SUBJECT, f"the state has no {key!r}", hint=hint)
        if wanted is not None and not _is_same(state[key], wanted):
            fact = f"the state differs from this loader in {key!r}"
            raise InvalidOptionError(SUBJECT, fact, expected=shown(wanted), got=shown(state[key]))


def _is_same(value: Any, wanted: int | str) -> bool:
    """Whether it is that text or that number, if only as one of NumPy's, which some checkpoints make of it."""
    return isinstance(value, str) and value == wanted if isinstance(wanted, str) else index_of(value) == wanted


def _check_position(position: int, length: int) -> None:
    if position > length:
        fact = f"the state stands at position {position}"
        raise InvalidOptionError(SUBJECT, fact, expected=f"at most {length}", got=position)
