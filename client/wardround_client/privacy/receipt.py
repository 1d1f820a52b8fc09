"""What a receipt says about the numbers that left: their order and shapes, readable by a person."""

from __future__ import annotations

from wardround.schedule import Question, Sizes, answer_layout


def layout_of(question: Question, model: Sizes) -> str:
    """The tensor layout of an answer, from public numbers alone: "head.weight 4x32, head.bias 4".

    Each tensor's name and shape, in the order in which they lie in the answer.
    """
    tensors = answer_layout(question, model).tensors
    return ", ".join(f"{name} {'x'.join(map(str, shape)) or 1}" for name, shape in tensors)
