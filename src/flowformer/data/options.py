"""Options of data sets, declared once: configurations and commands inherit them; no torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from flowformer.names import ExistingPath

TokenizerKind = Literal["char", "byte", "word", "bpe"]
Difficulty = Literal["easy", "medium", "hard"]
ImageSetName = Literal["folder", "fashion-mnist"]
TABLES = (".csv", ".tsv", ".csv.gz", ".tsv.gz", ".parquet")
SERIES_ENDINGS = (".ts", ".npz", *TABLES)  # of files that hold series
MissingPolicy = Literal["error", "interpolate", "mean"]
ConstantFeatures = Literal["centred", "published"]

# Where policies that learned from D4RL's data can be tried today.
D4RL_ENVIRONMENTS = {
    "halfcheetah": "HalfCheetah-v5",
    "hopper": "Hopper-v5",
    "walker2d": "Walker2d-v5",
}
NOT_D4RL = "v5 environments on today's MuJoCo are not D4RL's v2: returns are not comparable."


@dataclass(frozen=True, kw_only=True)
class TextOptions:
    """What makes two preparations of a text differ.

    Attributes:
        corpus: name of a text or of a task (`flowformer data list`), or text for files of your own.
        folder: where its files are: a folder in the corpus's own layout, or for text a file or a
            folder of files; by default it is fetched.
        tokenizer: characters (char), bytes (byte), words at white space (word), or byte-level
            byte-pair encoding trained on the training part (bpe).
        tokenizer_file: a tokenizer to use in place of a new one: a tokenizer.json, or the folder of
            encoder.json and vocab.bpe.
        vocab_size: entries of a trained vocabulary, None for all (8,192 of bpe); tokens of a task,
            None for as many as it has by default.
        min_count: least number of times that a word or character of the vocabulary occurs.
    """

    corpus: str = "text"
    folder: Path | None = None
    tokenizer: TokenizerKind = "bpe"
    tokenizer_file: ExistingPath | None = None
    vocab_size: int | None = None
    min_count: int = 1


@dataclass(frozen=True, kw_only=True)
class SequenceOptions:
    """What makes two preparations of a set of sequences differ; None is the default of the set.

    Attributes:
        dataset: name of the set (`flowformer data list`).
        folder: your files, laid out as the release or the package has them; by default the set is
            generated or fetched.
        max_length: longest sequence, for which the model has room. Texts are cut to it, generated
            ListOps are below it, and files of longer ListOps are refused.
        min_length: generated ListOps are longer.
        max_depth: depth of generated ListOps.
        difficulty: difficulty of generated Pathfinder: 6, 9 or 14 dashes in a long path.
        sizes: cases of train, validation and test, of a generated set.
        seed: seed of what is generated, shuffled or drawn, and of parts that the set has not.
    """

    dataset: str = "listops"
    folder: ExistingPath | None = None
    max_length: int | None = None
    min_length: int | None = None
    max_depth: int | None = None
    difficulty: Difficulty | None = None
    sizes: tuple[int, ...] | None = None
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class SeriesColumns:
    """The columns of a table of series. None is found by its name; "" means that there is none.

    Attributes:
        id: column that says which series a row belongs to.
        time: column that orders the rows of a series.
        channels: columns of values, by default all that are nothing else; where a row is a series,
            the names before the numbers of the steps.
        label: column of the class, or of the number to predict.
        group: column of what no two parts of the data may share, such as a subject.
        index: table with a row for each file of a folder, its label and group; by default index.csv
            or labels.csv in the folder.
    """

    id: str | None = None
    time: str | None = None
    channels: tuple[str, ...] = ()
    label: str | None = None
    group: str | None = None
    index: Path | None = None
