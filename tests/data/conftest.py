import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from elm_nni.data.offline import teacher_folder


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(teacher_folder())
