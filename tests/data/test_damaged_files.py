"""What fuzzing and its preparation found, each as a test: the error names the file."""

import bz2
import json
from pathlib import Path

import pytest
import torch

from flowformer.config_json import from_plain
from flowformer.data.images.fashion_mnist import read_idx
from flowformer.data.language.corpora import WikiText
from flowformer.data.language.tokenizers import load_tokenizer
from flowformer.data.language.tokens import open_text
from flowformer.data.sequences.texts import read_aan
from flowformer.data.series.batches import Preprocessing
from flowformer.data.series.ts_format import TsFormatError, read_ts
from flowformer.data.standins import wikipedia
from flowformer.data.standins.wikipedia import read_dump
from flowformer.data.trajectories.records import Space
from flowformer.files import parse_json
from flowformer.models.published import read_fairseq_checkpoint
from flowformer.train.loop.checkpoints import read_checkpoint
from tests.data.sequences.arena_files import aan_files
from tests.fuzz.runs import make_pair, make_prepared
from tests.fuzz.seeds import DUMP, TS


def test_a_count_of_thousands_of_digits_is_refused_by_line(tmp_path: Path) -> None:
    (tmp_path / "x.ts").write_bytes(TS.replace(b"@dimensions 2", b"@dimensions " + b"9" * 5000))
    with pytest.raises(TsFormatError, match=rf"^{tmp_path / 'x.ts'}, line 6: expected"):
        read_ts(tmp_path / "x.ts")


def test_a_file_of_pairs_without_one_is_named(tmp_path: Path) -> None:
    folder = aan_files(tmp_path, test=b"")
    with pytest.raises(ValueError, match=rf"^{folder / 'new_aan_pairs.test.tsv'}: expected"):
        read_aan(folder)


def test_wikitext_in_another_encoding_is_named(tmp_path: Path) -> None:
    (tmp_path / "wiki.train.tokens").write_bytes(b" = A = \n\xff\n")
    corpus = WikiText(name="wikitext-2", description="", folder=tmp_path)
    with pytest.raises(ValueError, match=rf"expected UTF-8 in {tmp_path / 'wiki.train.tokens'}"):
        list(corpus.documents("train"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (DUMP[:-5], "is no whole dump"),
        (DUMP.replace(b"<ns>0</ns>", b""), "expected an element 'ns' in each page"),
        (bz2.compress(DUMP)[:-5], "is no whole dump"),
    ],
    ids=["xml", "no-namespace", "bz2"],
)
def test_a_damaged_dump_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / ("x.bz2" if content.startswith(b"BZ") else "x.xml")
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"^{path}:? {message}"):
        list(read_dump(path))


def test_a_page_without_an_end_is_not_read_into_memory(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(wikipedia, "MAX_PAGE", 100_000)
    pages = b"<page><title>A</title><ns>0</ns></page>" * 10_000
    (tmp_path / "many.xml").write_bytes(b"<mediawiki>" + pages + b"</mediawiki>")
    assert len(list(read_dump(tmp_path / "many.xml"))) == 10_000
    endless = b"<mediawiki><page><text>" + bytes(200_000).replace(b"\0", b"a")
    (tmp_path / "x.bz2").write_bytes(bz2.compress(endless))
    with pytest.raises(ValueError, match=r"x\.bz2 is no whole dump: .* at most 100,000 bytes"):
        list(read_dump(tmp_path / "x.bz2"))


def test_an_idx_file_of_more_axes_than_arrays_have_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(bytes([0, 0, 8, 100]) + bytes([0, 0, 0, 1]) * 100 + b"a")
    with pytest.raises(ValueError, match=f"^{path}: expected at most 32 axes, got 100"):
        read_idx(path)


def test_json_that_is_nested_too_deeply_is_an_error_as_any_other(tmp_path: Path) -> None:
    deep = "[" * 100_000
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json(deep)
    (tmp_path / "tokenizer.json").write_text(deep)
    with pytest.raises(ValueError, match=f"^{tmp_path / 'tokenizer.json'} is no tokenizer"):
        load_tokenizer(tmp_path)


def test_a_space_of_a_size_that_is_not_there_takes_no_memory() -> None:
    assert Space(shape=(10**15,), low=-1.0, high=1.0).shape == (10**15,)


@pytest.mark.parametrize(
    "damage",
    [
        lambda meta: meta["shards"]["train"][0].update(file="../train-00000.bin"),
        lambda meta: meta["shards"]["train"][0]["counts"].update(tokens="9"),
        lambda meta: meta["shards"]["train"][0]["counts"].update(documents=-1),
        lambda meta: meta["shards"].pop("train"),
        lambda meta: meta.update(vocab_size=None),
        lambda meta: meta.update(settings=[]),
    ],
    ids=["file-elsewhere", "text-for-count", "negative", "part", "vocabulary", "settings"],
)
def test_a_damaged_description_of_a_text_is_named(tmp_path: Path, damage) -> None:
    make_prepared(tmp_path)
    path = tmp_path / "text" / "meta.json"
    meta = json.loads(path.read_text())
    damage(meta)
    path.write_text(json.dumps(meta))
    with pytest.raises(ValueError, match=rf"^{path} is damaged"):
        open_text(tmp_path / "text")


def test_a_checkpoint_that_ends_inside_a_number_is_named(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    path.write_bytes(b"\x80\x02j\x01")  # a pickle of the old format, cut off
    with pytest.raises(ValueError, match=f"^{path} is no checkpoint of a run"):
        read_checkpoint(path)


def test_a_number_beyond_the_range_of_a_float_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"^mean must be in the range of a float, got 1000"):
        from_plain(Preprocessing, {"mean": [10**400], "std": [1]})


def test_parameters_without_names_are_refused(tmp_path: Path) -> None:
    torch.save({"model": {1: torch.ones(1)}}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=f"^{tmp_path / 'x.pt'} is no fairseq checkpoint"):
        read_fairseq_checkpoint(tmp_path / "x.pt")


def test_a_vocabulary_with_a_number_twice_is_named(tmp_path: Path) -> None:
    make_pair(tmp_path)
    path = tmp_path / "encoder.json"
    path.write_text(json.dumps({"a": 0, "b": 0, "ab": 2, "<|endoftext|>": 3}))
    said = rf"^{path} and vocab\.bpe are no tokenizer: .*got 0 more than once$"
    with pytest.raises(ValueError, match=said):
        load_tokenizer(tmp_path)
