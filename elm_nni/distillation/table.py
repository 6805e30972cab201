"""A start for the student's token table from the teacher's.

Shape suffixes: V vocabulary, D hidden, E embedding size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from elm_nni.errors import UserError


def svd_token_table(teacher_table_VD: Tensor, embedding_size: int, *, target_std: float | None = 0.02) -> Tensor:
    """The teacher's token table in ``embedding_size`` dimensions, by truncated singular value decomposition.

    Returns U_E S_E: scalar products between tokens are those of the best approximation of rank ``embedding_size``
    (Eckart-Young). The sign of each component is fixed (the entry of its right singular vector that is largest in
    size is positive), so the same table gives the same result.

    Args:
        teacher_table_VD: (V, D).
        embedding_size: from 1 to D.
        target_std: the whole result is scaled by one number to this standard deviation around zero, that of the
            student's own initialisation; None keeps the teacher's scale. A table of zeros stays zero.

    Returns:
        (V, E), in the dtype and on the device of the input.

    Raises:
        UserError: ``embedding_size`` outside 1..D.
        ValueError: ``target_std`` not positive.

    Example::

        student.embeddings.token.weight.data.copy_(svd_token_table(teacher.token_embeddings, 128))
    """
    num_dimensions = teacher_table_VD.shape[1]
    if not 1 <= embedding_size <= num_dimensions:
        raise UserError(
            f"embedding size {embedding_size}: a table from the teacher has 1 to {num_dimensions} dimensions"
        )
    if target_std is not None and not target_std > 0:
        raise ValueError(f"target_std={target_std}: must be above 0, or None")
    table_VD = teacher_table_VD.detach().to(torch.float64)
    # The table is tall, so its right singular vectors come from a small symmetric matrix.
    _, vectors_DD = torch.linalg.eigh(table_VD.T @ table_VD)
    vectors_DE = vectors_DD.flip(1)[:, :embedding_size]
    largest_1E = vectors_DE.abs().argmax(0, keepdim=True)
    table_VE = table_VD @ (vectors_DE * vectors_DE.gather(0, largest_1E).sign())
    spread = table_VE.square().mean().sqrt()
    if target_std is not None and spread > 0:
        table_VE = table_VE * (target_std / spread)
    return table_VE.to(teacher_table_VD.dtype)
