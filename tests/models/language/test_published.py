"""Checkpoints of fairseq's language model: the same function, and files that are refused."""

import argparse
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from flowformer.models.language.config import LANGUAGE_PRESETS
from flowformer.models.language.model import LanguageModel, load_fairseq_model
from flowformer.models.published import (
    convert_fairseq_state_dict,
    read_fairseq_checkpoint,
)

DIM, HEADS, LAYERS, FEEDFORWARD, VOCABULARY = 24, 3, 2, 40, 31
CONFIG = replace(
    LANGUAGE_PRESETS["wikitext-103"],
    mixer="softmax",
    mixer_options=None,
    dim=DIM,
    num_heads=HEADS,
    num_layers=LAYERS,
    feedforward=FEEDFORWARD,
)


def fairseq_state() -> dict[str, Tensor]:
    """The layout of a transformer_lm with a shared output layer, with random parameters."""

    def linear(name: str, inputs: int, outputs: int) -> dict[str, Tensor]:
        return {
            f"{name}.weight": torch.randn(outputs, inputs) * 2 / inputs**0.5,
            f"{name}.bias": torch.randn(outputs) * 0.3,
        }

    def norm(name: str) -> dict[str, Tensor]:
        return {f"{name}.weight": 1 + torch.randn(DIM) * 0.2, f"{name}.bias": torch.randn(DIM)}

    embedding = torch.randn(VOCABULARY, DIM) * DIM**-0.5
    state = {
        "decoder.version": torch.tensor([3.0]),
        "decoder.embed_tokens.weight": embedding,
        "decoder.embed_positions._float_tensor": torch.zeros(1),
        "decoder.output_projection.weight": embedding,
        **norm("decoder.layer_norm"),
    }
    for layer in range(LAYERS):
        prefix = f"decoder.layers.{layer}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            state |= linear(f"{prefix}.self_attn.{part}", DIM, DIM)
        state |= linear(f"{prefix}.fc1", DIM, FEEDFORWARD)
        state |= linear(f"{prefix}.fc2", FEEDFORWARD, DIM)
        state |= norm(f"{prefix}.self_attn_layer_norm") | norm(f"{prefix}.final_layer_norm")
    return state


def fairseq_logits(state: dict[str, Tensor], ids: Tensor) -> Tensor:
    """The model of fairseq written out for one sequence, in float64: ids [t] to logits [t, v]."""
    state = {name: value.double() for name, value in state.items()}

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(name: str, x: Tensor) -> Tensor:
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
        return x * state[f"{name}.weight"] + state[f"{name}.bias"]

    length = len(ids)
    frequencies = 10_000.0 ** -(torch.arange(DIM // 2).double() / (DIM // 2 - 1))
    places = torch.arange(2, 2 + length).double()  # after the place of padding, 1
    angles = places[:, None] * frequencies
    # The table is kept in float32.
    x = torch.cat((angles.sin(), angles.cos()), 1).float().double()
    x = x + DIM**0.5 * state["decoder.embed_tokens.weight"][ids]
    future = torch.ones(length, length).triu(1).bool()
    for layer in range(LAYERS):
        prefix = f"decoder.layers.{layer}"
        normed = norm(f"{prefix}.self_attn_layer_norm", x)
        query, key, value = (
            linear(f"{prefix}.self_attn.{part}", normed).view(length, HEADS, -1).transpose(0, 1)
            for part in ("q_proj", "k_proj", "v_proj")
        )
        scores = (query * (DIM // HEADS) ** -0.5) @ key.transpose(1, 2)
        weights = scores.masked_fill(future, -torch.inf).softmax(-1)
        mixed = (weights @ value).transpose(0, 1).reshape(length, DIM)
        x = x + linear(f"{prefix}.self_attn.out_proj", mixed)
        normed = norm(f"{prefix}.final_layer_norm", x)
        x = x + linear(f"{prefix}.fc2", F.relu(linear(f"{prefix}.fc1", normed)))
    return norm("decoder.layer_norm", x) @ state["decoder.embed_tokens.weight"].T


def write(path: Path, state: dict[str, Tensor], **entries: Any) -> Path:
    """A checkpoint with the entries that fairseq writes."""
    torch.save(
        {
            "args": None,
            "cfg": {"_name": None, "model": argparse.Namespace(arch="transformer_lm")},
            "model": state,
            "criterion": None,
            "optimizer_history": [{"num_updates": 150_000, "lr_scheduler_state": {"best": 3.4}}],
            "extra_state": {"epoch": 46, "train_iterator": {"shuffle": True}},
            "last_optimizer_state": {"state": {0: {"exp_avg": torch.zeros(3)}}},
            **entries,
        },
        path,
    )
    return path


def test_a_checkpoint_computes_what_fairseq_computes(tmp_path: Path) -> None:
    state = fairseq_state()
    model = load_fairseq_model(write(tmp_path / "best.pt", state), CONFIG).double().eval()
    ids = torch.randint(VOCABULARY, (1, 37))
    expected = fairseq_logits(state, ids[0])
    logits = model(ids).logits
    assert logits is not None
    torch.testing.assert_close(
        logits[0], expected, rtol=0, atol=1e-10 * float(expected.abs().max())
    )


def test_the_flow_preset_takes_every_parameter(tmp_path: Path) -> None:
    state = fairseq_state()
    config = replace(CONFIG, mixer="flow", mixer_options={"clamp": 5.0})
    model = load_fairseq_model(write(tmp_path / "best.pt", state), config)
    assert model.vocab_size == VOCABULARY
    assert model.state_dict().keys() == convert_fairseq_state_dict(state).keys()


def test_an_output_layer_of_its_own_is_kept() -> None:
    state = fairseq_state()
    state["decoder.output_projection.weight"] = torch.randn(VOCABULARY, DIM)
    untied = LanguageModel(replace(CONFIG, tie_embeddings=False), vocab_size=VOCABULARY)
    untied.load_state_dict(convert_fairseq_state_dict(state))
    assert untied.output_weight.equal(state["decoder.output_projection.weight"])


def test_settings_in_a_namespace_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "old.pt", fairseq_state(), args=argparse.Namespace(dropout=0.1))
    assert "decoder.embed_tokens.weight" in read_fairseq_checkpoint(path)


class Malicious:
    """Pickles as a call that leaves a file behind."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_file_with_code_in_it_is_refused_and_does_not_run(tmp_path: Path, zipped: bool) -> None:
    path, target = tmp_path / "best.pt", tmp_path / "pwned"
    content = {"model": fairseq_state(), "extra_state": Malicious(target)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"best.pt refused: it holds (posix|nt).mkdir.*any code"):
        load_fairseq_model(path, CONFIG)
    assert not target.exists()


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "best.pt", fairseq_state())
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="no checkpoint that torch can read"):
        read_fairseq_checkpoint(path)


def test_a_missing_file_is_told_as_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_fairseq_checkpoint(tmp_path / "best.pt")


@pytest.mark.parametrize("content", [{"state": {}}, [1, 2], {"model": {"epoch": 3}}], ids=str)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="expected parameters in entry 'model'"):
        read_fairseq_checkpoint(tmp_path / "other.pt")


def test_another_kind_of_model_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "mt.pt", {"encoder.embed_tokens.weight": torch.zeros(3, 4)})
    with pytest.raises(ValueError, match=r"no fairseq language model.*decoder.embed_tokens.weight"):
        load_fairseq_model(path, CONFIG)


def test_a_checkpoint_of_another_shape_lists_every_difference(tmp_path: Path) -> None:
    state = fairseq_state()
    state["decoder.layers.2.fc1.bias"] = state.pop("decoder.layers.1.fc1.bias")
    state["decoder.layers.0.fc2.bias"] = torch.zeros(25)
    with pytest.raises(ValueError, match="not the parameters of a fairseq") as caught:
        load_fairseq_model(write(tmp_path / "best.pt", state), CONFIG)
    for line in (
        "missing: blocks.1.linear1.bias",
        "not known: decoder.layers.2.fc1.bias",
        "decoder.layers.0.fc2.bias: expected (24,), got (25,)",
    ):
        assert line in str(caught.value)
