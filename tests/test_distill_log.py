"""The log of a training: written, cut, read again and drawn."""

from __future__ import annotations

import csv
import math
import sys
from pathlib import Path

import numpy as np
import pytest

from fastdistil.distill.log import TrainingLog, log_columns, read_log
from fastdistil.distill.plot import plot

COLUMNS = log_columns(["soft", "hidden"], ["loss", "soft", "accuracy"])


def row(step: int, **more: float) -> dict[str, float]:
    return {"step": step, "loss": 1 / (step + 1), "soft": 0.3, "hidden": 0.1, **more}


def written(path: Path, steps: int) -> Path:
    with TrainingLog(path, COLUMNS) as log:
        for step in range(steps):
            log.append(row(step))
    return path


def test_columns():
    first = ["step", "epoch", "tokens", "seconds", "learning_rate", "gradient_norm", "loss"]
    assert list(COLUMNS) == [*first, "soft", "hidden", "eval_loss", "eval_soft", "eval_accuracy"]


def test_rows_as_csv_has_them(tmp_path):
    with TrainingLog(tmp_path / "log.csv", COLUMNS) as log:
        log.append(row(1, tokens=np.int64(3_000_000_001), seconds=0.25, gradient_norm=math.nan))
        log.append(row(2, eval_accuracy=np.float32(1) / 3))
        with open(tmp_path / "log.csv", newline="") as stream:  # while it is being written
            first, second = csv.DictReader(stream)
    assert list(first) == list(COLUMNS)
    assert (first["step"], first["tokens"], first["seconds"]) == ("1", "3000000001", "0.25")
    assert first["gradient_norm"] == "nan"
    assert first["epoch"] == first["eval_accuracy"] == ""
    assert np.float32(second["eval_accuracy"]) == np.float32(1) / 3


def test_rows_read_again(tmp_path):
    path = written(tmp_path / "log.csv", 3)
    rows = read_log(path)
    assert [one["step"] for one in rows] == [0, 1, 2]
    assert rows[1]["loss"] == 0.5
    assert rows[1]["eval_loss"] is None
    assert rows[1].keys() == set(COLUMNS)


def test_a_log_goes_on(tmp_path):
    path = written(tmp_path / "log.csv", 2)
    with TrainingLog(path, COLUMNS) as log:
        log.append(row(2))
        log.flush()
    assert path.read_bytes() == written(tmp_path / "whole.csv", 3).read_bytes()


@pytest.mark.parametrize("behind", [b"", b"9,0.1", b"9", b'9,"', b"\0\0\0\r\0", b"\0\n5,\xff\n\0"])
@pytest.mark.parametrize("cut", [True, False])
def test_what_a_crash_leaves_is_no_row(tmp_path, behind, cut):
    """A part of a line, or what a power cut makes of a page of the file."""
    path = written(tmp_path / "log.csv", 4)
    with open(path, "ab") as stream:
        stream.write(behind)
    if b"\n" not in behind:
        assert len(read_log(path)) == 4
    elif not cut:
        with pytest.raises(ValueError, match=r"log\.csv, line 6: not 12 numbers"):
            read_log(path)
        return
    with TrainingLog(path, COLUMNS) as log:
        if cut:
            log.cut(3)
        log.append(row(4))
    assert path.read_bytes() == written(tmp_path / "whole.csv", 5).read_bytes()


@pytest.mark.parametrize(("step", "left"), [(-1, 0), (0, 1), (2, 3), (99, 5)])
def test_cut(tmp_path, step, left):
    path = written(tmp_path / "log.csv", 5)
    with TrainingLog(path, COLUMNS) as log:
        log.cut(step)
        for number in range(left, 6):
            log.append(row(number))
    assert path.read_bytes() == written(tmp_path / "whole.csv", 6).read_bytes()


def test_names_and_files_that_do_not_fit(tmp_path):
    with pytest.raises(ValueError, match="'step'"):
        TrainingLog(tmp_path / "log.csv", ["loss"])
    with pytest.raises(ValueError, match="only once"):
        TrainingLog(tmp_path / "log.csv", ["step", "loss", "loss"])
    path = written(tmp_path / "log.csv", 2)
    with pytest.raises(ValueError, match=r"wanted here are step, loss$"):
        TrainingLog(path, ["step", "loss"])
    with TrainingLog(path, COLUMNS) as log:
        for wrong in ({"loss": 1.0}, {"step": 1, "sfot": 1.0}):
            with pytest.raises(ValueError, match="'step' and any of step, epoch"):
                log.append(wrong)
    assert len(read_log(path)) == 2
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="no log of a training"):
        read_log(tmp_path / "other.csv")


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on file sizes there")
def test_a_full_disk_is_named_and_loses_no_row(tmp_path):
    import resource

    path = written(tmp_path / "log.csv", 2)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with TrainingLog(path, COLUMNS) as log:
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, limits[1]))
        try:
            with pytest.raises(OSError) as caught:
                log.append(row(2))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.filename == str(path)
    with TrainingLog(path, COLUMNS) as log:
        log.append(row(2))
    assert path.read_bytes() == written(tmp_path / "whole.csv", 3).read_bytes()


# --- the picture ----------------------------------------------------------------------------------


def curve(path: Path, steps: int, metrics: bool = True) -> Path:
    """A log with an evaluation every tenth step."""
    columns = COLUMNS if metrics else log_columns(["soft", "hidden"], ["loss", "soft"])
    with TrainingLog(path, columns) as log:
        for step in range(steps):
            fall = math.exp(-3 * step / steps)
            values = {"loss": 20 * fall, "soft": 3 * fall, "hidden": 0.2 * fall}
            if step % 10 == 0:
                values |= {"eval_loss": 21 * fall, "eval_soft": 3.1 * fall}
                values |= {"eval_accuracy": 1 - fall} if metrics else {}
            log.append({"step": step, **values})
    return path


@pytest.fixture
def figures(monkeypatch) -> list:
    """The figures that are saved."""
    figure = pytest.importorskip("matplotlib.figure").Figure
    saved, save = [], figure.savefig
    monkeypatch.setattr(
        figure, "savefig", lambda self, *a, **k: (saved.append(self), save(self, *a, **k))
    )
    return saved


def lines(axes) -> dict:
    return {line.get_label(): line.get_xydata() for line in axes.lines}


def test_plot(tmp_path, figures):
    path = curve(tmp_path / "log.csv", 41)
    assert plot(path, tmp_path / "log.png") is True
    assert (tmp_path / "log.png").read_bytes().startswith(b"\x89PNG")
    assert [one.name for one in tmp_path.iterdir() if one.suffix == ".tmp"] == []
    losses, metrics = figures[0].axes
    rows = read_log(path)
    for name, label in (("loss", "loss: weighted sum"), ("soft", "soft"), ("hidden", "hidden")):
        want = [(one["step"], one[name]) for one in rows]
        assert np.array_equal(lines(losses)[label], want)
    marked = [line for line in losses.lines if line.get_marker() == "o" and len(line.get_xdata())]
    assert [list(line.get_xdata()) for line in marked] == [[0, 10, 20, 30, 40]] * 2
    want = [(one["step"], one["eval_accuracy"]) for one in rows if one["step"] % 10 == 0]
    assert np.array_equal(lines(metrics)["accuracy"], want)
    assert (losses.get_yscale(), metrics.get_yscale()) == ("log", "linear")


def test_nothing_in_a_plot_lies_over_another_thing(tmp_path, figures):
    plot(curve(tmp_path / "log.csv", 41), tmp_path / "log.png")
    (figure,) = figures
    panels = [axes.get_window_extent() for axes in figure.axes]
    legends = [axes.get_legend().get_window_extent() for axes in figure.axes]
    boxes = [*panels, *legends, figure.axes[0].yaxis.label.get_window_extent()]
    assert not [
        (one, other)
        for place, one in enumerate(boxes)
        for other in boxes[place + 1 :]
        if one.overlaps(other)
    ]
    assert all(figure.bbox.containsx(box.x1) and figure.bbox.containsx(box.x0) for box in boxes)


def test_many_steps_are_drawn_as_a_running_mean(tmp_path, figures):
    path = curve(tmp_path / "log.csv", 400, metrics=False)
    assert plot(path, tmp_path / "log.svg")
    (losses,) = figures[0].axes
    values = np.array([one["soft"] for one in read_log(path)])
    drawn = lines(losses)["soft"]
    assert np.allclose(drawn[:, 1], np.convolve(values, np.ones(10) / 10, "valid"))
    assert drawn[0, 0] == 4.5
    assert (tmp_path / "log.svg").read_bytes().startswith(b"<?xml")


def test_a_plot_of_little(tmp_path, figures):
    """A single row, a loss of 0, a value that is no number: no reason to lose a finished run."""
    with TrainingLog(tmp_path / "log.csv", COLUMNS) as log:
        log.append({"step": 0, "loss": 0.0, "soft": math.nan, "eval_accuracy": math.inf})
    assert plot(tmp_path / "log.csv", tmp_path / "log.png")
    assert figures[0].axes[0].get_yscale() == "linear"
    with pytest.raises(ValueError, match="no rows"):
        plot(written(tmp_path / "empty.csv", 0), tmp_path / "empty.png")


def test_without_matplotlib_there_is_no_plot(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    path = curve(tmp_path / "log.csv", 3)
    assert plot(path, tmp_path / "log.png") is False
    assert list(tmp_path.iterdir()) == [path]
