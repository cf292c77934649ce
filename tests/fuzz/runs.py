"""Readers of tokenizers, prepared texts, runs and archives, and valid files for them."""

import shutil
from pathlib import Path

from tests.fuzz import seeds
from tests.fuzz.target import put


def tokenizer(folder: Path) -> object:
    from flowformer.data.language.tokenizers import load_tokenizer

    return load_tokenizer(folder).vocab_size


def make_tokenizer(folder: Path) -> None:
    from flowformer.data.language.tokenizers import train_tokenizer

    train_tokenizer("word", ["a b the text\n"]).save(folder / "tokenizer.json")


def more_tokenizers(_: Path) -> list[bytes]:
    from flowformer.data.language.tokenizers import train_tokenizer

    kinds = {"char": None, "byte": None, "bpe": 260}
    return [
        train_tokenizer(kind, ["abc ab"], size).to_json().encode() for kind, size in kinds.items()
    ]


def make_pair(folder: Path) -> None:
    symbols = {symbol: number for number, symbol in enumerate(["a", "b", "ab", "<|endoftext|>"])}
    put("encoder.json", seeds.plain(symbols))(folder)
    put("vocab.bpe", b"#version: 0.2\na b\n")(folder)


def prepared(folder: Path) -> object:
    from flowformer.data.language.tokens import PARTS, open_text

    text = open_text(folder / "text")
    return [(text.part(part)[:8].tolist(), text.part(part).documents) for part in PARTS]


def make_prepared(folder: Path) -> None:
    from flowformer.data.language.preparation import prepare_text
    from tests.data.language.texts import some_texts

    prepare_text(some_texts(documents=3), folder / "text", tokenizer="char")


def checkpoint(folder: Path) -> object:
    from flowformer.models.published import (
        convert_fairseq_state_dict,
        read_fairseq_checkpoint,
    )

    return convert_fairseq_state_dict(read_fairseq_checkpoint(folder / "x.pt"))


def make_checkpoint(folder: Path, *, legacy: bool = False) -> None:
    import argparse

    import torch

    state = {"decoder.embed_tokens.weight": torch.ones(3, 2), "decoder.version": torch.ones(1)}
    content = {"model": state, "args": argparse.Namespace(arch="transformer_lm"), "epoch": 3}
    torch.save(content, folder / "x.pt", _use_new_zipfile_serialization=not legacy)


def more_checkpoints(folder: Path) -> list[bytes]:
    make_checkpoint(folder, legacy=True)
    return [(folder / "x.pt").read_bytes()]


def run_checkpoint(folder: Path) -> object:
    from flowformer.train.loop.checkpoints import read_checkpoint

    return read_checkpoint(folder / "checkpoints/last.ckpt")


def make_run_checkpoint(folder: Path) -> None:
    import torch

    (folder / "checkpoints").mkdir(exist_ok=True)
    content = {"state_dict": {"a.weight": torch.ones(3, 2)}, "epoch": 1, "callbacks": {}}
    torch.save(content, folder / "checkpoints/last.ckpt")


def weights(folder: Path) -> object:
    from torch import nn

    from flowformer.train.folder import RunFolder
    from flowformer.train.prediction import load_weights

    return load_weights(nn.Linear(3, 2), RunFolder(folder))


def make_weights(folder: Path) -> None:
    from safetensors.torch import save_file
    from torch import nn

    save_file(nn.Linear(3, 2).state_dict(), folder / "weights.safetensors")


def record(folder: Path) -> object:
    from flowformer.train.folder import RunFolder
    from flowformer.train.series.config import SeriesRecord

    return SeriesRecord.read(RunFolder(folder))


def make_record(folder: Path) -> None:
    from flowformer.recipes.series import RECIPES
    from flowformer.train.folder import RunFolder
    from flowformer.train.series.config import SeriesRecord

    SeriesRecord(
        recipe="some",
        config=next(iter(RECIPES.values()))(),
        versions={"python": "3"},
        classes=("a", "b"),
        channels=2,
        max_length=9,
        sizes={"train": 3},
    ).write(RunFolder(folder))


def fitted(folder: Path) -> object:
    from flowformer.config_json import from_plain
    from flowformer.data.series.batches import Preprocessing
    from flowformer.train.folder import read_json

    path = folder / "preprocessing.json"
    return from_plain(Preprocessing, read_json(path), where=str(path))


def wheel(folder: Path) -> object:
    from flowformer.data.standins.fetching import unpack_zip

    shutil.rmtree(folder / "in", ignore_errors=True)
    unpack_zip(folder / "x.whl", ["*"], folder / "in")
    return require_inside(folder)


def make_wheel(folder: Path) -> None:
    seeds.zipped(folder / "x.whl", {"some/a.txt": b"data" * 20, "some/b.txt": b"other"})


def tar(folder: Path) -> object:
    from flowformer.data.standins.fetching import unpack_tar

    shutil.rmtree(folder / "in", ignore_errors=True)
    with (folder / "data.tar").open("rb") as stream:
        try:
            unpack_tar(stream, ["*"], folder / "in")
        except ValueError as error:
            raise ValueError(f"{folder}: {error}") from error
        finally:
            require_inside(folder)
    return None


def deb(folder: Path) -> object:
    from flowformer.data.standins.fetching import _unpack_deb

    shutil.rmtree(folder / "in", ignore_errors=True)
    try:
        _unpack_deb(folder / "x.deb", ["usr/share/*"], folder / "in")
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error  # it names the archive without its folder
    finally:
        require_inside(folder)
    return None


class EscapedError(Exception):
    """A file or a link outside the folder."""


def require_inside(folder: Path) -> None:
    names = {path.name for path in folder.iterdir()}
    links = [path for path in folder.rglob("*") if path.is_symlink()]
    outside = [link for link in links if not link.resolve().is_relative_to(folder.resolve() / "in")]
    if len(names) > 2 or outside:
        raise EscapedError(f"{sorted(names)}, {outside}")
