"""Small valid files of every format that is read, each in a folder of its own."""

import bz2
import csv
import gzip
import io
import json
import struct
import subprocess
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

TS = b"""# a comment
@problemName Walk
@timestamps false
@missing true
@univariate false
@dimensions 2
@equalLength false
@seriesLength 3
@classLabel true up down
@data
1,2,3:4,5.5,-6e-3:up
?,NaN,1:0,0,0:down
"""
LISTOPS = b"Source\tTarget\r\n( ( ( [MAX 4 ) 3 ) ] )\t4\r\n( ( ( ( [SM 1 ) 2 ) 9 ) ] )\t2\r\n"
AAN = b"1.0\tA\tB\tone two\tthree\n0\tC\tD\tx\ty\n"
SENSORS = b"""id,time,up,ahead,label,subject
1,0,0.5,1e-3,walk,anna
1,1,,-2,walk,anna
2,0.5,3,?,run,ben
2,2026,4,5,run,ben
"""
REVIEWS = b'text,label\r\n"a good one, indeed",1\r\nbad,0\r\n"two\nlines",1\r\n'
CASES = b"( [MAX 4 3 ] )\n[MIN 1 2 ]\n[SM 1 [MED 2 3 4 ] ]\n"
WIKITEXT = (
    b" \n = First = \n \n Some <unk> text . \n \n = = Section = = \n \n More . \n \n = Next = \n"
)
DUMP = b"""<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/"><page><title>A</title><ns>0</ns>
<revision><text>'''A''' is {{convert|1|to|2|km}} [[link|linked]]<ref>r</ref> &amp;lt; <!-- c -->
== History ==
{| table |} [[File:x.png|a [[b]] c]] [http://x.org y] text.</text></revision></page>
<page><title>B</title><ns>1</ns><revision><text>talk</text></revision></page></mediawiki>"""


def idx(images: int = 2) -> bytes:
    """Pictures of 4 × 4 pixels."""
    return struct.pack(">HBB3I", 0, 8, 3, images, 4, 4) + bytes(range(16)) * images


def pictures() -> list[bytes]:
    """One picture in each format and mode of interest."""
    from PIL import Image

    rng = np.random.default_rng(0)
    colours = Image.fromarray(rng.integers(0, 255, (12, 9, 3), np.uint8))
    grey16 = Image.fromarray(rng.integers(0, 65_535, (9, 12)).astype(np.uint16))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned
    kinds: list[tuple[Image.Image, str, dict]] = [
        (colours, "png", {}),
        (colours.convert("RGBA"), "png", {}),
        (colours.quantize(8), "png", {"transparency": 1}),
        (grey16, "png", {}),
        (colours, "jpeg", {"exif": exif}),
        (colours.convert("CMYK"), "jpeg", {"progressive": True}),
        (colours, "gif", {}),
        (colours, "bmp", {}),
        (colours, "ppm", {}),
        (colours, "tiff", {"compression": "tiff_lzw"}),
        (grey16, "tiff", {}),
        (colours, "webp", {}),
        (colours, "avif", {}),
        (colours, "ico", {}),
    ]
    contents = []
    for image, kind, options in kinds:
        content = io.BytesIO()
        image.save(content, kind, **options)
        contents.append(content.getvalue())
    return contents


def small_picture() -> bytes:
    """Black, 4 × 4 pixels."""
    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(content, "png")
    return content.getvalue()


def zipped(path: Path, files: dict[str, bytes]) -> None:
    """Writes an archive with one file deflated and the others stored."""
    with zipfile.ZipFile(path, "w") as archive:
        for number, (name, content) in enumerate(files.items()):
            how = zipfile.ZIP_STORED if number else zipfile.ZIP_DEFLATED
            archive.writestr(name, content, how)


def tarred(members: Sequence[tarfile.TarInfo], content: bytes = b"data") -> bytes:
    """An archive of these members; regular ones have the content."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for member in members:
            member.size = len(content) if member.isreg() else 0
            archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    """A member of an archive: a file, or a link to a target."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def debian_package(path: Path, data: bytes) -> None:
    """Writes a .deb by hand: an ar archive of a version and two tar archives, not compressed."""
    control = tarred([member("./control")], b"Package: some\nVersion: 1\nArchitecture: all\n")
    parts = {"debian-binary": b"2.0\n", "control.tar": control, "data.tar": data}
    packed = b"!<arch>\n"
    for name, content in parts.items():
        packed += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode()
        packed += content + b"\n" * (len(content) % 2)
    path.write_bytes(packed)
    subprocess.run(["dpkg-deb", "--fsys-tarfile", path], check=True, stdout=subprocess.DEVNULL)


def some_files() -> bytes:
    """A tar archive of two files and a folder."""
    return tarred(
        [
            member("./usr/share/some", tarfile.DIRTYPE),
            member("./usr/share/some/a.txt"),
            member("./usr/share/some/b.txt"),
        ]
    )


def table(rows: Sequence[Sequence[object]]) -> bytes:
    """Rows as CSV."""
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


def plain(value: object) -> bytes:
    """JSON."""
    return json.dumps(value, indent=1).encode()


def gzipped(content: bytes) -> bytes:
    """As gzip has it, always the same."""
    return gzip.compress(content, mtime=0)


def bzipped(content: bytes) -> bytes:
    """As bzip2 has it."""
    return bz2.compress(content)
