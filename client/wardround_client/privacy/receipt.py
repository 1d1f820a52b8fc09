"""What a receipt says about the numbers that left: their order and shapes, readable by a person."""

from __future__ import annotations

from wardround.schedule import Question, Sizes
from wardround.vector import Layout


def layout_of(question: Question, model: Sizes) -> str:
    """The tensor layout of an answer, from public numbers alone: "head.weight 4x32, head.bias 4".

    Each tensor's name and shape, in the order in which they lie in the answer.
    """
    return ", ".join(f"{name} {'x'.join(map(str, shape)) or 1}" for name, shape in _tensors(question, model).tensors)


def _tensors(question: Question, model: Sizes) -> Layout:
    classes, features = model.classes, model.scaling_size
    match question:
        case "statistics":
            return Layout((("counts", (classes,)), ("sum_z", (features,)), ("sum_zz", (features,))))
        case "gradient" | "episode_gradient":
            return model.layout
        case "class_means":
            return Layout((("counts", (classes,)), ("sums", (classes, features))))
        case "confusion":
            return Layout((("confusion", (classes, classes)),))
