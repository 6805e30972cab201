"""Files of words and tags in columns, as the shared tasks of CoNLL write them."""

from pathlib import Path

import datasets

from elm_nni.data.sources import check_utf8
from elm_nni.errors import UserError

CONLL_SUFFIX = ".conll"


def is_conll(source: str) -> bool:
    """Whether a source is a file of words and tags.

    Example:
        >>> is_conll("~/train.conll")
        True
    """
    return Path(source).suffix.lower() == CONLL_SUFFIX


def read_conll(path: Path) -> datasets.Dataset:
    """One row a sentence: ``text``, its words (first column), and ``label``, their tags (last column).

    A line is a word and its columns, separated by tabs or else by white space; blank lines end sentences. Sentences
    that begin with ``-DOCSTART-`` mark documents and are left out.

    Raises:
        UserError: no such file, empty, not UTF-8, or a line with a word alone.

    Example:
        >>> read_conll(Path("train.conll"))[0]  # doctest: +SKIP
        {'text': ['EU', 'rejects'], 'label': ['B-ORG', 'O']}
    """
    if not path.is_file():
        raise UserError(f"file {path} does not exist")
    try:
        check_utf8(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    sentences: list[list[tuple[str, str]]] = [[]]
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), 1):
        if not line.strip():
            sentences.append([])
            continue
        columns = [column.strip() for column in line.split("\t")] if "\t" in line else line.split()
        if len(columns) < 2:
            raise UserError(
                f"{path}, line {number}: '{line.strip()}' has no tag; write a word, white space and its tag"
            )
        sentences[-1].append((columns[0], columns[-1]))
    kept = [sentence for sentence in sentences if sentence and sentence[0][0] != "-DOCSTART-"]
    words = datasets.List(datasets.Value("string"))
    return datasets.Dataset.from_dict(
        {"text": [[word for word, _ in one] for one in kept], "label": [[tag for _, tag in one] for one in kept]},
        features=datasets.Features({"text": words, "label": words}),
    )
