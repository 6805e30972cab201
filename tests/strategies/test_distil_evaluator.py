"""Evaluators made of strings, with a small teacher and text on disk."""

from pathlib import Path

import nni
import pytest
import torch
from nni.nas.strategy import DARTS, Proxyless, Random, RandomOneShot
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel, BertTokenizerFast

from elm_nni.errors import UserError
from elm_nni.search_spaces import ElmSpace
from elm_nni.strategies import DistilEvaluator, ElmOneShot, SupernetFitness, set_path, to_supernet
from elm_nni.strategies.supernet_files import inherit_weights, load_head

from .strategy_helpers import run, sequential

WORDS = ["good", "bad", "film", "plot", "very", "the", "a", "is", "was", "actor", "scene", "music"]


@pytest.fixture
def teacher(home: Path) -> str:
    folder = home / "teacher"
    vocabulary = home / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]), encoding="utf-8")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=20,
        max_position_embeddings=16,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    BertTokenizerFast(vocab=str(vocabulary)).save_pretrained(folder)
    return str(folder)


def sentences(num_rows: int) -> list[list[str]]:
    generator = torch.Generator().manual_seed(0)
    return [[WORDS[i] for i in torch.randint(len(WORDS), (9,), generator=generator)] for _ in range(num_rows)]


@pytest.fixture
def corpus(home: Path) -> str:
    path = home / "corpus.txt"
    path.write_text("\n".join(" ".join(words) for words in sentences(60)), encoding="utf-8")
    return str(path)


def distil(teacher: str, corpus: str, home: Path, **changes) -> DistilEvaluator:
    settings = {"epochs": 2, "steps_per_epoch": 3, "batch_size": 4, "sequence_length": 16, "validation_rows": 4}
    settings |= {"accelerator": "cpu", "cache": str(home / "cache"), "learning_rate": 0.01}
    return DistilEvaluator(teacher, corpus, **(settings | changes))


def test_a_trial_can_carry_them(teacher: str, corpus: str, home: Path) -> None:
    evaluator = distil(teacher, corpus, home)
    dumped = nni.dump(evaluator)
    assert len(dumped) < 4096
    carried = nni.load(dumped)
    assert (carried.datamodule.corpus, carried.trainer.max_epochs) == (corpus, 2)
    assert nni.load(nni.dump(SupernetFitness("folder", "task", tokenizer=teacher))).checkpoint == "folder"


def test_each_model_of_a_multi_trial_search_is_trained(space: ElmSpace, home: Path, teacher: str, corpus: str) -> None:
    experiment = run(space, distil(teacher, corpus, home, epochs=4), Random(seed=0), sequential(home, max_models=2))
    models = list(experiment.strategy.list_models())
    assert len(models) == 2
    for model in models:
        assert len(model.metrics.intermediates) == 4
        assert model.metrics.intermediates[0] < model.metric == model.metrics.intermediates[-1] < 0


@pytest.mark.parametrize("strategy", [ElmOneShot, RandomOneShot, DARTS, Proxyless])
def test_it_trains_a_supernet_under_one_shot_strategies(
    space: ElmSpace, home: Path, teacher: str, corpus: str, strategy: type
) -> None:
    before = space.embeddings.tokens.weight.detach().clone()
    evaluator = distil(teacher, corpus, home, epochs=1)
    experiment = run(space, evaluator, strategy(), sequential(home))
    assert not torch.equal(space.embeddings.tokens.weight, before)
    assert next(iter(experiment.strategy.engine.list_models())).metric < 0
    module = evaluator.module
    kinds = {name.split("_")[0] for name in module.distiller.projections}
    assert kinds == {"embedding", "hidden"} | (set() if strategy in (DARTS, Proxyless) else {"attention"})
    trained = {id(parameter) for parameter in module.parameters()}
    assert trained >= {id(parameter) for parameter in module.distiller.parameters()}
    assert trained.isdisjoint(id(parameter) for parameter in module.teacher.model.parameters())
    assert not any("teacher" in name for name in module.state_dict())


@pytest.mark.parametrize(("setting", "value"), [("epochs", 0), ("batch_size", -1), ("learning_rate", 0.0)])
def test_a_wrong_setting_is_named(teacher: str, corpus: str, home: Path, setting: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{setting}.*{value}"):
        distil(teacher, corpus, home, **{setting: value})


@pytest.fixture
def checkpoint(home: Path, tiny: dict[str, int]) -> Path:
    """A supernet whose head tells the classes apart by its weights alone."""
    torch.manual_seed(5)
    supernet = to_supernet(ElmSpace(**tiny))
    with torch.no_grad():
        for parameter in supernet.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    folder = home / "supernet"
    folder.mkdir()
    save_file(supernet.state_dict(), folder / "supernet.safetensors")
    head = {"task_reviews.weight": torch.randn(2, 24), "task_reviews.bias": torch.zeros(2)}
    save_file(head, folder / "heads.safetensors")
    return folder


@pytest.fixture
def task(home: Path) -> str:
    path = home / "reviews.csv"
    rows = [f"{' '.join(words)} {number},{number % 3 // 2}" for number, words in enumerate(sentences(120))]
    path.write_text("\n".join(["text,label", *rows]), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("model_format", ["raw", "simplified"])
def test_the_fitness_is_that_of_the_supernets_path(
    space: ElmSpace, home: Path, tiny: dict[str, int], teacher: str, checkpoint: Path, task: str, model_format: str
) -> None:
    fitness = SupernetFitness(str(checkpoint), task, tokenizer=teacher, rows=16, max_length=16)
    experiment = run(space, fitness, Random(seed=0), sequential(home, model_format, max_models=4))
    supernet = to_supernet(ElmSpace(**tiny)).eval()
    supernet.load_state_dict(load_file(checkpoint / "supernet.safetensors"))
    metrics = []
    for model in experiment.strategy.list_models(sort=False):
        set_path(supernet, model.sample)
        metrics.append(model.metric)
        assert model.metric == pytest.approx(accuracy(supernet, checkpoint, task, teacher))
    assert len(metrics) == 4
    assert len(set(metrics)) > 1


@torch.no_grad()
def accuracy(supernet: torch.nn.Module, checkpoint: Path, task: str, teacher: str) -> float:
    """One row at a time, without padding."""
    from elm_nni.data.tasks import load_task, split_search_validation

    tokenizer = BertTokenizerFast.from_pretrained(teacher)
    head = load_file(checkpoint / "heads.safetensors")
    _, rows = split_search_validation(load_task(task).train, 16)
    hits = []
    for row in rows:
        ids_BT = torch.tensor([tokenizer(row["text"], truncation=True, max_length=16)["input_ids"]])
        logits_C = head["task_reviews.weight"] @ supernet(ids_BT)[0, 0] + head["task_reviews.bias"]
        hits.append(int(logits_C.argmax()) == row["label"])
    return sum(hits) / len(hits)


def test_inherited_weights_are_those_of_the_frozen_supernet(tiny: dict[str, int], checkpoint: Path) -> None:
    supernet = to_supernet(ElmSpace(**tiny))
    supernet.load_state_dict(load_file(checkpoint / "supernet.safetensors"))
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        sample = supernet.random_sample(generator)
        expected = supernet.freeze(sample)
        model = to_supernet(ElmSpace(**tiny)).freeze(sample)
        inherit_weights(model, sample, checkpoint)
        assert all(torch.equal(value, expected.state_dict()[name]) for name, value in model.state_dict().items())


def test_a_checkpoint_that_does_not_fit_is_named(home: Path, tiny: dict[str, int], checkpoint: Path) -> None:
    space = to_supernet(ElmSpace(**(tiny | {"num_layers": 3})))
    sample = space.random_sample(torch.Generator().manual_seed(0))
    for folder in (checkpoint, home / "missing"):
        with pytest.raises(UserError, match=str(folder / "supernet.safetensors")):
            inherit_weights(space.freeze(sample), sample, folder)
    with pytest.raises(UserError, match="no head for task 'topic'"):
        load_head("topic", checkpoint)
