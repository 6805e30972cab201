"""A local folder of the layout of GLUE's hub repository: the same configurations, splits, columns and features."""

from pathlib import Path

import datasets

from .hub_files import write_hub

THREE = ["entailment", "neutral", "contradiction"]
COLUMNS = {
    "cola": (["sentence"], ["unacceptable", "acceptable"]),
    "sst2": (["sentence"], ["negative", "positive"]),
    "mrpc": (["sentence1", "sentence2"], ["not_equivalent", "equivalent"]),
    "qqp": (["question1", "question2"], ["not_duplicate", "duplicate"]),
    "stsb": (["sentence1", "sentence2"], None),
    "mnli": (["premise", "hypothesis"], THREE),
    "ax": (["premise", "hypothesis"], THREE),
    "qnli": (["question", "sentence"], ["entailment", "not_entailment"]),
    "rte": (["sentence1", "sentence2"], ["entailment", "not_entailment"]),
    "wnli": (["sentence1", "sentence2"], ["not_entailment", "entailment"]),
}
ALL_SPLITS = {
    "mnli": ("train", "validation_matched", "validation_mismatched", "test_matched", "test_mismatched"),
    "ax": ("test",),
}
SIZES = {"train": 61, "validation": 31, "validation_matched": 31, "validation_mismatched": 29, "test": 7,
         "test_matched": 5, "test_mismatched": 6}  # fmt: skip


def label_of(number, classes):
    """The label of row ``number``."""
    return number % len(classes) if classes else number / 10


def _rows(name, split):
    columns, classes = COLUMNS[name]
    size, withheld = SIZES[split], split.startswith("test")
    order = list(range(size))
    texts = {column: [f"{split} {column} {number}" for number in order] for column in columns}
    labels = [-1 if withheld else label_of(number, classes) for number in order]
    if withheld:
        # what a test file may hold: other order, the same row twice, a row without text
        order = order[::-1]
        texts[columns[0]][1] = texts[columns[0]][0]
        texts[columns[-1]][2] = None
    elif classes:
        labels[-1] = -1
    if (name, split) == ("mnli", "train"):
        for column in columns:
            texts[column][7] = f"validation_mismatched {column} 4".upper()
    label = datasets.ClassLabel(names=classes) if classes else datasets.Value("float32")
    values = {column: [found[number] for number in order] for column, found in texts.items()}
    features = {column: datasets.Value("string") for column in columns}
    return datasets.Dataset.from_dict(
        values | {"label": [labels[number] for number in order], "idx": order},
        features=datasets.Features(features | {"label": label, "idx": datasets.Value("int32")}),
    )


def write_glue(folder: Path) -> str:
    """Writes all configurations; the folder loads as the hub data set does."""
    return write_hub(
        folder,
        {
            name: {split: _rows(name, split) for split in ALL_SPLITS.get(name, ("train", "validation", "test"))}
            for name in COLUMNS
        },
    )
