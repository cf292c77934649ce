"""Series from whatever holds them are the same series; what is wrong in them is named."""

import gzip
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
from numpy.testing import assert_array_equal

from flowformer.data import SeriesCollection, data_set, load_series, numbers_of, read_series
from flowformer.data.options import SeriesColumns

IDS = ("w1", "s1", "w2")
LABELS = ("walk", "sit", "walk")
SUBJECTS = ("anna", "ben", "anna")
SERIES = (
    np.array([[0.0, 1.0, 2.0], [10.0, np.nan, 12.0]]),
    np.array([[5.0, 4.0], [0.5, 0.25]]),
    np.array([[-1.0, -2.0, -3.0], [1e-3, 1e3, 7.0]]),
)


def long_frame() -> pandas.DataFrame:
    """The three series, a row a step, in no order."""
    rows = [
        {
            "series_id": each,
            "Time": 100 * at + step,
            "ax": series[0, step],
            "ay": series[1, step],
            "activity": label,
            "subject": subject,
        }
        for at, (each, label, subject, series) in enumerate(
            zip(IDS, LABELS, SUBJECTS, SERIES, strict=True)
        )
        for step in range(series.shape[1])
    ]
    order = np.random.default_rng(0).permutation(len(rows))
    shuffled = pandas.DataFrame(rows).iloc[order].reset_index(drop=True)
    first = shuffled.drop_duplicates("series_id")  # in the order of the series
    return pandas.concat(
        [first.set_index("series_id").loc[list(IDS)].reset_index(), shuffled.drop(first.index)],
        ignore_index=True,
    )


def wide_frame() -> pandas.DataFrame:
    """The three series, a row each, the steps of a channel side by side."""
    columns: dict[str, Any] = {"id": IDS, "label": LABELS}
    for channel, name in enumerate(("ax", "ay")):
        for step in reversed(range(3)):  # in no order
            columns[f"{name}_{step}"] = [
                one[channel, step] if step < one.shape[1] else np.nan for one in SERIES
            ]
    return pandas.DataFrame(columns)


def write_csv(folder: Path) -> Path:
    long_frame().to_csv(folder / "sensors.csv", index=False)
    return folder / "sensors.csv"


def write_semicolons(folder: Path) -> Path:
    path = folder / "sensors.csv.gz"
    path.write_bytes(gzip.compress(b"\xef\xbb\xbf" + long_frame().to_csv(sep=";").encode()))
    return path


def write_parquet(folder: Path) -> Path:
    long_frame().to_parquet(folder / "sensors.parquet")
    return folder / "sensors.parquet"


def write_wide(folder: Path) -> Path:
    wide_frame().to_csv(folder / "sensors.tsv", index=False, sep="\t")
    return folder / "sensors.tsv"


def write_classes(folder: Path) -> Path:
    frame: Any = long_frame()
    for name, label in zip(IDS, LABELS, strict=True):
        place = folder / "classes" / label
        place.mkdir(parents=True, exist_ok=True)
        rows = frame[frame["series_id"] == name]
        rows[["Time", "ax", "ay"]].to_csv(place / f"{name}.csv", index=False)
    return folder / "classes"


def write_indexed(folder: Path) -> Path:
    """Files of numbers alone, and an index that names them without their ending."""
    place = folder / "indexed"
    place.mkdir()
    for name, series in zip(IDS, SERIES, strict=True):
        pandas.DataFrame(series.T).to_csv(place / f"{name}.csv", index=False, header=False)
    index = pandas.DataFrame({"file": IDS, "age": 3, "activity": LABELS, "subject": SUBJECTS})
    index.to_csv(place / "index.csv", index=False)
    return place


def write_npz(folder: Path) -> Path:
    padded = np.full((3, 2, 3), np.nan)
    for row, series in zip(padded, SERIES, strict=True):
        row[:, : series.shape[1]] = series
    np.savez(folder / "x.npz", X=padded, y=np.array(LABELS), groups=np.array(SUBJECTS))
    return folder / "x.npz"


def write_ts(folder: Path) -> Path:
    lines = [
        ":".join([*(",".join(map(str, channel)) for channel in series), label])
        for series, label in zip(SERIES, LABELS, strict=True)
    ]
    head = "@univariate false\n@equalLength false\n@classLabel true sit walk\n@data\n"
    (folder / "x.ts").write_text(head + "\n".join(lines) + "\n")
    return folder / "x.ts"


WRITERS: list[Callable[[Path], Path]] = [
    write_csv,
    write_semicolons,
    write_parquet,
    write_wide,
    write_classes,
    write_indexed,
    write_npz,
    write_ts,
]


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__[6:])
def test_every_format_gives_the_same_series_labels_and_groups(tmp_path, write):
    read = read_series(write(tmp_path))
    assert isinstance(read, SeriesCollection)
    order = sorted(range(3), key=lambda at: (LABELS[at], IDS[at]))  # of the folders
    order = order if write is write_classes else list(range(3))
    if write is write_indexed:
        order = sorted(range(3), key=lambda at: IDS[at])
    assert read.labels == tuple(LABELS[at] for at in order)
    for found, at in zip(read.series, order, strict=True):
        assert_array_equal(found, SERIES[at])
    if write not in (write_wide, write_classes, write_ts):
        assert read.groups == tuple(SUBJECTS[at] for at in order)
    data = data_set(read)
    assert data.classes == ("sit", "walk")
    assert data.describe().startswith("3 series of 2 channels")
    assert "2 – 3 steps, 2 classes" in data.describe()
    assert data.describe().endswith("6.2 % missing")


def test_frames_are_tables_and_arrays_are_series():
    assert read_series(long_frame()).labels == LABELS
    named = long_frame().set_index(["series_id", "Time"])
    assert_array_equal(read_series(named).series[2], SERIES[2])
    assert len(read_series(np.zeros((4, 2, 5)))) == 4
    assert read_series(list(SERIES)).labels is None


def test_columns_are_told_or_found_and_none_is_a_word():
    frame = long_frame().rename(columns={"activity": "doing", "series_id": "which"})
    read = read_series(frame, id="which", label="doing", channels=("ay",), group="")
    assert (read.groups, len(read.series[0])) == (None, 1)
    assert read.columns == SeriesColumns(
        id="which", time="Time", channels=("ay",), label="doing", group=""
    )
    again = read_series(frame.drop(columns="doing"), read.columns, optional=("label",))
    assert again.labels is None
    with pytest.raises(ValueError, match=r"expected a column 'doing' \(data\.label\)"):
        read_series(frame.drop(columns="doing"), read.columns)


def test_what_is_told_to_be_no_role_is_no_channel_either():
    frame: Any = long_frame().drop(columns="Time").replace({"anna": 1, "ben": 2})
    frame = frame.replace({"walk": 0, "sit": 1})
    read = read_series(frame, group="", label="")
    assert (read.columns.channels, read.labels, read.groups) == (("ax", "ay"), None, None)
    wide = read_series(wide_frame(), label="")
    assert (wide.columns.channels, wide.labels) == (("ax", "ay"), None)
    named = wide_frame().assign(gesture=LABELS)
    with pytest.raises(ValueError, match="'label' could be the label, which is 'gesture': name th"):
        read_series(named, label="gesture")
    told = read_series(named, label="gesture", channels=("ax", "ay"))
    assert told.columns.channels == ("ax", "ay")


def test_files_of_a_folder_have_no_ids_or_classes_where_none_are_told(tmp_path):
    folder = write_classes(tmp_path)
    for path in folder.rglob("*.csv"):
        frame = pandas.read_csv(path)
        frame.assign(id=range(len(frame)), kind=path.stem).to_csv(path, index=False)
    read = read_series(folder, id="", label="kind")
    assert (read.labels, read.columns.channels) == (("s1", "w1", "w2"), ("ax", "ay"))


@pytest.mark.parametrize("rows", [[1, 2, 3, 1, 2, 1, 2, 3], range(8, 0, -1)], ids=["id", "r"])
def test_the_numbers_of_rows_are_no_channel(tmp_path, rows):
    frame = long_frame().set_axis(list(rows), axis=0)
    frame.to_csv(tmp_path / "x.csv")
    read = read_series(tmp_path / "x.csv")
    assert read.columns.channels == ("ax", "ay")


def test_a_channel_of_single_values_is_one():
    """Of a constant there are two values that are the same."""
    frame = long_frame()
    first = ~frame["series_id"].duplicated()
    frame["rare"] = pandas.Series(range(8), dtype=float).where(first)
    assert read_series(frame).columns.channels == ("ax", "ay", "rare")


def test_a_second_label_is_no_channel(tmp_path):
    frame = long_frame()
    frame["code"] = np.where(frame["series_id"] == "s1", 2.0, 1.0)
    with pytest.raises(ValueError, match=r"'code' is constant in every series and differs .*chann"):
        read_series(frame)
    assert len(read_series(frame, channels=("ax", "code"))) == 3
    for name, rows in frame.groupby("series_id"):
        rows.to_csv(tmp_path / f"{name}.csv", index=False)
    with pytest.raises(ValueError, match="'code' is constant in every series"):
        read_series(tmp_path)


def test_times_are_numbers_or_dates_and_order_the_rows():
    frame: Any = long_frame()
    numbers = read_series(frame)
    stamps = pandas.Timestamp("2026-11-30") + pandas.to_timedelta(frame["Time"], unit="s")
    for times in (stamps, stamps.astype(str), stamps.dt.tz_localize("Europe/Berlin")):
        dates = read_series(frame.assign(Time=times))
        for one, other in zip(dates.series, numbers.series, strict=True):
            assert_array_equal(one, other)
        assert dates.spans is not None
        assert numbers.spans is not None
        assert_array_equal(np.diff(dates.spans), np.diff(numbers.spans))


@pytest.mark.parametrize("word", ["30/11/2026", "03/04/2026", "30 Nov 2026"])
def test_a_date_that_would_be_guessed_is_refused(word):
    with pytest.raises(ValueError, match=f"got '{word}': times are written as 2026-11-30 17:05"):
        read_series(one_changed("Time", word))


def test_dates_as_objects_are_times():
    days = [pandas.Timestamp(2026, 11, day).date() for day in (1, 2, 1)]
    frame = pandas.DataFrame({"id": [1, 1, 2], "date": pandas.Series(days, dtype=object)})
    spans = read_series(frame.assign(x=[1.0, 2.0, 3.0])).spans
    assert spans is not None
    assert np.diff(spans).tolist() == [[86400.0], [0.0]]


def test_words_for_a_missing_number_are_words_among_labels(tmp_path):
    rows = ["id,x,label,subject", "1,0.5,None,NA", "1,NA,None,NA", "2,1e-3,null,b", "2,nan,null,b"]
    (tmp_path / "x.csv").write_text("\n".join(rows))
    read = read_series(tmp_path / "x.csv")
    assert (read.labels, read.groups) == (("None", "null"), ("NA", "b"))
    assert_array_equal(np.stack(read.series), [[[0.5, np.nan]], [[1e-3, np.nan]]])
    (tmp_path / "x.csv").write_text("id,x,label\n1,1,3\n1,2,3\n2,3,NA\n2,4,NA\n3,5,?\n3,6,?\n")
    assert read_series(tmp_path / "x.csv").labels == (3, None, None)


def test_numbers_between_semicolons_may_have_decimal_commas(tmp_path):
    rows = ["id;x;y;label", "1;0,5;3;a,b", "1;-1,25e1;4;a,b", "2;NA;5;c", "2;2;6;c"]
    (tmp_path / "x.csv").write_text("\n".join(rows))
    read = read_series(tmp_path / "x.csv")
    assert read.labels == ("a,b", "c")
    assert_array_equal(np.stack(read.series), [[[0.5, -12.5], [3, 4]], [[np.nan, 2], [5, 6]]])
    (tmp_path / "headless").mkdir()
    (tmp_path / "headless" / "x.csv").write_text("0,5;1,5\n2,5;3\n")
    assert_array_equal(read_series(tmp_path / "headless").series[0], [[0.5, 2.5], [1.5, 3]])


def test_numbers_with_decimal_commas_may_have_points_between_thousands(tmp_path):
    # y alone is no sign of them: 1.234 beside 987 is a thousand and more where x has commas.
    rows = ["id;x;y;z", "1;1.234,5;1.234;0.125", "1;-2.345.678;987;1.250", "1;12,5;NA;2.5"]
    (tmp_path / "x.csv").write_text("\n".join(rows))
    (series,) = read_series(tmp_path / "x.csv").series
    assert_array_equal(series, [[1234.5, -2345678, 12.5], [1234, 987, np.nan], [0.125, 1.25, 2.5]])
    (tmp_path / "headless").mkdir()
    (tmp_path / "headless" / "x.csv").write_text("1.234,5;1.234\n2,5;3\n")
    assert_array_equal(read_series(tmp_path / "headless").series[0], [[1234.5, 2.5], [1234.0, 3.0]])


@pytest.mark.parametrize("wrong", ["1,234.5", "12.34,5", "0.123,5", "1.234,5,6"])
def test_numbers_with_points_and_commas_in_another_way_are_refused(tmp_path, wrong):
    (tmp_path / "x.csv").write_text(f"id;x;y\n1;0,5;{wrong}\n1;1.234,5;2,5\n")
    with pytest.raises(
        ValueError, match=rf"x\.csv, row 1: expected a number in 'y', got '{wrong}'"
    ):
        read_series(tmp_path / "x.csv")


def test_a_label_of_the_first_row_alone_is_that_of_the_series():
    frame = long_frame()
    first = ~frame["series_id"].duplicated()
    whole = frame.assign(activity=pandas.Series([3, 1, 3, *[None] * 5]).where(first))
    assert read_series(whole).labels == (3, 1, 3)


def test_numbers_are_told_from_classes():
    numbers = {"w1": 0.5, "s1": 2.0, "w2": -1.25}
    frame = long_frame().assign(activity=[numbers[each] for each in long_frame()["series_id"]])
    read = read_series(frame)
    assert numbers_of(read).tolist() == [0.5, 2.0, -1.25]
    assert "labels from -1.25 to 2 (activity)" in read.describe()
    with pytest.raises(
        ValueError, match=r"expected classes as labels, got numbers .*time-series-r"
    ):
        data_set(read)
    assert data_set(read, regression=True).classes == ()
    with pytest.raises(ValueError, match=r"series 'w1': expected a finite number, got 'walk'"):
        data_set(read_series(long_frame()), regression=True)


def test_a_test_part_has_the_columns_of_the_training_part():
    frame = long_frame().rename(columns={"activity": "doing"}).drop(columns="subject")
    data = load_series(frame, frame.iloc[:, ::-1], label="doing")
    assert data.test is not None
    for one, other in zip(data.train.series, data.test.series, strict=True):
        assert_array_equal(one, other)
    with pytest.raises(ValueError, match=r"expected a column 'ay' \(data\.channels\)"):
        load_series(frame, frame.drop(columns="ay"), label="doing")
    unknown = frame.assign(doing=frame["doing"].replace("sit", "run"))
    with pytest.raises(ValueError, match=r"classes of the training data \(sit, walk\), got run"):
        load_series(frame, unknown, label="doing")


def changed(**columns: Any) -> pandas.DataFrame:
    return long_frame().assign(**columns)


def doubled_time() -> pandas.DataFrame:
    frame = long_frame()
    w1 = frame.index[frame["series_id"] == "w1"]
    frame.loc[w1[1], "Time"] = frame.loc[w1[0], "Time"]
    return frame


def one_changed(column: str, value: object) -> pandas.DataFrame:
    frame = long_frame().astype({column: object})
    frame.loc[frame.index[frame["series_id"] == "w1"][-1], column] = value
    return frame


FAULTS: dict[str, tuple[pandas.DataFrame, dict[str, Any], str]] = {
    "no-id": (
        long_frame().drop(columns="series_id"),
        {},
        r"a column that says which series .*\(data\.id, id=\.\.\. in Python\).* got 'Time'",
    ),
    "told-and-missing": (
        long_frame(),
        {"label": "class"},
        r"a column 'class' \(data\.label\), got",
    ),
    "two-ids": (changed(recording="a"), {}, "'series_id' and 'recording' could be the id: say"),
    "unique-ids": (
        changed(series_id=range(8)),
        {},
        "expected rows that share an id, .* got 8 rows",
    ),
    "text": (one_changed("ax", "much"), {}, r"row \d: expected a number in 'ax', got 'much': if"),
    "infinite": (one_changed("ax", np.inf), {}, r"row \d: expected a number in 'ax', got inf"),
    "doubled-time": (doubled_time(), {}, r"series 'w1': expected one row a time, got two at \d in"),
    "no-time": (one_changed("Time", None), {}, r"row \d: expected a value of 'Time', got none"),
    "odd-time": (
        one_changed("Time", "noon?"),
        {},
        r"expected a time or number in 'Time', got 'noo",
    ),
    "two-labels": (
        one_changed("activity", "run"),
        {},
        r"series 'w1': expected one label \('activity'\), got \w+ in row \d and \w+ in row \d: cut",
    ),
    "two-groups": (one_changed("subject", "ben"), {}, r"series 'w1': expected one group .*subject"),
    "no-values": (
        long_frame().assign(ax=np.nan, ay=np.nan),
        {},
        "series 'w1': expected at least one value",
    ),
    "ragged": (
        wide_frame().drop(columns="ay_2"),
        {},
        "the same steps in every channel, got 3 of 'ax' and 2 of 'ay'",
    ),
    "gap": (
        wide_frame().drop(columns=["ax_1", "ay_1"]),
        {},
        "steps numbered one after the other, got none before 2",
    ),
    "empty": (long_frame().iloc[:0], {}, "at least one row of values, got an empty table"),
    "twice": (long_frame().rename(columns={"ay": "ax"}), {}, "different names, got 'ax' twice"),
}


@pytest.mark.parametrize(("frame", "names", "message"), FAULTS.values(), ids=FAULTS.keys())
def test_what_is_wrong_in_a_table_is_named(frame, names, message):
    with pytest.raises(ValueError, match=message):
        read_series(frame, **names)


def test_a_series_without_a_label_or_group_is_named():
    frame = long_frame()
    some = frame.assign(activity=frame["activity"].where(frame["series_id"] != "s1"))
    with pytest.raises(ValueError, match="series 's1': expected a label, got an unknown one"):
        data_set(read_series(some))
    some = frame.assign(subject=frame["subject"].where(frame["series_id"] != "s1"))
    with pytest.raises(ValueError, match="series 's1': expected a group, got none"):
        read_series(some)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", b"", "expected a table"),
        ("x.csv", b"id,a\n1,2,3\n1,2\n1,2,3,4\n", "expected a table"),
        ("x.csv", b"1.5,2.5\n3.5,4.5\n", "its first line with the names of the columns, got numb"),
        ("x.csv", b"id,a\n\xff\xfe,1\n", "expected a table"),
        ("x.csv.gz", b"no gzip", "expected a table"),
        ("x.parquet", b"PAR1", "expected a table"),
        ("x.npz", b"PK", "expected arrays, got a damaged file"),
        ("x.xlsx", b"", r"a folder or a file that ends in \.ts, .*, got '\.xlsx'"),
    ],
    ids=["empty", "ragged", "headless", "encoding", "gzip", "parquet", "npz", "ending"],
)
def test_a_damaged_file_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(
        ValueError, match=f"{re.escape(str(tmp_path / name))}: .*{message}|{message}"
    ):
        read_series(tmp_path / name)


def test_arrays_of_an_npz_file_are_found_by_the_names_that_are_told(tmp_path):
    people, labels = np.array([7.0, 8.0, 7.0]), np.array([2.0, np.nan, 1.0])
    np.savez(tmp_path / "x.npz", X=np.zeros((3, 2, 4)), y=labels, people=people, z=np.arange(3))
    read = read_series(tmp_path / "x.npz", group="people")
    assert (read.labels, read.groups) == ((2, None, 1), ("7", "8", "7"))
    assert read_series(tmp_path / "x.npz", label="z").labels == (0, 1, 2)
    assert read_series(tmp_path / "x.npz", label="", group="").labels is None
    with pytest.raises(ValueError, match=r"expected an array 'who' \(data\.group\), got X, y, peo"):
        read_series(tmp_path / "x.npz", group="who")
    assert read_series(tmp_path / "x.npz", group="who", optional=("group",)).groups is None


def test_groups_of_both_parts_are_told(tmp_path):
    frame = long_frame()
    with pytest.warns(
        UserWarning, match=r"2 groups \(anna, ben\) are in the train and in the test"
    ):
        load_series(frame, frame)
    assert load_series(frame, frame, group="").train.groups is None
    alone = frame.drop(columns="subject")
    assert load_series(frame, alone).test is not None
    assert load_series(frame, write_ts(tmp_path)).test is not None


def test_a_ts_file_may_lack_the_group_that_is_optional(tmp_path):
    path = write_ts(tmp_path)
    assert read_series(path, group="subject", optional=("label", "group")).groups is None
    with pytest.raises(ValueError, match=r"a \.ts file has no groups"):
        read_series(path, group="subject")


def test_an_index_is_of_its_own_folder(tmp_path):
    for part in ("train", "test"):
        (tmp_path / part).mkdir()
        write_indexed(tmp_path / part).rename(tmp_path / part / "files")
    first, other = (tmp_path / part / "files" for part in ("train", "test"))
    moved = (first / "index.csv").rename(first / "about.csv")
    index = pandas.read_csv(other / "index.csv").assign(activity=["sit", "walk", "sit"])
    index.to_csv(other / "index.csv", index=False)
    data = load_series(first, other, index=moved, group="")
    assert data.test is not None
    assert [data.classes[at] for at in data.test.labels] == ["walk", "sit", "sit"]


def test_what_is_not_there_is_not_found(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_series(tmp_path / "none.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="expected files that end in"):
        read_series(tmp_path / "empty")


def test_an_npz_file_without_its_arrays_is_named(tmp_path):
    np.savez(tmp_path / "x.npz", Z=np.zeros((2, 1, 3)))
    with pytest.raises(ValueError, match=r"expected an array X \[n, channels, time\], got Z"):
        read_series(tmp_path / "x.npz")
    np.savez(tmp_path / "x.npz", X=np.zeros((2, 1, 3)), y=np.zeros(3))
    with pytest.raises(ValueError, match=r"expected y \[2\], one for each series, got shape \[3\]"):
        read_series(tmp_path / "x.npz")


def test_files_of_a_folder_have_the_same_columns_and_are_all_in_the_index(tmp_path):
    folder = write_indexed(tmp_path)
    (folder / "more.csv").write_text("1,2\n3,4\n")
    with pytest.warns(UserWarning, match="passed over 1 file that .*index.csv does not name"):
        assert len(read_series(folder)) == 3
    (folder / "more.csv").unlink()
    (folder / "s1.csv").write_text("1,2,3.5\n")
    with pytest.raises(ValueError, match=r"w1\.csv: expected the columns 0, 1, 2, .* got 0, 1$"):
        read_series(folder)
    index = pandas.read_csv(folder / "index.csv")
    pandas.concat([index, index]).to_csv(folder / "index.csv", index=False)
    with pytest.raises(ValueError, match=r"index\.csv: expected a row for each file, got two of"):
        read_series(folder)


def test_files_named_by_numbers_with_zeros_are_found_in_the_index(tmp_path):
    for name, series in zip(("001", "010", "150"), SERIES, strict=True):
        pandas.DataFrame(series.T).to_csv(tmp_path / f"{name}.csv", index=False)
    (tmp_path / "index.csv").write_text("File,label\n150,c\n010,b\n001,a\n")
    read = read_series(tmp_path)
    assert read.labels == ("a", "b", "c")
    assert_array_equal(read.series[2], SERIES[2])


def test_one_file_is_read_as_those_of_the_folder_were(tmp_path):
    folder = write_classes(tmp_path)
    read = read_series(folder)
    one = read_series(folder / "sit" / "s1.csv", read.columns, optional=("label", "group"))
    assert_array_equal(one.series[0], SERIES[1])
    assert one.labels is None


def test_files_with_several_series_each_are_read_together(tmp_path):
    frame = long_frame()
    for subject, rows in frame.groupby("subject"):
        rows.to_csv(tmp_path / f"{subject}.csv", index=False)
    read = read_series(tmp_path)
    assert read.groups == ("anna", "anna", "ben")
    assert_array_equal(read.series[2], SERIES[1])
    assert read.spans is not None
    assert len(read.spans) == 3
