"""Relational distillation around NNI's own classification task, on a search space that is not ours.

    python examples/distil_any_oneshot.py DARTS          # or RandomOneShot, GumbelDARTS, Proxyless

A teacher learns scikit-learn's digits in a few seconds. The supernet of a small image space is then trained by NNI with
two losses: the task's own, and the difference between its layers and the teacher's, which ``RelationalKD`` adds. The
architecture that the strategy exports is trained in the same way and validated.

For your project, change: the space, the teacher (any module), ``PAIRS`` (paths in your space to paths in your teacher)
with their widths, and the task, which is any evaluator module of NNI. Under DARTS, GumbelDARTS and Proxyless the
candidates of a choice are mixed, so a pair names the choice itself or a layer outside; under RandomOneShot it may also
name something inside a candidate. What RandomOneShot exports is one arbitrary architecture of its supernet, as NNI
warns: to choose, search the trained supernet (evolve_hub_space.py has the evolution).
"""

import logging
import sys
import tempfile

import nni
import torch
from nni.nas import strategy as strategies
from nni.nas.evaluator.pytorch import ClassificationModule, DataLoader, Lightning, Trainer
from nni.nas.experiment import NasExperiment, NasExperimentConfig
from nni.nas.nn.pytorch import LayerChoice, ModelSpace
from pytorch_lightning import Callback
from sklearn.datasets import load_digits
from torch import nn

from elm_nni.strategies import RelationalKD

NAMES = ("RandomOneShot", "DARTS", "GumbelDARTS", "Proxyless")
WIDTH, TEACHER_WIDTH = 12, 24
PAIRS = {"first": "0", "second": "3"}      # outputs of both choices, and of the teacher's two convolutions


def choice(label: str) -> LayerChoice:
    candidates = {
        "conv3": nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
        "dilated3": nn.Conv2d(WIDTH, WIDTH, 3, padding=2, dilation=2),
        "depthwise5": nn.Conv2d(WIDTH, WIDTH, 5, padding=2, groups=WIDTH),
    }
    return LayerChoice(candidates, label=label)


@nni.trace
class DigitSpace(ModelSpace):
    """Two chosen convolutions; it knows nothing of distillation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(1, WIDTH, 3, padding=1), nn.Linear(WIDTH, 10)
        self.first, self.second = choice("first"), choice("second")

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.first(torch.relu(self.stem(images))))
        return self.head(torch.relu(self.second(hidden)).amax((2, 3)))


class Losses(Callback):
    """Keeps the summed feature loss of every step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        self.values.append(float(trainer.callback_metrics["relational_loss"]))


def trained_teacher(images: torch.Tensor, labels: torch.Tensor) -> nn.Module:
    teacher = nn.Sequential(
        nn.Conv2d(1, TEACHER_WIDTH, 3, padding=1), nn.BatchNorm2d(TEACHER_WIDTH), nn.ReLU(),
        nn.Conv2d(TEACHER_WIDTH, TEACHER_WIDTH, 3, padding=1), nn.ReLU(),
        nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Linear(4 * TEACHER_WIDTH, 10),
    )  # fmt: skip
    optimizer = torch.optim.Adam(teacher.parameters(), lr=3e-3)
    for _ in range(5):
        for rows in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(teacher(images[rows]), labels[rows]).backward()
            optimizer.step()
    return teacher.eval()


def evaluator(teacher: nn.Module, train: list, valid: list, epochs: int, losses: Losses) -> Lightning:
    task = ClassificationModule(learning_rate=1e-2, num_classes=10)
    module = RelationalKD(task, teacher, pairs=PAIRS, student_width=WIDTH, teacher_width=TEACHER_WIDTH, weight=0.5)
    trainer = Trainer(
        max_epochs=epochs, accelerator="cpu", callbacks=[losses], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    return Lightning(module, trainer, DataLoader(train, batch_size=64, shuffle=True), DataLoader(valid, batch_size=256))


def main(name: str = "DARTS") -> tuple[dict[str, str], float]:
    """Searches with the named strategy; returns the architecture and its validation accuracy."""
    torch.manual_seed(0)
    images, labels = (torch.tensor(array) for array in load_digits(return_X_y=True))
    images = images.float().view(-1, 1, 8, 8) / 16
    teacher = trained_teacher(images[:1400], labels[:1400])
    rows = list(zip(images, labels))
    searching, training, space = Losses(), Losses(), DigitSpace()
    with tempfile.TemporaryDirectory() as folder:
        config = NasExperimentConfig("sequential", "raw", "local")
        config.experiment_working_directory = folder
        search = evaluator(teacher, rows[:1400], rows[1400:], 3, searching)
        experiment = NasExperiment(space, search, getattr(strategies, name)(), config)
        experiment.run()
        experiment.stop()
        found = experiment.export_top_models(formatter="dict")[0]
    final = evaluator(teacher, rows[:1400], rows[1400:], 4, training)
    final.evaluate(DigitSpace().freeze(found))
    accuracy = float(final.trainer.callback_metrics["val_acc"])
    early, late = (sum(part) / len(part) for part in (searching.values[:20], searching.values[-20:]))
    print(f"{name}: difference to the teacher's layers, first 20 steps {early:.2f}, last 20 steps {late:.2f}")
    print(f"{name}: found {found}; trained alone with distillation: {accuracy:.1%} of 397 digits right")
    assert late < 0.8 * early
    # what RandomOneShot exports may be the weakest architecture, by NNI's own draw; chance is a tenth
    assert accuracy > 0.4
    return found, accuracy


if __name__ == "__main__":
    for library in ("nni", "pytorch_lightning"):
        logging.getLogger(library).setLevel(logging.ERROR)
    for chosen in sys.argv[1:] or ["DARTS"]:
        if chosen not in NAMES:
            sys.exit(f"strategy {chosen!r}: must be one of {', '.join(NAMES)}")
        main(chosen)
