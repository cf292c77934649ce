"""Pathfinder: the pictures traced pixel by pixel, the generator's promises, the release's files."""

import math
from collections import deque

import numpy as np
import pytest

from flowformer.data.sequences.pathfinder import (
    generate_pathfinder,
    read_pathfinder,
    write_pathfinder,
)
from flowformer.data.sequences.pathfinder_drawing import (
    DASHES,
    GEOMETRIES,
    Geometry,
    PathfinderCase,
    draw_case,
)
from flowformer.data.sequences.records import SequenceData

KINDS = [(32, "easy"), (32, "medium"), (32, "hard"), (64, "hard"), (128, "hard"), (256, "easy")]


class Tracer:
    """Walks over the lit pixels of a picture in steps of at most `reach`."""

    def __init__(self, picture: np.ndarray, geometry: Geometry) -> None:
        self.lit = picture >= math.floor(255 * geometry.lit)
        far = math.floor(geometry.reach)
        self.steps = [
            (down, right)
            for down in range(-far, far + 1)
            for right in range(-far, far + 1)
            if math.hypot(down, right) <= geometry.reach
        ]

    def reached_from(self, start: tuple[int, int]) -> np.ndarray:
        assert self.lit[start]
        reached = np.zeros_like(self.lit)
        reached[start] = True
        waiting = deque([start])
        while waiting:
            row, column = waiting.popleft()
            for down, right in self.steps:
                there = (row + down, column + right)
                inside = min(there) >= 0 and max(there) < len(self.lit)
                if inside and self.lit[there] and not reached[there]:
                    reached[there] = True
                    waiting.append(there)
        return reached

    def number_of_pieces(self) -> int:
        left, pieces = self.lit.copy(), 0
        while left.any():
            row, column = np.argwhere(left)[0]
            left &= ~self.reached_from((int(row), int(column)))
            pieces += 1
        return pieces


def dot_pixels(case: PathfinderCase) -> list[tuple[int, int]]:
    ends = [case.paths[path].reshape(-1, 2)[end] for path, end in case.dots]
    pixels = np.rint(np.array(ends)).astype(int)
    return [(int(row), int(column)) for row, column in pixels]


@pytest.mark.parametrize(("size", "difficulty"), KINDS)
def test_walking_over_lit_pixels_joins_the_dots_of_the_positives_only(size, difficulty):
    cases = [draw_case(i, size=size, difficulty=difficulty) for i in range(80 if size < 64 else 8)]
    for case in cases:
        tracer = Tracer(case.picture, GEOMETRIES[size])
        here, there = dot_pixels(case)
        assert tracer.reached_from(here)[there] == (case.label == 1)
        assert tracer.number_of_pieces() == len(case.paths)
    assert sum(case.label for case in cases) == len(cases) / 2


@pytest.mark.parametrize("size", [32, 128])
def test_dots_are_the_brightest_and_the_two_long_paths_begin_near_each_other(size):
    for number in range(20):
        case = draw_case(number, size=size)
        for row, column in dot_pixels(case):
            assert case.picture[row, column] == 255
        first, second = (path[0, 0] for path in case.paths[:2])
        assert np.hypot(*(first - second)) == pytest.approx(GEOMETRIES[size].seed_distance)
        assert all(len(path) == DASHES["easy"] for path in case.paths[:2])
        assert all(len(path) == DASHES["easy"] // 3 for path in case.paths[2:])


@pytest.mark.slow  # evidence of the generator, which draws the same as long as a seed does
@pytest.mark.parametrize("difficulty", ["easy", "medium"])
def test_the_distance_between_the_dots_does_not_tell_the_label(difficulty):
    """A histogram of it, made of half of the cases, guesses the others no better than a coin."""
    cases = [draw_case(number, difficulty=difficulty) for number in range(800)]
    ends = np.array([dot_pixels(case) for case in cases])
    apart = np.hypot(*(ends[:, 0] - ends[:, 1]).T)
    labels = np.array([case.label for case in cases])
    bins = np.digitize(apart, np.quantile(apart, np.linspace(0, 1, 13)[1:-1]))
    guesses = np.array([labels[:400][bins[:400] == each].mean() > 0.5 for each in range(12)])
    assert (guesses[bins[400:]] == labels[400:]).mean() < 0.6  # four standard errors from a half


@pytest.fixture(scope="module")
def small() -> SequenceData:
    return generate_pathfinder(sizes={"train": 160, "validation": 20, "test": 20})


def test_a_set_is_balanced_and_its_cases_differ(small):
    for split in small.splits.values():
        assert split.labels.mean() == 0.5
    pictures = {
        split.inputs[i].tobytes() for split in small.splits.values() for i in range(len(split))
    }
    assert len(pictures) == 200
    assert small.picture == (32, 32)
    assert small.vocab_size == 257


def test_a_seed_means_one_data_set_whatever_the_workers(small):
    again = generate_pathfinder(sizes={"test": 20, "train": 30}, workers=2)
    for part, count in [("test", 20), ("train", 30)]:
        for number in range(count):
            assert (again.splits[part].inputs[number] == small.splits[part].inputs[number]).all()
    other = generate_pathfinder(sizes={"test": 20}, seed=1)
    assert (other.splits["test"].inputs[0] != small.splits["test"].inputs[0]).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 33}, "size must be one of 32, 64, 128, 256, got 33"),
        ({"difficulty": "odd"}, "difficulty must be one of easy, medium, hard, got 'odd'"),
        ({"sizes": {"train": 0}}, "expected at least 1 case of train, got 0"),
    ],
)
def test_what_there_is_not_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        generate_pathfinder(**options)


class TestFiles:
    @pytest.fixture
    def folder(self, small, tmp_path):
        write_pathfinder(small, tmp_path)
        return tmp_path

    def test_what_was_written_is_read(self, small, folder):
        read = read_pathfinder(folder)
        assert "0 empty pictures left out" in read.source
        for part, split in small.splits.items():
            assert (read.splits[part].labels == split.labels).all()
            assert (read.splits[part].inputs.values == split.inputs.values).all()

    def test_an_empty_picture_is_left_out_and_counted(self, folder):
        (folder / "imgs" / "0" / "sample_7.png").write_bytes(b"")
        read = read_pathfinder(folder)
        assert "1 empty pictures left out" in read.source
        assert sum(map(len, read.splits.values())) == 199

    def test_a_missing_picture_is_named(self, folder):
        (folder / "imgs" / "0" / "sample_7.png").unlink()
        with pytest.raises(FileNotFoundError, match=r"0.npy, line 8: expected the picture .*_7"):
            read_pathfinder(folder)

    def test_a_damaged_picture_is_named(self, folder):
        path = folder / "imgs" / "0" / "sample_7.png"
        path.write_bytes(path.read_bytes()[:60])
        with pytest.raises(ValueError, match=r"sample_7.png: expected a picture, got a damaged"):
            read_pathfinder(folder)

    def test_a_picture_of_another_size_is_named(self, folder, tmp_path_factory):
        large = generate_pathfinder(sizes={"train": 8, "validation": 1, "test": 1}, size=64)
        other = tmp_path_factory.mktemp("large")
        write_pathfinder(large, other)
        name = "imgs/0/sample_7.png"
        (folder / name).write_bytes((other / name).read_bytes())
        with pytest.raises(ValueError, match=r"sample_7.png: expected 32 × 32 .* got 64 × 64"):
            read_pathfinder(folder)

    @pytest.mark.parametrize("line", ["imgs/0 sample_1.png 1", "imgs/0 sample_1.png 1 2 0"])
    def test_a_damaged_line_is_named(self, folder, line):
        path = folder / "metadata" / "0.npy"
        lines = path.read_text().splitlines()
        path.write_text("\n".join([lines[0], line, *lines[2:]]))
        with pytest.raises(ValueError, match=r"0.npy, line 2: expected a folder, a file"):
            read_pathfinder(folder)

    def test_no_metadata_are_an_error(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"expected metadata/0.npy and so on"):
            read_pathfinder(tmp_path)

    def test_other_parts_than_tenths_are_not_written(self, tmp_path):
        data = generate_pathfinder(sizes={"train": 4, "validation": 4, "test": 2})
        with pytest.raises(ValueError, match="expected parts of 80, 10 and 10 %"):
            write_pathfinder(data, tmp_path)
