"""Files in the formats of Long Range Arena's release and of what stands in for it, for tests."""

import struct
from pathlib import Path

import numpy as np
from PIL import Image

from flowformer.data.sequences.listops import LISTOPS_TOKENS, generate_listops
from flowformer.data.sequences.pathfinder import generate_pathfinder
from flowformer.data.sequences.records import FIRST_BYTE, PADDING, SequenceData

AAN = {
    "train": b"1\tA\tB\tone two\tthree\n0\tA\tB\tone two\tthree\n",
    "eval": b"0\tA\tB\tx\ty\n",
}


def write_listops(data: SequenceData, folder: Path) -> None:
    """Write the files that `read_listops` reads."""
    for part, name in (("train", "train"), ("validation", "val"), ("test", "test")):
        split = data.splits[part]
        rows = [b"Source\tTarget\r\n"]
        for number, label in enumerate(split.labels.tolist()):
            rows.append(f"{bracketed(split.inputs[number].tolist())}\t{label}\r\n".encode())
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"basic_{name}.tsv").write_bytes(b"".join(rows))


def bracketed(tokens: list[int]) -> str:
    """Return the expression in LRA's binary brackets: `( ( ( [MAX 4 ) 3 ) ] )` for `[MAX 4 3 ]`."""
    words: list[str] = []
    open_at: list[int] = []  # where the operators stand that have no end yet
    counts: list[int] = []  # how many brackets open before each of them
    for token in tokens:
        word = LISTOPS_TOKENS[token - PADDING - 1]
        if word.startswith("["):
            open_at.append(len(words))
            counts.append(1)
            words.append(word)
            continue
        words.append(word)
        if word == "]":
            start = open_at.pop()
            words[start] = "( " * counts.pop() + words[start]
            words.append(")")
        if counts:
            counts[-1] += 1
            words.append(")")
    return " ".join(words)


def listops_files(folder: Path, *, seed: int = 0, max_length: int = 30) -> Path:
    data = generate_listops(
        sizes={"train": 20, "validation": 5, "test": 5},
        min_length=4,
        max_length=max_length,
        max_depth=4,
        seed=seed,
    )
    write_listops(data, folder)
    return folder


def write_pathfinder(data: SequenceData, folder: Path) -> None:
    """Write pictures and metadata that `read_pathfinder` reads: parts of 80, 10 and 10 %."""
    assert data.picture is not None
    splits = [data.splits[part] for part in ("train", "validation", "test")]
    cases = [(split.inputs[i], split.labels[i]) for split in splits for i in range(len(split))]
    lines: dict[int, str] = {}
    for number, (tokens, label) in enumerate(cases):
        batch, within = divmod(number, 1000)  # a folder has so many
        name = f"sample_{within}.png"
        pictures = folder / "imgs" / f"{batch}"
        pictures.mkdir(parents=True, exist_ok=True)
        pixels = (np.asarray(tokens) - FIRST_BYTE).astype(np.uint8)
        Image.fromarray(pixels.reshape(data.picture)).save(pictures / name)
        lines[batch] = lines.get(batch, "") + f"imgs/{batch} {name} {within} {label}\n"
    (folder / "metadata").mkdir(exist_ok=True)
    for batch, content in lines.items():
        (folder / "metadata" / f"{batch}.npy").write_text(content)


def pathfinder_files(folder: Path) -> Path:
    parts = {"train": 8, "validation": 1, "test": 1}
    write_pathfinder(generate_pathfinder(sizes=parts, size=32), folder)
    return folder


def aan_files(folder: Path, *, test: bytes = b"1\tA\tB\tthe last\tone\n") -> Path:
    folder.mkdir(exist_ok=True)
    for part, content in {**AAN, "test": test}.items():
        (folder / f"new_aan_pairs.{part}.tsv").write_bytes(content)
    return folder


def fashion_files(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for prefix in ("train", "t10k"):
        images = struct.pack(">HBB3I", 0, 8, 3, 2, 28, 28) + bytes([7]) * (2 * 28 * 28)
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(images)
        labels = struct.pack(">HBBI", 0, 8, 1, 2) + bytes([0, 9])
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(labels)
    return folder


def cifar_files(folder: Path) -> Path:
    files = folder / "cifar-10-batches-bin"
    files.mkdir(parents=True)
    for name in (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"):
        (files / name).write_bytes(bytes([3, *[9] * 3072]) * 2)
    return folder
