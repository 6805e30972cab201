import pytest
import torch

from elm_nni.distillation.features import Features
from elm_nni.distillation.losses import mse_feature_loss, relational_feature_loss
from elm_nni.distillation.relational import FeatureDistiller

MASK = torch.arange(7) < torch.tensor([[7], [4]])


def random_features(num_layers, width, attention_widths, seed=0, embedding_width=None):
    generator = torch.Generator().manual_seed(seed)

    def draw(size):
        return torch.randn(2, 7, size, generator=generator)

    attention = None if attention_widths is None else [draw(size) for size in attention_widths]
    return Features(draw(embedding_width or width), [draw(width) for _ in range(num_layers)], attention)


@pytest.mark.parametrize(("name", "loss"), [("relational", relational_feature_loss), ("mse", mse_feature_loss)])
def test_is_the_sum_over_mapped_layers(name, loss):
    torch.manual_seed(0)
    distiller = FeatureDistiller(
        student_widths={"embedding": 8, "hidden": 8, "attention": (8, 4)}, teacher_width=10, loss=name
    )
    student, teacher = random_features(3, 8, [8, 4, 8]), random_features(6, 10, [10] * 6, seed=1)
    losses = distiller(student, teacher, MASK)
    project = distiller.projections
    layers = [1, 3, 5]
    hidden = sum(loss(project["hidden_8"](s), teacher.hidden[t], MASK) for s, t in zip(student.hidden, layers))
    attention = sum(
        loss(project[f"attention_{s.shape[-1]}"](s), teacher.attention[t], MASK)
        for s, t in zip(student.attention, layers)
    )
    embedding = loss(project["embedding_8"](student.embedding_BTD), teacher.embedding_BTD, MASK)
    torch.testing.assert_close(losses["hidden"], hidden)
    torch.testing.assert_close(losses["attention"], attention)
    torch.testing.assert_close(losses["embedding"], embedding)
    torch.testing.assert_close(losses["total"], hidden + attention + embedding)


def test_learns_a_teacher_that_is_a_linear_image_of_the_student():
    torch.manual_seed(0)
    student = random_features(2, 8, None)
    image = torch.randn(8, 5)
    teacher = Features(None, [layer @ image for layer in student.hidden])
    distiller = FeatureDistiller(student_widths={"hidden": 8}, teacher_width=5)
    optimizer = torch.optim.Adam(distiller.parameters(), 0.05)
    values = []
    for _ in range(200):
        value = distiller(student, teacher, MASK)["total"]
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[0] > 1
    assert values[-1] < 0.01


def test_only_projections_in_use_get_a_gradient():
    distiller = FeatureDistiller(student_widths={"hidden": 8, "attention": (8, 4)}, teacher_width=10)
    student, teacher = random_features(2, 8, [8, 8]), random_features(2, 10, [10, 10], seed=1)
    distiller(student, teacher, MASK)["total"].backward()
    used = {name for name, projection in distiller.projections.items() if projection.weight.grad is not None}
    assert used == {"hidden_8", "attention_8"}
    assert set(distiller.projections) == {"hidden_8", "attention_8", "attention_4"}


def test_teacher_without_attention_and_teacher_of_several_widths():
    distiller = FeatureDistiller(
        student_widths={"embedding": 8, "hidden": 8, "attention": 8},
        teacher_width={"embedding": 6, "hidden": 10, "attention": 4},
    )
    student = random_features(2, 8, [8, 8])
    losses = distiller(student, random_features(4, 10, None, embedding_width=6), MASK)
    assert set(losses) == {"embedding", "hidden", "total"}
    losses = distiller(student, random_features(4, 10, [4] * 4, embedding_width=6), MASK)
    assert set(losses) == {"embedding", "hidden", "attention", "total"}


def test_with_a_real_teacher(build_teacher):
    teacher = build_teacher("distilbert")
    widths = {"embedding": 8, "hidden": 8, "attention": 8}
    distiller = FeatureDistiller(student_widths=widths, teacher_width=teacher.widths)
    ids = torch.randint(4, 60, (2, 7), generator=torch.Generator().manual_seed(0))
    total = distiller(random_features(3, 8, [8] * 3), teacher.features(ids, MASK.long()), MASK)["total"]
    assert 0 < total.item() < 4 * 7


def test_bad_input():
    with pytest.raises(ValueError, match="loss='cosine'"):
        FeatureDistiller(student_widths={"hidden": 8}, teacher_width=4, loss="cosine")
    with pytest.raises(ValueError, match="is empty"):
        FeatureDistiller(student_widths={}, teacher_width=4)
    with pytest.raises(ValueError, match="'logits'"):
        FeatureDistiller(student_widths={"logits": 8}, teacher_width=4)
    with pytest.raises(ValueError, match="student_widths has 0"):
        FeatureDistiller(student_widths={"hidden": 0}, teacher_width=4)
    distiller = FeatureDistiller(student_widths={"hidden": 8, "attention": 8}, teacher_width=10)
    teacher = random_features(2, 10, [10, 10])
    with pytest.raises(ValueError, match="hidden of width 6"):
        distiller(random_features(2, 6, [8, 8]), teacher, MASK)
    with pytest.raises(ValueError, match="no attention"):
        distiller(random_features(2, 8, None), teacher, MASK)
    with pytest.raises(ValueError, match="nothing to learn"):
        FeatureDistiller(student_widths={"attention": 8}, teacher_width=10)(
            random_features(2, 8, [8, 8]), random_features(2, 10, None), MASK
        )
