"""The sheet of a network's health says what the report says."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lossmap.geometry.grid import Grid
from lossmap.health.diagnose import diagnose_network_health
from lossmap.io.read import write_surface
from lossmap.io.surface import Surface
from lossmap.plotting.health import draw_health, report_in


def net(width=12):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 4))


def data():
    return torch.randn(60, 6, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 4


def texts(figure):
    return " ".join(t.get_text() for axes in figure.axes for t in [*axes.texts, axes.title, axes._left_title])


def test_the_sheet_shows_every_examination_and_the_findings():
    model = net()
    with torch.no_grad():
        model[0].bias.fill_(-1e3)
    report = diagnose_network_health(model, data(), label="ill").to_dict()
    figure = draw_health(report)
    figure.canvas.draw()
    said = texts(figure)
    assert "dead layer" in said and "ill: " in said and "Hessian" in said and "neural collapse" in said
    assert len(figure.axes) == 7


def test_what_was_not_examined_says_so():
    report = diagnose_network_health(net(), data(), examinations=("weights",)).to_dict()
    said = texts(draw_health(report))
    assert said.count("not examined") == 5 and "not requested" in said


def test_more_findings_than_fit_are_counted():
    report = diagnose_network_health(net(), data(), examinations=("signals",)).to_dict()
    finding = {"rule": "r", "where": "w", "evidence": "e " * 200, "level": "note", "tries": [{"what": "t"}]}
    finding |= {"value": 0.5, "error": 0.0126, "threshold": 0.3}
    figure = draw_health(report | {"findings": [finding] * 9, "undecided": [finding] * 6})
    figure.canvas.draw()
    words = texts(figure)
    assert "(and 3 more)" in words and "9 findings, 6 undecided" in words
    assert words.count("0.5 +- 0.013; threshold 0.3") == 6
    assert words.count("0.5 +- 0.013 against 0.3: not resolved") == 4 and "undecided (and 2 more)" in words
    lines = sorted(t.get_position()[1] for t in figure.axes[0].texts)
    assert len(set(lines)) == len(lines) and lines[0] > 0


def test_numbers_in_titles_bear_their_errors():
    report = diagnose_network_health(net(), data(), examinations=("gradients", "hessian")).to_dict()
    report["numbers"]["noise_scale"] = {"value": 123.0, "error": 20.0}
    hessian = report["hessian"] | {"values": [3.0, -1.0], "errors": [0.01, 0.2], "trace": {"value": 9.0, "error": 0.5}}
    words = texts(draw_health(report | {"hessian": hessian}))
    assert "noise scale 123 +- 20 samples" in words
    assert "Hessian: -1 +- 0.2 to 3 +- 0.01\ntrace 9 +- 0.5" in words


def test_panels_keep_their_width_however_long_the_words_are():
    report = diagnose_network_health(net(), data(), examinations=("signals",)).to_dict()
    widths = []
    for label in ("a", "a path that is far longer than any line of the sheet, " * 4):
        figure = draw_health(report | {"label": label, "findings": []})
        figure.canvas.draw()
        widths.append([axes.get_position().width for axes in figure.axes[1:]])
    assert widths[0] == pytest.approx(widths[1])


def test_a_healthy_net_is_not_called_proven():
    report = diagnose_network_health(net(), data(), examinations=("weights",)).to_dict()
    assert "no proof of health" in texts(draw_health(report | {"findings": []}))


def test_a_file_without_a_report_says_so(tmp_path):
    write_surface(tmp_path / "a.h5", Surface(Grid([0.0]), {}))
    with pytest.raises(KeyError, match="holds no health report"):
        report_in(tmp_path / "a.h5")
