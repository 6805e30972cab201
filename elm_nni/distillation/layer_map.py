"""Which teacher layer each student layer learns from."""

from __future__ import annotations


def layer_map(num_student_layers: int, num_teacher_layers: int) -> list[int]:
    """Teacher layer of each student layer, both counted from 0.

    Student layer l of L learns from teacher layer ceil((l + 1) T / L) of T, counted from 1; the last learns from
    the last. A teacher may be deeper or shallower than the student.

    Raises:
        ValueError: a number of layers below 1.

    Example::

        layer_map(3, 6)   # [1, 3, 5]
        layer_map(4, 2)   # [0, 0, 1, 1]
    """
    for name, value in (("num_student_layers", num_student_layers), ("num_teacher_layers", num_teacher_layers)):
        if value < 1:
            raise ValueError(f"{name}={value}: must be at least 1")
    return [
        ((layer + 1) * num_teacher_layers + num_student_layers - 1) // num_student_layers - 1
        for layer in range(num_student_layers)
    ]
