"""What a saved model scores, without the code that is tested."""

from pathlib import Path

import torch

from elm_nni.modeling import ElmForSequenceClassification
from elm_nni.pipeline.context import Task


def validation_accuracy(folder: Path, task: Task) -> float:
    """Accuracy of a saved model, as transformers loads it, on validation rows, one by one."""
    model, rows = ElmForSequenceClassification.from_pretrained(folder).eval(), task.validation
    with torch.no_grad():
        found = [
            int(model(one["input_ids"], attention_mask=one["attention_mask"]).logits.argmax())
            for one in (rows.batch([index]) for index in range(len(rows)))
        ]
    return float((torch.tensor(found) == rows.labels).float().mean())
