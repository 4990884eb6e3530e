"""A linear head on standardised states: its arithmetic, saved and loaded, and fitted."""

from __future__ import annotations

import pytest
import torch

pytestmark = pytest.mark.slow


@pytest.fixture
def states():
    draw = torch.Generator().manual_seed(0)
    labels = torch.randint(2, (80,), generator=draw)
    return torch.randn(80, 6, generator=draw) * 3 + labels[:, None] * torch.tensor([2.0, 0, 0, -2.0, 0, 0]) + 5, labels


def probe(n_classes=2, hidden=6):
    from trimtab.models.probe import ProbeConfig, ProbeModel

    return ProbeModel(ProbeConfig(hidden_size=hidden, n_classes=n_classes, trunk={"source": "x"}))


def spec(tiny, **fields):
    return tiny.spec(tune={"kind": "probe", "l2": 0.001, "steps": 200}, learning_rate=0.05, **fields)


def labelled(states, labels):
    from trimtab.training.rows import Labelled

    return Labelled([f"r{i}" for i in range(len(states))], states, torch.nn.functional.one_hot(labels, 2).float())


@pytest.mark.parametrize("n_classes", [2, 3])
def test_it_is_saved_and_loaded_with_its_standardisation(tmp_path, n_classes):
    from trimtab.models.probe import ProbeModel

    model = probe(n_classes, 4)
    model.mean.copy_(torch.arange(4.0))
    model.scale.copy_(torch.arange(1.0, 5.0))
    torch.nn.init.normal_(model.linear.weight)
    torch.nn.init.normal_(model.linear.bias)
    model.save_pretrained(tmp_path)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".safetensors"]
    loaded = ProbeModel.from_pretrained(tmp_path)
    x = torch.randn(5, 4)
    assert torch.equal(loaded(x), model(x))
    expected = ((x - torch.arange(4.0)) / torch.arange(1.0, 5.0)) @ model.linear.weight.T + model.linear.bias
    logits = model(x)
    assert logits.shape == (5, n_classes)
    assert torch.allclose(logits[:, -expected.shape[1] :], expected, atol=1e-5)
    assert loaded.config.trunk == {"source": "x"}


def test_two_classes_share_one_direction():
    assert probe(2)(torch.randn(3, 6)).tolist() == [[0, 0]] * 3
    assert probe(2).linear.weight.shape == (1, 6)


def test_it_is_fitted_on_standardised_states(tiny, states):
    from trimtab.training.probe import fit_probe

    x, labels = states
    model, curve = fit_probe(spec(tiny), labelled(x, labels), {})
    assert torch.allclose(model.mean, x.mean(0))
    assert torch.allclose(model.scale, x.std(0, correction=0), atol=1e-5)
    assert (model(x).argmax(-1) == labels).float().mean() > 0.75
    assert curve[0] == (0, {"loss": pytest.approx(0.6931, abs=1e-4)})
    assert curve[-1][1]["loss"] < 0.55


def test_shifting_and_stretching_the_states_changes_nothing(tiny, states):
    from trimtab.training.probe import fit_probe

    x, labels = states
    plain, _ = fit_probe(spec(tiny), labelled(x, labels), {})
    other, _ = fit_probe(spec(tiny), labelled(x * 7 - 3, labels), {})
    assert torch.allclose(plain(x), other(x * 7 - 3), atol=1e-2)


def test_watched_rows_steer_nothing(tiny, states):
    from trimtab.training.probe import fit_probe

    x, labels = states
    data, held = labelled(x[:60], labels[:60]), labelled(x[60:], labels[60:])
    alone, _ = fit_probe(spec(tiny), data, {})
    seen, curve = fit_probe(spec(tiny), data, {"weak": held, "oracle": held})
    assert torch.equal(alone.linear.weight, seen.linear.weight)
    assert {"eval_agreement", "eval_loss", "oracle/accuracy"} <= curve[-1][1].keys()
    right = (seen(held.rows).argmax(-1) == labels[60:]).float().mean().item()
    assert curve[-1][1]["oracle/accuracy"] == pytest.approx(right, abs=0.06)


def test_states_that_are_not_finite_are_named(tiny, states):
    from trimtab.errors import StageError
    from trimtab.training.probe import fit_probe

    x, labels = states
    x[11, 2] = torch.nan
    with pytest.raises(StageError, match="step 1: 1 rows have states that are not finite: r11"):
        fit_probe(spec(tiny), labelled(x, labels), {})
