"""A computation recorded once as plain tensor operations, and run again on other inputs without Python's and autograd's
share of the work.

What a private step computes is the same hundred operations for every batch. Building autograd's graph for them and
walking through the model's modules costs as much time as three images of a Conv4 do. A tape leaves that out, computes
once a step what depends on theta alone, and writes results over operands that nothing needs any more.

A tape holds operations. No tensor of the recording is kept but what the function itself holds, such as the public
constants of a loss. Operations whose choice could depend on values, and ones that write into tensors, are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

_aten = torch.ops.aten
_SAME = {_aten.detach.default, _aten.alias.default}
_BY_VALUE = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape, torch.Tag.nondeterministic_seeded}

Function = Callable[[Tensor, Tensor, Tensor], dict[int, Tensor]]


class NotRecordableError(Exception):
    """The operations may depend on values, or write into tensors."""


@dataclass(frozen=True)
class _Slot:
    """Stands for a tensor among an operation's arguments."""

    number: int


_THETA, _X, _Y = range(3)


@dataclass
class _Call:
    """One operation: fill[i] = (position, slot) is an argument that is a tensor; out are the slots of the results.

    free: slots that nothing needs afterwards.
    """

    function: Any
    arguments: list[Any]
    options: dict[str, Any]
    out: list[int]
    single: bool
    fill: list[tuple[int, int]] = field(default_factory=list)
    free: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Tape:
    """A recorded function, for inputs of the recorded shapes and memory formats.

    setup: what does not depend on x and y. body: the rest. named: the slots of the tensors that may be exchanged.
    constants: other tensors that the function held. results: the slots of what it returned.
    """

    setup: list[_Call]
    body: list[_Call]
    named: dict[str, int]
    constants: dict[int, Tensor]
    results: dict[int, int]

    def at(self, theta: Tensor, named: Mapping[str, Tensor]) -> Callable[[Tensor, Tensor], dict[int, Tensor]]:
        """The function of (x, y) at one theta and with these named tensors."""
        exchanged = {slot: named[name] for name, slot in self.named.items()}
        with torch.inference_mode():
            kept = _run(self.setup, {**self.constants, **exchanged, _THETA: theta.detach()})

        def run(x: Tensor, y: Tensor) -> dict[int, Tensor]:
            with torch.inference_mode():
                slots = _run(self.body, {**kept, _X: x, _Y: y})
            return {key: slots[slot] for key, slot in self.results.items()}

        return run


def _run(calls: list[_Call], slots: dict[int, Any]) -> dict[int, Any]:
    for call in calls:
        arguments = call.arguments.copy()
        for position, slot in call.fill:
            arguments[position] = slots[slot]
        result = call.function(*arguments, **call.options)
        if call.single:
            slots[call.out[0]] = result
        else:
            slots.update(zip(call.out, result, strict=True))
        for slot in call.free:
            del slots[slot]
    return slots


def record(
    function: Function, theta: Tensor, x: Tensor, y: Tensor, named: Mapping[str, Tensor]
) -> tuple[dict[int, Tensor], Tape]:
    """Run the function and note what it does.

    Args:
        function: of (theta, x, y), to tensors by number.
        theta: float32 [P].
        x: [n, ...].
        y: int64 [n].
        named: tensors that the function holds, and that others of the same shape may replace when the tape is run.

    Returns:
        What the function returned, and the tape.

    Raises: NotRecordableError, and whatever the function raises.
    """
    # Tensors of their own, so that each is known by its identity even where the function returns or keeps one.
    theta, x, y = theta.detach(), x.detach(), y.detach()
    recorder = _Recorder((theta, x, y), named)
    with recorder:
        results = function(theta, x, y)
    return results, recorder.tape(results)


class _Recorder(TorchDispatchMode):
    """Notes every operation below autograd, and makes a tape of them.

    Tensors are known by their identity while they live and are not kept alive, or recording would need several times
    the memory of the function. memory: which memory a slot lies in, by numbers that are never used again. dense: slots
    that fill their memory, byte for byte.
    """

    def __init__(self, inputs: tuple[Tensor, ...], named: Mapping[str, Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.slots = WeakIdKeyDictionary()
        self.memory: list[int] = []
        self.dense: list[bool] = []
        self.calls: list[_Call] = []
        self.constants: dict[int, Tensor] = {}
        for each in inputs:
            self._new(each, {})
        self.named = {name: self._new(tensor, {}) for name, tensor in named.items()}

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func._schema.is_mutable or not _BY_VALUE.isdisjoint(func.tags):
            raise NotRecordableError(str(func))
        options = dict(kwargs or {})
        nested = [each for each in (*args, *options.values()) if isinstance(each, tuple | list)]
        if any(isinstance(each, Tensor) for each in [*options.values(), *(one for many in nested for one in many)]):
            raise NotRecordableError(f"{func} takes tensors in a list or by name")
        fill = [(i, self._slot(each)) for i, each in enumerate(args) if isinstance(each, Tensor)]
        result = func(*args, **options)
        if func in _SAME:
            self.slots[result] = fill[0][1]
            return result
        # A result lies in the memory of an operand (a view) or in new memory: that much is sure where nothing mutates.
        owners = {_address(args[position]): self.memory[slot] for position, slot in fill}
        single = isinstance(result, Tensor)
        out = [self._new(each, owners) for each in ([result] if single else result)]
        plain = [None if isinstance(each, Tensor) else each for each in args]
        self.calls.append(_Call(func, plain, options, out, single, fill))
        return result

    def tape(self, results: dict[int, Tensor]) -> Tape:
        """The tape: what does not depend on x and y split off, unneeded operations left out, memory used again."""
        wanted = {key: self._slot(each) for key, each in results.items()}
        varying: set[int] = {_X, _Y}
        setup: list[_Call] = []
        body: list[_Call] = []
        for call in self.calls:
            if any(slot in varying for _, slot in call.fill):
                varying.update(call.out)
                body.append(call)
            else:
                setup.append(call)
        body = _needed(body, set(wanted.values()))
        setup = _needed(setup, {slot for call in body for _, slot in call.fill} | set(wanted.values()))
        kept = {_THETA, _X, _Y, *self.named.values(), *self.constants, *(slot for call in setup for slot in call.out)}
        self._free(body, kept | set(wanted.values()))
        return Tape(setup, body, self.named, self.constants, wanted)

    def _slot(self, tensor: Tensor) -> int:
        """Of a tensor; one that no operation made is a constant."""
        if tensor not in self.slots:
            if any(_address(other) == _address(tensor) for other in self.slots):
                raise NotRecordableError("a tensor was made unseen")
            self.constants[self._new(tensor, {})] = tensor
        return int(self.slots[tensor])

    def _new(self, tensor: Tensor | None, owners: dict[int, int]) -> int:
        slot = len(self.memory)
        self.memory.append(slot if tensor is None else owners.get(_address(tensor), slot))
        self.dense.append(tensor is not None and _fills_its_memory(tensor))
        if tensor is not None:
            self.slots[tensor] = slot
        return slot

    def _free(self, calls: list[_Call], kept: set[int]) -> None:
        """Note after which call each slot is not needed, and write results over operands that die."""
        seen, alive = set(kept), {self.memory[slot] for slot in kept}
        for call in reversed(calls):
            slots = {slot for _, slot in call.fill} | set(call.out)
            call.free = sorted(slots - seen)
            seen |= slots
            if call.function in _IN_PLACE:
                operand, *others = (slot for _, slot in call.fill)
                needed = alive | {self.memory[slot] for slot in others}
                if self.memory[operand] not in needed and self.dense[operand]:
                    call.function = _IN_PLACE[call.function]
            alive |= {self.memory[slot] for slot in slots}


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _needed(calls: list[_Call], wanted: set[int]) -> list[_Call]:
    """The calls without which a wanted slot would be empty."""
    kept = []
    for call in reversed(calls):
        if not wanted.isdisjoint(call.out):
            wanted |= {slot for _, slot in call.fill}
            kept.append(call)
    return kept[::-1]


def _fills_its_memory(tensor: Tensor) -> bool:
    """Whether each byte of its memory is one element's."""
    return tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size() > 0 and (
        torch.empty_like(tensor).stride() == tensor.stride()
    )


def _threshold_backward_in_place(gradient: Tensor, output: Tensor, threshold: float) -> Tensor:
    into: Tensor = _aten.threshold_backward.grad_input(gradient, output, threshold, grad_input=gradient)
    return into


_IN_PLACE = {
    _aten.relu.default: _aten.relu_.default,
    _aten.threshold_backward.default: _threshold_backward_in_place,
}
