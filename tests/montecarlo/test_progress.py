"""What is shown while a run goes on."""

import io

import numpy as np
import pytest

from cnninv_jax import montecarlo as mc
from cnninv_jax.montecarlo import progress as shown

from . import draws


def test_a_function_receives_every_stage():
    seen = []
    mc.run(draws.mixed, 0, 1000, chunk_size=100, progress=seen.append, mesh=draws.mesh(1), headline="x")
    assert [report.stage for report in seen] == ["compiling", *["running"] * (len(seen) - 2), "finished"]
    done = [report.done for report in seen]
    assert done == sorted(done)
    assert (done[0], done[-1]) == (0, 1000)
    assert all(report.total == 1000 for report in seen)
    assert np.isnan(seen[1].draws_per_second)
    assert seen[-1].draws_per_second > 0
    assert seen[-1].seconds_left == 0
    assert seen[-1].headline.startswith("x: ")
    assert seen[-1].headline.endswith("(95%)")


def test_headline_of_a_proportion():
    seen = []
    mc.run(draws.mixed, 0, 300, progress=seen.append, headline="positive")
    assert seen[-1].headline.startswith("positive: 0.")


def test_plain_lines_when_not_on_a_terminal(capsys):
    mc.run(draws.scalar, 0, 1000, chunk_size=100)
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert lines[0] == "scalar: compiling"
    assert lines[-1].startswith("scalar: 1,000 of 1,000 draws (100%)")
    assert len(lines) == 2


def test_silence(capsys):
    mc.run(draws.scalar, 0, 100, progress=False)
    assert capsys.readouterr() == ("", "")


def test_lines_come_at_most_every_interval():
    stream = io.StringIO()
    reporter = shown.LineReporter("run", stream, interval=3600.0)
    for done in range(50):
        reporter.report(mc.Progress("running", done, 100))
    assert stream.getvalue() == ""
    reporter = shown.LineReporter("run", stream, interval=0.0)
    reporter.report(mc.Progress("running", 25, 100, 10.0, 7.5, "x: 1 +- 0.1 (95%)"))
    assert stream.getvalue() == "run: 25 of 100 draws (25%)  10 draws/s  8 s left  x: 1 +- 0.1 (95%)\n"


def test_bar_on_a_terminal(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    mc.run(draws.scalar, 0, 1000, chunk_size=100, name="ratios")
    assert "ratios" in stream.getvalue()
    assert "1000/1000" in stream.getvalue()
    assert "draws/s" in stream.getvalue()
    assert "value: " in stream.getvalue()


@pytest.mark.parametrize(("seconds", "text"), [(3.2, "3 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")])
def test_durations(seconds, text):
    assert shown.duration(seconds) == text
