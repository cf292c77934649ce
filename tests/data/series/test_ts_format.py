"""The reader of `.ts` files against aeon's, and against files that are wrong in one place each."""

from pathlib import Path

import aeon
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flowformer.data import TsFormatError, read_ts

AEON_FILES = Path(aeon.__file__).parent / "datasets" / "data"

HEADER = """# a comment
@problemName Two
@timeStamps false
@univariate false
@dimensions 2
@equalLength true
@seriesLength 3
@classLabel true up down
@data
"""
FIRST = "1,2,3:4,5,6:up\n"


def write(folder: Path, content: str | bytes) -> Path:
    path = folder / "two.ts"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    "name",
    [
        "JapaneseVowels/JapaneseVowels_TRAIN",
        "JapaneseVowels/JapaneseVowels_TEST",
        "JapaneseVowels/JapaneseVowels_eq_TEST",
        "BasicMotions/BasicMotions_TRAIN",
        "PickupGestureWiimoteZ/PickupGestureWiimoteZ_TRAIN",
        "ArrowHead/ArrowHead_TEST",
        "UnitTest/UnitTest_TEST",
    ],
)
def test_reads_the_same_numbers_and_labels_as_aeon(name: str) -> None:
    from aeon.datasets import load_from_ts_file

    path = AEON_FILES / f"{name}.ts"
    expected, expected_labels = load_from_ts_file(str(path))[:2]
    file = read_ts(path)
    assert len(file.series) == len(expected)
    for series, other in zip(file.series, expected, strict=True):
        np.testing.assert_array_equal(series, other)
    assert file.labels is not None
    assert [label and label.lower() for label in file.labels] == expected_labels.tolist()


def test_keeps_the_case_of_labels_which_aeon_lowers() -> None:
    file = read_ts(AEON_FILES / "BasicMotions" / "BasicMotions_TRAIN.ts")
    assert file.classes == ("Standing", "Running", "Walking", "Badminton")
    assert file.labels is not None
    assert set(file.labels) == set(file.classes)


def test_reads_what_the_format_allows(tmp_path: Path) -> None:
    content = (
        "\ufeff% another kind of comment\r\n@PROBLEMNAME Odd Name\r\n@Missing TRUE\r\n"
        "@equalLength false\r\n@unknownTag whatever\r\n@CLASSLABEL\ttrue  Up down\r\n\r\n@DATA\r\n"
        " 1 , ?, -3e-2 : nan,5,6 : UP \r\n# between the data\r\n\r\n7:8:down"
    )
    with pytest.warns(UserWarning, match="line 5: skipped the tag '@unknownTag', which the format"):
        file = read_ts(write(tmp_path, content))
    assert (file.problem_name, file.classes) == ("Odd Name", ("Up", "down"))
    assert file.labels == ("Up", "down")
    np.testing.assert_array_equal(file.series[0], [[1, np.nan, -0.03], [np.nan, 5, 6]])
    np.testing.assert_array_equal(file.series[1], [[7], [8]])


def test_a_series_length_binds_only_series_of_equal_length(tmp_path: Path) -> None:
    file = read_ts(write(tmp_path, "@equalLength false\n@seriesLength 3\n@data\n1,2\n3\n"))
    assert [series.shape[1] for series in file.series] == [2, 1]


def test_labels_that_differ_in_case_only_stay_apart(tmp_path: Path) -> None:
    file = read_ts(write(tmp_path, "@classLabel true a A\n@data\n1:A\n2:a\n"))
    assert file.labels == ("A", "a")


def test_comments_may_have_any_encoding(tmp_path: Path) -> None:
    file = read_ts(write(tmp_path, b"# by Jos\xe9\n@data\n1,2\n"))
    np.testing.assert_array_equal(file.series[0], [[1, 2]])


@pytest.mark.parametrize("end", ["", ":", " : ", ":?"])
@pytest.mark.parametrize(
    "tag", ["", "@classLabel false\n", "@class_label false\n", "@targetLabel false\n"]
)
def test_a_file_without_labels_has_none(tmp_path: Path, tag: str, end: str) -> None:
    file = read_ts(write(tmp_path, f"{tag}@dimensions 2\n@data\n1,2:3,4{end}\n5,?:7,8{end}\n"))
    assert file.labels is None
    assert [series.shape for series in file.series] == [(2, 2)] * 2
    univariate = read_ts(write(tmp_path, f"{tag}@univariate true\n@data\n1,2{end}\n?{end}\n"))
    assert [series.shape for series in univariate.series] == [(1, 2), (1, 1)]


@pytest.mark.parametrize("unknown", ["?", "NaN", "nan", " ? "])
@pytest.mark.parametrize("listed", ["up down", "? up down nan"])
def test_a_label_that_is_not_known_is_none(tmp_path: Path, unknown: str, listed: str) -> None:
    header = f"@classLabel true {listed}\n@data\n"
    file = read_ts(write(tmp_path, f"{header}1,2:up\n3,4:{unknown}\n"))
    assert (file.labels, file.classes) == (("up", None), ("up", "down"))
    assert read_ts(write(tmp_path, f"{header}1,2:{unknown}\n")).labels is None


# Where aeon ships series with labels.
SHIPPED = sorted(
    path.relative_to(AEON_FILES).as_posix().removesuffix(".ts")
    for path in AEON_FILES.glob("*/*_TRAIN.ts")
    if "TimeStamps" not in path.name
)
NUMBERS = {"CardanoSentiment", "Covid3Month"}  # to be predicted, and no classes


@pytest.mark.parametrize("name", SHIPPED, ids=lambda name: name.split("/")[1])
@pytest.mark.parametrize("spaced", [False, True], ids=["as-they-are", "of-several-words"])
def test_what_aeon_writes_is_read_back(tmp_path: Path, name: str, spaced: bool) -> None:
    from aeon.datasets import load_from_ts_file, save_to_ts_file

    series, labels = load_from_ts_file(str(AEON_FILES / f"{name}.ts"))[:2]
    chosen = np.linspace(0, len(labels) - 1, 12).astype(int)  # of several classes
    series = [series[at].copy() for at in chosen]
    series[1][0, 1] = np.nan
    labels = labels[chosen]
    if spaced:
        labels = np.array([f"Class {label}  at 1:30, or" for label in labels])
    series[2] = series[2][:, :-1] if spaced else series[2]
    place = {"path": str(tmp_path), "problem_name": "A name"}
    header = "a comment of more words than there are on a line, " * 4
    save_to_ts_file(series, **place, header=header)
    bare = read_ts(tmp_path / "A name.ts")
    if name.split("/")[0] in NUMBERS and not spaced:
        save_to_ts_file(series, labels, label_type="regression", **place)
        numbers = read_ts(tmp_path / "A name.ts")
        assert (numbers.targets, numbers.labels) == (tuple(labels.tolist()), None)
        labels = labels.round(1).astype(str)
    save_to_ts_file(series, labels, label_type="classification", **place)
    file = read_ts(tmp_path / "A name.ts")
    for found in (bare, file):
        assert found.problem_name == "A name"
        for one, other in zip(found.series, series, strict=True):
            np.testing.assert_array_equal(one, other)
    assert (bare.labels, bare.classes) == (None, ())
    assert file.labels == tuple(" ".join(str(label).split()) for label in labels)
    assert set(file.classes) == set(file.labels or ())


def test_numbers_to_predict_are_read_as_aeon_reads_them(tmp_path: Path) -> None:
    from aeon.datasets import load_from_ts_file

    path = AEON_FILES / "CardanoSentiment" / "CardanoSentiment_TEST.ts"
    series, labels = load_from_ts_file(str(path))[:2]
    file = read_ts(path)
    np.testing.assert_array_equal(np.array(file.targets), labels)
    np.testing.assert_array_equal(np.stack(file.series), series)
    assert (file.labels, file.classes) == (None, ())
    gap = write(tmp_path, "@targetLabel true\n@data\n1,2:0.5\n3,4:?\n")
    assert read_ts(gap).targets == (0.5, None)


def test_class_names_of_several_words_are_read_off_the_labels(tmp_path: Path) -> None:
    header = "@classLabel true Run Run fast run  slowly Stand\n@data\n"
    lines = "1:run fast\n2:Run\tfast\n3:Run slowly\n4:stand\n5:Run\n"
    file = read_ts(write(tmp_path, header + lines))
    assert file.classes == ("Run", "Run fast", "run slowly", "Stand")
    assert file.labels == ("Run fast", "Run fast", "run slowly", "Stand", "Run")


@pytest.mark.parametrize(
    ("tag", "near"),
    [
        ("@classLabels true up", "classlabel"),
        ("@clasLabel true up", "classlabel"),
        ("@class true up", "classlabel"),
        ("@dimensionss 1", "dimensions"),
        ("@serieslenght 1", "serieslength"),
        ("@equalLen true", "equallength"),
        ("@univariat true", "univariate"),
        ("@targetlabels true", "targetlabel"),
        ("@dat", "data"),
    ],
)
def test_a_misspelt_tag_is_refused_with_the_one_meant(tmp_path: Path, tag: str, near: str) -> None:
    message = rf"line 1: expected a tag of the format \(did you mean @{near}\?\), got '@"
    with pytest.raises(TsFormatError, match=message):
        read_ts(write(tmp_path, f"{tag}\n@data\n1\n"))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    values=st.lists(
        st.lists(
            st.floats(allow_infinity=False).map(float) | st.just(float("nan")),
            min_size=3,
            max_size=3,
        ),
        min_size=1,
        max_size=5,
    )
)
def test_every_float_comes_back_exactly(tmp_path: Path, values: list[list[float]]) -> None:
    lines = [",".join("?" if x != x else repr(x) for x in channel) for channel in values]
    file = read_ts(write(tmp_path, f"@data\n{':'.join(lines)}\n"))
    np.testing.assert_array_equal(file.series[0], values)


MALFORMED = {
    "empty": ("", 1, "a line '@data'", "the end of the file"),
    "comments-only": ("# nothing\n# more\n", 2, "a line '@data'", "the end of the file"),
    "no-data-tag": (
        HEADER.replace("@data\n", "") + FIRST,
        9,
        "'@data' before any data",
        "'1,2,3:4,5,6:up'",
    ),
    "no-series": (HEADER, 9, "at least one series after @data", "the end of the file"),
    "data-tag-with-value": (HEADER.replace("@data", "@data x"), 9, "@data alone", "'@data x'"),
    "no-boolean": (
        HEADER.replace("@equalLength true", "@equalLength yes"),
        6,
        "'@equallength true' or '@equallength false'",
        "'yes'",
    ),
    "no-count": (
        HEADER.replace("@dimensions 2", "@dimensions two"),
        5,
        "'@dimensions' and a positive integer",
        "'two'",
    ),
    "zero-length": (
        HEADER.replace("@seriesLength 3", "@seriesLength 0"),
        7,
        "a positive integer",
        "'0'",
    ),
    "no-classes": (
        HEADER.replace(" up down", ""),
        8,
        "'@classlabel true' and the labels",
        "no label",
    ),
    "timestamps": (
        HEADER.replace("@timeStamps false", "@timeStamps true"),
        3,
        "'@timestamps false'",
        "'@timestamps true'",
    ),
    "classes-and-numbers": (
        HEADER.replace("@data", "@targetLabel true\n@data") + FIRST,
        10,
        "classes or numbers to predict",
        "'@classLabel true' and '@targetLabel true'",
    ),
    "no-number": (
        HEADER.replace("@classLabel true up down", "@targetlabel true") + FIRST,
        10,
        "a finite number to predict, '?' or NaN, after the channels",
        "'up'",
    ),
    "no-target": (
        HEADER.replace("@classLabel true up down", "@targetlabel true") + "1,2,3:4,5,6\n",
        10,
        "2 channels and a label, 3 parts",
        "2",
    ),
    "univariate-with-two-dimensions": (
        HEADER.replace("@univariate false", "@univariate true"),
        9,
        "one channel, as @univariate true says",
        "@dimensions 2",
    ),
    "channel-too-many": (
        HEADER + FIRST + "1,2,3:4,5,6:7,8,9:up\n",
        11,
        "2 channels and a label, 3 parts separated by ':'",
        "4",
    ),
    "channel-too-few": (HEADER + FIRST + "1,2,3:up\n", 11, "2 channels and a label", "2"),
    "dimensions-wrong": (
        HEADER.replace("@dimensions 2", "@dimensions 3") + FIRST,
        10,
        "3 channels and a label",
        "3",
    ),
    "univariate-with-two-channels": (
        "@univariate true\n@classLabel true up\n@data\n1,2:3,4:up\n",
        4,
        "1 channel and a label, 2 parts",
        "3",
    ),
    "label-missing": (HEADER + FIRST + "1,2,3:4,5,6\n", 11, "2 channels and a label", "2"),
    "label-empty": (HEADER + "1,2,3:4,5,6:\n", 10, "@classLabel lists (up, down)", "nothing"),
    "label-missing-univariate": (
        "@classLabel true up\n@data\n1,2\n",
        3,
        "at least one channel and a label",
        "a line without ':'",
    ),
    "label-unknown": (
        HEADER + FIRST + "1,2,3:4,5,6:left\n",
        11,
        "a label that @classLabel lists (up, down)",
        "'left'",
    ),
    "not-a-number": (
        HEADER + FIRST + "1,2,3:4,five,6:up\n",
        11,
        "a finite number, '?' or NaN at time 1 of channel 1",
        "'five'",
    ),
    "value-empty": (HEADER + "1,,3:4,5,6:up\n", 10, "at time 1 of channel 0", "nothing"),
    "value-infinite": (HEADER + "1,2,inf:4,5,6:up\n", 10, "at time 2 of channel 0", "'inf'"),
    "value-overflows": (HEADER + "1,2,1e999:4,5,6:up\n", 10, "at time 2 of channel 0", "'1e999'"),
    "value-with-underscore": (HEADER + "1_0,2,3:4,5,6:up\n", 10, "at time 0 of channel 0", "'1_0'"),
    "value-with-question-mark": (
        HEADER + "1,2?,3:4,5,6:up\n",
        10,
        "at time 1 of channel 0",
        "'2?'",
    ),
    "channel-shorter": (
        HEADER + FIRST + "1,2,3:4,5:up\n",
        11,
        "3 values in channel 1, as in channel 0",
        "2 values",
    ),
    "series-length-violated": (
        HEADER + FIRST + "1,2:4,5:up\n",
        11,
        "3 values a channel, as @seriesLength says",
        "2",
    ),
    "equal-length-violated": (
        HEADER.replace("@seriesLength 3\n", "") + FIRST + "1,2:4,5:up\n",
        10,
        "3 values a channel, as in the first series (@equalLength true)",
        "2",
    ),
    "truncated-in-a-channel": (
        HEADER + FIRST + "1,2,3:4,",
        11,
        "2 channels and a label",
        "2",
    ),
    "truncated-in-the-label": (HEADER + FIRST + "1,2,3:4,5,6:dow", 11, "(up, down)", "'dow'"),
    "binary-nul": (b"\x00\x01\x02", 1, "text", "binary data, b'\\x00\\x01\\x02'"),
    "binary-gzip": (b"\x1f\x8b\x08\xff\xfe", 1, "UTF-8 text", "binary data"),
    "binary-in-data": (HEADER.encode() + b"1,2,\xff:4,5,6:up\n", 10, "UTF-8 text", "binary data"),
}


@pytest.mark.parametrize(
    ("content", "line", "expected", "came"), MALFORMED.values(), ids=MALFORMED.keys()
)
def test_a_malformed_file_names_file_line_expected_and_came(
    tmp_path: Path, content: str | bytes, line: int, expected: str, came: str
) -> None:
    path = write(tmp_path, content)
    with pytest.raises(TsFormatError) as caught:
        read_ts(path)
    message = str(caught.value)
    assert message.startswith(f"{path}, line {line}: expected ")
    before, _, after = message.partition(", got ")
    assert expected in before
    assert after.startswith(came)


def test_a_message_stays_short_however_long_the_line(tmp_path: Path) -> None:
    with pytest.raises(TsFormatError, match="…") as caught:
        read_ts(write(tmp_path, "@data\n" + "x" * 1_000_000))
    assert len(str(caught.value)) < 300 + len(str(tmp_path))


def test_a_folder_in_place_of_a_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"expected a \.ts file, got the folder "):
        read_ts(tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"two\.ts"):
        read_ts(tmp_path / "two.ts")
