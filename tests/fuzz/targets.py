"""What is fuzzed: every reader of a file, on a small valid file that is damaged.

A target writes valid files into a folder; one of them is replaced by damaged content; the reader is
then to return, or to raise an error that names the file.
"""

import json
from functools import partial

from tests.fuzz import arrays, runs, seeds, texts
from tests.fuzz.target import Target, put

_JSON = (b"null", b"true", b"[]", b"{}", b'""', b"-1", b"1e999", b"NaN", b"99999999999999999999")
_NUMBERS = (b"nan", b"inf", b"1e400", b"-", b"1_0", b"0x1", b"?", b"\0", b"\xff", b"\r", b"\x85")
_TS = (b"@data", b"@classLabel true ", b"@dimensions ", b"@seriesLength ", b"@univariate true")
_MARKUP = (
    *(b"{{", b"}}", b"{|", b"|}", b"[[", b"]]", b"<ref>", b"</ref>", b"<!--", b"==", b"'''"),
    *(b"&#x110000;", b"<page>", b"</page>", b"<ns>0</ns>"),
)

TARGETS: dict[str, Target] = {
    "ts": Target(file="x.ts", read=texts.ts, make=put("x.ts", seeds.TS), tokens=(*_TS, *_NUMBERS)),
    "series-table": Target(
        file="x.csv",
        read=texts.sensors,
        make=put("x.csv", seeds.SENSORS),
        tokens=(b"\n", b",", b";", b'"', b"id", b"up_0", b"up_1", b"2026-11-30", *_NUMBERS),
    ),
    "listops": Target(
        file="basic_train.tsv",
        read=texts.listops,
        make=texts.make_listops,
        tokens=(b"[MAX", b"[MED", b"]", b"(", b")", b"\t", b"9 ", b"\n", *_NUMBERS),
    ),
    "retrieval": Target(
        file="new_aan_pairs.train.tsv",
        read=texts.aan,
        make=texts.make_aan,
        tokens=(b"\t", b"\n", b"0.0", *_NUMBERS),
    ),
    "reviews": Target(
        file="x.csv",
        read=texts.reviews,
        make=put("x.csv", seeds.REVIEWS),
        tokens=(b'"', b'""', b",", b"text", b"label", *_NUMBERS),
    ),
    "cases": Target(
        file="x.txt",
        read=texts.cases,
        make=put("x.txt", seeds.CASES),
        tokens=(b"[MAX", b"]", b"\t", b"\n", *_NUMBERS),
    ),
    "wikitext": Target(
        file="wiki.train.tokens",
        read=texts.wikitext,
        make=put("wiki.train.tokens", seeds.WIKITEXT),
        tokens=(b" = ", b" \n", b"= = ", *_NUMBERS),
    ),
    "text": Target(
        file="some.txt", read=texts.texts, make=put("some.txt", seeds.WIKITEXT), tokens=_NUMBERS
    ),
    "wikipedia": Target(
        file="x.xml",
        read=partial(texts.dump, "x.xml"),
        make=put("x.xml", seeds.DUMP),
        tokens=_MARKUP,
    ),
    "wikipedia-bz2": Target(
        file="x.bz2",
        read=partial(texts.dump, "x.bz2"),
        make=put("x.bz2", seeds.bzipped(seeds.DUMP)),
    ),
    "hdf5": Target(
        file="hopper-x-v0.hdf5",
        read=arrays.d4rl,
        make=arrays.make_d4rl,
        more=arrays.more_d4rl,
        tokens=(b"OHDR", b"TREE", b"SNOD", b"HEAP", b"observations", b"\x89HDF\r\n\x1a\n"),
        errors=(ValueError, OSError, NotImplementedError),
    ),
    "minari-data": Target(
        file="set/data/main_data.hdf5",
        read=arrays.minari,
        make=arrays.make_minari,
        errors=(ValueError, OSError, NotImplementedError),
    ),
    "minari-metadata": Target(
        file="set/data/metadata.json",
        read=arrays.minari,
        make=arrays.make_minari,
        tokens=_JSON,
        errors=(ValueError, OSError, NotImplementedError),
    ),
    "trajectories": Target(
        file="observations.npy",
        read=arrays.trajectories,
        make=lambda folder: arrays.some_trajectories().save(folder),
        errors=(ValueError, OSError, NotImplementedError),
    ),
    "trajectories-description": Target(
        file="description.json",
        read=arrays.trajectories,
        make=lambda folder: arrays.some_trajectories().save(folder),
        tokens=_JSON,
        errors=(ValueError, OSError, NotImplementedError),
    ),
    "sequences": Target(
        file="train-offsets.npy", read=arrays.sequences, make=arrays.make_sequences
    ),
    "sequences-description": Target(
        file="description.json", read=arrays.sequences, make=arrays.make_sequences, tokens=_JSON
    ),
    "collected-part": Target(file="000000000.npz", read=arrays.part, make=arrays.make_part),
    "idx": Target(
        file="x-ubyte", read=partial(arrays.idx, "x-ubyte"), make=put("x-ubyte", seeds.idx())
    ),
    "idx-gz": Target(
        file="x.gz", read=partial(arrays.idx, "x.gz"), make=put("x.gz", seeds.gzipped(seeds.idx()))
    ),
    "image": Target(
        file="x.png",
        read=arrays.image,
        make=lambda folder: put("x.png", seeds.pictures()[0])(folder),
        more=lambda _: seeds.pictures(),
        tokens=(b"IHDR", b"IDAT", b"PLTE", b"tRNS", b"eXIf", b"\xff\xd8", b"\xff\xda", b"ftypavif"),
    ),
    "picture": Target(
        file="x.png",
        read=arrays.grey,
        make=lambda folder: put("x.png", seeds.pictures()[0])(folder),
        more=lambda _: seeds.pictures(),
    ),
    "pathfinder": Target(
        file="metadata/0.npy", read=arrays.pathfinder, make=arrays.make_pathfinder
    ),
    "tokenizer": Target(
        file="tokenizer.json",
        read=runs.tokenizer,
        make=runs.make_tokenizer,
        more=runs.more_tokenizers,
        tokens=(*_JSON, b"BPE", b"WordPiece", b"Unigram", b"<unk>", b"merges", b"vocab"),
    ),
    "tokenizer-merges": Target(file="vocab.bpe", read=runs.tokenizer, make=runs.make_pair),
    "tokenizer-vocabulary": Target(
        file="encoder.json", read=runs.tokenizer, make=runs.make_pair, tokens=_JSON
    ),
    "prepared-text": Target(
        file="text/meta.json", read=runs.prepared, make=runs.make_prepared, tokens=_JSON
    ),
    "prepared-shard": Target(
        file="text/train-00000.bin", read=runs.prepared, make=runs.make_prepared
    ),
    "checkpoint": Target(
        file="x.pt",
        read=runs.checkpoint,
        make=runs.make_checkpoint,
        more=runs.more_checkpoints,
        tokens=(b"cposix\nsystem\n", b"cargparse\nNamespace\n", b"R.", b"PK\x05\x06", b"data.pkl"),
    ),
    "run-checkpoint": Target(
        file="checkpoints/last.ckpt", read=runs.run_checkpoint, make=runs.make_run_checkpoint
    ),
    "safetensors": Target(
        file="weights.safetensors",
        read=runs.weights,
        make=runs.make_weights,
        tokens=(*_JSON, b'"F32"', b'"F64"', b'"shape":', b'"data_offsets":[0,8]'),
    ),
    "run-record": Target(file="config.json", read=runs.record, make=runs.make_record, tokens=_JSON),
    "preprocessing": Target(
        file="preprocessing.json",
        read=runs.fitted,
        make=put(
            "preprocessing.json",
            json.dumps({"mean": [0.5, 1], "std": [1, 2.0], "missing": "mean"}).encode(),
        ),
        tokens=_JSON,
    ),
    "wheel": Target(
        file="x.whl", read=runs.wheel, make=runs.make_wheel, tokens=(b"PK\x01\x02", b"../")
    ),
    "tar": Target(
        file="data.tar",
        read=runs.tar,
        make=put("data.tar", seeds.some_files()),
        tokens=(b"../", b"ustar", b"././@LongLink"),
    ),
    "deb": Target(
        file="x.deb",
        read=runs.deb,
        make=lambda folder: seeds.debian_package(folder / "x.deb", seeds.some_files()),
        tokens=(b"../", b"data.tar.xz", b"data.tar.zst"),
    ),
}
